// Functions of vectors: square roots, powers of two and their inverse.
#ifndef ERWIN_CPU_VECTOR_MATH_H_
#define ERWIN_CPU_VECTOR_MATH_H_

#include "vector.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace erwin {
namespace {

#if defined(__AVX512F__)
constexpr __mmask16 kAll = 0xffff;  // GCC 12 warns of an uninitialised vector in intrinsics without a mask
#endif

// The result is NaN where `b` is NaN.
template <int L>
ERWIN_INLINE Vector<L> larger(Vector<L> a, Vector<L> b) {
  return a > b ? a : b;
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

// 2^r for |r| <= 1/2, with a relative error of at most 1.7e-7: the polynomial of degree 5 with the smallest maximal
// relative error among those that are exactly 1 at 0.
template <int L>
ERWIN_INLINE Vector<L> exp2_of_fraction(Vector<L> r) {
  Vector<L> y = broadcast<L>(0x1.5bba14p-10f);
  y = y * r + 0x1.3cea88p-7f;
  y = y * r + 0x1.c6b752p-5f;
  y = y * r + 0x1.ebf9bcp-3f;
  y = y * r + 0x1.62e42ap-1f;
  return y * r + 1.0f;
}

// 2^x with a relative error of at most 2e-7 for x <= 128; for x < -126 the result is zero or, with AVX-512, denormal.
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

// log2(x) with a relative error of at most 3e-7 for normal x > 0; the result of NaN is NaN.
template <int L>
ERWIN_INLINE Vector<L> log2(Vector<L> x) {
  constexpr int32_t kRootHalf = 0x3f3504f3;
  Bits<L> bits;
  std::memcpy(&bits, &x, sizeof bits);
  const Bits<L> whole = (bits - kRootHalf) >> 23;
  bits -= whole << 23;
  Vector<L> part;  // between sqrt(1/2) and sqrt(2)
  std::memcpy(&part, &bits, sizeof part);
  // log2(part) = 2 / log(2) * atanh(s)
  const Vector<L> s = (part - 1.0f) / (part + 1.0f), square = s * s;
  Vector<L> y = broadcast<L>(0x1.a61762p-2f);
  y = y * square + 0x1.2776c6p-1f;
  y = y * square + 0x1.ec709ep-1f;
  y = y * square + 0x1.715476p+1f;
  return __builtin_convertvector(whole, Vector<L>) + y * s + (x - x);
}

}  // namespace
}  // namespace erwin

#endif  // ERWIN_CPU_VECTOR_MATH_H_
