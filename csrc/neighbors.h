// The functions of a device that the entry points of neighbour search call, after they have checked the arguments.
#ifndef ERWIN_NEIGHBORS_H_
#define ERWIN_NEIGHBORS_H_

#include <algorithm>
#include <cstdint>

#include "layout.h"

namespace erwin {

// The points of a batch, with the order of a tree.
struct Points {
  Layout layout;
  const void* pos;
  const int64_t* ptr;
  const int64_t* perm;
};

// The arguments that all searches have in common.
struct NeighborsCall {
  const erwin_context* context;
  int32_t dtype;
  int64_t clouds, dim;
  Points points;   // among which neighbours are searched
  Points queries;  // whose neighbours are searched
  bool within;     // whether the queries are the points themselves
  void* workspace;
};

// The searches of a device. All but the first return an erwin_status. `loop` tells whether a query may be its own
// neighbour; it is true if the queries are other points.
struct NeighborsKernels {
  // Returns bytes, or kTooLarge if the number does not fit.
  int64_t (*workspace)(const NeighborsCall&);
  int32_t (*knn)(const NeighborsCall&, int64_t k, bool loop, int64_t* source, int64_t* target);
  int32_t (*radius_count)(const NeighborsCall&, double radius, int64_t cap, bool loop, int64_t* degree,
                          erwin_found** found);
  int32_t (*radius_fill)(const NeighborsCall&, double radius, int64_t cap, bool loop, const erwin_found* found,
                         const int64_t* degree, int64_t* source, int64_t* target);
};

// The neighbours that every query gets in a k-NN search: k, or fewer in a cloud of few points.
inline int64_t most_neighbors(int64_t points, int64_t k, bool loop) {
  return std::max<int64_t>(0, std::min(k, points - (loop ? 0 : 1)));
}

// The largest squared distance within a radius.
template <typename T>
T squared(double radius) {
  return static_cast<T>(radius) * static_cast<T>(radius);
}

}  // namespace erwin

#endif  // ERWIN_NEIGHBORS_H_
