// What entry points ask of the arguments that many of them have.
#ifndef ERWIN_ARGUMENTS_H_
#define ERWIN_ARGUMENTS_H_

#include <cstdint>

#include "erwin.h"

namespace erwin {

inline bool valid_context(const erwin_context* context) { return context != nullptr && context->num_threads >= 1; }

inline bool valid_scalar(int32_t dtype) { return dtype == ERWIN_FLOAT32 || dtype == ERWIN_FLOAT64; }

inline bool valid_dim(int64_t dim) { return dim >= 1 && dim <= ERWIN_MAX_DIM; }

// Whether an array is there, or has no elements and need not be.
inline bool is_given(const void* array, int64_t count) { return array != nullptr || count == 0; }

// Whether a workspace on a device is there and aligned.
inline bool valid_device_memory(const void* workspace) {
  return workspace != nullptr && reinterpret_cast<uintptr_t>(workspace) % ERWIN_DEVICE_ALIGNMENT == 0;
}

}  // namespace erwin

#endif  // ERWIN_ARGUMENTS_H_
