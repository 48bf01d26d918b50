// How a long call on the host is stopped.
#ifndef ERWIN_CPU_INTERRUPTS_H_
#define ERWIN_CPU_INTERRUPTS_H_

#include <atomic>
#include <chrono>
#include <thread>

#include "../guarded.h"

namespace erwin {

// Asks the caller whether to go on, now and then, and keeps the answer for all threads of the call.
class Interrupts {
 public:
  static constexpr std::chrono::milliseconds kPause{20};  // between two questions

  // Never interrupted.
  Interrupts() = default;
  explicit Interrupts(const erwin_context& context) : ask_(context.interrupted) {}

  // Throws `Interrupted` if the call is to stop. Only the thread that made the call asks. Cheap, but not for free: for
  // every few microseconds of work.
  void check() {
    if (ask_ == nullptr) return;
    if (std::this_thread::get_id() == caller_ && !stopped_.load(std::memory_order_relaxed)) {
      const Clock::time_point now = Clock::now();
      if (now >= next_) {
        next_ = now + kPause;
        if (ask_() != 0) stopped_.store(true, std::memory_order_relaxed);
      }
    }
    if (stopped_.load(std::memory_order_relaxed)) throw Interrupted{};
  }

 private:
  using Clock = std::chrono::steady_clock;

  const erwin_interrupted ask_ = nullptr;
  const std::thread::id caller_ = std::this_thread::get_id();
  Clock::time_point next_ = Clock::now() + kPause;
  std::atomic<bool> stopped_{false};
};

}  // namespace erwin

#endif  // ERWIN_CPU_INTERRUPTS_H_
