// The record of a point while the tree is built.
#ifndef ERWIN_CPU_RECORD_H_
#define ERWIN_CPU_RECORD_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../geometry.h"

namespace erwin {

// The size of a record in bytes, rounded up to a power of two so that it is copied by one vector instruction.
template <typename T, int D>
constexpr size_t record_size() {
  size_t size = 2 * sizeof(int32_t);
  while (size < D * sizeof(T) + sizeof(int32_t)) size *= 2;
  return size;
}

// A point while the tree is built. D is the dimension, or 0 if it is known only at run time.
template <typename T, int D>
struct alignas(record_size<T, D>()) Record {
  using Scalar = T;
  typedef T Lanes __attribute__((vector_size(record_size<T, D>())));
  T x[D];
  int32_t index;

  void load(const T* pos, int64_t i) {
    Lanes lanes{};
    for (int a = 0; a < D; ++a) lanes[a] = pos[a];
    store(lanes, i);
  }

  // Loads pos @ rotation, with the same operations in every lane as `rotate`, so that the bits are the same.
  void load_rotated(const T* pos, const T* rotation, int64_t i) {
    Lanes sum{};
    for (int row = 0; row < D; ++row) {
      Lanes factors{};
      for (int column = 0; column < D; ++column) factors[column] = rotation[row * D + column];
      sum += pos[row] * factors;
    }
    store(sum, i);
  }

  T at(int32_t axis) const { return x[axis]; }

 private:
  void store(const Lanes& lanes, int64_t i) {
    const Lanes kept = lanes == lanes ? lanes : Lanes{};  // NaN becomes 0, as in `ordered`
    std::memcpy(static_cast<void*>(this), &kept, sizeof(kept));
    index = static_cast<int32_t>(i);
  }
};

template <typename T>
struct Record<T, 0> {
  using Scalar = T;
  const T* x;
  int32_t index;
  void load(const T* pos, int64_t i) {
    x = pos;
    index = static_cast<int32_t>(i);
  }
  T at(int32_t axis) const { return ordered(x[axis]); }
};

}  // namespace erwin

#endif  // ERWIN_CPU_RECORD_H_
