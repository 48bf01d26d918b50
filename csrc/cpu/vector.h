// Vectors of float32 in the compiler's vector extensions, as wide as the instruction set that a file is compiled for.
//
// Everything is in an anonymous namespace and inlined: the linker must not merge functions of different instruction
// sets.
#ifndef ERWIN_CPU_VECTOR_H_
#define ERWIN_CPU_VECTOR_H_

#include <cstdint>
#include <cstring>

#define ERWIN_INLINE inline __attribute__((always_inline))

namespace erwin {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

ERWIN_INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

template <int L>
struct VectorOf {
  typedef float type __attribute__((vector_size(4 * L)));
  typedef int32_t bits __attribute__((vector_size(4 * L)));
};

template <int L>
using Vector = typename VectorOf<L>::type;

template <int L>
using Bits = typename VectorOf<L>::bits;

template <int L>
ERWIN_INLINE Vector<L> load(const float* from) {
  Vector<L> x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <int L>
ERWIN_INLINE void store(float* to, Vector<L> x) {
  std::memcpy(to, &x, sizeof x);
}

template <int L>
ERWIN_INLINE Vector<L> broadcast(float x) {
  return x - Vector<L>{};  // x + 0 would not keep the sign of a zero
}

// Adds halves, then quarters, and so on: the order of additions is the same for every width of registers.
template <int L>
ERWIN_INLINE float sum(Vector<L> x) {
  if constexpr (L == 2) {
    return x[0] + x[1];
  } else {
    Vector<L / 2> halves[2];
    std::memcpy(halves, &x, sizeof x);
    return sum<L / 2>(halves[0] + halves[1]);
  }
}

}  // namespace
}  // namespace erwin

#endif  // ERWIN_CPU_VECTOR_H_
