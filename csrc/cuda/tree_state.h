// What the kernels that build trees share in device memory.
//
// Trees are built in batches, for all clouds together: first the main trees, then the rotated trees of the levels. A
// tree whose root has more rows than a block can hold is split level by level. Its rows are in one of two buffers, with
// one array for every axis and one for row numbers. A split moves them to the other buffer: first the rows that go
// left, then the others, both in their old order. Subtrees that fit in a block are finished in its shared memory.
#ifndef ERWIN_CUDA_TREE_STATE_H_
#define ERWIN_CUDA_TREE_STATE_H_

#include <cstdint>

#include "../geometry.h"
#include "runtime.h"

namespace erwin::cuda {
namespace {

constexpr int kMaxDim = ERWIN_DEVICE_MAX_DIM;
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kItems = 8;      // rows of a tile per thread
constexpr int kTileThreads = 512, kBlockThreads = 1024;  // at most
constexpr int kPositions = 4;  // rows per thread in a block that finishes a subtree
constexpr int kMaxDepth = 64;  // levels of large nodes
constexpr int32_t kMain = -1;  // stands for the main tree, in place of the level of a rotated tree

template <typename T>
using KeyOf = decltype(ordered_key(T{}));

// The rows of trees while they are built.
template <typename T>
struct Buffer {
  KeyOf<T>* key;  // [dim, capacity]: ordered keys. The second buffer holds centroids until pooled rows are loaded
  int32_t* index;  // [capacity]
};

// A node with more rows than a block can hold.
template <typename T>
struct LargeNode {
  Node node;
  int64_t row;     // its first row in the buffer
  int32_t tree;
  int32_t rows;
  int32_t left;    // how many rows go left
  int32_t first_tile;
  int32_t child[2];  // the number of a large child; -1 for other children
  int32_t done;      // how many tiles have been counted
  // The key of the last row that goes left is low + pivot. Until all digits are known, `pivot` holds the digits above
  // `shift`, and `rank` is the number of rows before that row among all rows with the same digits above `shift`.
  int32_t axis, shift, rank;
  KeyOf<T> low, pivot;
  KeyOf<T> least[kMaxDim], largest[kMaxDim];
};

// A subtree that fits in a block, or a ball, which is only written.
struct SmallNode {
  Node node;
  int64_t row;
  int32_t tree;
  int32_t buffer;
};

struct Counters {
  int32_t large[kMaxDepth + 1], tiles[kMaxDepth + 1], tickets[kMaxDepth + 1];
  int32_t small, handed;
};

template <typename T>
struct Batch {
  Layout layout;
  const T* pos;          // [points, dim]
  const int64_t* ptr;    // [clouds + 1]
  const int64_t* first;  // [levels, clouds + 1]: the first row of every cloud on a level
  int64_t clouds;
  int32_t dim;
  int32_t first_level, last_level;  // the levels of the rotated trees in this batch, or kMain
  int32_t pooled;                   // the first level whose rows are centroids
  int32_t block_rows;               // how many rows a block can hold
  int64_t capacity;                 // how many rows a buffer can hold
  int64_t base[ERWIN_MAX_LEVELS];   // the first row of a level in the buffers
  int64_t bound[ERWIN_MAX_LEVELS];  // rows of a level that the result has room for
  T rotation[kMaxDim * kMaxDim];
  Buffer<T> buffers[2];
  Counters* counters;
  LargeNode<T>* large[2];     // the large nodes of even and of odd depth
  int32_t* tile_node[2];
  uint64_t* tile_state;       // what a tile tells the tiles after it, see `look_back`
  uint32_t* digits;           // [large nodes, kDigits], zero between two counts
  SmallNode* small;
  SmallNode* handed;         // nodes handed over to other blocks, see `Pass`
  uint16_t* handed_list;     // [dim, capacity]: rows of those nodes, sorted along every axis but the first
  int32_t handed_rows;       // how many rows these nodes have at most
  int64_t* perm;
  uint8_t* mask;
  int64_t* perm_rot[ERWIN_MAX_LEVELS];

  __device__ int64_t trees() const { return clouds * (last_level - first_level + 1); }
  // The number of a tree fits in 32 bits. A 64-bit division would take about a hundred instructions.
  __device__ int32_t level(int64_t tree) const {
    return first_level + static_cast<int32_t>(static_cast<uint32_t>(tree) / static_cast<uint32_t>(clouds));
  }
  __device__ int64_t cloud(int64_t tree) const {
    return static_cast<uint32_t>(tree) % static_cast<uint32_t>(clouds);
  }
  __device__ bool is_rotated() const { return first_level != kMain; }

  __device__ Node root(int64_t tree) const {
    const int64_t g = cloud(tree);
    return layout.root(ptr[g + 1] - ptr[g]);
  }

  template <typename I>
  __device__ int32_t rows(int32_t level, const NodeOf<I>& node) const {
    return static_cast<int32_t>(level == kMain ? node.points : layout.rows(node, level));
  }

  // Whether a node is a ball, which is not split further even if it has many rows.
  template <typename I>
  __device__ bool is_ball(int32_t level, const NodeOf<I>& node) const {
    return level != kMain && layout.within_ball(node, level);
  }

  __device__ int64_t first_row(int32_t level, int64_t g) const { return first[level * (clouds + 1) + g]; }

  // The place of a tree's first row in the buffers.
  __device__ int64_t begin(int64_t tree) const {
    const int32_t l = level(tree);
    return l == kMain ? ptr[cloud(tree)] : base[l] + first_row(l, cloud(tree));
  }

  // Reads the coordinates, before rotation, of row i of a cloud on a level.
  __device__ void coordinates(int32_t level, int64_t g, int64_t i, T (&x)[kMaxDim]) const {
    const T* from;
    int64_t step = 1;
    if (level == kMain) {
      from = pos + (ptr[g] + i) * dim;
    } else if (level < pooled) {
      from = pos + (ptr[g] + perm[first_row(level, g) + i]) * dim;
    } else {
      from = centroid(0) + base[level] + first_row(level, g) + i;
      step = capacity;
    }
    ERWIN_UNROLL
    for (int32_t a = 0; a < kMaxDim; ++a) x[a] = a < dim ? from[a * step] : T{0};
  }

  __device__ T* centroid(int32_t axis) const { return reinterpret_cast<T*>(buffers[1].key + axis * capacity); }

  // Computes the keys by which a row of a tree is sorted.
  __device__ void keys(int32_t l, int64_t g, int64_t i, KeyOf<T> (&out)[kMaxDim]) const {
    T x[kMaxDim];
    coordinates(l, g, i, x);
    ERWIN_UNROLL
    for (int32_t column = 0; column < kMaxDim; ++column) {
      if (column >= dim) continue;
      T sum = x[column];
      if (l != kMain) {
        sum = 0;
        ERWIN_UNROLL
        for (int32_t row = 0; row < kMaxDim; ++row)
          if (row < dim) sum += x[row] * rotation[row * dim + column];
      }
      out[column] = ordered_key(ordered(sum));
    }
  }
};

// The axis with the largest extent; if several are equal, the lowest.
template <typename T, typename Least, typename Largest>
__device__ int32_t widest_axis(int32_t dim, const Least& least, const Largest& largest) {
  int32_t axis = 0;
  T widest = -1;
  for (int32_t a = 0; a < dim; ++a) {
    const T extent = coordinate_of(largest(a)) - coordinate_of(least(a));
    if (extent > widest) widest = extent, axis = a;  // never true for NaN: rotated rows may all be at infinity
  }
  return axis;
}

}  // namespace
}  // namespace erwin::cuda

#endif  // ERWIN_CUDA_TREE_STATE_H_
