// The rows of the levels: the first row of each cloud, and the centroids that are the coordinates of pooled rows.
#ifndef ERWIN_CUDA_TREE_ROWS_H_
#define ERWIN_CUDA_TREE_ROWS_H_

#include "tree_state.h"

namespace erwin::cuda {
namespace {

constexpr int kPoolThreads = 128;

// Writes first[l, g] for all clouds, and the total as an entry at the end, with one block for each level. All blocks
// together write zeros.
template <typename T>
__global__ void start(Batch<T> b, int64_t* first, uint32_t* zeros, int64_t num_zeros) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * threads();
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * threads() + thread(); i < num_zeros; i += step) zeros[i] = 0;
  const int32_t level = static_cast<int32_t>(blockIdx.x);
  if (level >= b.layout.levels) return;
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

// How many threads compute one row of level `to` and all rows below it, down to level from + 1: one thread for each row
// of level from + 1.
inline __host__ __device__ int32_t pool_threads(const Layout& layout, int32_t from, int32_t to) {
  return static_cast<int32_t>(layout.span[to] / layout.span[from + 1]);
}

// Writes the centroids of the levels (from, to]; children are summed in order.
template <typename T>
__global__ void __launch_bounds__(kPoolThreads) pool(Batch<T> b, int32_t from, int32_t to) {
  const int32_t own_threads = pool_threads(b.layout, from, to), rows_of_block = threads() / own_threads;
  const int32_t number = thread() / own_threads, part = thread() % own_threads;
  const int64_t row = int64_t{blockIdx.x} * rows_of_block + number;
  const int64_t* const first = b.first + to * (b.clouds + 1);
  const bool used = number < rows_of_block && row < first[b.clouds];
  int64_t g = 0;
  for (int64_t end = used ? b.clouds : 0; end - g > 1;) {  // first[g] <= row < first[end]
    const int64_t middle = (g + end) / 2;
    if (first[middle] <= row) g = middle;
    else end = middle;
  }
  for (int32_t level = from + 1; level <= to; ++level) {
    const int64_t parts = b.layout.span[to] / b.layout.span[level], i = (row - first[g]) * parts + part;
    if (used && part < parts && i < b.first_row(level, g + 1) - b.first_row(level, g)) {
      const int64_t stride = b.layout.span[level] / b.layout.span[level - 1];
      const int64_t rows = b.first_row(level - 1, g + 1) - b.first_row(level - 1, g);
      const int64_t begin = i * stride, end = begin + stride < rows ? begin + stride : rows;
      T sum[kMaxDim], x[kMaxDim];
      b.coordinates(level - 1, g, begin, sum);
      for (int64_t child = begin + 1; child < end; ++child) {
        b.coordinates(level - 1, g, child, x);
        ERWIN_UNROLL
        for (int32_t a = 0; a < kMaxDim; ++a)
          if (a < b.dim) sum[a] += x[a];
      }
      const int64_t at = b.base[level] + b.first_row(level, g) + i;
      ERWIN_UNROLL
      for (int32_t a = 0; a < kMaxDim; ++a)
        if (a < b.dim) b.centroid(a)[at] = sum[a] / static_cast<T>(end - begin);
    }
    __syncthreads();
  }
}

}  // namespace
}  // namespace erwin::cuda

#endif  // ERWIN_CUDA_TREE_ROWS_H_
