// Exact search over the tree of neighbors_tree.h: a warp answers a query.
//
// The 32 lanes compare the query with the boxes of a group of 32 nodes, or with the 32 points of a leaf, at once. The
// search goes from the root down and visits the nodes above the query's home first: its own leaf, or a leaf near a query
// that is not in the tree. The points of that leaf give a bound on the distance of the neighbours. Then the leaves of a group are visited in order
// of distance. Pruning is exact: the distance to a box is computed with the same operations, in the same order of axes,
// as the distance to a point; rounding is monotonic, so the distance to a box is never larger than that to a point
// inside it.
#ifndef ERWIN_CUDA_NEIGHBORS_SEARCH_H_
#define ERWIN_CUDA_NEIGHBORS_SEARCH_H_

#include <cmath>
#include <cstdint>

#include "neighbors_tree.h"
#include "runtime.h"

namespace erwin::cuda {
namespace {

constexpr int32_t kListRows = 4;         // a list has 128 places, four per lane
constexpr int32_t kMostInserted = 8;     // up to so many candidates are inserted one by one; more are merged
constexpr int32_t kWarpsPerLeaf = 8;     // warps that share the queries of a leaf

// Candidates are ordered by (squared distance, index).
template <typename T>
struct Key {
  T distance;
  int32_t index;

  __device__ bool operator<(const Key& other) const {
    return distance < other.distance || (distance == other.distance && index < other.index);
  }
  // The key in another lane.
  __device__ Key from(int32_t other) const {
    return {__shfl_sync(kWarp, distance, other), __shfl_sync(kWarp, index, other)};
  }
  __device__ Key across(int32_t flip) const {
    return {__shfl_xor_sync(kWarp, distance, flip), __shfl_xor_sync(kWarp, index, flip)};
  }
};

// Selects between values. Indexing an array at run time would move it from registers to memory.
template <typename T>
__device__ Key<T> choose(bool first, const Key<T>& a, const Key<T>& b) {
  return {first ? a.distance : b.distance, first ? a.index : b.index};
}

// The key that comes after every candidate.
template <typename T>
__device__ Key<T> no_limit() {
  return {static_cast<T>(INFINITY), kNoIndex};
}

// Orders the keys of pairs of lanes whose numbers differ by `flip`: the lane whose number lacks the bit `high` gets the
// smaller key.
template <typename T>
__device__ void order(Key<T>& key, int32_t flip, int32_t high) {
  const Key<T> other = key.across(flip);
  key = choose((other < key) == ((lane() & high) == 0), other, key);
}

// Sorts the lanes. Their keys must be bitonic: first ascending, then descending.
template <typename T>
__device__ void clean(Key<T>& key, int32_t half = kWarpLanes / 2) {
  for (; half > 0; half /= 2) order(key, half, half);
}

template <typename T>
__device__ void sort(Key<T>& key) {
  for (int32_t run = 2; run <= kWarpLanes; run *= 2) {
    order(key, run - 1, run / 2);
    clean(key, run / 4);
  }
}

// The nearest candidates of a query, ascending: place i is in lane i % 32 of row i / 32.
template <typename T>
class NearestList {
 public:
  static constexpr bool kNearestFirst = true;

  // Keeps the nearest `count` <= 128 candidates that come before `limit` and after `after`.
  __device__ NearestList(int32_t count, const Key<T>& limit, const Key<T>& after)
      : count_(count), rows_((count + kWarpLanes - 1) / kWarpLanes), after_(after), bound_(limit) {
    ERWIN_UNROLL
    for (int32_t row = 0; row < kListRows; ++row) best_[row] = limit;
  }

  __device__ Key<T> bound() const { return bound_; }  // only candidates that come before this key are taken
  __device__ int32_t index(int32_t row) const { return best_[row].index; }  // in this lane

  __device__ void take(const Key<T>& key, bool here) {
    const bool wanted = here && after_ < key && key < bound_;
    uint32_t lanes = __ballot_sync(kWarp, wanted);
    if (__popc(lanes) > kMostInserted) {
      merge(choose(wanted, key, no_limit<T>()));
      return;
    }
    for (; lanes != 0; lanes &= lanes - 1) {
      const Key<T> next = key.from(__ffs(lanes) - 1);
      if (next < bound_) insert(next);
    }
  }

 private:
  __device__ void insert(Key<T> key) {
    ERWIN_UNROLL
    for (int32_t row = 0; row < kListRows; ++row) {
      if (row >= rows_) break;
      Key<T>& best = best_[row];
      const Key<T> last = best.from(kWarpLanes - 1), before = best.from((lane() - 1) & (kWarpLanes - 1));
      best = choose(key < best, choose(lane() > 0 && key < before, before, key), best);
      key = choose(key < last, last, key);
    }
    update();
  }

  __device__ void merge(Key<T> fresh) {
    sort(fresh);
    ERWIN_UNROLL
    for (int32_t row = 0; row < kListRows; ++row) {
      if (row >= rows_) break;
      Key<T>& best = best_[row];
      const Key<T> reversed = fresh.across(kWarpLanes - 1);
      const bool moves = reversed < best;
      fresh = choose(moves, best, reversed);
      best = choose(moves, reversed, best);
      clean(best);
      if (row + 1 < rows_) clean(fresh);
    }
    update();
  }

  __device__ void update() {
    const int32_t last = count_ - 1;
    Key<T> key = best_[0];
    ERWIN_UNROLL
    for (int32_t row = 1; row < kListRows; ++row) key = choose(row == last / kWarpLanes, best_[row], key);
    bound_ = key.from(last % kWarpLanes);
  }

  int32_t count_, rows_;
  Key<T> after_, bound_;
  Key<T> best_[kListRows];  // the rows of the list in this lane
};

// Counts the candidates within a limit. Stops at `most` or slightly more.
template <typename T>
class Counter {
 public:
  static constexpr bool kNearestFirst = false;

  __device__ Counter(const Key<T>& limit, int64_t most) : limit_(limit), most_(most) {}

  __device__ Key<T> bound() const { return limit_; }
  __device__ int64_t count() const { return count_; }
  __device__ void take(const Key<T>& key, bool here) {
    count_ += __popc(__ballot_sync(kWarp, here && key < limit_));
    if (count_ >= most_) limit_ = {-1, -1};  // no box is nearer than this, so the search ends
  }

 private:
  Key<T> limit_;
  int64_t most_;
  int64_t count_ = 0;
};

// The tree that is searched, and the tree of the queries. The search of a tree for the neighbours of its own points is
// compiled separately, because it needs fewer registers.
template <typename T, bool Within>
struct Trees {
  WarpTree<T> tree;

  __device__ const WarpTree<T>& queries() const { return tree; }
};

template <typename T>
struct Trees<T, false> {
  WarpTree<T> tree, others;

  __device__ const WarpTree<T>& queries() const { return others; }
};

// A point whose neighbours are searched. D is the dimension, or 0 where it is known at run time only.
template <typename T, int D, bool Within>
class Query {
 public:
  // The query is the point at a place of a leaf in the tree of queries; `own` is its cloud there. It is a candidate for
  // itself only if `loop`.
  __device__ Query(const Trees<T, Within>& trees, const WarpCloud& cloud, const WarpCloud& own, int32_t leaf,
                   int32_t place, bool loop)
      : trees_(trees), tree_(trees.tree), cloud_(cloud), at_(trees.queries().coords + own.row + place) {
    self_ = trees.queries().index[own.row + place];
    excluded_ = loop ? kNoIndex : self_;
    for (int32_t axis = 0; axis < D; ++axis) x_[axis] = at_[axis * trees.queries().points];
    leaf_ = Within ? leaf : find_home();
  }

  __device__ int32_t self() const { return self_; }

  // Passes to `taker` all points that may come before its bound.
  template <typename Taker>
  __device__ void walk(Taker& taker) const {
    const int32_t top = cloud_.top();
    int32_t level = top, group = 0;
    uint32_t waiting = ~0u;  // in lane l, a bit for each child of the group on level l to visit
    while (true) {
      const int32_t home = leaf_ >> (kLevelBits * level);
      const int32_t first = home >> kLevelBits == group ? home & (kWarpLanes - 1) : 0;
      const int32_t node = group * kWarpLanes + (lane() ^ first);  // own node first, then close ones
      const bool here = node < cloud_.nodes(level);
      Key<T> box = no_limit<T>();
      if (here) box = box_key(level, node);
      uint32_t left = __shfl_sync(kWarp, waiting, level);
      uint32_t near = left & __ballot_sync(kWarp, box < taker.bound());
      if (level > 0 && near != 0) {
        const int32_t child = __ffs(near) - 1;
        if (lane() == level) waiting = left & ~(1u << child);
        if (lane() == level - 1) waiting = ~0u;
        group = group * kWarpLanes + (child ^ first);
        --level;
        continue;
      }
      while (near != 0) {  // at the lowest level: leaves
        const int32_t child = Taker::kNearestFirst ? nearest(box.distance, near) : __ffs(near) - 1;
        left &= ~(1u << child);
        look_into(group * kWarpLanes + (child ^ first), taker);
        near = left & __ballot_sync(kWarp, box < taker.bound());
      }
      if (level == top) return;
      ++level;
      group >>= kLevelBits;
    }
  }

 private:
  __device__ int32_t dim() const { return D > 0 ? D : tree_.dim; }
  __device__ T x(int32_t axis) const { return D > 0 ? x_[axis] : at_[axis * trees_.queries().points]; }

  // A leaf near the query: below the nearest node of every level.
  __device__ int32_t find_home() const {
    int32_t home = 0;
    for (int32_t level = cloud_.top(); level >= 0; --level) {
      const int32_t node = home * kWarpLanes + lane();
      const bool here = node < cloud_.nodes(level);
      const Key<T> box = here ? box_key(level, node) : no_limit<T>();
      home = home * kWarpLanes + nearest(box.distance, ~0u);
    }
    return home;
  }

  // The squared distance to a box, and the lowest index of the points inside.
  __device__ Key<T> box_key(int32_t level, int32_t node) const {
    const int64_t at = cloud_.first[level] + node;
    T sum = 0;
    for (int32_t axis = 0; axis < dim(); ++axis) {
      const T q = x(axis), low = tree_.boxes[axis * tree_.nodes + at];
      const T high = tree_.boxes[(dim() + axis) * tree_.nodes + at];
      const T d = q < low ? low - q : high < q ? high - q : T{0};
      sum += d * d;
    }
    return {sum, tree_.lowest[at]};
  }

  // The lane with the smallest distance among `lanes`.
  static __device__ int32_t nearest(T distance, uint32_t lanes) {
    const T least = least_distance((lanes >> lane() & 1) != 0 ? distance : static_cast<T>(INFINITY));
    const uint32_t found = lanes & __ballot_sync(kWarp, distance == least);
    return __ffs(found) - 1;
  }

  // The order of numbers that are not negative is the order of their bits.
  static __device__ float least_distance(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    bits = __reduce_min_sync(kWarp, bits);
    memcpy(&x, &bits, sizeof(bits));
    return x;
  }
  static __device__ double least_distance(double x) { return warp_least(x); }

  template <typename Taker>
  __device__ void look_into(int32_t leaf, Taker& taker) const {
    const int32_t begin = tree_.begin(cloud_, leaf), end = tree_.end(cloud_, leaf);
    const bool here = begin + lane() < end;
    const int64_t place = cloud_.row + begin + lane();
    Key<T> key{0, kNoIndex};
    if (here) {
      for (int32_t axis = 0; axis < dim(); ++axis) {
        const T d = tree_.coords[axis * tree_.points + place] - x(axis);
        key.distance += d * d;
      }
      key.index = tree_.index[place];
    }
    taker.take(key, here && key.index != excluded_);
  }

  const Trees<T, Within>& trees_;
  const WarpTree<T>& tree_;
  const WarpCloud& cloud_;
  const T* const at_;
  int32_t leaf_;  // the home
  T x_[D > 0 ? D : 1];
  int32_t self_, excluded_;
};

// Calls body(query, cloud, the query's cloud) for those queries of a leaf that belong to this warp.
template <int D, typename T, bool Within, typename F>
__device__ void each_query(const Trees<T, Within>& trees, int64_t warp, bool loop, const F& body) {
  const WarpTree<T>&tree = trees.tree, &queries = trees.queries();
  // After a fault nothing is searched: a NaN is near nothing, so its search would visit all leaves. Other warps may
  // write the fault at the same time, so it is read as volatile.
  if (__ballot_sync(kWarp, read_volatile(tree.fault) != 0) != 0) return;
  const int64_t leaf = warp / kWarpsPerLeaf;
  const int64_t g = queries.owner(leaf, 0);
  const WarpCloud &cloud = tree.clouds[g], &own = queries.clouds[g];
  const auto number = static_cast<int32_t>(leaf - own.first[0]);
  const int32_t end = queries.end(own, number);
  const auto share = static_cast<int32_t>(warp % kWarpsPerLeaf);
  for (int32_t place = queries.begin(own, number) + share; place < end; place += kWarpsPerLeaf) {
    const Query<T, D, Within> query(trees, cloud, own, number, place, loop);
    if (queries.place[own.row + query.self()] != place) *tree.fault = 1;  // a point is listed twice in `perm`
    body(query, cloud, own);
  }
}

// Writes the `count` nearest neighbours of a query before `limit`. If they do not fit in one list, several passes are
// made. Returns false if there are fewer.
template <typename T, int D, bool Within>
__device__ bool write_nearest(const Query<T, D, Within>& query, const WarpCloud& cloud, const WarpCloud& own, int64_t count,
                              const Key<T>& limit, int64_t* source, int64_t* target) {
  constexpr int64_t room = kListRows * kWarpLanes;
  Key<T> after{-1, -1};
  for (int64_t done = 0; done < count; done += room) {
    const auto most = static_cast<int32_t>(count - done < room ? count - done : room);
    NearestList<T> list(most, limit, after);
    query.walk(list);
    after = list.bound();
    if (after.index == kNoIndex) return false;
    ERWIN_UNROLL
    for (int32_t row = 0; row < kListRows; ++row) {
      const int32_t i = row * kWarpLanes + lane();
      if (i >= most) break;
      source[done + i] = cloud.row + list.index(row);
      target[done + i] = own.row + query.self();
    }
  }
  return true;
}

// ---- Passes ---------------------------------------------------------------------------------------------------------

template <typename T, int D, bool Within>
struct FindNearest {
  Trees<T, Within> trees;
  int64_t k;
  bool loop;
  int64_t* source;
  int64_t* target;

  __device__ void operator()(int64_t warp) const {
    each_query<D>(trees, warp, loop, [&](const auto& query, const WarpCloud& cloud, const WarpCloud& own) {
      const int64_t others = cloud.points - (loop ? 0 : 1), count = k < others ? k : others;
      const int64_t edge = own.edge + query.self() * count;
      if (!write_nearest(query, cloud, own, count, no_limit<T>(), source + edge, target + edge))
        *trees.tree.fault = 1;
    });
  }
};

template <typename T, int D, bool Within>
struct CountWithin {
  Trees<T, Within> trees;
  T limit;  // squared radius
  int64_t cap;  // < 0: none
  bool loop;
  int64_t* degree;

  __device__ void operator()(int64_t warp) const {
    each_query<D>(trees, warp, loop, [&](const auto& query, const WarpCloud& cloud, const WarpCloud& own) {
      const int64_t most = cap < 0 ? cloud.points : cap;
      Counter<T> counter({limit, kNoIndex}, most);
      query.walk(counter);
      if (lane() == 0) degree[own.row + query.self()] = counter.count() < most ? counter.count() : most;
    });
  }
};

// For each of at most 32 values writes `total` plus the sum of the values before it; then adds all values to `total`.
__device__ inline void sum_before(const int64_t* x, int64_t count, int64_t& total, int64_t* sums) {
  const int64_t own = lane() < count ? x[lane()] : 0;
  const int64_t before = warp_exclusive_scan(own);
  if (lane() < count) sums[lane()] = total + before;
  total += __shfl_sync(kWarp, before + own, kWarpLanes - 1);
}

// Writes the first edge of every point, relative to the first edge of its chunk. An impossible degree would cause
// writes outside the arrays, so degrees are checked here, before any edge is written.
template <typename T>
struct SumDegrees {
  WarpTree<T> tree;  // of the queries
  int64_t most;
  const int64_t* degree;

  __device__ void operator()(int64_t chunk) const {
    const int64_t end = (chunk + 1) * kEdgeChunk < tree.points ? (chunk + 1) * kEdgeChunk : tree.points;
    int64_t total = 0;
    for (int64_t i = chunk * kEdgeChunk; i < end; i += kWarpLanes) {
      if (i + lane() < end && (degree[i + lane()] < 0 || degree[i + lane()] > most)) *tree.fault = 1;
      sum_before(degree + i, end - i, total, tree.edge + i);
    }
    if (lane() == 0) tree.chunk_edge[chunk] = total;
  }
};

// Writes the first edge of every chunk. One warp does all.
template <typename T>
struct SumChunks {
  WarpTree<T> tree;  // of the queries
  bool given;  // whether the caller gave arrays for edges

  __device__ void operator()(int64_t) const {
    const int64_t chunks = (tree.points + kEdgeChunk - 1) / kEdgeChunk;
    int64_t total = 0;
    for (int64_t i = 0; i < chunks; i += kWarpLanes)
      sum_before(tree.chunk_edge + i, chunks - i, total, tree.chunk_edge + i);
    if (lane() == 0 && total > 0 && !given) *tree.fault = 1;
  }
};

template <typename T, int D, bool Within>
struct FillWithin {
  Trees<T, Within> trees;
  T limit;
  bool loop;
  const int64_t* degree;
  int64_t* source;
  int64_t* target;

  __device__ void operator()(int64_t warp) const {
    each_query<D>(trees, warp, loop, [&](const auto& query, const WarpCloud& cloud, const WarpCloud& own) {
      const int64_t point = own.row + query.self();
      const WarpTree<T>& queries = trees.queries();
      const int64_t edge = queries.chunk_edge[point / kEdgeChunk] + queries.edge[point];
      if (!write_nearest(query, cloud, own, degree[point], {limit, kNoIndex}, source + edge, target + edge))
        *trees.tree.fault = 1;
    });
  }
};

}  // namespace
}  // namespace erwin::cuda

#endif  // ERWIN_CUDA_NEIGHBORS_SEARCH_H_
