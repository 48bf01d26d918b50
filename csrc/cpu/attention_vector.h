// Vectors of float32 in the compiler's vector extensions, as wide as the instruction set that a file is compiled for.
//
// Everything is in an anonymous namespace and inlined: no function of one instruction set may stand in for another's.
#ifndef ERWIN_CPU_ATTENTION_VECTOR_H_
#define ERWIN_CPU_ATTENTION_VECTOR_H_

#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define ERWIN_INLINE inline __attribute__((always_inline))

namespace erwin {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr __mmask16 kAll = 0xffff;  // intrinsics without a mask warn of an uninitialised vector in GCC 12
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

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

// Keeps a NaN of `b`.
template <int L>
ERWIN_INLINE Vector<L> larger(Vector<L> a, Vector<L> b) {
  return a > b ? a : b;
}

template <int L>
ERWIN_INLINE float sum(Vector<L> x) {
  float lanes[L];
  store<L>(lanes, x);
  for (int s = L / 2; s > 0; s /= 2) {
    for (int i = 0; i < s; ++i) lanes[i] += lanes[i + s];
  }
  return lanes[0];
}

template <int L>
ERWIN_INLINE Vector<L> square_root(Vector<L> x) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return _mm512_maskz_sqrt_ps(kAll, x);
#endif
#if defined(__AVX2__)
  if constexpr (L == 8) return _mm256_sqrt_ps(x);
#endif
#if defined(__SSE2__)
  if constexpr (L == 4) return _mm_sqrt_ps(x);
#endif
  Vector<L> y;
  for (int i = 0; i < L; ++i) y[i] = __builtin_sqrtf(x[i]);
  return y;
}

// 2^r for |r| <= 1/2 to 1.7e-7 of its value: the fit of degree 5 whose largest relative error is least among those that
// are exactly 1 at 0.
template <int L>
ERWIN_INLINE Vector<L> exp2_of_fraction(Vector<L> r) {
  Vector<L> y = broadcast<L>(0x1.5bba14p-10f);
  y = y * r + 0x1.3cea88p-7f;
  y = y * r + 0x1.c6b752p-5f;
  y = y * r + 0x1.ebf9bcp-3f;
  y = y * r + 0x1.62e42ap-1f;
  return y * r + 1.0f;
}

// 2^x to 2e-7 of its value for x <= 128; below -126 it is zero.
template <int L>
ERWIN_INLINE Vector<L> exp2(Vector<L> x) {
#if defined(__AVX512F__)
  if constexpr (L == 16) {
    const Vector<L> whole = _mm512_maskz_roundscale_ps(kAll, x, _MM_FROUND_TO_NEAREST_INT);
    return _mm512_maskz_scalef_ps(kAll, exp2_of_fraction<L>(x - whole), whole);
  }
#endif
  const Vector<L> clamped = x < -126.0f ? broadcast<L>(-126.0f) : x;
  constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23: the sum's low bits hold the nearest integer
  const Vector<L> shifted = clamped + kRounding;
  Bits<L> bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;
  Vector<L> power;
  std::memcpy(&power, &bits, sizeof power);
  const Vector<L> y = exp2_of_fraction<L>(clamped - (shifted - kRounding)) * power;
  return x < -126.0f ? Vector<L>{} : y;
}

}  // namespace
}  // namespace erwin

#endif  // ERWIN_CPU_ATTENTION_VECTOR_H_
