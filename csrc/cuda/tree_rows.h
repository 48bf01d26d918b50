// The rows of the levels: where each cloud's begin, and the centroids that pooled rows stand for.
#ifndef ERWIN_CUDA_TREE_ROWS_H_
#define ERWIN_CUDA_TREE_ROWS_H_

#include "tree_state.h"

namespace erwin::cuda {
namespace {

constexpr int kPoolLevels = 6;  // that one launch can pool

// first[l, g] for all clouds and the end, one block for each level.
template <typename T>
__global__ void find_first_rows(Batch<T> b, int64_t* first) {
  const int32_t level = static_cast<int32_t>(blockIdx.x);
  int64_t* const out = first + level * (b.clouds + 1);
  int64_t before = 0;
  for (int64_t g = 0; g <= b.clouds; g += threads()) {
    const int64_t own = g + thread();
    const int64_t rows = own < b.clouds ? b.layout.rows(b.layout.root(b.ptr[own + 1] - b.ptr[own]), level) : 0;
    int64_t total;
    const int64_t below = block_exclusive_scan(rows, &total);
    if (own <= b.clouds) out[own] = before + below;
    before += total;
  }
}

// Writes the centroids of the levels (from, to]. A thread makes one row of level `to` and all rows below it; children
// are summed in order.
template <typename T>
__global__ void pool(Batch<T> b, int32_t from, int32_t to) {
  const int64_t row = int64_t{blockIdx.x} * threads() + thread();
  const int64_t* const first = b.first + to * (b.clouds + 1);
  if (row >= first[b.clouds]) return;
  int64_t g = 0;
  for (int64_t end = b.clouds; end - g > 1;) {  // first[g] <= row < first[end]
    const int64_t middle = (g + end) / 2;
    if (first[middle] <= row) g = middle;
    else end = middle;
  }
  const int64_t width = b.layout.span[to] / b.layout.span[from];
  const int64_t begin = (row - first[g]) * width, rows = b.first_row(from, g + 1) - b.first_row(from, g);
  const int64_t end = begin + width < rows ? begin + width : rows;
  T sum[kPoolLevels][kMaxDim];
  int64_t count[kPoolLevels] = {};
  for (int64_t child = begin; child < end; ++child) {
    T x[kMaxDim];
    for (int32_t a = 0; a < b.dim; ++a) x[a] = b.coordinate(from, g, child, a);
    for (int32_t level = from + 1; level <= to; ++level) {
      T* const own = sum[level - from - 1];
      int64_t& children = count[level - from - 1];
      for (int32_t a = 0; a < b.dim; ++a) own[a] = children == 0 ? x[a] : own[a] + x[a];
      ++children;
      if (child + 1 < end && children < b.layout.span[level] / b.layout.span[level - 1]) break;
      const int64_t at = b.base[level] + b.first_row(level, g) + child / (b.layout.span[level] / b.layout.span[from]);
      for (int32_t a = 0; a < b.dim; ++a) {
        x[a] = own[a] / static_cast<T>(children);
        b.centroid(a)[at] = x[a];
      }
      children = 0;
    }
  }
}

}  // namespace
}  // namespace erwin::cuda

#endif  // ERWIN_CUDA_TREE_ROWS_H_
