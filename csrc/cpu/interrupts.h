// How a long call on the host is stopped.
#ifndef ERWIN_CPU_INTERRUPTS_H_
#define ERWIN_CPU_INTERRUPTS_H_

#include <atomic>
#include <chrono>
#include <thread>

#include "../guarded.h"

namespace erwin {

// Asks the caller from time to time whether to continue, and passes the answer to all threads of the call.
class Interrupts {
 public:
  static constexpr std::chrono::milliseconds kPause{20};  // the time between two questions

  // Never interrupts the call.
  Interrupts() = default;
  explicit Interrupts(const erwin_context& context) : ask_(context.interrupted) {}

  // Throws `Interrupted` if the call must stop. Only the thread that made the call asks the caller. This costs little,
  // but not nothing: call it once per several microseconds of work, not more often.
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
