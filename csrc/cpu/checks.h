// What every host kernel may ask of its arguments.
#ifndef ERWIN_CPU_CHECKS_H_
#define ERWIN_CPU_CHECKS_H_

#include <cstdint>

#include "../erwin.h"

namespace erwin {

constexpr int64_t kMostItems = int64_t{1} << 48;  // rows, edges or elements: more than any memory holds

inline bool is_count(int64_t items) { return items >= 0 && items <= kMostItems; }

// An array [rows, columns] may be NULL if it has no elements.
inline bool is_array(const void* data, int64_t rows, int64_t columns) {
  return data != nullptr || rows == 0 || columns == 0;
}

inline int32_t check_context(const erwin_context* context) {
  if (context == nullptr || context->num_threads < 1) return ERWIN_INVALID_ARGUMENT;
  return context->device == ERWIN_HOST ? ERWIN_OK : ERWIN_UNSUPPORTED;
}

inline int32_t check_isa(int32_t isa) {
  if (isa < -1) return ERWIN_INVALID_ARGUMENT;
  return isa <= erwin_cpu_isa() ? ERWIN_OK : ERWIN_UNSUPPORTED;
}

}  // namespace erwin

#endif  // ERWIN_CPU_CHECKS_H_
