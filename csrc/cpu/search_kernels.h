// Exact search for the neighbours of the points of a few consecutive leaves. These are leaves of the cloud that is
// searched, or of another cloud; both are called leaves below, and the points whose neighbours are searched, queries.
//
// The leaves that are near enough to any of these points are listed once. For the points of each leaf the list is
// narrowed, and each point is compared only with the points of leaves whose boxes are near it. Pruning is exact: the
// distance to a box is computed with the same operations, in the same order of axes, as the distance to a point;
// rounding is monotonic, so the distance to a box is never larger than that to a point inside it.
#ifndef ERWIN_CPU_SEARCH_KERNELS_H_
#define ERWIN_CPU_SEARCH_KERNELS_H_

#include <algorithm>
#include <cstdint>
#include <limits>

#include "lanes.h"
#include "nearest.h"
#include "search.h"

namespace erwin {
namespace {

// A radius search with a cap can sort all points within the radius, or search the nearest ones. If there are more
// points or leaves than this per neighbour that is kept, searching the nearest is faster (measured with 8, 32 and 128
// kept).
constexpr int64_t kCrowdedLeaf = 12;  // points in the leaves near a leaf
constexpr int64_t kCrowdedGroup = 4;  // leaves near a group, not counting its own

// D is the dimension, or 0 if it is known only at run time.
template <typename T, int D>
class Search {
 public:
  Search(const SearchCloud<T>& cloud, const SearchCloud<T>& queries, int32_t dim, const Scratch<T>& own)
      : cloud_(cloud), queries_(queries), runtime_dim_(dim), own_(own) {}

  void knn(int32_t first, int32_t last, const KnnSearch<T>& search) {
    struct Queries {
      const KnnSearch<T>& search;
      int64_t row, own_row;  // the first rows of the cloud and of the queries
      int64_t k = search.k;
      T farthest = std::numeric_limits<T>::infinity();

      static bool wants(int32_t) { return true; }
      // Edges are written in the order of the tree, so the processor cannot predict where: prefetch the places.
      void expect(int32_t point) const {
        for (int64_t j = 0; j < std::min<int64_t>(k, 64); j += 8) {
          __builtin_prefetch(search.source + point * k + j, 1);
          __builtin_prefetch(search.target + point * k + j, 1);
        }
      }
      void keep(int32_t point, const Nearest<T>& nearest) const {
        int64_t* const source = search.source + point * k;
        int64_t* const target = search.target + point * k;
        for (int64_t j = 0; j < k; ++j) source[j] = row + Keys<T>::index(nearest.keys(), j);
        for (int64_t j = 0; j < k; ++j) target[j] = own_row + point;
      }
    };
    find_nearest(first, last, search.loop, Queries{search, cloud_.first, queries_.first});
  }

  // A query sorts all points within the radius. With a cap these may be far more than are kept: if many leaves are
  // near, it searches its nearest neighbours instead.
  void radius(int32_t first, int32_t last, const RadiusSearch<T>& search) {
    struct Queries {
      const RadiusSearch<T>& search;
      int32_t first;
      uint32_t crowded;  // a bit for each leaf, 1 if many leaves are near it
      int64_t k = search.most;
      T farthest = search.limit;

      bool wants(int32_t leaf) const { return (crowded >> (leaf - first) & 1) != 0; }
      static void expect(int32_t) {}
      void keep(int32_t point, const Nearest<T>& nearest) const {
        Search::keep(search, point, nearest.keys(), nearest.count());
      }
    };
    if (const uint32_t crowded = sort_within(first, last, search))
      find_nearest(first, last, search.loop, Queries{search, first, crowded});
  }

 private:
  int32_t dim() const { return D > 0 ? D : runtime_dim_; }
  const T* box(int32_t node) const { return cloud_.boxes + static_cast<int64_t>(node) * 2 * dim(); }
  const T* coords(int32_t leaf) const { return cloud_.coords + static_cast<int64_t>(leaf) * dim() * kLeaf; }
  const int32_t* index(int32_t leaf) const { return cloud_.index + static_cast<int64_t>(leaf) * kLeaf; }
  int32_t size(int32_t leaf) const { return cloud_.nodes[cloud_.leaves[leaf]].points; }

  // The same of leaves of queries.
  const T* query_box(int32_t leaf) const {
    return queries_.boxes + static_cast<int64_t>(queries_.leaves[leaf]) * 2 * dim();
  }
  const T* query(int32_t leaf, int32_t lane) const {
    return queries_.coords + static_cast<int64_t>(leaf) * dim() * kLeaf + lane;
  }
  int32_t query_index(int32_t leaf, int32_t lane) const {
    return queries_.index[static_cast<int64_t>(leaf) * kLeaf + lane];
  }
  int32_t num_queries(int32_t leaf) const { return queries_.nodes[queries_.leaves[leaf]].points; }

  // distance[j] = sum over axes a of difference(a, j) squared, for kLeaf lanes. Compilers vectorise these loops. Both
  // orders of the loops give the same sums.
  template <typename F>
  void sum_squares(T* __restrict distance, const F& difference) const {
    if constexpr (D > 0) {
#pragma omp simd
      for (int32_t j = 0; j < kLeaf; ++j) {
        T sum = 0;
        for (int32_t a = 0; a < D; ++a) {
          const T d = difference(a, j);
          sum += d * d;
        }
        distance[j] = sum;
      }
    } else {
      for (int32_t j = 0; j < kLeaf; ++j) distance[j] = 0;
      for (int32_t a = 0; a < runtime_dim_; ++a) {
#pragma omp simd
        for (int32_t j = 0; j < kLeaf; ++j) {
          const T d = difference(a, j);
          distance[j] += d * d;
        }
      }
    }
  }

  // Squared distances from a query to the points of a leaf.
  void leaf_distances(const T* at, int64_t stride, int32_t leaf, T* __restrict distance) const {
    const T* const x = coords(leaf);
    sum_squares(distance, [=](int32_t a, int32_t j) { return x[a * kLeaf + j] - at[a * stride]; });
  }

  // Squared distances from kLeaf boxes of the list to the box with the corners `from` and `to`.
  void box_distances(const LeafList<T>& list, int64_t first, const T* from, const T* to, int64_t query_stride,
                     T* __restrict distance) const {
    const int64_t stride = list.stride;
    const T* const low = list.boxes + first;
    const T* const high = low + dim() * stride;
    // A gap between the boxes, if there is one, is from `left` to `right`. The code avoids a constant 0, because
    // compilers would generate branches for it.
    sum_squares(distance, [=](int32_t a, int32_t j) {
      const T l = low[a * stride + j], h = high[a * stride + j], f = from[a * query_stride], t = to[a * query_stride];
      const T right = l > f ? l : f, left = h < t ? h : t;
      return right - (left < right ? left : right);
    });
  }

  // Writes the box that encloses consecutive leaves of queries to `low` [2, dim].
  void enclose(int32_t first, int32_t last, T* low) const {
    T* const high = low + dim();
    std::copy_n(query_box(first), 2 * dim(), low);
    for (int32_t leaf = first + 1; leaf < last; ++leaf) {
      const T* const other = query_box(leaf);
      for (int32_t a = 0; a < dim(); ++a) {
        low[a] = std::min(low[a], other[a]);
        high[a] = std::max(high[a], other[dim() + a]);
      }
    }
  }

  // Lists the leaves within `limit` of a box, starting at node `id`, until there are `most` or the list is full. A leaf
  // at exactly `limit` counts only if one of its points has an index <= `last`. Returns the node where the next call
  // continues.
  int32_t gather(const T* from, int32_t id, T limit, int32_t last, int64_t most) {
    const T* const to = from + dim();
    const int64_t room = std::min(own_.room, most);
    count_ = 0;
    while (id < cloud_.num_nodes && count_ < room) {
      const SearchNode& node = cloud_.nodes[id];
      const T* const low = box(id);
      const T* const high = low + dim();
      T sum = 0;
      for (int32_t a = 0; a < dim(); ++a) {
        const T below = low[a] - to[a], above = from[a] - high[a];
        const T d = std::max(std::max(below, above), T{0});
        sum += d * d;
      }
      if (sum > limit || (sum == limit && node.index > last)) {
        id = node.next;
      } else {
        if (node.next == id + 1) {
          own_.around.leaf[count_] = node.leaf;
          own_.around.index[count_] = node.index;
          for (int32_t a = 0; a < 2 * dim(); ++a) own_.around.boxes[a * own_.around.stride + count_] = low[a];
          ++count_;
        }
        ++id;
      }
    }
    return id;
  }

  // Finds the leaves in `around` within a limit of a leaf of queries. Returns their number; their distances and places in `around`
  // are written to the scratch memory.
  int64_t narrow(int32_t leaf, T limit) const {
    const T* const from = query_box(leaf);
    T distance[kLeaf];
    int32_t place[kLeaf];
    int64_t count = 0;
    for (int64_t first = 0; first < count_; first += kLeaf) {
      box_distances(own_.around, first, from, from + dim(), 1, distance);
      for (int32_t j = 0; j < kLeaf; ++j) place[j] = static_cast<int32_t>(first) + j;
      const uint32_t lanes = lanes_within(distance, limit) & lanes_below(count_ - first);
      compress(lanes, distance, own_.found[0].distance + count);
      compress(lanes, place, own_.found[0].index + count);
      count += count_lanes(lanes);
    }
    return count;
  }

  static uint32_t lanes_below(int64_t count) { return count >= kLeaf ? (1u << kLeaf) - 1 : (1u << count) - 1; }

  void copy_near(int64_t to, int64_t place) const {
    own_.near.leaf[to] = own_.around.leaf[place];
    own_.near.index[to] = own_.around.index[place];
    for (int32_t a = 0; a < 2 * dim(); ++a)
      own_.near.boxes[a * own_.near.stride + to] = own_.around.boxes[a * own_.around.stride + place];
  }

  // Calls body(distances, leaf) for every leaf in `near` that is within the limit of a query.
  template <typename F>
  void visit(const T* at, int64_t near, T limit, const F& body) const {
    T box_distance[kLeaf], distance[kLeaf];
    for (int64_t first = 0; first < near; first += kLeaf) {
      box_distances(own_.near, first, at, at, kLeaf, box_distance);
      uint32_t lanes = lanes_within(box_distance, limit) & lanes_below(near - first);
      for (; lanes != 0; lanes &= lanes - 1) {
        const int32_t leaf = own_.near.leaf[first + __builtin_ctz(lanes)];
        leaf_distances(at, kLeaf, leaf, distance);
        body(distance, leaf);
      }
    }
  }

  // Appends those points of a leaf to the candidates that are within the limit and in an allowed lane. Returns their
  // number.
  int64_t append(const T* distance, int32_t leaf, T limit, uint32_t allowed, const Candidates<T>& to,
                 int64_t place) const {
    const uint32_t lanes = lanes_within(distance, limit) & allowed;
    compress(lanes, distance, to.distance + place);
    compress(lanes, index(leaf), to.index + place);
    return count_lanes(lanes);
  }

  static void keep(const RadiusSearch<T>& search, int32_t point, const Keys<T>* keys, int64_t count) {
    int32_t* const list = search.take(search.lists, count);
    for (int64_t j = 0; j < count; ++j) list[j] = Keys<T>::index(keys, j);
    search.neighbors[point] = list;
    search.degree[point] = count;
  }

  // Answers queries by sorting all points within the radius. Leaves with many others near are left out: their bits are
  // set in the result.
  uint32_t sort_within(int32_t first, int32_t last, const RadiusSearch<T>& search) {
    const bool capped = search.most != kNoCap;
    // The list has room for every leaf of the cloud. With a small cap, listing stops as soon as the group counts as
    // crowded.
    const bool ends_early = capped && search.most < own_.room / kCrowdedGroup;
    const int64_t room = ends_early ? kGroupLeaves + kCrowdedGroup * search.most : own_.room;
    enclose(first, last, own_.box);
    if (gather(own_.box, 0, search.limit, kNoIndex, room) < cloud_.num_nodes) return ~0u;
    uint32_t crowded = 0;
    auto* const keys = static_cast<Keys<T>*>(own_.keys);
    for (int32_t leaf = first; leaf < last; ++leaf) {
      const int64_t near = narrow(leaf, search.limit);
      if (capped && near * kLeaf > kCrowdedLeaf * search.most) {
        crowded |= 1u << (leaf - first);
        continue;
      }
      for (int64_t i = 0; i < near; ++i) copy_near(i, own_.found[0].index[i]);
      const int32_t excluded = search.loop ? -1 : leaf;
      for (int32_t i = 0; i < num_queries(leaf); ++i) {
        const Candidates<T>& found = own_.found[0];
        int64_t count = 0;
        visit(query(leaf, i), near, search.limit, [&](const T* distance, int32_t other) {
          count += append(distance, other, search.limit, other == excluded ? ~(1u << i) : ~0u, found, count);
        });
        sort_keys(keys, pack(found.distance, found.index, count, keys));
        keep(search, query_index(leaf, i), keys, std::min(count, search.most));
      }
    }
    return crowded;
  }

  // A small node near a leaf of queries, of at least `points` points unless the cloud has fewer. Of a leaf of the same
  // cloud: the smallest node that holds it.
  int32_t find_home(int32_t leaf, int64_t points) const {
    const bool within = queries_.nodes == cloud_.nodes;
    int32_t id = 0;
    while (cloud_.nodes[id].next != id + 1) {
      const int32_t left = id + 1, right = cloud_.nodes[left].next;
      const bool goes_left = within ? leaf < cloud_.nodes[right].leaf : apart(leaf, left) <= apart(leaf, right);
      const int32_t child = goes_left ? left : right;
      if (cloud_.nodes[child].points < points) break;
      id = child;
    }
    return id;
  }

  // The squared distance from the centre of a leaf of queries to that of a node, times 4. Boxes of nodes may overlap,
  // so that distances between boxes would often be equal.
  T apart(int32_t leaf, int32_t node) const {
    const T *const a = query_box(leaf), *const b = box(node);
    T sum = 0;
    for (int32_t axis = 0; axis < dim(); ++axis) {
      const T d = (a[axis] - b[axis]) + (a[dim() + axis] - b[dim() + axis]);
      sum += d * d;
    }
    return sum;
  }

  // Fills the list of a query with the nearest points of a node. The point at `lane` of `leaf`, the query itself, is
  // left out; a negative lane leaves out none.
  void start(Nearest<T>& nearest, const T* at, const SearchNode& home, int32_t leaf, int32_t lane) const {
    auto* const keys = static_cast<Keys<T>*>(own_.keys);
    constexpr T infinity = std::numeric_limits<T>::infinity();
    T distance[kLeaf];
    int64_t count = 0;
    for (int32_t other = home.leaf, left = home.points; left > 0; left -= size(other++)) {
      leaf_distances(at, kLeaf, other, distance);
      const int32_t excluded = other == leaf ? lane : -1;
      const int32_t* indices = index(other);
      int32_t without_self[kLeaf];
      if (excluded >= 0) {
        std::copy_n(indices, kLeaf, without_self);
        without_self[excluded] = kNoIndex;
        indices = without_self;
      }
      for (int32_t j = 0; j < kLeaf; ++j)
        distance[j] = ((distance[j] <= infinity) & (j != excluded)) ? distance[j] : infinity;
      for (int32_t j = 0; j < kLeaf; j += kKeyLanes) keys[count++] = Keys<T>::load(distance + j, indices + j);
      if (count >= std::max<int64_t>(nearest.width(), 2 * kLeaf / kKeyLanes)) {
        nearest.merge(keys, count);
        count = 0;
      }
    }
    if (count > 0) nearest.merge(keys, count);
  }

  void settle(Nearest<T>& nearest, const Candidates<T>& found, int64_t count) const {
    auto* const keys = static_cast<Keys<T>*>(own_.keys);
    if (count > 0) nearest.merge(keys, pack(found.distance, found.index, count, keys));
  }

  // Finds the k nearest neighbours, within the distance `farthest`, of all queries in the wanted leaves.
  template <typename Q>
  void find_nearest(int32_t first, int32_t last, bool loop, const Q& queries) {
    for (int32_t begin = first; begin < last; begin += own_.batch)
      find_nearest_of_batch(begin, std::min(begin + own_.batch, last), loop, queries);
  }

  template <typename Q>
  void find_nearest_of_batch(int32_t begin, int32_t end, bool loop, const Q& queries) {
    Nearest<T> nearest[kGroupLeaves * kLeaf];
    int32_t home[kGroupLeaves];
    auto* keys = static_cast<Keys<T>*>(own_.lists);
    // Calls f(leaf, lane, nearest) for the wanted queries.
    const auto for_each = [&](const auto& f) {
      for (int32_t leaf = begin; leaf < end; ++leaf) {
        if (!queries.wants(leaf)) continue;
        for (int32_t i = 0; i < num_queries(leaf); ++i) f(leaf, i, nearest[(leaf - begin) * kLeaf + i]);
      }
    };
    bool any = false;
    for (int32_t leaf = begin; leaf < end; ++leaf) home[leaf - begin] = find_home(leaf, queries.k + 1);
    for_each([&](int32_t leaf, int32_t i, Nearest<T>& own) {
      any = true;
      own.reset(keys, queries.k, queries.farthest);
      keys += own.width();
      start(own, query(leaf, i), cloud_.nodes[home[leaf - begin]], leaf, loop ? -1 : i);
    });
    if (!any) return;
    enclose(begin, end, own_.box);
    for (int32_t id = 0; id < cloud_.num_nodes;) {
      T limit = -1;
      int32_t last = 0;
      for_each([&](int32_t, int32_t, const Nearest<T>& own) { widen(own, &limit, &last); });
      id = gather(own_.box, id, limit, last, kListLeaves);
      for (int32_t leaf = begin; leaf < end; ++leaf)
        if (queries.wants(leaf)) look_around(leaf, home[leaf - begin], nearest + (leaf - begin) * kLeaf, queries);
    }
    for_each([&](int32_t leaf, int32_t i, const Nearest<T>& own) { queries.keep(query_index(leaf, i), own); });
  }

  // Raises the bound (limit, last) to the bound of a query if that is larger.
  static void widen(const Nearest<T>& nearest, T* limit, int32_t* last) {
    if (nearest.limit() < *limit) return;
    *last = nearest.limit() > *limit ? nearest.last() : std::max(*last, nearest.last());
    *limit = nearest.limit();
  }

  // Searches the leaves around a leaf of queries, nearest ones first, for points that are nearer to its queries.
  template <typename Q>
  void look_around(int32_t leaf, int32_t home, Nearest<T>* nearest, const Q& queries) {
    T limit = -1;
    int32_t last = 0;
    for (int32_t i = 0; i < num_queries(leaf); ++i) widen(nearest[i], &limit, &last);
    const int64_t within = narrow(leaf, limit);
    auto* const keys = static_cast<Keys<T>*>(own_.keys);
    sort_keys(keys, pack(own_.found[0].distance, own_.found[0].index, within, keys));
    const int32_t after = cloud_.nodes[home].next;
    const int32_t seen = cloud_.nodes[home].leaf;
    const int32_t unseen = after < cloud_.num_nodes ? cloud_.nodes[after].leaf : kNoIndex;
    int64_t near = 0;
    for (int64_t i = 0; i < within; ++i) {
      const int32_t place = Keys<T>::index(keys, i);
      if (own_.around.leaf[place] >= seen && own_.around.leaf[place] < unseen) continue;
      copy_near(near, place);
      ++near;
    }
    T box_distance[kLeaf], distance[kLeaf];
    // The candidates of a query are merged after the next query has run: by then they have been written to memory, and
    // reading them does not wait.
    Nearest<T>* before = nullptr;
    int64_t left = 0;
    int32_t turn = 0;
    for (int32_t i = 0; i < num_queries(leaf); ++i) {
      const T* const at = query(leaf, i);
      const Candidates<T>& found = own_.found[turn];
      turn = 1 - turn;
      Nearest<T>& own = nearest[i];
      queries.expect(query_index(leaf, i));
      const int64_t enough = std::max<int64_t>(own.width() * kKeyLanes, kLeaf);
      int64_t count = 0;
      for (int64_t first = 0; first < near; first += kLeaf) {
        box_distances(own_.near, first, at, at, kLeaf, box_distance);
        uint32_t lanes = lanes_within(box_distance, own.limit()) & lanes_below(near - first);
        for (; lanes != 0; lanes &= lanes - 1) {
          const int j = __builtin_ctz(lanes);
          if (box_distance[j] > own.limit()) continue;
          if (box_distance[j] == own.limit() && own_.near.index[first + j] > own.last()) continue;
          const int32_t other = own_.near.leaf[first + j];
          leaf_distances(at, kLeaf, other, distance);
          count += append(distance, other, own.limit(), ~0u, found, count);
          if (count >= enough) {
            settle(own, found, count);
            count = 0;
          }
        }
      }
      if (before != nullptr) settle(*before, own_.found[turn], left);
      before = &own;
      left = count;
    }
    settle(*before, own_.found[1 - turn], left);
  }

  const SearchCloud<T>& cloud_;
  const SearchCloud<T>& queries_;
  const int32_t runtime_dim_;
  const Scratch<T>& own_;
  int64_t count_ = 0;  // leaves in `around`
};

template <typename T, int D>
constexpr Kernels<T> make_kernels() {
  return {[](const SearchCloud<T>& cloud, const SearchCloud<T>& queries, int32_t dim, int32_t first, int32_t last,
             const KnnSearch<T>& search,
             const Scratch<T>& own) { Search<T, D>(cloud, queries, dim, own).knn(first, last, search); },
          [](const SearchCloud<T>& cloud, const SearchCloud<T>& queries, int32_t dim, int32_t first, int32_t last,
             const RadiusSearch<T>& search,
             const Scratch<T>& own) { Search<T, D>(cloud, queries, dim, own).radius(first, last, search); }};
}

constexpr KernelTable make_table() {
  return {{make_kernels<float, 0>(), make_kernels<float, 1>(), make_kernels<float, 2>(), make_kernels<float, 3>()},
          {make_kernels<double, 0>(), make_kernels<double, 1>(), make_kernels<double, 2>(), make_kernels<double, 3>()}};
}

}  // namespace
}  // namespace erwin

#endif  // ERWIN_CPU_SEARCH_KERNELS_H_
