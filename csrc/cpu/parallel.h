// What all host kernels use: the error boundary, and parallel loops over the threads of a call.
#ifndef ERWIN_CPU_PARALLEL_H_
#define ERWIN_CPU_PARALLEL_H_

#include <algorithm>
#include <cstdint>

#include "../guarded.h"
#include "../layout.h"
#include "interrupts.h"
#include "team.h"

namespace erwin {

constexpr int64_t kSerialPoints = 1024;  // for fewer points a second thread does not pay off

// Calls body(worker, i) for every i. A thread takes `chunk` of them at a time; calls with the same worker do not
// overlap. If a body throws, the exception is thrown again after all running bodies have ended.
template <typename F>
void parallel_for(Interrupts& interrupts, int32_t num_threads, int64_t count, int64_t chunk, const F& body) {
  const int64_t chunks = ceil_div(count, chunk);
  const auto run_chunk = [&](int32_t worker, int64_t number) {
    const int64_t last = std::min((number + 1) * chunk, count);
    for (int64_t i = number * chunk; i < last; ++i) body(worker, i);
  };
  with_team(static_cast<int32_t>(std::min<int64_t>(num_threads, chunks)), interrupts,
            [&](Team& team) { team.run_last(chunks, run_chunk); });
}

template <typename F>
void parallel_for(int32_t num_threads, int64_t count, int64_t chunk, const F& body) {
  Interrupts none;
  parallel_for(none, num_threads, count, chunk, body);
}

}  // namespace erwin

#endif  // ERWIN_CPU_PARALLEL_H_
