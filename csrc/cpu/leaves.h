// The lower part of a tree on the host: a node of a few thousand points, down to single points.
//
// The points are sorted once along every axis. Then a node is a range of each sorted list. Its extent along an axis is
// the difference of the ends of that range. The list of the widest axis is split in place, and the other lists are
// split by a stable partition. A node of at most 64 points is instead a bit mask per axis, with one bit for each place
// in the sorted list, and is split by a few instructions without a loop over its points.
#ifndef ERWIN_CPU_LEAVES_H_
#define ERWIN_CPU_LEAVES_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "record.h"

namespace erwin {

// Builds such nodes, one after the other, in memory of its own (half a megabyte). Every thread has one.
template <typename T, int D>
class Leaves {
  static constexpr int32_t kIdBits = 14;  // an item of the sort holds an id and 18 bits of a coordinate

 public:
  static constexpr int32_t kPoints = 1 << kIdBits;

  explicit Leaves(const Layout& layout) : layout_(layout) {
    for (int32_t n = 2; n <= kSetBits && layout.kind == ERWIN_BALANCED; ++n)
      left_[n] = static_cast<uint8_t>(layout.split(Node{0, n, 0, n, 1}).left.points);
  }

  // Loads the points of a node: at most kPoints, with ascending indices.
  void load(const Record<T, D>* records, int64_t points) {
    const auto n = static_cast<int32_t>(points);
    for (int32_t i = 0; i < n; ++i) {
      index_[i] = records[i].index;
      for (int32_t a = 0; a < D; ++a) x_[a][i] = records[i].x[a];
    }
    for (int32_t a = 0; a < D; ++a) {
      for (int32_t i = 0; i < n; ++i) list_[a][i] = static_cast<uint16_t>(i);
      sort<true>(x_[a], list_[a], n);
      for (int32_t i = 0; i < n; ++i) rank_[a][list_[a][i]] = static_cast<uint16_t>(i);
    }
  }

  // The main tree of the node that was loaded, down to single points.
  void main_tree(const Node& node, int64_t* perm, uint8_t* mask) {
    perm_ = perm;
    mask_ = mask;
    split_lists(node, 0);
  }

  // The rotated tree of the node whose rows of a level were loaded, down to that level's balls.
  void rotated_tree(int32_t level, const Node& node, int64_t* perm) {
    split_balls(level, node, 0);
    // Rows are dealt to their balls in ascending order.
    int64_t* const out = perm + node.slot / layout_.span[level];
    const int64_t rows = layout_.rows(node, level);
    for (int64_t i = 0; i < rows; ++i) out[place_in_ball_[ball_[i]]++] = index_[i];
  }

 private:
  static constexpr int32_t kSetBits = 64;

  // Sorts ids by coordinate; ids of equal coordinates stay in ascending order. A radix sort of two digits distributes
  // the points over cells of equal width. Few points are then out of order, all inside cells: an insertion sort moves
  // them. With kInOrder, ids[i] == i.
  template <bool kInOrder>
  void sort(const T* x, uint16_t* ids, int32_t n) {
    if (n <= 24) {
      insertion_sort(x, ids, n, n * n);
      return;
    }
    const auto value = [=](int32_t i) { return kInOrder ? x[i] : x[ids[i]]; };
    T low, high;
    range(value, n, &low, &high);
    if (low == high) return;
    int32_t bits = 6;  // bits of a digit, for 64 cells per point, or as many as fit in an item
    while (2 * bits + 2 <= 32 - kIdBits && int64_t{1} << (2 * bits) < int64_t{64} * n) ++bits;
    const uint32_t digits = 1u << bits;
    const T scale = static_cast<T>(digits * digits - 1) / (high - low);
    if (scale == 0 || !(scale <= std::numeric_limits<T>::max())) return comparison_sort(x, ids, n);
    const auto cell = [=](T at) { return static_cast<uint32_t>(static_cast<int32_t>((at - low) * scale)); };
    std::fill_n(count_[0], digits, 0);
    std::fill_n(count_[1], digits, 0);
    for (int32_t i = 0; i < n; ++i) item_[0][i] = cell(value(i));
    for (int32_t i = 0; i < n; ++i) {
      const uint32_t c = item_[0][i];
      item_[0][i] = c * kPoints | (kInOrder ? static_cast<uint32_t>(i) : ids[i]);
      ++count_[0][c % digits];
      ++count_[1][c >> bits];
    }
    uint32_t first[2] = {0, 0};
    for (uint32_t d = 0; d < digits; ++d) {
      for (int32_t pass = 0; pass < 2; ++pass) {
        const uint32_t count = count_[pass][d];
        count_[pass][d] = first[pass];
        first[pass] += count;
      }
    }
    for (int32_t i = 0; i < n; ++i) item_[1][count_[0][item_[0][i] / kPoints % digits]++] = item_[0][i];
    for (int32_t i = 0; i < n; ++i)
      ids[count_[1][item_[1][i] / kPoints >> bits]++] = static_cast<uint16_t>(item_[1][i] % kPoints);
    if (insertion_sort(x, ids, n, 4 * n)) return;
    // Some cells hold many points. Each is sorted by smaller cells, unless one cell holds all points.
    for (int32_t begin = 0, end; begin < n; begin = end) {
      const uint32_t c = cell(x[ids[begin]]);
      for (end = begin + 1; end < n && cell(x[ids[end]]) == c; ++end) continue;
      if (end - begin < n) {
        sort<false>(x, ids + begin, end - begin);
      } else {
        comparison_sort(x, ids, n);
      }
    }
  }

  // Eight minima are computed side by side, because a minimum has a longer latency than a load.
  template <typename Value>
  static void range(const Value& value, int32_t n, T* low, T* high) {
    T lows[8], highs[8];
    for (int32_t lane = 0; lane < 8; ++lane) lows[lane] = highs[lane] = value(0);
    const auto take = [&](int32_t lane, T x) {
      lows[lane] = x < lows[lane] ? x : lows[lane];
      highs[lane] = x > highs[lane] ? x : highs[lane];
    };
    int32_t i = 0;
    for (; i + 8 <= n; i += 8)
      for (int32_t lane = 0; lane < 8; ++lane) take(lane, value(i + lane));
    for (; i < n; ++i) take(0, value(i));
    *low = *std::min_element(lows, lows + 8);
    *high = *std::max_element(highs, highs + 8);
  }

  // Stable; gives up when more than `moves` moves are needed.
  static bool insertion_sort(const T* x, uint16_t* ids, int32_t n, int32_t moves) {
    T previous = x[ids[0]];
    for (int32_t i = 1; i < n; ++i) {
      const uint16_t id = ids[i];
      const T value = x[id];
      if (value < previous) {
        int32_t j = i;
        for (; j > 0 && value < x[ids[j - 1]]; --j) ids[j] = ids[j - 1];
        ids[j] = id;
        moves -= i - j;
        if (moves < 0) return false;
      } else {
        previous = value;
      }
    }
    return true;
  }

  static void comparison_sort(const T* x, uint16_t* ids, int32_t n) {
    std::sort(ids, ids + n, [x](uint16_t a, uint16_t b) { return x[a] < x[b] || (x[a] == x[b] && a < b); });
  }

  // Splits a node whose points are list_[a][first], ..., in the order along each axis a.
  void split_lists(const Node& node, int32_t first) {
    if (node.points <= kSetBits) return split_bits(node, first);
    const Children children = layout_.split(node);
    const auto left = static_cast<int32_t>(children.left.points);
    split_list(first, static_cast<int32_t>(node.points), left);
    split_lists(children.left, first);
    split_lists(children.right, first + left);
  }

  void split_balls(int32_t level, const Node& node, int32_t first) {
    const auto rows = static_cast<int32_t>(layout_.rows(node, level));
    if (layout_.within_ball(node, level)) {
      place_in_ball_[first] = static_cast<uint16_t>(first);
      for (int32_t i = first; i < first + rows; ++i) ball_[list_[0][i]] = static_cast<uint16_t>(first);
      return;
    }
    const Children children = layout_.split(node);
    const auto left = static_cast<int32_t>(layout_.rows(children.left, level));
    split_list(first, rows, left);
    split_balls(level, children.left, first);
    split_balls(level, children.right, first + left);
  }

  // Moves the `left` points with the smallest coordinates along the widest axis to the front of every list.
  void split_list(int32_t first, int32_t n, int32_t left) {
    T extent[D];
    for (int32_t a = 0; a < D; ++a) {
      extent[a] = x_[a][list_[a][first + n - 1]] - x_[a][list_[a][first]];
      if (extent[a] != extent[a]) extent[a] = -1;  // rotated rows may all be at infinity
    }
    const int32_t axis = widest(extent);
    const uint16_t cut = rank_[axis][list_[axis][first + left]];
    for (int32_t a = 0; a < D; ++a)
      if (a != axis) partition(list_[a] + first, n, rank_[axis], cut);
  }

  // The lowest axis wins ties. Without branches, because which axis it is cannot be predicted.
  static int32_t widest(const T* extent) {
    if constexpr (D == 1) return 0;
    const int32_t second = extent[1] > extent[0];
    if constexpr (D == 2) return second;
    const int32_t third = (extent[2] > extent[0]) & (extent[2] > extent[1]);
    return (second & (third ^ 1)) | third << 1;
  }

  // Moves ids whose rank is below the cut to the front; the order within both parts is kept.
  void partition(uint16_t* list, int32_t n, const uint16_t* rank, uint16_t cut) {
    int64_t left = 0;
    for (int64_t i = 0; i < n; ++i) {
      const uint16_t id = list[i];
      list[left] = id;
      spill_[i - left] = id;
      left += rank[id] < cut;
    }
    std::memcpy(list + left, spill_, static_cast<size_t>(n - left) * sizeof(*list));
  }

  // Splits a node of at most 64 points. A table holds, for every place along an axis, the points before it as bit masks
  // along every axis. A split is the intersection of the node's bit masks with those.
  void split_bits(const Node& node, int32_t first) {
    const auto n = static_cast<int32_t>(node.points);
    for (int32_t i = 0; i < n; ++i) place_[list_[0][first + i]] = static_cast<uint8_t>(i);
    for (int32_t a = 0; a < D; ++a) {
      sorted_id_[a] = list_[a] + first;
      for (int32_t i = 0; i < n; ++i) {
        const uint16_t id = sorted_id_[a][i];
        bit_[a][place_[id]] = uint64_t{1} << i;
        sorted_[a][i] = x_[a][id];
      }
      set_[a][0] = ~uint64_t{0} >> (kSetBits - n);
    }
    for (int32_t a = 0; a < D; ++a) {
      uint64_t set[D] = {};
      for (int32_t i = 0; i < n; ++i) {
        const uint8_t place = place_[sorted_id_[a][i]];
        for (int32_t b = 0; b < D; ++b) {
          before_[a][b][i] = set[b];
          set[b] |= bit_[b][place];
        }
      }
    }
    if (layout_.kind == ERWIN_BALANCED && node.balls == 1) {
      // Inside a ball a split depends only on the number of points.
      split_sets(InBall{n, node.slot}, [this](const InBall& part) {
        const int32_t left = left_[part.points];
        return Pair<InBall>{{left, part.slot}, {part.points - left, part.slot + left}};
      });
    } else {
      split_sets(node, [this](const Node& part) {
        const Children children = layout_.split(part);
        return Pair<Node>{children.left, children.right};
      });
    }
  }

  struct InBall {
    int32_t points;
    int64_t slot;
  };
  template <typename N>
  struct Pair {
    N left, right;
  };

  // Works level by level, because the nodes of a level do not depend on each other, so the processor can overlap them.
  template <typename N, typename Split>
  void split_sets(const N& root, const Split& split) {
    N nodes[2 * kSetBits];
    nodes[0] = root;
    for (int32_t i = 0, count = 1; i < count; ++i) {
      const N node = nodes[i];
      const int32_t axis = widest_axis(i);
      if (node.points <= 2) {
        write(node, point(axis, lowest_bit(set_[axis][i])), point(axis, highest_bit(set_[axis][i])));
        continue;
      }
      const Pair<N> children = split(node);
      uint64_t rest = set_[axis][i];
      for (int64_t left = children.left.points; left > 0; --left) rest &= rest - 1;
      const int32_t cut = lowest_bit(rest);
      for (int32_t a = 0; a < D; ++a) {
        const uint64_t set = set_[a][i], lower = set & before_[axis][a][cut];
        set_[a][count] = lower;
        set_[a][count + 1] = set ^ lower;
      }
      nodes[count++] = children.left;
      nodes[count++] = children.right;
    }
  }

  void write(const InBall& node, int32_t first, int32_t second) {
    perm_[node.slot] = first;
    if (node.points == 2) perm_[node.slot + 1] = second;
  }

  // In the perfect layout a point that is alone in a pair of slots fills both. So two points fill two to four slots.
  void write(const Node& node, int32_t first, int32_t second) {
    const int64_t of_first = node.points == 2 ? node.slots / 2 : node.slots;
    for (int64_t i = 0; i < node.slots; ++i) {
      perm_[node.slot + i] = i < of_first ? first : second;
      if (mask_ != nullptr) mask_[node.slot + i] = i == 0 || i == of_first;
    }
  }

  int32_t point(int32_t axis, int32_t place) const { return index_[sorted_id_[axis][place]]; }

  int32_t widest_axis(int32_t node) const {
    T extent[D];
    for (int32_t a = 0; a < D; ++a)
      extent[a] = sorted_[a][highest_bit(set_[a][node])] - sorted_[a][lowest_bit(set_[a][node])];
    return widest(extent);
  }

  static int32_t lowest_bit(uint64_t bits) { return __builtin_ctzll(bits); }
  static int32_t highest_bit(uint64_t bits) { return 63 ^ __builtin_clzll(bits); }

  const Layout& layout_;
  int64_t* perm_;
  uint8_t* mask_;
  uint8_t left_[kSetBits + 1];  // [n]: how many of n points inside a ball go left
  int32_t index_[kPoints];
  T x_[D][kPoints];
  uint16_t list_[D][kPoints];  // ids in the order along an axis
  uint16_t rank_[D][kPoints];  // the place of an id in this order, among all points
  uint16_t spill_[kPoints];
  uint16_t ball_[kPoints], place_in_ball_[kPoints];
  uint32_t item_[2][kPoints];
  uint32_t count_[2][1024];
  // For a node of at most 64 points:
  uint8_t place_[kPoints];          // the place of an id along the first axis
  const uint16_t* sorted_id_[D];    // ids along an axis
  T sorted_[D][kSetBits];           // coordinates along an axis
  uint64_t bit_[D][kSetBits];       // [axis, place along the first axis]: the bit of that point
  uint64_t before_[D][D][kSetBits];  // [axis, other axis, place]: the points before the place, as bits along the other
  uint64_t set_[D][2 * kSetBits];   // [axis, node]: the points of the node, as bits
};

}  // namespace erwin

#endif  // ERWIN_CPU_LEAVES_H_
