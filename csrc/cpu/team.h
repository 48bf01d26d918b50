// A team of threads that one of them leads.
//
// The leader hands out jobs, works on them and waits for chunks in progress only: a helper that has no core at the
// moment delays nothing that it has not begun. Idle threads yield. The threads are OpenMP's, because PyTorch uses the
// same ones: a second pool would share the cores with OpenMP's idle threads, which spin for milliseconds.
#ifndef ERWIN_CPU_TEAM_H_
#define ERWIN_CPU_TEAM_H_

#include <atomic>
#include <cstdint>
#include <thread>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace erwin {

class Team {
 public:
  // A team of one, which calls everything itself.
  Team() = default;
  explicit Team(int32_t size) : size_(size) {}

  int32_t size() const { return size_; }

  // The leader's: calls body(worker, i) for every i below `count`; calls with one worker do not overlap.
  template <typename F>
  void run(int64_t count, const F& body) {
    if (size_ == 1 || count == 1) {
      for (int64_t i = 0; i < count; ++i) body(0, i);
      return;
    }
    call_ = [](const void* job, int32_t worker, int64_t i) { (*static_cast<const F*>(job))(worker, i); };
    body_ = &body;
    pending_.store(count, std::memory_order_relaxed);
    job_ += 1;
    ticket_.store(job_ << 48 | static_cast<uint64_t>(count) << 24, std::memory_order_release);
    work(0);
    while (pending_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
  }

  // A helper's: works until the leader dismisses the team.
  void help(int32_t worker) {
    while (!dismissed_.load(std::memory_order_acquire)) {
      work(worker);
      std::this_thread::yield();
    }
  }

  void dismiss() { dismissed_.store(true, std::memory_order_release); }

 private:
  // Takes chunks of the job in hand. A ticket names the job, its chunks and the next of them, so that a chunk is never
  // taken from a job that is over.
  void work(int32_t worker) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while ((ticket & kMask) < (ticket >> 24 & kMask)) {
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
      call_(body_, worker, static_cast<int64_t>(ticket & kMask));
      pending_.fetch_sub(1, std::memory_order_acq_rel);
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  static constexpr uint64_t kMask = (1u << 24) - 1;
  int32_t size_ = 1;
  uint64_t job_ = 0;
  void (*call_)(const void*, int32_t, int64_t) = nullptr;
  const void* body_ = nullptr;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> pending_{0};
  std::atomic<bool> dismissed_{false};
};

// Calls lead(team) with a team of `num_threads`. Nothing may throw while the team is at work.
template <typename F>
void with_team(int32_t num_threads, const F& lead) {
  Team team(num_threads);
#pragma omp parallel num_threads(num_threads)
  {
#if defined(_OPENMP)
    const int32_t worker = omp_get_thread_num();
#else
    const int32_t worker = 0;
#endif
    if (worker == 0) {
      lead(team);
      team.dismiss();
    } else {
      team.help(worker);
    }
  }
}

}  // namespace erwin

#endif  // ERWIN_CPU_TEAM_H_
