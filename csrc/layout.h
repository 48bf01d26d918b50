// The split rule: how many points go left at every node of a cloud's tree.
//
// Nodes are split by the number of points, so all boundaries depend only on the size of the cloud, the ball sizes and
// the strides, not on coordinates. Balanced layout: the cloud is divided into blocks of S points (S: product of the
// strides), and the blocks are distributed over the balls. The sizes of balls differ by at most one block, and every
// left child is a perfect subtree. Perfect layout: there are 2^m slots, halved at every node; a point that is alone in
// a pair of slots fills both.
#ifndef ERWIN_LAYOUT_H_
#define ERWIN_LAYOUT_H_

#include <cstdint>
#include <type_traits>

#include "erwin.h"
#include "host_device.h"

namespace erwin {

// A node of the tree of one cloud. I is an integer type that is wide enough for its numbers. In the balanced layout
// `slots == points`.
template <typename I>
struct NodeOf {
  I begin;   // first point, counted in the cloud
  I points;  // distinct points below the node
  I slot;    // first row of level 0
  I slots;   // rows of level 0
  I balls;   // balls below the node (balanced layout; 1 inside a ball)
};

template <typename I>
struct ChildrenOf {
  NodeOf<I> left, right;
};

using Node = NodeOf<int64_t>;
using Children = ChildrenOf<int64_t>;

// Rounds up. For numbers that are not negative: a GPU divides unsigned numbers faster.
template <typename I>
ERWIN_HOST_DEVICE I floor_div(I a, typename std::common_type<I>::type b) {
  typedef typename std::make_unsigned<I>::type U;
  return static_cast<I>(static_cast<U>(a) / static_cast<U>(b));
}

template <typename I>
ERWIN_HOST_DEVICE I ceil_div(I a, typename std::common_type<I>::type b) {
  const I quotient = floor_div(a, b);
  return quotient + (quotient * b != a);
}

// Smallest power of two that is not below n (n >= 1).
template <typename I>
ERWIN_HOST_DEVICE I ceil_pow2(I n) {
#if defined(__CUDA_ARCH__)
  if (sizeof(I) == 4) return I{1} << (n > 1 ? 32 - __clz(static_cast<int>(n - 1)) : 0);
#endif
  I p = 1;
  while (p < n) p *= 2;
  return p;
}

// How many of k >= 2 equal parts go left: the power of two for which neither side has more than twice as many parts as
// the other.
template <typename I>
ERWIN_HOST_DEVICE I left_parts(I k) {
  const I p = ceil_pow2(k);  // 2^h with h = ceil(log2 k)
  if (p == 2) return 1;
  return 4 * k >= 3 * p ? p / 2 : p / 4;
}

struct Layout {
  int32_t kind;
  int32_t levels;
  int64_t ball[ERWIN_MAX_LEVELS];
  int64_t span[ERWIN_MAX_LEVELS];  // rows of level 0 below one row of level l: S_l
  int64_t blocks_per_ball;

  ERWIN_HOST_DEVICE int64_t block() const { return span[levels - 1]; }

  // The first level whose rows are centroids; those of lower levels are points.
  int32_t first_pooled_level() const {
    int32_t level = 0;
    while (level < levels && span[level] == 1) ++level;
    return level;
  }

  ERWIN_HOST_DEVICE Node root(int64_t points) const {
    if (kind == ERWIN_PERFECT) return {0, points, 0, points == 0 ? 0 : ceil_pow2(points), 1};
    return {0, points, 0, points, ceil_div(ceil_div(points, block()), blocks_per_ball)};
  }

  // Splits a node with `slots >= 2`. Repeated splits end at single slots.
  template <typename I>
  ERWIN_HOST_DEVICE ChildrenOf<I> split(const NodeOf<I>& node) const {
    I points = 0, slots = 0, balls = 1, balls_right = 1;
    if (kind == ERWIN_PERFECT) {
      points = (2 * node.begin + node.points) / 2 - node.begin;
      slots = node.slots / 2;
      if (points == 0) points = node.points;  // a single point: it fills both slots
    } else if (node.balls > 1) {
      const I size = static_cast<I>(block()), blocks = ceil_div(node.points, size);
      balls = left_parts(node.balls);
      balls_right = node.balls - balls;
      points = slots = size * floor_div(blocks * balls + node.balls / 2, node.balls);
    } else {
      int32_t level = levels - 1;
      while (span[level] >= node.points) --level;  // span[0] = 1 < points
      const I size = static_cast<I>(span[level]);
      points = slots = size * left_parts(ceil_div(node.points, size));
    }
    const I overlap = kind == ERWIN_PERFECT && node.points == 1 ? 1 : 0;
    return {{node.begin, points, node.slot, slots, balls},
            {node.begin + points - overlap, node.points - points + overlap, node.slot + slots, node.slots - slots,
             balls_right}};
  }

  template <typename I>
  ERWIN_HOST_DEVICE I rows(const NodeOf<I>& node, int32_t level) const {
    if (span[level] >= node.slots) return node.slots > 0;
    return ceil_div(node.slots, static_cast<I>(span[level]));
  }

  // The balls of a level are the largest nodes that are not larger than its ball size.
  template <typename I>
  ERWIN_HOST_DEVICE bool within_ball(const NodeOf<I>& node, int32_t level) const {
    return rows(node, level) <= ball[level];
  }
};

// Checks a configuration and computes the numbers that the split rule needs. Returns false if it is out of range.
inline bool make_layout(const erwin_layout* config, Layout* layout) {
  if (config == nullptr || config->levels < 1 || config->levels > ERWIN_MAX_LEVELS) return false;
  if (config->kind != ERWIN_BALANCED && config->kind != ERWIN_PERFECT) return false;
  const int64_t limit = int64_t{1} << 31;
  layout->kind = config->kind;
  layout->levels = config->levels;
  int64_t span = 1;
  for (int32_t l = 0; l < config->levels; ++l) {
    const int64_t ball = config->ball_sizes[l];
    if (ball < 1 || ball > limit) return false;
    layout->ball[l] = ball;
    layout->span[l] = span;
    if (l + 1 < config->levels) {
      const int64_t stride = config->strides[l];
      if (stride < 1 || stride > limit || span > limit / stride) return false;
      span *= stride;
    }
    if (config->kind == ERWIN_PERFECT && (ball != ceil_pow2(ball) || span != ceil_pow2(span))) return false;
  }
  layout->blocks_per_ball = layout->ball[0] < span ? 1 : layout->ball[0] / span;
  return true;
}

// Whether offsets start at 0 and ascend, and every cloud is small enough for 32-bit indices, repeated points included.
inline bool valid_ptr(const int64_t* ptr, int64_t clouds) {
  if (ptr == nullptr || clouds < 0 || ptr[0] != 0) return false;
  for (int64_t g = 0; g < clouds; ++g) {
    if (ptr[g + 1] < ptr[g] || ptr[g + 1] - ptr[g] > int64_t{1} << 30) return false;
  }
  return true;
}

}  // namespace erwin

#endif  // ERWIN_LAYOUT_H_
