// Finishes subtrees that fit in a block, in shared memory. The rows of the subtree are sorted once along every axis.
// Then a node is a range of each sorted list. Its extent along an axis is the difference of the ends of that range. The
// list of the widest axis is split in place, and the other lists are split by a stable partition. A block works on all
// nodes of a level together, until a node is small enough for one warp.
//
// A row is identified by its place in the input. Places ascend with row numbers, so equal keys are in the order of
// rows. A rotated tree has one more list, of all rows in order; its balls are read from that list.
#ifndef ERWIN_CUDA_TREE_SMALL_H_
#define ERWIN_CUDA_TREE_SMALL_H_

#include "../arena.h"
#include "tree_state.h"

namespace erwin::cuda {
namespace {

constexpr int kSortBits = 8;
constexpr int kSortDigits = 1 << kSortBits;
constexpr int kWarpRows = 32;
constexpr int32_t kNone = 0xffff;  // no open node

// Inside a block's subtree, sizes fit in 32 bits, and slots are counted from the first one of the subtree.
typedef NodeOf<int32_t> LocalNode;

// A node of the subtree; its rows are at the places [begin, begin + rows) of every list.
struct BlockNode {
  LocalNode node;
  int32_t begin, rows, left, axis;
  int32_t rights;    // how many rows go right in all nodes before this one
  int16_t child[2];  // numbers of the children that the block splits; -1: a warp finishes the child
};

// The parts of a block's shared memory.
template <typename T>
struct BlockMemory {
  KeyOf<T>* key;        // [dim, capacity]
  BlockNode* nodes;     // [2, open nodes]: the nodes of this level and of the next
  BlockNode* closing;   // the nodes that warps finish
  uint16_t* list;       // [2, lists, capacity]
  uint16_t* node_of;    // [capacity]: the node that a place belongs to
  uint8_t* goes_right;  // [capacity]: whether a row goes right
  int32_t capacity, lists;

  static __host__ __device__ int64_t open_nodes(int64_t capacity) { return capacity / (kWarpRows + 1) + 1; }

  __host__ __device__ BlockMemory(char* base, int32_t rows, int32_t dim, int32_t num_lists, int64_t* bytes)
      : capacity(rows), lists(num_lists) {
    AlignedArena<16> arena{base};
    key = arena.take<KeyOf<T>>(dim, capacity);
    nodes = arena.take<BlockNode>(2, open_nodes(capacity));
    closing = arena.take<BlockNode>(2, open_nodes(capacity));
    list = arena.take<uint16_t>(lists + (lists < 3 ? 3 : lists), capacity);
    node_of = arena.take<uint16_t>(capacity);
    goes_right = arena.take<uint8_t>(capacity);
    *bytes = arena.used;
  }

  // The pointer is computed, because the compiler would not know that a pointer read from an array points to shared
  // memory.
  __device__ BlockNode* open(int32_t side) const { return nodes + side * static_cast<int32_t>(open_nodes(capacity)); }
  __device__ uint16_t* places(int32_t side, int32_t axis) const { return list + (side * lists + axis) * capacity; }
  __device__ KeyOf<T> key_of(int32_t axis, int32_t row) const { return key[axis * capacity + row]; }

  // While an axis is sorted, the second list of the first axis is scratch memory, and the lists after it hold counters.
  __device__ uint16_t* sorted() const { return places(1, 0); }
  __device__ uint16_t* counters() const { return places(1, 1); }  // [warps, kSortDigits]
};

// What a launch does with subtrees. kWhole: finishes them. kHanding: splits them and hands their small nodes, with
// sorted lists, over to blocks that would otherwise be idle. kHanded: finishes the nodes that were handed over.
enum class Pass : int32_t { kWhole, kHanding, kHanded };

// What a block works on: a subtree in a buffer, or a root that is loaded from the positions.
struct Subtree {
  Node node;
  int64_t row, cloud;
  int64_t out;                        // the place of its first row in the result
  int32_t tree, level, rows, buffer;  // buffer -1: a root
  bool ball;                          // whether it is a ball, which is written without further splits
  bool sorted;                        // whether its sorted lists are in the buffers
};

template <typename T>
__device__ Subtree subtree_of(const Batch<T>& b, int64_t item, Pass pass) {
  Subtree s;
  s.sorted = pass == Pass::kHanded;
  if (s.sorted) {
    const SmallNode small = b.handed[item];
    s.tree = small.tree;
    s.node = small.node;
    s.row = small.row;
    s.buffer = small.buffer;
  } else if (item < b.trees()) {
    s.tree = static_cast<int32_t>(item);
    s.node = b.root(item);
    s.row = b.begin(item);
    s.buffer = -1;
  } else {
    const SmallNode small = b.small[item - b.trees()];
    s.tree = small.tree;
    s.node = small.node;
    s.row = small.row;
    s.buffer = small.buffer;
  }
  s.level = b.level(s.tree);
  s.cloud = b.cloud(s.tree);
  s.out = s.level == kMain ? b.first_row(0, s.cloud) + s.node.slot
                           : b.first_row(s.level, s.cloud) + s.node.slot / b.layout.span[s.level];
  s.rows = b.rows(s.level, s.node);
  s.ball = b.is_ball(s.level, s.node);
  if (s.rows > b.block_rows && !s.ball) s.rows = 0;  // a large root, split by other kernels
  return s;
}

// Works on one subtree. All threads of the block call the methods, except where a comment says otherwise.
template <typename T>
struct BlockBuilder {
  typedef KeyOf<T> K;
  const Batch<T>& b;
  const Subtree& s;
  const BlockMemory<T>& memory;
  const bool hands_over;

  // The row of the tree at place i of the input.
  __device__ int32_t row_at(int32_t i) const {
    return s.buffer < 0 ? i : b.buffers[s.buffer].index[s.row + i];
  }

  __device__ void write_ball() const {
    int64_t* const out = b.perm_rot[s.level] + s.out;
    for (int32_t i = thread(); i < s.rows; i += threads()) out[i] = row_at(i);
  }

  __device__ void load() const {
    for (int32_t i = thread(); i < s.rows; i += threads()) {
      if (s.buffer >= 0) {
        for (int32_t a = 0; a < b.dim; ++a) {
          memory.key[a * memory.capacity + i] = b.buffers[s.buffer].key[a * b.capacity + s.row + i];
        }
      } else {
        K key[kMaxDim];
        b.keys(s.level, s.cloud, i, key);
        ERWIN_UNROLL
        for (int32_t a = 0; a < kMaxDim; ++a)
          if (a < b.dim) memory.key[a * memory.capacity + i] = key[a];
      }
      for (int32_t a = b.dim; a < memory.lists; ++a) memory.places(0, a)[i] = static_cast<uint16_t>(i);
      for (int32_t a = 0; a < b.dim && s.sorted; ++a) {
        memory.places(0, a)[i] = a == 0 ? static_cast<uint16_t>(i) : b.handed_list[a * b.capacity + s.row + i];
      }
      memory.node_of[i] = 0;
    }
  }

  // Sorts the rows along an axis with a radix sort: stable counting sorts by the digits of key - low, lowest digit
  // first.
  __device__ void sort(int32_t axis) const {
    __shared__ K ends[2];
    uint16_t* in = memory.places(0, axis);
    uint16_t* out = memory.sorted();
    const K* const key = memory.key + axis * memory.capacity;
    if (thread() == 0) ends[0] = ~K{0}, ends[1] = 0;
    __syncthreads();
    K least = ~K{0}, largest = 0;
    for (int32_t i = thread(); i < s.rows; i += threads()) {
      if (key[i] < least) least = key[i];
      if (key[i] > largest) largest = key[i];
      in[i] = static_cast<uint16_t>(i);
    }
    least = warp_least(least);
    largest = warp_largest(largest);
    if (lane() == 0) lower(&ends[0], least), raise(&ends[1], largest);
    __syncthreads();
    const K low = ends[0];
    const int32_t bits = significant_bits(ends[1] - low);
    __syncthreads();  // all threads must have read the ends before the next axis resets them
    for (int32_t shift = 0; shift < bits; shift += kSortBits) {
      sort_digit(in, out, [&](int32_t row) { return static_cast<uint32_t>((key[row] - low) >> shift) % kSortDigits; });
      uint16_t* const swap = in;
      in = out;
      out = swap;
    }
    if (in == memory.places(0, axis)) return;
    for (int32_t i = thread(); i < s.rows; i += threads()) memory.places(0, axis)[i] = in[i];
    __syncthreads();
  }

  // Each warp handles consecutive rows, 32 at a time. The counters are ordered by digit, then by warp.
  template <typename Digit>
  __device__ void sort_digit(const uint16_t* in, uint16_t* out, const Digit& digit_of) const {
    const int32_t warps = threads() / 32, begin = warp() * 32 * kPositions + lane();
    uint16_t* const counters = memory.counters();
    uint32_t* const pairs = reinterpret_cast<uint32_t*>(counters);
    for (int32_t i = thread(); i < kSortDigits * warps / 2; i += threads()) pairs[i] = 0;
    __syncthreads();
    uint16_t* const own = counters + warp() * kSortDigits;
    uint32_t row[kPositions], digit[kPositions], same[kPositions], rank[kPositions];
    ERWIN_UNROLL
    for (int32_t i = 0; i < kPositions; ++i) {
      const bool used = begin + 32 * i < s.rows;
      row[i] = used ? in[begin + 32 * i] : 0;
      digit[i] = used ? digit_of(static_cast<int32_t>(row[i])) : kSortDigits;
    }
    ERWIN_UNROLL
    for (int32_t i = 0; i < kPositions; ++i) same[i] = __match_any_sync(kWarp, digit[i]);
    // The lowest lane with a digit counts all lanes with that digit.
    ERWIN_UNROLL
    for (int32_t i = 0; i < kPositions; ++i) {
      uint16_t* const counter = own + bank(digit[i], warp());
      rank[i] = 0;
      if (digit[i] < kSortDigits && (same[i] & lanes_below()) == 0) {
        rank[i] = *counter;
        *counter = static_cast<uint16_t>(rank[i] + __popc(same[i]));
      }
      __syncwarp();
    }
    ERWIN_UNROLL
    for (int32_t i = 0; i < kPositions; ++i) {
      rank[i] = __shfl_sync(kWarp, rank[i], __ffs(static_cast<int>(same[i])) - 1) + __popc(same[i] & lanes_below());
    }
    __syncthreads();
    // Every thread sums eight counters: kSortDigits * warps of them for 32 * warps threads. The number of warps is a
    // power of two.
    constexpr int32_t each = kSortDigits / 32;
    const int32_t first_warp = each * thread() & (warps - 1), width = significant_bits(static_cast<uint32_t>(warps)) - 1;
    uint16_t* const some = counters + first_warp * kSortDigits + bank(each * thread() >> width, first_warp);
    if (warps >= each) {
      count_up<each>(some, [](int32_t i) { return i * kSortDigits; });
    } else {
      count_up<each>(some, [=](int32_t i) { return (i & (warps - 1)) * kSortDigits + (i >> width); });
    }
    __syncthreads();
    ERWIN_UNROLL
    for (int32_t i = 0; i < kPositions; ++i)
      if (begin + 32 * i < s.rows) out[own[bank(digit[i], warp())] + rank[i]] = static_cast<uint16_t>(row[i]);
    __syncthreads();
  }

  // Replaces every counter of a thread by the sum of all counters before it.
  template <int32_t kCount, typename Place>
  static __device__ void count_up(uint16_t* counter, const Place& place) {
    uint32_t count[kCount], sum = 0, total;
    ERWIN_UNROLL
    for (int32_t i = 0; i < kCount; ++i) {
      count[i] = counter[place(i)];
      sum += count[i];
    }
    uint32_t before = block_exclusive_scan(sum, &total);
    ERWIN_UNROLL
    for (int32_t i = 0; i < kCount; ++i) {
      counter[place(i)] = static_cast<uint16_t>(before);
      before += count[i];
    }
  }

  // The place of the counter of a digit and a warp. Each group of eight warps is shifted, so that a scan reads
  // different banks of shared memory at the same time.
  static __device__ uint32_t bank(uint32_t digit, int32_t warp) { return digit ^ (warp / 8 % 4 * 8); }

  static __device__ uint32_t lanes_below() { return (1u << lane()) - 1; }

  // The axis along which the rows at [begin, begin + rows) are split. Three axes are read at a time, because these
  // reads do not wait for each other.
  __device__ int32_t axis_of(int32_t side, int32_t begin, int32_t rows) const {
    constexpr int32_t batch = 3;
    int32_t axis = 0;
    T widest = -1;
    for (int32_t first = 0; first < b.dim; first += batch) {
      T extent[batch];
      ERWIN_UNROLL
      for (int32_t i = 0; i < batch; ++i) {
        const int32_t a = first + i < b.dim ? first + i : 0;
        const uint16_t* const list = memory.places(side, a) + begin;
        extent[i] = coordinate_of(memory.key_of(a, list[rows - 1])) - coordinate_of(memory.key_of(a, list[0]));
      }
      ERWIN_UNROLL
      for (int32_t i = 0; i < batch; ++i)
        if (first + i < b.dim && extent[i] > widest) widest = extent[i], axis = first + i;  // never if it is NaN
    }
    return axis;
  }

  __device__ bool closes(const LocalNode& node, int32_t rows) const {
    return rows <= (hands_over ? b.handed_rows : kWarpRows) || b.is_ball(s.level, node);
  }

  // Splits all levels. The lists must be sorted.
  __device__ void build() const {
    __shared__ int32_t open, opened, closed;
    if (thread() == 0) {
      const LocalNode node = {0, static_cast<int32_t>(s.node.points), 0, static_cast<int32_t>(s.node.slots),
                              static_cast<int32_t>(s.node.balls)};
      const BlockNode root = {node, 0, s.rows, 0, 0, 0, {-1, -1}};
      const bool close = closes(node, s.rows);
      open = close ? 0 : 1;
      closed = close ? 1 : 0;
      (close ? memory.closing : memory.open(0))[0] = root;
    }
    __syncthreads();
    int32_t side = 0;
    for (;; side = 1 - side) {
      if (hands_over) {
        for (int32_t i = 0; i < closed; ++i) hand_over(side, memory.closing[i]);
      } else {
        for (int32_t i = warp(); i < closed; i += threads() / 32) finish_node(side, memory.closing[i]);
      }
      const int32_t nodes = open;
      __syncthreads();
      if (nodes == 0) return;
      if (thread() == 0) opened = closed = 0;
      __syncthreads();
      for (int32_t i = thread(); i < nodes; i += threads()) split(side, memory.open(side) + i, &opened, &closed);
      __syncthreads();
      partition(side);
      if (thread() == 0) open = opened;
      __syncthreads();
    }
  }

  // Called by one thread: chooses the axis of an open node and adds its children to the nodes of the next level.
  __device__ void split(int32_t side, BlockNode* node, int32_t* opened, int32_t* closed) const {
    const ChildrenOf<int32_t> children = b.layout.split(node->node);
    node->left = b.rows(s.level, children.left);
    node->axis = axis_of(side, node->begin, node->rows);
    for (int32_t half = 0; half < 2; ++half) {
      const int32_t begin = half == 0 ? node->begin : node->begin + node->left;
      const int32_t rows = half == 0 ? node->left : node->rows - node->left;
      const BlockNode child = {half == 0 ? children.left : children.right, begin, rows, 0, 0, 0, {-1, -1}};
      const bool close = closes(child.node, rows);
      const int32_t number = atomicAdd(close ? closed : opened, 1);
      (close ? memory.closing : memory.open(1 - side))[number] = child;
      node->child[half] = static_cast<int16_t>(close ? -1 : number);
    }
  }

  // Moves the rows of all open nodes from the lists of one side to those of the other.
  __device__ void partition(int32_t side) const {
    BlockNode* const nodes = memory.open(side);
    const int32_t begin = kPositions * thread();
    int32_t node[kPositions], middle[kPositions] = {}, rights_before[kPositions] = {};
    uint32_t starts = 0;  // a bit for every place, 1 if it is the first of a node
    ERWIN_UNROLL
    for (int32_t i = 0; i < kPositions; ++i) {
      const int32_t place = begin + i;
      node[i] = place < s.rows ? memory.node_of[place] : kNone;
      if (node[i] == kNone) continue;
      const BlockNode& own = nodes[node[i]];
      middle[i] = own.begin + own.left;
      starts |= static_cast<uint32_t>(own.begin == place) << i;
      const bool right = place >= middle[i];
      memory.goes_right[memory.places(side, own.axis)[place]] = right;
      const int16_t child = own.child[right ? 1 : 0];
      memory.node_of[place] = static_cast<uint16_t>(child < 0 ? kNone : child);
    }
    __syncthreads();
    // Four lists at a time: their counts of rows that go right fit in one word of 64 bits.
    for (int32_t first = 0; first < memory.lists; first += 4) {
      uint64_t rights = 0, total;
      uint32_t right[4] = {};  // for each list a bit for every place, 1 if its row goes right
      ERWIN_UNROLL
      for (int32_t a = 0; a < 4; ++a) {
        if (first + a >= memory.lists) break;
        const uint16_t* const list = memory.places(side, first + a) + begin;
        ERWIN_UNROLL
        for (int32_t i = 0; i < kPositions; ++i)
          if (node[i] != kNone) right[a] |= static_cast<uint32_t>(memory.goes_right[list[i]]) << i;
        rights |= static_cast<uint64_t>(__popc(right[a])) << 16 * a;
      }
      rights = block_exclusive_scan(rights, &total);
      if (first == 0) {  // once is enough: it is the same for every list
        const int32_t before = static_cast<int32_t>(rights & 0xffff);
        ERWIN_UNROLL
        for (int32_t i = 0; i < kPositions; ++i)
          if ((starts >> i & 1) != 0) nodes[node[i]].rights = before + __popc(right[0] & ((1u << i) - 1));
        __syncthreads();
        ERWIN_UNROLL
        for (int32_t i = 0; i < kPositions; ++i)
          if (node[i] != kNone) rights_before[i] = nodes[node[i]].rights;
      }
      ERWIN_UNROLL
      for (int32_t a = 0; a < 4; ++a) {
        if (first + a >= memory.lists) break;
        const uint16_t* const list = memory.places(side, first + a) + begin;
        uint16_t* const out = memory.places(1 - side, first + a);
        const int32_t before = static_cast<int32_t>(rights >> 16 * a & 0xffff);
        ERWIN_UNROLL
        for (int32_t i = 0; i < kPositions; ++i) {
          if (node[i] == kNone) continue;
          const int32_t in_node = before + __popc(right[a] & ((1u << i) - 1)) - rights_before[i];
          out[(right[a] >> i & 1) != 0 ? middle[i] + in_node : begin + i - in_node] = list[i];
        }
      }
    }
    __syncthreads();
  }

  // Called by all threads: writes a node and its lists to the buffer that does not hold the subtree. There its rows are
  // identified by their place in the list of the first axis.
  __device__ void hand_over(int32_t side, const BlockNode& node) const {
    const int32_t buffer = s.buffer == 0 ? 1 : 0;
    const int64_t row = s.row + node.begin;
    const uint16_t* const first = memory.places(side, 0) + node.begin;
    uint16_t* const name = memory.places(1 - side, 0);
    for (int32_t i = thread(); i < node.rows; i += threads()) name[first[i]] = static_cast<uint16_t>(i);
    __syncthreads();
    for (int32_t i = thread(); i < node.rows; i += threads()) {
      for (int32_t a = 0; a < b.dim; ++a) {
        b.buffers[buffer].key[a * b.capacity + row + i] = memory.key_of(a, first[i]);
        if (a > 0) b.handed_list[a * b.capacity + row + i] = name[memory.places(side, a)[node.begin + i]];
      }
      b.buffers[buffer].index[row + i] = row_at(first[i]);
    }
    if (thread() == 0) {
      const LocalNode& own = node.node;
      b.handed[atomicAdd(&b.counters->handed, 1)] = {
          {s.node.begin + own.begin, own.points, s.node.slot + own.slot, own.slots, own.balls}, row, s.tree, buffer};
    }
    __syncthreads();
  }

  // Called by one warp: splits all levels of a node that fits in a warp, or writes a ball.
  __device__ void finish_node(int32_t side, const BlockNode& root) const {
    if (b.is_ball(s.level, root.node)) return write_rows(side, root.begin, root.rows);
    const int32_t first_place = root.begin, place = first_place + lane();
    LocalNode node = root.node;
    int32_t begin = first_place, rows = lane() < root.rows ? root.rows : 0;
    for (;;) {
      const bool splits = s.level == kMain ? rows > 1 : rows > 0 && !b.is_ball(s.level, node);
      if (__ballot_sync(kWarp, splits) == 0) break;
      ChildrenOf<int32_t> children{};
      int32_t middle = 0;
      if (splits) {
        children = b.layout.split(node);
        middle = begin + b.rows(s.level, children.left);
        memory.goes_right[memory.places(side, axis_of(side, begin, rows))[place]] = place >= middle;
      }
      const uint32_t in_node = lanes_below() & ~((1u << (begin - first_place)) - 1);
      __syncwarp();
      // Four lists at a time, because their reads do not wait for each other.
      for (int32_t first = 0; first < memory.lists; first += 4) {
        uint32_t row[4], rights[4];
        ERWIN_UNROLL
        for (int32_t a = 0; a < 4; ++a)
          if (first + a < memory.lists) row[a] = splits ? memory.places(side, first + a)[place] : 0;
        ERWIN_UNROLL
        for (int32_t a = 0; a < 4; ++a)
          if (first + a < memory.lists) rights[a] = __ballot_sync(kWarp, splits && memory.goes_right[row[a]] != 0);
        __syncwarp();
        ERWIN_UNROLL
        for (int32_t a = 0; a < 4; ++a) {
          if (first + a >= memory.lists || !splits) continue;
          const int32_t before = __popc(rights[a] & in_node);
          const bool right = (rights[a] >> lane() & 1) != 0;
          memory.places(side, first + a)[right ? middle + before : place - before] = static_cast<uint16_t>(row[a]);
        }
      }
      __syncwarp();
      if (!splits) continue;
      const bool right = place >= middle;
      node = right ? children.right : children.left;
      rows = right ? rows - (middle - begin) : middle - begin;
      begin = right ? middle : begin;
    }
    if (s.level != kMain) return write_rows(side, root.begin, root.rows);
    if (rows == 0) return;
    const int32_t row = row_at(memory.places(side, 0)[place]);
    for (int64_t slot = s.out + node.slot, end = slot + node.slots, own = slot; slot < end; ++slot) {
      b.perm[slot] = row;
      if (b.mask != nullptr) b.mask[slot] = slot == own;
    }
  }

  // Writes whole balls of a rotated tree, with their rows in ascending order.
  __device__ void write_rows(int32_t side, int32_t begin, int32_t rows) const {
    int64_t* const out = b.perm_rot[s.level] + s.out;
    for (int32_t i = begin + lane(); i < begin + rows; i += 32) out[i] = row_at(memory.places(side, b.dim)[i]);
  }
};

// Writes zeros to the rows of the result beyond those of all clouds.
template <typename T>
__device__ void clear_tail(const Batch<T>& b) {
  for (int32_t l = b.first_level; l <= b.last_level; ++l) {
    const int32_t level = l == kMain ? 0 : l;
    int64_t* const out = l == kMain ? b.perm : b.perm_rot[l];
    int64_t i = b.first_row(level, b.clouds) + static_cast<int64_t>(blockIdx.x) * threads() + thread();
    for (; i < b.bound[level]; i += static_cast<int64_t>(gridDim.x) * threads()) {
      out[i] = 0;
      if (l == kMain && b.mask != nullptr) b.mask[i] = 0;
    }
  }
}

// Finishes subtrees of more than `above` rows that fit in the block. The last launch also writes what is not a subtree:
// balls of any size, and zeros.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 1) finish_subtrees(Batch<T> b, Pass pass, int32_t above, bool last) {
  ERWIN_SHARED_MEMORY(base);
  __shared__ Subtree subtree;
  int64_t bytes;
  const BlockMemory<T> memory(base, kPositions * threads(), b.dim, b.is_rotated() ? b.dim + 1 : b.dim, &bytes);
  if (last) clear_tail(b);
  const int64_t items = pass == Pass::kHanded ? b.counters->handed : b.trees() + b.counters->small;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    __syncthreads();
    if (thread() == 0) subtree = subtree_of(b, item, pass);
    __syncthreads();
    const BlockBuilder<T> builder{b, subtree, memory, pass == Pass::kHanding};
    if (subtree.ball) {
      if (last) builder.write_ball();
      continue;
    }
    if (subtree.rows <= above || subtree.rows > memory.capacity) continue;
    builder.load();
    __syncthreads();
    for (int32_t a = 0; a < b.dim && !subtree.sorted; ++a) builder.sort(a);
    builder.build();
  }
}

}  // namespace
}  // namespace erwin::cuda

#endif  // ERWIN_CUDA_TREE_SMALL_H_
