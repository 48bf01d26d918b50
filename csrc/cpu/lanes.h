// The vector operations of the search that compilers do not generate from plain loops.
//
// Everything here and in the headers that build on it has internal linkage: they are compiled once for each instruction
// set, and the linker must not merge the copies.
#ifndef ERWIN_CPU_LANES_H_
#define ERWIN_CPU_LANES_H_

#include <cstdint>
#include <cstring>

#include "search.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace erwin {
namespace {

#if defined(__AVX512F__)
constexpr int kKeyLanes = 8;
#elif defined(__AVX__)
constexpr int kKeyLanes = 4;
#else
constexpr int kKeyLanes = 2;
#endif

typedef double Doubles __attribute__((vector_size(8 * kKeyLanes)));
typedef int64_t Longs __attribute__((vector_size(8 * kKeyLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kKeyLanes)));

template <typename V>
V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

// For positive numbers only: they have the same order as their bits, read as integers.
inline Doubles smaller(Doubles a, Doubles b) {
#if defined(__AVX512F__)
  const auto x = reinterpret_cast<Longs>(a), y = reinterpret_cast<Longs>(b);
  return reinterpret_cast<Doubles>(x < y ? x : y);
#elif defined(__AVX__)
  return _mm256_min_pd(a, b);
#elif defined(__SSE2__)
  return _mm_min_pd(a, b);
#else
  return a < b ? a : b;
#endif
}

inline Doubles larger(Doubles a, Doubles b) {
#if defined(__AVX512F__)
  const auto x = reinterpret_cast<Longs>(a), y = reinterpret_cast<Longs>(b);
  return reinterpret_cast<Doubles>(x < y ? y : x);
#elif defined(__AVX__)
  return _mm256_max_pd(a, b);
#elif defined(__SSE2__)
  return _mm_max_pd(a, b);
#else
  return a < b ? b : a;
#endif
}

// Returns a bit mask of those of kLeaf numbers that are <= limit. The bit of a NaN is 0.
inline uint32_t lanes_within(const float* x, float limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_set1_ps(limit), _CMP_LE_OQ);
#else
  uint32_t lanes = 0;
#if defined(__AVX__)
  for (int j = 0; j < kLeaf; j += 8)
    lanes |= _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + j), _mm256_set1_ps(limit), _CMP_LE_OQ)) << j;
#elif defined(__SSE2__)
  for (int j = 0; j < kLeaf; j += 4)
    lanes |= _mm_movemask_ps(_mm_cmple_ps(_mm_loadu_ps(x + j), _mm_set1_ps(limit))) << j;
#else
#pragma omp simd reduction(| : lanes)
  for (int j = 0; j < kLeaf; ++j) lanes |= x[j] <= limit ? 1u << j : 0;
#endif
  return lanes;
#endif
}

inline uint32_t lanes_within(const double* x, double limit) {
  uint32_t lanes = 0;
#if defined(__AVX512F__)
  for (int j = 0; j < kLeaf; j += 8)
    lanes |= _mm512_cmp_pd_mask(_mm512_loadu_pd(x + j), _mm512_set1_pd(limit), _CMP_LE_OQ) << j;
#elif defined(__AVX__)
  for (int j = 0; j < kLeaf; j += 4)
    lanes |= _mm256_movemask_pd(_mm256_cmp_pd(_mm256_loadu_pd(x + j), _mm256_set1_pd(limit), _CMP_LE_OQ)) << j;
#elif defined(__SSE2__)
  for (int j = 0; j < kLeaf; j += 2)
    lanes |= _mm_movemask_pd(_mm_cmple_pd(_mm_loadu_pd(x + j), _mm_set1_pd(limit))) << j;
#else
#pragma omp simd reduction(| : lanes)
  for (int j = 0; j < kLeaf; ++j) lanes |= x[j] <= limit ? 1u << j : 0;
#endif
  return lanes;
}

inline int64_t count_lanes(uint32_t lanes) {
#if defined(__POPCNT__) || !defined(__x86_64__)
  return __builtin_popcount(lanes);
#else  // without the instruction, the builtin would be a function call; counts 16 bits
  lanes -= lanes >> 1 & 0x5555;
  lanes = (lanes & 0x3333) + (lanes >> 2 & 0x3333);
  return ((lanes + (lanes >> 4)) & 0x0f0f) * 0x0101 >> 8 & 0x1f;
#endif
}

// Writes the selected ones of kLeaf numbers to consecutive places of `out`, of which up to kLeaf may be overwritten.
template <typename X>
void compress(uint32_t lanes, const X* x, X* out) {
#if defined(__AVX512F__)
  if constexpr (sizeof(X) == 4) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(static_cast<__mmask16>(lanes), _mm512_loadu_si512(x)));
  } else {
    const auto low = static_cast<__mmask8>(lanes), high = static_cast<__mmask8>(lanes >> 8);
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi64(low, _mm512_loadu_si512(x)));
    out += count_lanes(low);
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi64(high, _mm512_loadu_si512(x + 8)));
  }
#else
  for (; lanes != 0; lanes &= lanes - 1) *out++ = x[__builtin_ctz(lanes)];
#endif
}

}  // namespace
}  // namespace erwin

#endif  // ERWIN_CPU_LANES_H_
