// Plans and launches the building of trees. No step waits for the device, so the host knows only upper bounds of sizes.
#ifndef ERWIN_CUDA_TREE_BUILD_H_
#define ERWIN_CUDA_TREE_BUILD_H_

#include <algorithm>

#include "../arena.h"
#include "../device_tree.h"
#include "../scalars.h"
#include "launch.h"
#include "tree_large.h"
#include "tree_rows.h"
#include "tree_small.h"

namespace erwin::cuda {
namespace {

// How many levels of large nodes a tree can have at most, for a cloud of up to `points` points. A node is large if it
// has more than `limit` rows of `level` and is not a ball of that level.
inline int32_t large_depth(const Layout& layout, int64_t points, int32_t level, int64_t limit) {
  const int64_t span = level == kMain ? 1 : layout.span[level];
  if (level != kMain) limit = std::max(limit, layout.ball[level]);
  const auto fits = [&](int64_t slots) { return ceil_div(slots, span) <= limit; };
  if (points == 0) return 0;
  int32_t depth = 0;
  if (layout.kind == ERWIN_PERFECT) {
    for (int64_t slots = ceil_pow2(points); !fits(slots); slots /= 2) ++depth;
    return depth;
  }
  // Round the number of parts of a node up to a power of two: a child has at most half of that.
  const int64_t ball = layout.blocks_per_ball * layout.block();
  int64_t balls = ceil_pow2(ceil_div(points, ball));
  if (fits(points)) return 0;
  for (; balls > 1 && !fits(balls * ball); balls /= 2) ++depth;
  if (balls > 1 || fits(ball)) return depth;
  int64_t rows = std::min(points, ball);
  for (int32_t l = layout.levels - 1; l >= 0; --l) {
    int64_t parts = ceil_pow2(ceil_div(rows, layout.span[l]));
    for (; parts > 1 && !fits(parts * layout.span[l]); parts /= 2) ++depth;
    rows = std::min(rows, parts * layout.span[l]);
    if (fits(rows)) break;
  }
  return depth;
}

template <typename T>
class TreeBuild {
 public:
  TreeBuild(Device& device, const Layout& layout, const erwin_tree_bounds& bounds, int64_t dim, bool rotated)
      : device_(device), bounds_(bounds), rotated_(rotated) {
    batch_.layout = layout;
    batch_.clouds = bounds.clouds;
    batch_.dim = static_cast<int32_t>(dim);
    batch_.pooled = layout.first_pooled_level();
    const int32_t lists = batch_.dim + (rotated ? 1 : 0);
    block_threads_ = device.block_threads();
    while (block_threads_ > 32 && shared_bytes(block_threads_, lists) > device.shared_bytes()) block_threads_ /= 2;
    batch_.block_rows = kPositions * block_threads_;

    int64_t rows = bounds.points, all_rows = 0, pooled_rows = 0;
    for (int32_t l = 0; rotated && l < layout.levels; ++l) {
      all_rows += bounds.rows[l];
      if (l < batch_.pooled) rows = std::max(rows, bounds.rows[l]);
      else pooled_rows += bounds.rows[l];
    }
    has_large_ = depth(kMain) > 0;
    for (int32_t l = 0; rotated && l < layout.levels; ++l) has_large_ = has_large_ || depth(l) > 0;
    // With fewer subtrees than half the number of multiprocessors, most of these would be idle: then blocks hand small
    // nodes over to other blocks.
    batch_.handed_rows = device.handed_rows();
    hands_over_ = bounds.largest > 2 * batch_.handed_rows && batch_.handed_rows < batch_.block_rows &&
                  bounds.points <= device.processors() / 2 * batch_.block_rows;
    together_ = !has_large_ || rows <= device.few_rows();
    // If there are no large trees and nothing is handed over, the buffers hold only centroids.
    batch_.capacity = pooled_rows;
    if (has_large_ || hands_over_) batch_.capacity = together_ ? std::max(rows, all_rows) : std::max(rows, pooled_rows);
    std::copy_n(bounds.rows, layout.levels, batch_.bound);
    large_nodes_ = has_large_ ? batch_.capacity / (batch_.block_rows + 1) + 1 : 0;
    tiles_ = has_large_ ? batch_.capacity / tile_rows() + large_nodes_ : 0;
  }

  int64_t workspace_bytes() { return place(nullptr); }

  void run(const DeviceTree& tree) {
    place(static_cast<char*>(tree.workspace));
    batch_.pos = static_cast<const T*>(tree.pos);
    batch_.ptr = tree.ptr;
    batch_.perm = tree.perm;
    batch_.mask = tree.mask;
    const int32_t levels = batch_.layout.levels;
    uint32_t* const zeros = reinterpret_cast<uint32_t*>(counters_);
    const int64_t num_zeros = batch_.digits + large_nodes_ * kDigits - zeros;
    const int64_t blocks = std::min(ceil_div(num_zeros, 4 * kStartThreads), 4 * device_.processors());
    device_.launch(start<T>, std::max<int64_t>(levels, blocks), kStartThreads, 0, batch_, first_, zeros, num_zeros);
    build_trees(kMain, kMain);
    if (!rotated_) return;
    std::copy_n(static_cast<const T*>(tree.rotation), batch_.dim * batch_.dim, batch_.rotation);
    std::copy_n(tree.perm_rot, levels, batch_.perm_rot);
    for (int32_t l = 0; l < batch_.pooled && !together_; ++l) build_trees(l, l);
    const int32_t first_level = together_ ? 0 : batch_.pooled;
    int64_t base = 0;
    for (int32_t l = has_large_ ? first_level : batch_.pooled; l < levels; ++l) {
      batch_.base[l] = base;
      base += bounds_.rows[l];
    }
    for (int32_t from = batch_.pooled - 1; from + 1 < levels;) {
      int32_t to = from + 1;
      while (to + 1 < levels && pool_threads(batch_.layout, from, to + 1) <= kMostPooled) ++to;
      const int64_t rows_of_block = kPoolThreads / pool_threads(batch_.layout, from, to);
      device_.launch(pool<T>, ceil_div(bounds_.rows[to], rows_of_block), kPoolThreads, 0, batch_, from, to);
      from = to;
    }
    if (first_level < levels) build_trees(first_level, levels - 1);
  }

 private:
  static constexpr int kStartThreads = 256;
  static constexpr int32_t kMostPooled = 32;  // rows of one level, at most, that one launch pools to one row

  int64_t tile_rows() const { return kItems * device_.tile_threads(); }

  int32_t depth(int32_t level) const {
    return large_depth(batch_.layout, bounds_.largest, level, batch_.block_rows);
  }

  int64_t shared_bytes(int threads, int32_t lists) const {
    int64_t bytes;
    BlockMemory<T>(nullptr, kPositions * threads, batch_.dim, lists, &bytes);
    return bytes;
  }

  // Places all arrays in the workspace. Returns its size in bytes.
  int64_t place(char* base) {
    AlignedArena<256> arena{base};  // bytes: every array starts on a new line of the GPU's memory
    first_ = arena.take<int64_t>(batch_.layout.levels * (batch_.clouds + 1));
    batch_.first = first_;
    counters_ = arena.take<Counters>(rotated_ ? batch_.pooled + 2 : 1);  // one per batch; zeroed with the digits
    batch_.digits = arena.take<uint32_t>(large_nodes_ * kDigits);
    int32_t deepest = depth(kMain);
    for (int32_t l = 0; rotated_ && l < batch_.layout.levels; ++l) deepest = std::max(deepest, depth(l));
    batch_.small = arena.take<SmallNode>((large_nodes_ * deepest + 1) * 2);
    const int32_t levels_above = large_depth(batch_.layout, bounds_.largest, kMain, batch_.handed_rows);
    const int64_t handed = hands_over_ ? (bounds_.points / (batch_.handed_rows + 1) + bounds_.clouds) * 2 : 0;
    batch_.handed = arena.take<SmallNode>(handed * (levels_above + 1));
    batch_.handed_list = arena.take<uint16_t>(hands_over_ ? batch_.dim * batch_.capacity : 0);
    batch_.tile_state = arena.take<uint64_t>(tiles_);
    for (int32_t side = 0; side < 2; ++side) {
      batch_.large[side] = arena.take<LargeNode<T>>(large_nodes_);
      batch_.tile_node[side] = arena.take<int32_t>(tiles_);
      batch_.buffers[side].index = arena.take<int32_t>(has_large_ || hands_over_ ? batch_.capacity : 0);
      const bool used = has_large_ || hands_over_ || side == 1;
      batch_.buffers[side].key = arena.take<KeyOf<T>>(used ? batch_.dim * batch_.capacity : 0);
    }
    return arena.used;
  }

  // Builds the trees of these levels, for all clouds together.
  void build_trees(int32_t first_level, int32_t last_level) {
    batch_.first_level = first_level;
    batch_.last_level = last_level;
    const int64_t trees = batch_.clouds * (last_level - first_level + 1);
    batch_.counters = counters_++;
    int32_t deepest = 0;
    for (int32_t l = first_level; l <= last_level && trees > 0; ++l) deepest = std::max(deepest, depth(l));
    const int threads = device_.tile_threads();
    if (deepest > 0) {
      device_.launch(open_roots<T>, std::min<int64_t>(trees, 8 * device_.processors()), threads, 0, batch_);
      device_.launch(load<T>, tiles_, threads, 0, batch_);
    }
    constexpr int32_t key_bits = 8 * sizeof(T);
    for (int32_t d = 0; d < deepest; ++d) {
      for (int32_t bits = 0; bits < key_bits; bits += kDigitBits) {
        device_.launch(count_digits<T>, tiles_, threads, 0, batch_, d, bits == 0);
      }
      device_.launch(partition<T>, tiles_, threads, 0, batch_, d);
    }
    finish(trees, first_level, last_level);
  }

  // Finishes the subtrees that fit in a block. If there are many, small subtrees get small blocks, so that a
  // multiprocessor works on several at a time. The subtrees below large nodes have at least a third of the rows that a
  // block can hold, except with unusual strides.
  void finish(int64_t trees, int32_t first_level, int32_t last_level) {
    const int32_t lists = batch_.dim + (first_level == kMain ? 0 : 1);
    int64_t longest = 1;
    for (int32_t l = first_level; l <= last_level; ++l) {
      longest = std::max(longest, ceil_div(bounds_.largest, l == kMain ? 1 : batch_.layout.span[l]));
    }
    if (batch_.layout.kind == ERWIN_PERFECT) longest *= 2;
    int threads = 32;
    while (threads < block_threads_ && kPositions * threads < longest) threads *= 2;
    const int64_t subtrees = trees + large_nodes_ * 3;
    const bool many = subtrees > 2 * device_.processors();
    if (first_level == kMain && hands_over_) {
      finish(Pass::kHanding, subtrees, threads, lists, 0, true);
      while (threads / 2 >= batch_.handed_rows) threads /= 2;  // one warp is enough for a node that fits in it
      finish(Pass::kHanded, bounds_.points / batch_.handed_rows * 3 + trees, threads, lists, 0, false);
      return;
    }
    int32_t above = 0;
    const int least = !many ? threads : trees > 2 * device_.processors() ? 32 : std::max(32, threads / 2);
    for (int size = least;; size = std::min(4 * size, threads)) {
      finish(Pass::kWhole, subtrees, size, lists, above, size == threads);
      if (size == threads) break;
      above = kPositions * size;
    }
  }

  void finish(Pass pass, int64_t subtrees, int threads, int32_t lists, int32_t above, bool last) {
    const int64_t shared = shared_bytes(threads, lists);
    const int64_t resident = std::max<int64_t>(1, std::min<int64_t>(device_.shared_bytes() / shared, 2048 / threads));
    const int64_t blocks = std::min(std::max<int64_t>(1, subtrees), resident * device_.processors());
    device_.launch(finish_subtrees<T>, blocks, threads, shared, batch_, pass, above, last);
  }

  Device& device_;
  const erwin_tree_bounds& bounds_;
  bool rotated_;
  Batch<T> batch_{};
  int64_t* first_ = nullptr;
  Counters* counters_ = nullptr;  // those of the next batch
  int block_threads_ = 0;
  bool has_large_ = false;
  bool hands_over_ = false;  // whether blocks of the main trees hand small nodes over to other blocks
  bool together_ = false;    // whether the rotated trees of all levels are built in the same launches
  int64_t large_nodes_ = 0, tiles_ = 0;
};

// Calls f with the build of a call.
template <typename F>
int32_t with_build(const DeviceTreeCall& call, const F& f) {
  Device device(*call.context);
  with_scalar(call.dtype, [&](auto scalar) {
    f(TreeBuild<decltype(scalar)>(device, call.layout, *call.bounds, call.dim, call.rotated));
  });
  return device.ok() ? ERWIN_OK : ERWIN_INTERNAL_ERROR;
}

constexpr DeviceTreeKernels kTree = {
    [](const DeviceTreeCall& call, int64_t* bytes) {
      return with_build(call, [=](auto&& build) { *bytes = build.workspace_bytes(); });
    },
    [](const DeviceTreeCall& call, const DeviceTree& tree) {
      return with_build(call, [&](auto&& build) { build.run(tree); });
    }};

}  // namespace
}  // namespace erwin::cuda

#endif  // ERWIN_CUDA_TREE_BUILD_H_
