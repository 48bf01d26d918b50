// Checks of the arguments that many entry points have in common.
#ifndef ERWIN_ARGUMENTS_H_
#define ERWIN_ARGUMENTS_H_

#include <cstdint>

#include "erwin.h"
#include "scalars.h"

namespace erwin {

constexpr int64_t kMostItems = int64_t{1} << 48;  // rows, edges or elements: more than any memory holds

inline bool is_count(int64_t items) { return items >= 0 && items <= kMostItems; }

inline bool valid_context(const erwin_context* context) { return context != nullptr && context->num_threads >= 1; }

// Checks the context of an entry point that exists on the host only.
inline int32_t check_host(const erwin_context* context) {
  if (!valid_context(context)) return ERWIN_INVALID_ARGUMENT;
  return context->device == ERWIN_HOST ? ERWIN_OK : ERWIN_UNSUPPORTED;
}

inline int32_t check_isa(int32_t isa) {
  if (isa < -1) return ERWIN_INVALID_ARGUMENT;
  return isa <= erwin_cpu_isa() ? ERWIN_OK : ERWIN_UNSUPPORTED;
}

inline bool valid_dim(int64_t dim) { return dim >= 1 && dim <= ERWIN_MAX_DIM; }

// Whether an array [rows, columns] is valid: not NULL, unless it has no elements.
inline bool is_given(const void* array, int64_t rows, int64_t columns = 1) {
  return array != nullptr || rows == 0 || columns == 0;
}

// Whether a workspace on a device is not NULL and aligned.
inline bool valid_device_memory(const void* workspace) {
  return workspace != nullptr && reinterpret_cast<uintptr_t>(workspace) % ERWIN_DEVICE_ALIGNMENT == 0;
}

}  // namespace erwin

#endif  // ERWIN_ARGUMENTS_H_
