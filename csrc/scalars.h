// The types of coordinates.
#ifndef ERWIN_SCALARS_H_
#define ERWIN_SCALARS_H_

#include "erwin.h"

namespace erwin {

inline bool valid_scalar(int32_t dtype) { return dtype == ERWIN_FLOAT32 || dtype == ERWIN_FLOAT64; }

// Calls f(T{}), where T is the C++ type of a dtype.
template <typename F>
auto with_scalar(int32_t dtype, const F& f) {
  return dtype == ERWIN_FLOAT64 ? f(double{}) : f(float{});
}

}  // namespace erwin

#endif  // ERWIN_SCALARS_H_
