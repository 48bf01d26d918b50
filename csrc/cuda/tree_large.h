// Splits the large nodes of all trees of a batch, one level of nodes after the other.
//
// A radix selection finds the pivot, which is the last row that goes left. Every launch of `count_digits` determines
// the next digit of the pivot's key, starting with the highest digit in which the node's keys differ. Then `partition`
// moves the rows to the other buffer. Both work on tiles; a tile is some consecutive rows of one node. The rows keep
// their order, so among equal keys those with a lower index go left.
#ifndef ERWIN_CUDA_TREE_LARGE_H_
#define ERWIN_CUDA_TREE_LARGE_H_

#include "tree_state.h"

namespace erwin::cuda {
namespace {

__device__ inline int32_t tile_rows() { return kItems * threads(); }
__device__ inline int32_t tiles_of(int32_t rows) { return (rows + tile_rows() - 1) / tile_rows(); }

// Gives numbers to a large node and its tiles. All threads of the block call it; all get the node's number.
template <typename T>
__device__ int32_t open_large(const Batch<T>& b, int32_t depth, int32_t tree, const Node& node, int64_t row) {
  __shared__ int32_t number, first_tile;
  const int32_t level = b.level(tree), rows = b.rows(level, node);
  const int32_t tiles = tiles_of(rows);
  if (thread() == 0) {
    number = atomicAdd(&b.counters->large[depth], 1);
    first_tile = atomicAdd(&b.counters->tiles[depth], tiles);
    LargeNode<T>& large = b.large[depth % 2][number];
    large.node = node;
    large.row = row;
    large.tree = tree;
    large.rows = rows;
    large.left = b.rows(level, b.layout.split(node).left);
    large.first_tile = first_tile;
    large.done = 0;
    for (int32_t a = 0; a < b.dim; ++a) {
      large.least[a] = ~KeyOf<T>{0};
      large.largest[a] = 0;
    }
  }
  __syncthreads();
  for (int32_t i = thread(); i < tiles; i += threads()) b.tile_node[depth % 2][first_tile + i] = number;
  const int32_t result = number;
  __syncthreads();
  return result;
}

// Adds a child of a large node to the large or the small nodes. Returns its number if it is large, else -1. All threads
// of the block call it.
template <typename T>
__device__ int32_t open_child(const Batch<T>& b, int32_t depth, int32_t tree, const Node& node, int64_t row) {
  const int32_t level = b.level(tree);
  if (b.rows(level, node) > b.block_rows && !b.is_ball(level, node)) {
    return open_large(b, depth, tree, node, row);
  }
  if (thread() == 0) b.small[atomicAdd(&b.counters->small, 1)] = {node, row, tree, depth % 2};
  return -1;
}

// Adds the large roots to the large nodes.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) open_roots(Batch<T> b) {
  for (int64_t tree = blockIdx.x; tree < b.trees(); tree += gridDim.x) {
    const Node root = b.root(tree);
    const int32_t level = b.level(tree);
    if (b.rows(level, root) <= b.block_rows || b.is_ball(level, root)) continue;
    open_large(b, 0, static_cast<int32_t>(tree), root, b.begin(tree));
  }
}

// The rows of a tile, counted from the first row of its node.
struct Tile {
  int32_t begin, end;
};

template <typename T>
__device__ Tile tile_of(const LargeNode<T>& node, int32_t tile) {
  const int32_t begin = (tile - node.first_tile) * tile_rows();
  const int32_t end = begin + tile_rows();
  return {begin, end < node.rows ? end : node.rows};
}

// The extents of some rows, in shared memory.
template <typename T>
struct Extents {
  KeyOf<T> least[kMaxDim], largest[kMaxDim];

  __device__ void clear(int32_t axis) {
    least[axis] = ~KeyOf<T>{0};
    largest[axis] = 0;
  }
  // All lanes of a warp call it; a lane without a row passes an empty range.
  __device__ void include(int32_t axis, KeyOf<T> low, KeyOf<T> high) {
    low = warp_least(low);
    high = warp_largest(high);
    if (lane() != 0) return;
    lower(&least[axis], low);
    raise(&largest[axis], high);
  }
  __device__ void add_to(LargeNode<T>& node, int32_t axis) const {
    lower(&node.least[axis], least[axis]);
    raise(&node.largest[axis], largest[axis]);
  }
};

// Writes the rows of large trees to the first buffer.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) load(Batch<T> b) {
  typedef KeyOf<T> K;
  __shared__ Extents<T> extents;
  const int32_t number = static_cast<int32_t>(blockIdx.x);
  if (number >= b.counters->tiles[0]) return;
  LargeNode<T>& node = b.large[0][b.tile_node[0][number]];
  const Tile tile = tile_of(node, number);
  if (thread() < b.dim) extents.clear(thread());
  __syncthreads();
  K least[kMaxDim], largest[kMaxDim];
  ERWIN_UNROLL
  for (int32_t a = 0; a < kMaxDim; ++a) least[a] = ~K{0}, largest[a] = 0;
  const int32_t level = b.level(node.tree);
  const int64_t cloud = b.cloud(node.tree), row = node.row;
  for (int32_t i = tile.begin + thread(); i < tile.end; i += threads()) {
    K key[kMaxDim];
    b.keys(level, cloud, i, key);
    ERWIN_UNROLL
    for (int32_t a = 0; a < kMaxDim; ++a) {
      if (a >= b.dim) continue;
      b.buffers[0].key[a * b.capacity + row + i] = key[a];
      if (key[a] < least[a]) least[a] = key[a];
      if (key[a] > largest[a]) largest[a] = key[a];
    }
    b.buffers[0].index[row + i] = i;
  }
  ERWIN_UNROLL
  for (int32_t a = 0; a < kMaxDim; ++a)
    if (a < b.dim) extents.include(a, least[a], largest[a]);
  __syncthreads();
  if (thread() < b.dim) extents.add_to(node, thread());
}

// How one launch of `count_digits` reads a key. A row counts only if (key - low) >> above equals `prefix`; its digit is
// the bits from `shift` to `above` - 1.
template <typename K>
struct Selection {
  int32_t axis, above, shift, rank;
  K low, prefix;

  __device__ int32_t digit(K key) const {
    return static_cast<int32_t>((key >> shift) & ((K{1} << (above - shift)) - 1));
  }
};

template <typename T>
__device__ Selection<KeyOf<T>> selection_of(const LargeNode<T>& node, int32_t dim, bool first) {
  typedef KeyOf<T> K;
  Selection<K> selection;
  if (first) {
    const int32_t axis = widest_axis<T>(
        dim, [&](int32_t a) { return node.least[a]; }, [&](int32_t a) { return node.largest[a]; });
    const K low = node.least[axis];
    selection = {axis, significant_bits(node.largest[axis] - low), 0, node.left - 1, low, 0};
  } else {
    selection = {node.axis, node.shift, 0, node.rank, node.low, node.pivot};
  }
  selection.shift = selection.above > kDigitBits ? selection.above - kDigitBits : 0;
  return selection;
}

// Counts the next digit of the keys of every large node. The block that finishes a node's last tile chooses the digit;
// after the last digit it also adds the children.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) count_digits(Batch<T> b, int32_t depth, bool first) {
  typedef KeyOf<T> K;
  __shared__ uint32_t counts[kDigits];
  __shared__ Selection<K> selection;
  __shared__ bool is_last;
  const int32_t number = static_cast<int32_t>(blockIdx.x);
  if (number >= b.counters->tiles[depth]) return;
  const int32_t node_number = b.tile_node[depth % 2][number];
  LargeNode<T>& node = b.large[depth % 2][node_number];
  if (!first && node.shift == 0) return;
  if (thread() == 0) selection = selection_of(node, b.dim, first);
  for (int32_t i = thread(); i < kDigits; i += threads()) counts[i] = 0;
  __syncthreads();

  const Tile tile = tile_of(node, number);
  const K* const keys = b.buffers[depth % 2].key + selection.axis * b.capacity + node.row;
  for (int32_t i = tile.begin + thread(); i < tile.end; i += threads()) {
    const K key = keys[i] - selection.low;
    if (first || key >> selection.above == selection.prefix) atomicAdd(&counts[selection.digit(key)], 1u);
  }
  __syncthreads();
  uint32_t* const all = b.digits + static_cast<int64_t>(node_number) * kDigits;
  for (int32_t i = thread(); i < kDigits; i += threads())
    if (counts[i] != 0) atomicAdd(&all[i], counts[i]);
  __threadfence();
  __syncthreads();
  if (thread() == 0) {
    is_last = atomicAdd(&node.done, 1) + 1 == tiles_of(node.rows);
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();

  const int32_t each = kDigits / threads();
  uint32_t own = 0, total;
  for (int32_t i = 0; i < each; ++i) own += read_volatile(&all[thread() * each + i]);
  uint32_t before = block_exclusive_scan(own, &total);
  for (int32_t i = 0; i < each; ++i) {
    const int32_t digit = thread() * each + i;
    const uint32_t count = read_volatile(&all[digit]);
    const uint32_t rank = static_cast<uint32_t>(selection.rank);
    if (before <= rank && rank < before + count) {
      const int32_t width = selection.above - selection.shift;
      node.axis = selection.axis;
      node.low = selection.low;
      node.shift = selection.shift;
      node.rank = static_cast<int32_t>(rank - before);
      node.pivot = (first ? K{0} : selection.prefix << width) | static_cast<K>(digit);
      node.done = 0;
    }
    before += count;
    all[digit] = 0;
  }
  if (selection.shift > 0) return;
  for (int32_t i = thread(); i < tiles_of(node.rows); i += threads()) b.tile_state[node.first_tile + i] = 0;
  const Children children = b.layout.split(node.node);
  const int32_t left = open_child(b, depth + 1, node.tree, children.left, node.row);
  const int32_t right = open_child(b, depth + 1, node.tree, children.right, node.row + node.left);
  if (thread() == 0) {
    node.child[0] = left;
    node.child[1] = right;
  }
}

// The numbers of rows below the pivot and equal to it.
struct Count {
  uint32_t less, equal;
};

// The state of a tile holds a count. Its two highest bits say what is counted: the tile's rows, or those of all tiles
// of the node up to and including this one; 0 means that there is no count yet.
constexpr uint64_t kOfTile = 1, kUpToTile = 2;

__device__ inline uint64_t pack(uint64_t kind, Count count) {
  return kind << 62 | static_cast<uint64_t>(count.less) << 31 | count.equal;
}

__device__ inline Count count_in(uint64_t state) {
  constexpr uint32_t mask = 0x7fffffffu;
  return {static_cast<uint32_t>(state >> 31) & mask, static_cast<uint32_t>(state) & mask};
}

// The count over all tiles of the node before this one. One warp looks back at 32 tiles at a time, until it finds a
// tile that knows the count up to itself. Tiles are numbered in the order in which they start, so all tiles before this
// one are running or done, and waiting for them ends.
__device__ inline Count look_back(uint64_t* states, int32_t first_tile, int32_t tile, Count own) {
  if (tile == first_tile) {
    if (lane() == 0) publish(states + tile, pack(kUpToTile, own));
    return {0, 0};
  }
  if (lane() == 0) publish(states + tile, pack(kOfTile, own));
  Count before{0, 0};
  for (int32_t end = tile;; end -= 32) {
    const int32_t other = end - 1 - lane();
    uint64_t state = pack(kUpToTile, {0, 0});  // for places before the node's first tile
    if (other >= first_tile) {
      while ((state = read_volatile(states + other)) >> 62 == 0) __nanosleep(20);
    }
    const uint32_t ends = __ballot_sync(kWarp, state >> 62 == kUpToTile);
    const int32_t last = ends == 0 ? 31 : __ffs(static_cast<int>(ends)) - 1;
    const Count count = count_in(state);
    before.less += warp_sum(lane() <= last ? count.less : 0);
    before.equal += warp_sum(lane() <= last ? count.equal : 0);
    if (ends != 0) break;
  }
  if (lane() == 0) {
    const Count up_to{before.less + own.less, before.equal + own.equal};
    publish(states + tile, pack(kUpToTile, up_to));
  }
  return before;
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads) partition(Batch<T> b, int32_t depth) {
  typedef KeyOf<T> K;
  __shared__ int32_t ticket;
  __shared__ Count totals[32], base;
  __shared__ Extents<T> extents[2];
  if (thread() == 0) ticket = atomicAdd(&b.counters->tickets[depth], 1);
  if (thread() < b.dim) extents[0].clear(thread()), extents[1].clear(thread());
  __syncthreads();
  const int32_t number = ticket;
  if (number >= b.counters->tiles[depth]) return;
  const LargeNode<T>& node = b.large[depth % 2][b.tile_node[depth % 2][number]];
  const Tile tile = tile_of(node, number);
  const Buffer<T>& from = b.buffers[depth % 2];
  const Buffer<T>& to = b.buffers[1 - depth % 2];

  // A warp handles consecutive rows, 32 at a time.
  const int32_t begin = tile.begin + warp() * 32 * kItems + lane();
  const K* const keys = from.key + node.axis * b.capacity + node.row;
  const K pivot = node.low + node.pivot;
  const uint32_t below = (1u << lane()) - 1;
  Count before[kItems], count{0, 0};
  uint32_t less_rows = 0, equal_rows = 0;  // a bit for each item
  ERWIN_UNROLL
  for (int32_t i = 0; i < kItems; ++i) {
    const int32_t row = begin + 32 * i;
    const K key = row < tile.end ? keys[row] : K{0};
    const bool is_less = row < tile.end && key < pivot, is_equal = row < tile.end && key == pivot;
    const uint32_t less = __ballot_sync(kWarp, is_less), equal = __ballot_sync(kWarp, is_equal);
    before[i] = {count.less + __popc(less & below), count.equal + __popc(equal & below)};
    less_rows |= static_cast<uint32_t>(is_less) << i;
    equal_rows |= static_cast<uint32_t>(is_equal) << i;
    count.less += __popc(less);
    count.equal += __popc(equal);
  }
  if (lane() == 0) totals[warp()] = count;
  __syncthreads();
  if (warp() == 0) {
    const Count own = lane() < threads() / 32 ? totals[lane()] : Count{0, 0};
    const Count of_warps{warp_exclusive_scan(own.less), warp_exclusive_scan(own.equal)};
    totals[lane()] = of_warps;
    const Count all{__shfl_sync(kWarp, of_warps.less + own.less, 31), __shfl_sync(kWarp, of_warps.equal + own.equal, 31)};
    const Count before_tile = look_back(b.tile_state, node.first_tile, number, all);
    if (lane() == 0) base = before_tile;
  }
  __syncthreads();

  const Count start{base.less + totals[warp()].less, base.equal + totals[warp()].equal};
  const uint32_t equal_left = static_cast<uint32_t>(node.rank) + 1;  // how many of the rows equal to the pivot go left
  int32_t place[kItems];
  uint32_t left_rows = 0;
  ERWIN_UNROLL
  for (int32_t i = 0; i < kItems; ++i) {
    const uint32_t equal = start.equal + before[i].equal;
    const bool is_left = (less_rows >> i & 1) != 0 || ((equal_rows >> i & 1) != 0 && equal < equal_left);
    const int32_t lefts = static_cast<int32_t>(start.less + before[i].less + (equal < equal_left ? equal : equal_left));
    place[i] = is_left ? lefts : node.left + begin + 32 * i - lefts;
    left_rows |= static_cast<uint32_t>(is_left) << i;
  }
  ERWIN_UNROLL
  for (int32_t i = 0; i < kItems; ++i) {
    const int32_t row = begin + 32 * i;
    if (row < tile.end) to.index[node.row + place[i]] = from.index[node.row + row];
  }
  const bool measured = node.child[0] >= 0 || node.child[1] >= 0;
  for (int32_t a = 0; a < b.dim; ++a) {
    const int64_t axis = a * b.capacity + node.row;
    K least[2] = {~K{0}, ~K{0}}, largest[2] = {0, 0};
    ERWIN_UNROLL
    for (int32_t i = 0; i < kItems; ++i) {
      const int32_t row = begin + 32 * i;
      if (row >= tile.end) continue;
      const K key = from.key[axis + row];
      to.key[axis + place[i]] = key;
      const bool is_left = (left_rows >> i & 1) != 0;
      if (is_left && key < least[0]) least[0] = key;
      if (is_left && key > largest[0]) largest[0] = key;
      if (!is_left && key < least[1]) least[1] = key;
      if (!is_left && key > largest[1]) largest[1] = key;
    }
    if (!measured) continue;
    for (int32_t side = 0; side < 2; ++side) extents[side].include(a, least[side], largest[side]);
  }
  __syncthreads();
  if (thread() >= 2 * b.dim) return;
  const int32_t side = thread() / b.dim;
  if (node.child[side] >= 0) {
    extents[side].add_to(b.large[1 - depth % 2][node.child[side]], thread() % b.dim);
  }
}

}  // namespace
}  // namespace erwin::cuda

#endif  // ERWIN_CUDA_TREE_LARGE_H_
