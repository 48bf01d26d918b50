// What the entry points of neighbour search need of a device: arguments are checked before.
#ifndef ERWIN_NEIGHBORS_H_
#define ERWIN_NEIGHBORS_H_

#include <cstdint>

#include "layout.h"

namespace erwin {

// The arguments that all searches share.
struct NeighborsCall {
  const erwin_context* context;
  Layout layout;
  int32_t dtype;
  const void* pos;
  const int64_t* ptr;
  int64_t clouds, dim;
  const int64_t* perm;
  void* workspace;
};

// All but the first return an erwin_status.
struct NeighborsDevice {
  int64_t (*workspace)(const NeighborsCall&);
  int32_t (*knn)(const NeighborsCall&, int64_t k, bool loop, int64_t* source, int64_t* target);
  int32_t (*radius_count)(const NeighborsCall&, double radius, int64_t cap, bool loop, int64_t* degree,
                          erwin_found** found);
  int32_t (*radius_fill)(const NeighborsCall&, double radius, int64_t cap, bool loop, const erwin_found* found,
                         const int64_t* degree, int64_t* source, int64_t* target);
};

extern const NeighborsDevice kEmulatedNeighbors, kCudaNeighbors;

// Calls f(T{}) with the type of a dtype.
template <typename F>
auto with_scalar(int32_t dtype, const F& f) {
  return dtype == ERWIN_FLOAT64 ? f(double{}) : f(float{});
}

}  // namespace erwin

#endif  // ERWIN_NEIGHBORS_H_
