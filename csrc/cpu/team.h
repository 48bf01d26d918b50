// A team of threads that one of them leads.
//
// The leader publishes jobs, works on them too, and at the end waits only for chunks that have been started. So a
// helper that gets no core at the moment delays nothing unless it has started a chunk. Threads that wait for long go to
// sleep, so a team takes no core from other programs.
//
// If a chunk throws, on any thread, its job ends. The leader throws the exception again when no chunk is running any
// more. If a thread cannot be started, or there is no memory to invite it, the team is smaller.
#ifndef ERWIN_CPU_TEAM_H_
#define ERWIN_CPU_TEAM_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "interrupts.h"

namespace erwin {

// The jobs of a team, one after the other. Leader and helpers share this object; a helper may arrive after the last
// job.
class Jobs {
 public:
  explicit Jobs(Interrupts& interrupts) : interrupts_(interrupts) {}

  // Called by the leader: calls call(body, worker, i) for every i below `count`. Helpers leave after the last job.
  void run(void (*call)(const void*, int32_t, int64_t), const void* body, int64_t count, bool last) {
    call_ = call;
    body_ = body;
    pending_.store(count, std::memory_order_relaxed);
    number_ += 1;
    ticket_.store(number_ << kCountBits | static_cast<uint64_t>(count));
    if (last) ended_.store(true);
    wake();
    work(0);
    for (int32_t i = 0; i < kPatience && pending_.load() != 0; ++i) std::this_thread::yield();
    while (pending_.load() != 0) sleep();
    if (!failed_.load()) return;
    failed_.store(false);
    std::rethrow_exception(std::exchange(error_, nullptr));
  }

  // Called by the leader after the last job.
  void end() {
    ended_.store(true);
    wake();
  }

  // Called by a helper: works until the last job is done.
  void help(int32_t worker) {
    const auto due = [this] { return ended_.load() || has_chunk(ticket_.load()); };
    while (true) {
      const bool ended = ended_.load();  // read before work(): once it is true, the last job is already published
      work(worker);
      if (ended) return;
      for (int32_t i = 0; i < kPatience && !due(); ++i) std::this_thread::yield();
      if (due()) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1);
      published_.wait(lock, due);
      sleepers_.fetch_sub(1);
    }
  }

 private:
  // Takes chunks of the current job, starting with the last one. A ticket holds the job's number and how many chunks
  // are left, so that no chunk can be taken from a job that is over.
  void work(int32_t worker) {
    uint64_t ticket = ticket_.load();
    while (has_chunk(ticket)) {
      if (!ticket_.compare_exchange_weak(ticket, ticket - 1)) continue;
      // If the job has failed, the remaining chunks are counted but not run.
      if (!failed_.load()) {
        attempt([&] {
          interrupts_.check();
          call_(body_, worker, static_cast<int64_t>(ticket & kMask) - 1);
        });
      }
      if (pending_.fetch_sub(1) == 1 && leader_sleeps_.load()) {
        const std::lock_guard<std::mutex> lock(mutex_);
        finished_.notify_one();
      }
      ticket = ticket_.load();
    }
  }

  // Keeps the first exception of a job.
  template <typename F>
  void attempt(const F& f) noexcept {
    try {
      f();
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
  }

  // Called by the leader while helpers finish their chunks: sleeps until they are done, or until it is time to ask the
  // caller again whether to continue.
  void sleep() {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      leader_sleeps_.store(true);
      finished_.wait_for(lock, Interrupts::kPause, [this] { return pending_.load() == 0; });
      leader_sleeps_.store(false);
    }
    attempt([this] { interrupts_.check(); });
  }

  // Called after a change that sleepers wait for. A sleeper is counted before it checks for the change, so none is
  // missed.
  void wake() {
    if (sleepers_.load() == 0) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    published_.notify_all();
  }

  static bool has_chunk(uint64_t ticket) { return (ticket & kMask) != 0; }

  static constexpr int32_t kCountBits = 40;  // bits of a ticket for the chunks left; the job's number is above
  static constexpr uint64_t kMask = (uint64_t{1} << kCountBits) - 1;
  static constexpr int32_t kPatience = 100;  // times that a thread yields before it sleeps: tens of microseconds
  Interrupts& interrupts_;
  uint64_t number_ = 0;
  void (*call_)(const void*, int32_t, int64_t) = nullptr;
  const void* body_ = nullptr;
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int64_t> pending_{0};
  std::atomic<bool> leader_sleeps_{false};
  alignas(64) std::atomic<int32_t> sleepers_{0};
  std::atomic<bool> ended_{false};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;  // set by the thread that sets `failed_`, before its chunk is counted as done
  std::mutex mutex_;
  std::condition_variable published_, finished_;
};

// The helpers of all teams of the process: threads that sleep until a leader invites them. They are never joined and
// the pool is never destroyed, because a process may exit while they sleep.
class Helpers {
 public:
  static Helpers& get() {
    static auto* const helpers = new Helpers;
    return *helpers;
  }

  // Invites workers 1 .. count, or fewer if no more threads can be started or memory is short: the leader can work
  // alone. Teams that work at the same time share the threads.
  void invite(const std::shared_ptr<Jobs>& jobs, int32_t count) {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      for (int32_t worker = 1; worker <= count; ++worker) invitations_.push_back({jobs, worker});
      for (; threads_ < count; ++threads_) std::thread([this] { serve(); }).detach();
    } catch (const std::exception&) {
    }
    for (int32_t i = 0; i < count; ++i) invited_.notify_one();
  }

  // Withdraws the invitations that no thread has accepted yet.
  void withdraw(const std::shared_ptr<Jobs>& jobs) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto of_jobs = [&](const Invitation& invitation) { return invitation.jobs == jobs; };
    invitations_.erase(std::remove_if(invitations_.begin(), invitations_.end(), of_jobs), invitations_.end());
  }

 private:
  struct Invitation {
    std::shared_ptr<Jobs> jobs;
    int32_t worker;
  };

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      invited_.wait(lock, [this] { return !invitations_.empty(); });
      const Invitation invitation = std::move(invitations_.front());
      invitations_.pop_front();
      lock.unlock();
      invitation.jobs->help(invitation.worker);
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable invited_;
  std::deque<Invitation> invitations_;
  int32_t threads_ = 0;
};

class Team {
 public:
  // A team of one thread.
  explicit Team(Interrupts& interrupts) : interrupts_(interrupts) {}
  Team(Interrupts& interrupts, int32_t size, Jobs* jobs) : interrupts_(interrupts), size_(size), jobs_(jobs) {}

  int32_t size() const { return size_; }

  // Calls body(worker, i) for every i below `count`; calls with one worker do not overlap. Throws what one of them
  // throws, or `Interrupted`.
  template <typename F>
  void run(int64_t count, const F& body) {
    run_job(count, body, false);
  }

  // The same for the last job: afterwards the team cannot be used.
  template <typename F>
  void run_last(int64_t count, const F& body) {
    run_job(count, body, true);
  }

 private:
  template <typename F>
  void run_job(int64_t count, const F& body, bool last) {
    if (size_ == 1 || count <= 1) {
      for (int64_t i = 0; i < count; ++i) {
        interrupts_.check();
        body(0, i);
      }
      return;
    }
    const auto call = [](const void* job, int32_t worker, int64_t i) { (*static_cast<const F*>(job))(worker, i); };
    jobs_->run(call, &body, count, last);
  }

  Interrupts& interrupts_;
  int32_t size_ = 1;
  Jobs* jobs_ = nullptr;
};

// Calls lead(team) with a team of `num_threads`; throws what it throws.
//
// OpenMP's threads are the first choice: after PyTorch has used them they spin for milliseconds, and other threads
// would have to wait for their cores. But the end of an OpenMP region waits for all threads, also for those that had no
// work. If a region ends late, other programs probably use the cores: for one second the process then uses its own
// helpers instead.
template <typename F>
void with_team(int32_t num_threads, Interrupts& interrupts, const F& lead) {
  if (num_threads <= 1) {
    Team alone(interrupts);
    return lead(alone);
  }
  const auto jobs = std::make_shared<Jobs>(interrupts);
  Team team(interrupts, num_threads, jobs.get());
#if defined(_OPENMP)
  using Clock = std::chrono::steady_clock;
  static std::atomic<Clock::rep> crowded_until{Clock::time_point::min().time_since_epoch().count()};
  if (Clock::now().time_since_epoch().count() >= crowded_until.load(std::memory_order_relaxed)) {
    Clock::time_point end;
    std::exception_ptr error;  // no exception may leave an OpenMP region
#pragma omp parallel num_threads(num_threads)
    {
      const int32_t worker = omp_get_thread_num();
      if (worker == 0) {
        try {
          lead(team);
        } catch (...) {
          error = std::current_exception();
        }
        jobs->end();
        end = Clock::now();
      } else {
        jobs->help(worker);
      }
    }
    const Clock::time_point left = Clock::now();
    if (left - end > std::chrono::milliseconds(1))
      crowded_until.store((left + std::chrono::seconds(1)).time_since_epoch().count(), std::memory_order_relaxed);
    if (error != nullptr) std::rethrow_exception(error);
    return;
  }
#endif
  struct Invited {
    Helpers& helpers;
    const std::shared_ptr<Jobs>& jobs;
    Invited(int32_t count, const std::shared_ptr<Jobs>& to) : helpers(Helpers::get()), jobs(to) {
      helpers.invite(jobs, count);
    }
    ~Invited() {
      helpers.withdraw(jobs);
      jobs->end();
    }
  } const invited(num_threads - 1, jobs);
  lead(team);
}

}  // namespace erwin

#endif  // ERWIN_CPU_TEAM_H_
