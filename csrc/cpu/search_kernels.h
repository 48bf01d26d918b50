// Exact search for the neighbours of the points of a few consecutive leaves.
//
// The leaves that come near enough to all of them are listed once; for the points of each leaf the list is narrowed,
// and each point looks only into the leaves whose boxes it is near to. Pruning is exact: the distance to a box is
// computed with the operations, in the axis order, of the distance to a point, and rounding is monotonic, so it never
// exceeds that of a point inside.
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

// D is the dimension, or 0 where it is known at run time only.
template <typename T, int D>
class Search {
 public:
  Search(const SearchCloud<T>& cloud, int32_t dim, const Scratch<T>& own)
      : cloud_(cloud), runtime_dim_(dim), own_(own) {}

  void knn(int32_t first, int32_t last, const KnnSearch<T>& search) {
    struct Queries {
      const KnnSearch<T>& search;
      int64_t k = search.k;
      T farthest = std::numeric_limits<T>::infinity();

      static bool wants(int32_t, int32_t) { return true; }
      int64_t edge(int32_t self) const { return self * search.k; }
    };
    find_nearest(first, last, search, Queries{search});
  }

  void radius_count(int32_t first, int32_t last, const RadiusCount<T>& search) {
    int64_t count[kGroupLeaves * kLeaf];
    std::fill_n(count, kGroupLeaves * kLeaf, search.loop ? 0 : -1);  // itself
    enclose(first, last, own_.box);
    bool open = true;  // whether there is more to count
    for (int32_t id = 0; open && id < cloud_.num_nodes;) {
      id = gather(own_.box, id, search.limit, kNoIndex, kListLeaves);
      open = false;
      for (int32_t leaf = first; leaf < last; ++leaf) {
        int64_t* const own = count + (leaf - first) * kLeaf;
        if (*std::min_element(own, own + size(leaf)) >= search.most) continue;
        const int64_t near = list_near(leaf, search.limit);
        for (int32_t i = 0; i < size(leaf); ++i) {
          int64_t found = own[i];
          visit(coords(leaf) + i, near, search.limit, [&](const T* distance, int32_t) {
            found += count_lanes(lanes_within(distance, search.limit));
            return found < search.most;
          });
          own[i] = found;
          open |= found < search.most;
        }
      }
    }
    for (int32_t leaf = first; leaf < last; ++leaf) {
      const int64_t* const own = count + (leaf - first) * kLeaf;
      for (int32_t i = 0; i < size(leaf); ++i)
        search.degree[index(leaf)[i]] = std::min(search.most, std::max<int64_t>(own[i], 0));
    }
  }

  // A query sorts all that is within the radius. But where it has as many neighbours as are counted, there may be any
  // number of others: with many leaves near, it looks for its nearest ones.
  bool radius_fill(int32_t first, int32_t last, const RadiusFill<T>& search) {
    struct Queries {
      const RadiusFill<T>& search;
      const int32_t first;
      uint32_t crowded = 0;  // a bit for each leaf of those with many near
      int64_t k = search.most;
      T farthest = search.limit;

      bool wants(int32_t leaf, int32_t self) const {
        return (crowded >> (leaf - first) & 1) != 0 && search.degree[self] == search.most;
      }
      int64_t edge(int32_t self) const { return search.first[self]; }
    };
    Queries queries{search, first};
    const bool counted = sort_within(first, last, search, &queries.crowded);
    return queries.crowded == 0 ? counted : find_nearest(first, last, search, queries) && counted;
  }

 private:
  int32_t dim() const { return D > 0 ? D : runtime_dim_; }
  const T* box(int32_t node) const { return cloud_.boxes + static_cast<int64_t>(node) * 2 * dim(); }
  const T* coords(int32_t leaf) const { return cloud_.coords + static_cast<int64_t>(leaf) * dim() * kLeaf; }
  const int32_t* index(int32_t leaf) const { return cloud_.index + static_cast<int64_t>(leaf) * kLeaf; }
  int32_t size(int32_t leaf) const { return cloud_.nodes[cloud_.leaves[leaf]].points; }

  // distance[j] = sum over the axes of difference(a, j) squared, for kLeaf lanes: loops that compilers vectorise. The
  // order of the loops has no effect on the sums.
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

  // Of the query to the points of a leaf.
  void leaf_distances(const T* query, int64_t stride, int32_t leaf, T* __restrict distance) const {
    const T* const x = coords(leaf);
    sum_squares(distance, [=](int32_t a, int32_t j) { return x[a * kLeaf + j] - query[a * stride]; });
  }

  // Between boxes, kLeaf of them side by side, and one that reaches from a corner to the opposite one.
  void box_distances(const LeafList<T>& list, int64_t first, const T* from, const T* to, int64_t query_stride,
                     T* __restrict distance) const {
    const int64_t stride = list.stride;
    const T* const low = list.boxes + first;
    const T* const high = low + dim() * stride;
    // Where there is a gap it lies between `left` and `right`. A constant 0 would tempt compilers into branches.
    sum_squares(distance, [=](int32_t a, int32_t j) {
      const T l = low[a * stride + j], h = high[a * stride + j], f = from[a * query_stride], t = to[a * query_stride];
      const T right = l > f ? l : f, left = h < t ? h : t;
      return right - (left < right ? left : right);
    });
  }

  // The box of consecutive leaves, [2, dim].
  void enclose(int32_t first, int32_t last, T* low) const {
    T* const high = low + dim();
    std::copy_n(box(cloud_.leaves[first]), 2 * dim(), low);
    for (int32_t leaf = first + 1; leaf < last; ++leaf) {
      const T* const other = box(cloud_.leaves[leaf]);
      for (int32_t a = 0; a < dim(); ++a) {
        low[a] = std::min(low[a], other[a]);
        high[a] = std::max(high[a], other[dim() + a]);
      }
    }
  }

  // Lists leaves, from node `id` on, that come within `limit` of a box, until there are `most` or the list is full. Those
  // at the limit count where one of their points has an index up to `last`. Returns the node to go on from.
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

  // The places in `around` of the leaves within a limit of a leaf: their number, distances and places in the scratch.
  int64_t narrow(int32_t leaf, T limit) const {
    const T* const from = box(cloud_.leaves[leaf]);
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

  // Copies the leaves within a limit of a leaf from `around` to `near`; returns their number.
  int64_t list_near(int32_t leaf, T limit) const {
    const int64_t near = narrow(leaf, limit);
    for (int64_t i = 0; i < near; ++i) copy_near(i, own_.found[0].index[i]);
    return near;
  }

  // Calls body(distances, leaf) for every near leaf that comes within the limit of a query, until one returns false.
  template <typename F>
  void visit(const T* query, int64_t near, T limit, const F& body) const {
    T box_distance[kLeaf], distance[kLeaf];
    for (int64_t first = 0; first < near; first += kLeaf) {
      box_distances(own_.near, first, query, query, kLeaf, box_distance);
      uint32_t lanes = lanes_within(box_distance, limit) & lanes_below(near - first);
      for (; lanes != 0; lanes &= lanes - 1) {
        const int32_t leaf = own_.near.leaf[first + __builtin_ctz(lanes)];
        leaf_distances(query, kLeaf, leaf, distance);
        if (!body(distance, leaf)) return;
      }
    }
  }

  // Writes the points of a leaf within the limit, of the lanes that are allowed, to a place among the candidates;
  // returns their number.
  int64_t append(const T* distance, int32_t leaf, T limit, uint32_t allowed, const Candidates<T>& to,
                 int64_t place) const {
    const uint32_t lanes = lanes_within(distance, limit) & allowed;
    compress(lanes, distance, to.distance + place);
    compress(lanes, index(leaf), to.index + place);
    return count_lanes(lanes);
  }

  // Edges are written in the order of the tree, to places that no cache expects.
  static void expect_writes(const int64_t* edges, int64_t count) {
    const int64_t* const end = edges + std::min<int64_t>(count, 64);
    for (; edges < end; edges += 8) __builtin_prefetch(edges, 1);
  }

  void write(const Keys<T>* keys, int64_t count, int32_t self, int64_t* source, int64_t* target) const {
    for (int64_t j = 0; j < count; ++j) source[j] = cloud_.first + Keys<T>::index(keys, j);
    for (int64_t j = 0; j < count; ++j) target[j] = cloud_.first + self;
  }

  // Writes the edges of the queries that sort what they find. Marks the leaves whose full ones are left to find_nearest.
  // False where a degree is none that the count can have given.
  bool sort_within(int32_t first, int32_t last, const RadiusFill<T>& search, uint32_t* crowded) {
    bool counted = true, full = true;  // whether all of the queries have as many as are counted
    for (int32_t leaf = first; leaf < last; ++leaf) {
      for (int32_t i = 0; i < size(leaf); ++i) {
        full &= search.degree[index(leaf)[i]] == search.most;
        __builtin_prefetch(search.first + index(leaf)[i]);
      }
    }
    // The list has room for every leaf. If none needs all of them, one of many is long enough to tell.
    const int64_t room = full && search.most < own_.room / 4 ? 4 * search.most + kLeaf : own_.room;
    enclose(first, last, own_.box);
    if (gather(own_.box, 0, search.limit, kNoIndex, room) < cloud_.num_nodes) {
      *crowded = ~0u;
      return true;
    }
    auto* const keys = static_cast<Keys<T>*>(own_.keys);
    for (int32_t leaf = first; leaf < last; ++leaf) {
      const int64_t near = list_near(leaf, search.limit);
      const bool many = near > search.most;
      if (many) *crowded |= 1u << (leaf - first);
      for (int32_t i = 0; i < size(leaf); ++i) {
        const int32_t self = index(leaf)[i], excluded = search.loop ? -1 : leaf;
        const int64_t count = search.degree[self], edge = search.first[self];
        if (many && count == search.most) continue;
        expect_writes(search.source + edge, count);
        expect_writes(search.target + edge, count);
        int64_t found = 0;
        visit(coords(leaf) + i, near, search.limit, [&](const T* distance, int32_t other) {
          found += append(distance, other, search.limit, other == excluded ? ~(1u << i) : ~0u, own_.found[0], found);
          return true;
        });
        if (count > found) {
          counted = false;
          continue;
        }
        sort_keys(keys, pack(own_.found[0].distance, own_.found[0].index, found, keys));
        write(keys, count, self, search.source + edge, search.target + edge);
      }
    }
    return counted;
  }

  // The smallest node that holds the leaf and at least `points` points.
  int32_t find_home(int32_t leaf, int64_t points) const {
    int32_t id = 0;
    while (cloud_.nodes[id].next != id + 1) {
      const int32_t right = cloud_.nodes[id + 1].next;
      const int32_t child = leaf < cloud_.nodes[right].leaf ? id + 1 : right;
      if (cloud_.nodes[child].points < points) break;
      id = child;
    }
    return id;
  }

  // Starts the list of a query with its nearest in a node, but for itself if `lane` is its lane in `leaf`.
  void start(Nearest<T>& nearest, const T* query, const SearchNode& home, int32_t leaf, int32_t lane) const {
    auto* const keys = static_cast<Keys<T>*>(own_.keys);
    constexpr T infinity = std::numeric_limits<T>::infinity();
    T distance[kLeaf];
    int64_t count = 0;
    for (int32_t other = home.leaf, left = home.points; left > 0; left -= size(other++)) {
      leaf_distances(query, kLeaf, other, distance);
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
      for (int32_t j = 0; j < kLeaf; j += kLanes) keys[count++] = Keys<T>::load(distance + j, indices + j);
      if (count >= std::max<int64_t>(nearest.width(), 2 * kLeaf / kLanes)) {
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

  // Writes the k nearest of the queries that are wanted; false where one has fewer, up to the farthest distance.
  template <typename S, typename Q>
  bool find_nearest(int32_t first, int32_t last, const S& search, const Q& queries) {
    bool found = true;
    for (int32_t begin = first; begin < last; begin += own_.batch)
      found &= find_nearest_of_batch(begin, std::min(begin + own_.batch, last), search, queries);
    return found;
  }

  template <typename S, typename Q>
  bool find_nearest_of_batch(int32_t begin, int32_t end, const S& search, const Q& queries) {
    Nearest<T> nearest[kGroupLeaves * kLeaf];
    int32_t home[kGroupLeaves];
    auto* keys = static_cast<Keys<T>*>(own_.lists);
    // Calls f(leaf, lane, its nearest) for the queries that are wanted.
    const auto for_each = [&](const auto& f) {
      for (int32_t leaf = begin; leaf < end; ++leaf)
        for (int32_t i = 0; i < size(leaf); ++i)
          if (queries.wants(leaf, index(leaf)[i])) f(leaf, i, nearest[(leaf - begin) * kLeaf + i]);
    };
    bool any = false;
    for (int32_t leaf = begin; leaf < end; ++leaf) home[leaf - begin] = find_home(leaf, queries.k + 1);
    for_each([&](int32_t leaf, int32_t i, Nearest<T>& own) {
      any = true;
      own.reset(keys, queries.k, queries.farthest);
      keys += own.width();
      start(own, coords(leaf) + i, cloud_.nodes[home[leaf - begin]], leaf, search.loop ? -1 : i);
    });
    if (!any) return true;
    enclose(begin, end, own_.box);
    for (int32_t id = 0; id < cloud_.num_nodes;) {
      T limit = -1;
      int32_t last = 0;
      for_each([&](int32_t, int32_t, const Nearest<T>& own) { widen(own, &limit, &last); });
      id = gather(own_.box, id, limit, last, kListLeaves);
      for (int32_t leaf = begin; leaf < end; ++leaf)
        look_around(leaf, home[leaf - begin], nearest + (leaf - begin) * kLeaf, search, queries);
    }
    bool full = true;
    for_each([&](int32_t leaf, int32_t i, const Nearest<T>& own) {
      if (!own.is_full()) {
        full = false;
        return;
      }
      const int32_t self = index(leaf)[i];
      const int64_t edge = queries.edge(self);
      write(own.keys(), queries.k, self, search.source + edge, search.target + edge);
    });
    return full;
  }

  // Raises a bound to that of a query.
  static void widen(const Nearest<T>& nearest, T* limit, int32_t* last) {
    if (nearest.limit() < *limit) return;
    *last = nearest.limit() > *limit ? nearest.last() : std::max(*last, nearest.last());
    *limit = nearest.limit();
  }

  // Looks for nearer points of the queries of a leaf in the leaves around, nearest leaves first.
  template <typename S, typename Q>
  void look_around(int32_t leaf, int32_t home, Nearest<T>* nearest, const S& search, const Q& queries) {
    T limit = -1;
    int32_t last = 0;
    for (int32_t i = 0; i < size(leaf); ++i)
      if (queries.wants(leaf, index(leaf)[i])) widen(nearest[i], &limit, &last);
    if (limit < 0) return;
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
    // Of the query before: its candidates are merged late, when their stores are done.
    Nearest<T>* before = nullptr;
    int64_t left = 0;
    int32_t turn = 0;
    for (int32_t i = 0; i < size(leaf); ++i) {
      if (!queries.wants(leaf, index(leaf)[i])) continue;
      const T* const query = coords(leaf) + i;
      const Candidates<T>& found = own_.found[turn];
      turn = 1 - turn;
      Nearest<T>& own = nearest[i];
      const int64_t edge = queries.edge(index(leaf)[i]);
      expect_writes(search.source + edge, queries.k);
      expect_writes(search.target + edge, queries.k);
      const int64_t enough = std::max<int64_t>(own.width() * kLanes, kLeaf);
      int64_t count = 0;
      for (int64_t first = 0; first < near; first += kLeaf) {
        box_distances(own_.near, first, query, query, kLeaf, box_distance);
        uint32_t lanes = lanes_within(box_distance, own.limit()) & lanes_below(near - first);
        for (; lanes != 0; lanes &= lanes - 1) {
          const int j = __builtin_ctz(lanes);
          if (box_distance[j] > own.limit()) continue;
          if (box_distance[j] == own.limit() && own_.near.index[first + j] > own.last()) continue;
          const int32_t other = own_.near.leaf[first + j];
          leaf_distances(query, kLeaf, other, distance);
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
  const int32_t runtime_dim_;
  const Scratch<T>& own_;
  int64_t count_ = 0;  // leaves in `around`
};

template <typename T, int D>
constexpr Kernels<T> make_kernels() {
  return {[](const SearchCloud<T>& cloud, int32_t dim, int32_t first, int32_t last, const KnnSearch<T>& search,
             const Scratch<T>& own) { Search<T, D>(cloud, dim, own).knn(first, last, search); },
          [](const SearchCloud<T>& cloud, int32_t dim, int32_t first, int32_t last, const RadiusCount<T>& search,
             const Scratch<T>& own) { Search<T, D>(cloud, dim, own).radius_count(first, last, search); },
          [](const SearchCloud<T>& cloud, int32_t dim, int32_t first, int32_t last, const RadiusFill<T>& search,
             const Scratch<T>& own) { return Search<T, D>(cloud, dim, own).radius_fill(first, last, search); }};
}

constexpr KernelTable make_table() {
  return {{make_kernels<float, 0>(), make_kernels<float, 1>(), make_kernels<float, 2>(), make_kernels<float, 3>()},
          {make_kernels<double, 0>(), make_kernels<double, 1>(), make_kernels<double, 2>(), make_kernels<double, 3>()}};
}

}  // namespace
}  // namespace erwin

#endif  // ERWIN_CPU_SEARCH_KERNELS_H_
