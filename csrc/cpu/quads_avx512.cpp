// Passes over records of four lanes for AVX-512F.
#if defined(ERWIN_WITH_AVX512)
#include "quads.h"

#include <immintrin.h>

#include <limits>

namespace erwin {
namespace {

constexpr uint32_t kFirstLanes = 0x1111;  // the first lane of each of the four records in a vector

// For each subset of the four records in a vector: the lanes of its records, then the lanes of the others, both in
// order.
struct Orders {
  alignas(64) int32_t lanes[16][16];
};

constexpr Orders make_orders() {
  Orders orders{};
  for (int chosen = 0; chosen < 16; ++chosen) {
    int place = 0;
    for (int pass = 1; pass >= 0; --pass)
      for (int lane = 0; lane < 16; ++lane)
        if ((chosen >> lane / 4 & 1) == pass) orders.lanes[chosen][place++] = lane;
  }
  return orders;
}

constexpr Orders kOrders = make_orders();

int64_t collect(const float* records, int64_t n, QuadLanes lanes, float first, float last, uint32_t* ranks,
                int64_t* below) {
  const __m512 low = _mm512_set1_ps(first), high = _mm512_set1_ps(last);
  // The lanes that hold the coordinates of eight records, listed twice.
  const __m512i of_eight = _mm512_add_epi32(
      _mm512_set1_epi32(lanes.axis), _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28));
  const auto eight = [=](const float* at) {
    return _mm512_castps_pd(_mm512_permutex2var_ps(_mm512_loadu_ps(at), of_eight, _mm512_loadu_ps(at + 16)));
  };
  int64_t before = 0, inside = 0;
  const auto append = [&](int64_t i) {
    __builtin_memcpy(&ranks[2 * inside], &records[4 * i + lanes.axis], sizeof(float));
    __builtin_memcpy(&ranks[2 * inside + 1], &records[4 * i + lanes.index], sizeof(float));
    ++inside;
  };
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const __m512 x = _mm512_castpd_ps(_mm512_mask_blend_pd(0xf0, eight(records + 4 * i), eight(records + 4 * i + 32)));
    const __mmask16 is_below = _mm512_cmp_ps_mask(x, low, _CMP_LT_OQ);
    before += __builtin_popcount(is_below);
    uint32_t is_inside = _mm512_mask_cmp_ps_mask(static_cast<__mmask16>(~is_below), x, high, _CMP_LE_OQ);
    for (; is_inside != 0; is_inside &= is_inside - 1) append(i + __builtin_ctz(is_inside));
  }
  for (; i < n; ++i) {
    const float x = records[4 * i + lanes.axis];
    before += x < first;
    if (x >= first && x <= last) append(i);
  }
  *below = before;
  return inside;
}

void partition(const float* records, int64_t n, QuadLanes lanes, float pivot, int32_t pivot_index, float* left,
               float* right, QuadRange* ranges) {
  const __m512 pivots = _mm512_set1_ps(pivot);
  const __m512i pivot_indices = _mm512_set1_epi32(pivot_index);
  __m512 low[2], high[2];
  for (int side = 0; side < 2; ++side) {
    low[side] = _mm512_set1_ps(std::numeric_limits<float>::infinity());
    high[side] = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  }
  for (int64_t i = 0; i < n; i += 4) {
    const int64_t size = n - i < 4 ? n - i : 4;
    const uint32_t all = (1u << 4 * size) - 1;
    __m512 x = _mm512_maskz_loadu_ps(static_cast<__mmask16>(all), records + 4 * i);
    uint32_t lefts = _mm512_cmp_ps_mask(x, pivots, _CMP_LT_OQ) >> lanes.axis & kFirstLanes;
    const uint32_t equal = _mm512_cmp_ps_mask(x, pivots, _CMP_EQ_OQ) >> lanes.axis & kFirstLanes;
    if (equal != 0) lefts |= equal & _mm512_cmplt_epi32_mask(_mm512_castps_si512(x), pivot_indices) >> lanes.index;
    lefts &= all;
    const int64_t count = __builtin_popcount(lefts);
    const uint32_t chosen = lefts * 0x1248 >> 12 & 0xf;  // the four bits side by side
    x = _mm512_maskz_permutexvar_ps(0xffff, _mm512_load_si512(kOrders.lanes[chosen]), x);
    // Masked, because other threads write the records that follow the last one of a side.
    const auto go_left = static_cast<__mmask16>((1u << 4 * count) - 1);
    const auto go_right = static_cast<__mmask16>(all & ~go_left);
    _mm512_mask_storeu_ps(left, go_left, x);
    _mm512_mask_storeu_ps(right - 4 * count, go_right, x);
    left += 4 * count;
    right += 4 * (size - count);
    low[0] = _mm512_mask_min_ps(low[0], go_left, low[0], x);
    high[0] = _mm512_mask_max_ps(high[0], go_left, high[0], x);
    low[1] = _mm512_mask_min_ps(low[1], go_right, low[1], x);
    high[1] = _mm512_mask_max_ps(high[1], go_right, high[1], x);
  }
  for (int side = 0; side < 2; ++side) {
    float lows[16], highs[16];
    _mm512_storeu_ps(lows, low[side]);
    _mm512_storeu_ps(highs, high[side]);
    for (int lane = 0; lane < 4; ++lane) {
      for (int record = 4 + lane; record < 16; record += 4) {
        lows[lane] = lows[record] < lows[lane] ? lows[record] : lows[lane];
        highs[lane] = highs[record] > highs[lane] ? highs[record] : highs[lane];
      }
      ranges[side].low[lane] = lows[lane];
      ranges[side].high[lane] = highs[lane];
    }
  }
}

}  // namespace

const QuadPasses kQuadsAvx512 = {collect, partition};

}  // namespace erwin
#endif
