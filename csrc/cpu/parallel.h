// What every host kernel shares: the error boundary and OpenMP where the compiler has it.
#ifndef ERWIN_CPU_PARALLEL_H_
#define ERWIN_CPU_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>

#include "../layout.h"

namespace erwin {

constexpr int64_t kSerialPoints = 1024;  // batches below this are not worth a second thread

// Runs a kernel and turns what it throws into a status: no exception leaves the library.
template <typename F>
int32_t guarded(F&& kernel) {
  try {
    kernel();
    return ERWIN_OK;
  } catch (const std::bad_alloc&) {
    return ERWIN_OUT_OF_MEMORY;
  } catch (...) {
    return ERWIN_INTERNAL_ERROR;
  }
}

// Calls body(worker, i) for every i; calls with the same worker do not overlap. The body must not throw.
template <typename F>
void parallel_for(int32_t num_threads, int64_t count, int64_t chunk, const F& body) {
  const auto workers = static_cast<int32_t>(std::min<int64_t>(num_threads, ceil_div(count, chunk)));
  if (workers <= 1) {
    for (int64_t i = 0; i < count; ++i) body(0, i);
    return;
  }
  std::atomic<int64_t> next{0};
#pragma omp parallel for num_threads(workers) schedule(static, 1)
  for (int32_t worker = 0; worker < workers; ++worker) {
    for (int64_t first = next.fetch_add(chunk); first < count; first = next.fetch_add(chunk)) {
      const int64_t last = std::min(first + chunk, count);
      for (int64_t i = first; i < last; ++i) body(worker, i);
    }
  }
}

}  // namespace erwin

#endif  // ERWIN_CPU_PARALLEL_H_
