// Arithmetic on coordinates. All builders of trees use it, so that they round and order in the same way.
#ifndef ERWIN_GEOMETRY_H_
#define ERWIN_GEOMETRY_H_

#include <cstdint>
#include <cstring>

#include "layout.h"

namespace erwin {

// Maps a coordinate to an unsigned integer of the same size. Keys have the same order as coordinates. -0.0 and +0.0
// have the same key.
ERWIN_HOST_DEVICE inline uint32_t ordered_key(float x) {
  x += 0.0f;
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits ^ ((bits >> 31) * 0x7fffffffu | 0x80000000u);
}

ERWIN_HOST_DEVICE inline uint64_t ordered_key(double x) {
  x += 0.0;
  uint64_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits ^ ((bits >> 63) * 0x7fffffffffffffffu | 0x8000000000000000u);
}

// The coordinate with this key: the inverse of `ordered_key`.
ERWIN_HOST_DEVICE inline float coordinate_of(uint32_t key) {
  const uint32_t bits = key ^ (((key >> 31) ^ 1) * 0x7fffffffu | 0x80000000u);
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

ERWIN_HOST_DEVICE inline double coordinate_of(uint64_t key) {
  const uint64_t bits = key ^ (((key >> 63) ^ 1) * 0x7fffffffffffffffu | 0x8000000000000000u);
  double x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// Replaces NaN, which has no order, by 0.
template <typename T>
ERWIN_HOST_DEVICE T ordered(T x) {
  return x == x ? x : T{0};
}

// x @ rotation, with separate multiplications and additions (no fused multiply-add). If terms overflow to both +inf and
// -inf, the sum is NaN. All sums are computed side by side, so that `rotation` is read in the order of its memory.
template <typename T>
ERWIN_HOST_DEVICE void rotate(const T* x, const T* rotation, int32_t dim, T* out) {
  for (int32_t column = 0; column < dim; ++column) out[column] = 0;
  for (int32_t row = 0; row < dim; ++row) {
    const T* const factors = rotation + static_cast<int64_t>(row) * dim;
    for (int32_t column = 0; column < dim; ++column) out[column] += x[row] * factors[column];
  }
  for (int32_t column = 0; column < dim; ++column) out[column] = ordered(out[column]);
}

}  // namespace erwin

#endif  // ERWIN_GEOMETRY_H_
