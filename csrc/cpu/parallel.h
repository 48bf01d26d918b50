// What every host kernel shares: the error boundary and OpenMP where the compiler has it.
#ifndef ERWIN_CPU_PARALLEL_H_
#define ERWIN_CPU_PARALLEL_H_

#include <new>

#include "../erwin.h"

namespace erwin {

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

}  // namespace erwin

#endif  // ERWIN_CPU_PARALLEL_H_
