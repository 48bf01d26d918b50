// Exact search over the tree of neighbors_tree.h: a warp answers a query.
//
// The lanes compare the query with the 32 boxes of a group of nodes, or the 32 points of a leaf, at once. Groups are
// entered top down, the query's own nodes first: the first leaf is its own, which bounds the distance of its
// neighbours; at the bottom the nearest leaf is next. Pruning is exact: the distance to a box is computed with the
// operations, in the axis order, of the distance to a point, and rounding is monotonic, so it never exceeds that of a
// point inside.
#ifndef ERWIN_CUDA_NEIGHBORS_SEARCH_H_
#define ERWIN_CUDA_NEIGHBORS_SEARCH_H_

#include <cmath>
#include <cstdint>

#include "neighbors_tree.h"
#include "warp.h"

namespace erwin {

constexpr int32_t kListRows = 4;         // a list has 128 places, four a lane
constexpr int32_t kMostInserted = 8;     // more candidates are sorted before they are merged into a list
constexpr int32_t kWarpsPerLeaf = 8;     // that share the queries of a leaf

// Candidates order by (squared distance, index).
template <typename T>
struct Key {
  T distance;
  int32_t index;

  ERWIN_DEVICE bool operator<(const Key& other) const {
    return distance < other.distance || (distance == other.distance && index < other.index);
  }
};

// Follows all candidates.
template <typename T>
ERWIN_DEVICE Key<T> no_limit() {
  return {static_cast<T>(INFINITY), kNoIndex};
}

// One in every lane.
template <typename W, typename T>
struct Keys {
  typename W::template Lanes<T> distance;
  typename W::template Lanes<int32_t> index;

  Keys() = default;
  ERWIN_DEVICE Keys(typename W::template Lanes<T> d, typename W::template Lanes<int32_t> i) : distance(d), index(i) {}
  ERWIN_DEVICE Keys(const Key<T>& key) : distance(key.distance), index(key.index) {}  // NOLINT: in every lane

  ERWIN_DEVICE typename W::template Lanes<bool> operator<(const Keys& other) const {
    return (distance < other.distance) | ((distance == other.distance) & (index < other.index));
  }
  ERWIN_DEVICE Key<T> broadcast(int32_t from) const {
    return {W::broadcast(distance, from), W::broadcast(index, from)};
  }
  ERWIN_DEVICE Keys shuffle(typename W::template Lanes<int32_t> from) const {
    return {W::shuffle(distance, from), W::shuffle(index, from)};
  }
  ERWIN_DEVICE Keys exchange(int32_t flip) const { return {W::exchange(distance, flip), W::exchange(index, flip)}; }
  static ERWIN_DEVICE Keys select(typename W::template Lanes<bool> choice, const Keys& yes, const Keys& no) {
    return {W::select(choice, yes.distance, no.distance), W::select(choice, yes.index, no.index)};
  }

  // Of the lanes that differ by the bits of `flip`, the one without the bit `high` gets the smaller key.
  ERWIN_DEVICE void order(int32_t flip, int32_t high) {
    const Keys other = exchange(flip);
    const auto wants_smaller = (W::lane() & high) == 0;
    *this = select((other < *this) == wants_smaller, other, *this);
  }
  // Sorts the lanes if they are bitonic: rise and then fall.
  ERWIN_DEVICE void clean() {
    for (int32_t half = kWarp / 2; half > 0; half /= 2) order(half, half);
  }
  ERWIN_DEVICE void sort() {
    for (int32_t run = 2; run <= kWarp; run *= 2) {
      order(run - 1, run / 2);
      for (int32_t half = run / 4; half > 0; half /= 2) order(half, half);
    }
  }
};

// The nearest candidates of a query, ascending: place i is in lane i % 32 of row i / 32.
template <typename W, typename T>
class NearestList {
 public:
  static constexpr bool kNearestFirst = true;

  // Of those before `limit` and after `after`, `count` <= 128 are kept.
  ERWIN_DEVICE NearestList(int32_t count, const Key<T>& limit, const Key<T>& after)
      : count_(count), rows_((count + kWarp - 1) / kWarp), after_(after), bound_(limit) {
    ERWIN_UNROLL
    for (int32_t row = 0; row < kListRows; ++row) best_[row] = limit;
  }

  ERWIN_DEVICE Key<T> bound() const { return bound_; }  // which candidates must precede
  ERWIN_DEVICE const Keys<W, T>& row(int32_t row) const { return best_[row]; }

  ERWIN_DEVICE void take(const Keys<W, T>& keys, typename W::template Lanes<bool> here) {
    const auto wanted = here & (Keys<W, T>(after_) < keys) & (keys < Keys<W, T>(bound_));
    uint32_t lanes = W::ballot(wanted);
    if (W::count(lanes) > kMostInserted) {
      merge(Keys<W, T>::select(wanted, keys, Keys<W, T>(no_limit<T>())));
      return;
    }
    for (; lanes != 0; lanes &= lanes - 1) {
      const Key<T> key = keys.broadcast(W::lowest(lanes));
      if (key < bound_) insert(key);
    }
  }

 private:
  ERWIN_DEVICE void insert(Key<T> key) {
    const auto lane = W::lane();
    ERWIN_UNROLL
    for (int32_t row = 0; row < kListRows; ++row) {
      if (row >= rows_) break;
      Keys<W, T>& best = best_[row];
      const Key<T> last = best.broadcast(kWarp - 1);
      const Keys<W, T> before = best.shuffle(lane - 1), fresh(key);
      const Keys<W, T> moved = Keys<W, T>::select((lane != 0) & (fresh < before), before, fresh);
      best = Keys<W, T>::select(fresh < best, moved, best);
      if (key < last) key = last;
    }
    update();
  }

  ERWIN_DEVICE void merge(Keys<W, T> fresh) {
    fresh.sort();
    ERWIN_UNROLL
    for (int32_t row = 0; row < kListRows; ++row) {
      if (row >= rows_) break;
      Keys<W, T>& best = best_[row];
      const Keys<W, T> reversed = fresh.exchange(kWarp - 1);
      const auto moves = reversed < best;
      fresh = Keys<W, T>::select(moves, best, reversed);
      best = Keys<W, T>::select(moves, reversed, best);
      best.clean();
      if (row + 1 < rows_) fresh.clean();
    }
    update();
  }

  ERWIN_DEVICE void update() {
    const int32_t last = count_ - 1;
    Keys<W, T> keys = best_[0];
    ERWIN_UNROLL
    for (int32_t row = 1; row < kListRows; ++row) keys = Keys<W, T>::select(row == last / kWarp, best_[row], keys);
    bound_ = keys.broadcast(last % kWarp);
  }

  int32_t count_, rows_;
  Key<T> after_, bound_;
  Keys<W, T> best_[kListRows];
};

// Counts the candidates within a limit.
template <typename W, typename T>
class Counter {
 public:
  static constexpr bool kNearestFirst = false;

  explicit ERWIN_DEVICE Counter(const Key<T>& limit) : limit_(limit) {}

  ERWIN_DEVICE Key<T> bound() const { return limit_; }
  ERWIN_DEVICE int64_t count() const { return count_; }
  ERWIN_DEVICE void take(const Keys<W, T>& keys, typename W::template Lanes<bool> here) {
    count_ += W::count(W::ballot(here & (keys < Keys<W, T>(limit_))));
  }

 private:
  Key<T> limit_;
  int64_t count_ = 0;
};

// A point of the tree whose neighbours are searched. D is the dimension, or 0 where it is known at run time only.
template <typename W, typename T, int D>
class Query {
 public:
  template <typename X>
  using Lanes = typename W::template Lanes<X>;

  // The point at a place of a leaf of the cloud. It is not among its own candidates unless `loop`.
  ERWIN_DEVICE Query(const WarpTree<T>& tree, const WarpCloud& cloud, int32_t leaf, int32_t place, bool loop)
      : tree_(tree), cloud_(cloud), leaf_(leaf), at_(tree.coords + cloud.row + place) {
    self_ = tree.index[cloud.row + place];
    excluded_ = loop ? kNoIndex : self_;
    for (int32_t axis = 0; axis < D; ++axis) x_[axis] = at_[axis * tree.points];
  }

  ERWIN_DEVICE int32_t self() const { return self_; }

  // Offers all points to a taker that may precede its bound.
  template <typename Taker>
  ERWIN_DEVICE void walk(Taker& taker) const {
    const auto lane = W::lane();
    const int32_t top = cloud_.top();
    int32_t level = top, group = 0;
    Lanes<uint32_t> waiting = ~0u;  // in the lane of every level, the children of the group there that are not done
    while (true) {
      const int32_t home = leaf_ >> (kLevelBits * level);
      const int32_t first = home >> kLevelBits == group ? home & (kWarp - 1) : 0;
      const auto node = (lane ^ first) + group * kWarp;  // the own one first, and then those that are near it
      const auto here = node < cloud_.nodes(level);
      const Keys<W, T> boxes = box_keys(level, node, here);
      uint32_t left = W::broadcast(waiting, level) & W::ballot(here);
      uint32_t near = left & W::ballot(boxes < Keys<W, T>(taker.bound()));
      if (level > 0 && near != 0) {
        const int32_t child = W::lowest(near);
        waiting = W::select(lane == level, Lanes<uint32_t>(left & ~(1u << child)), waiting);
        waiting = W::select(lane == level - 1, Lanes<uint32_t>(~0u), waiting);
        group = group * kWarp + (child ^ first);
        --level;
        continue;
      }
      while (near != 0) {  // leaves
        const int32_t child = Taker::kNearestFirst ? nearest(boxes.distance, near) : W::lowest(near);
        left &= ~(1u << child);
        look_into(group * kWarp + (child ^ first), taker);
        near = left & W::ballot(boxes < Keys<W, T>(taker.bound()));
      }
      if (level == top) return;
      ++level;
      group >>= kLevelBits;
    }
  }

 private:
  ERWIN_DEVICE int32_t dim() const { return D > 0 ? D : tree_.dim; }
  ERWIN_DEVICE T x(int32_t axis) const { return D > 0 ? x_[axis] : at_[axis * tree_.points]; }

  // Of boxes: the distance to them, and the lowest index inside.
  ERWIN_DEVICE Keys<W, T> box_keys(int32_t level, Lanes<int32_t> node, Lanes<bool> here) const {
    const int64_t first = cloud_.first[level];
    Lanes<T> sum = T{0};
    for (int32_t axis = 0; axis < dim(); ++axis) {
      const Lanes<T> q = x(axis);
      const T* const low = tree_.boxes + axis * tree_.nodes + first;
      const T* const high = low + dim() * tree_.nodes;
      const Lanes<T> below = W::load(low, node, here, T{0}), above = W::load(high, node, here, T{0});
      const Lanes<T> d = W::select(q < below, below - q, W::select(above < q, above - q, Lanes<T>(T{0})));
      sum = sum + d * d;
    }
    return {sum, W::load(tree_.lowest + first, node, here, kNoIndex)};
  }

  // The lane of the shortest of some distances.
  static ERWIN_DEVICE int32_t nearest(Lanes<T> distance, uint32_t lanes) {
    const T least = W::least(W::select(W::member(lanes), distance, Lanes<T>(static_cast<T>(INFINITY))));
    const uint32_t found = lanes & W::ballot(distance == Lanes<T>(least));
    return W::lowest(found != 0 ? found : lanes);
  }

  template <typename Taker>
  ERWIN_DEVICE void look_into(int32_t leaf, Taker& taker) const {
    const int32_t begin = tree_.begin(cloud_, leaf), size = tree_.end(cloud_, leaf) - begin;
    const auto lane = W::lane();
    const auto here = lane < size;
    const int64_t first = cloud_.row + begin;
    Lanes<T> sum = T{0};
    for (int32_t axis = 0; axis < dim(); ++axis) {
      const Lanes<T> d = W::load(tree_.coords + axis * tree_.points + first, lane, here, T{0}) - Lanes<T>(x(axis));
      sum = sum + d * d;
    }
    const Keys<W, T> keys{sum, W::load(tree_.index + first, lane, here, kNoIndex)};
    taker.take(keys, here & (keys.index != Lanes<int32_t>(excluded_)));
  }

  const WarpTree<T>& tree_;
  const WarpCloud& cloud_;
  const int32_t leaf_;
  const T* const at_;
  T x_[D > 0 ? D : 1];
  int32_t self_, excluded_;
};

// Calls body(query, cloud) for the queries of a warp's share of a leaf.
template <typename W, typename T, int D, typename F>
ERWIN_DEVICE void each_query(const WarpTree<T>& tree, int64_t warp, bool loop, const F& body) {
  const int64_t leaf = warp / kWarpsPerLeaf;
  const WarpCloud& cloud = tree.clouds[tree.owner(leaf, 0)];
  const auto number = static_cast<int32_t>(leaf - cloud.first[0]);
  const int32_t end = tree.end(cloud, number);
  const auto share = static_cast<int32_t>(warp % kWarpsPerLeaf);
  for (int32_t place = tree.begin(cloud, number) + share; place < end; place += kWarpsPerLeaf) {
    const Query<W, T, D> query(tree, cloud, number, place, loop);
    if (tree.place[cloud.row + query.self()] != place) W::put(tree.fault, 1);  // a point has two places
    body(query, cloud);
  }
}

// Writes the `count` nearest before `limit` of a query, in passes of as many as a list has room for. False where there
// are fewer.
template <typename W, typename T, int D>
ERWIN_DEVICE bool write_nearest(const Query<W, T, D>& query, const WarpCloud& cloud, int64_t count,
                                const Key<T>& limit, int64_t* source, int64_t* target) {
  constexpr int64_t room = kListRows * kWarp;
  Key<T> after{-1, -1};
  for (int64_t done = 0; done < count; done += room) {
    const auto most = static_cast<int32_t>(count - done < room ? count - done : room);
    NearestList<W, T> list(most, limit, after);
    query.walk(list);
    after = list.bound();
    if (after.index == kNoIndex) return false;
    ERWIN_UNROLL
    for (int32_t row = 0; row < kListRows; ++row) {
      W::each_lane([&](int32_t lane) {
        const int32_t i = row * kWarp + lane;
        if (i >= most) return;
        source[done + i] = cloud.row + W::own(list.row(row).index, lane);
        target[done + i] = cloud.row + query.self();
      });
    }
  }
  return true;
}

// ---- Passes ---------------------------------------------------------------------------------------------------------

template <typename W, typename T, int D>
struct FindNearest {
  WarpTree<T> tree;
  int64_t k;
  bool loop;
  int64_t* source;
  int64_t* target;

  ERWIN_DEVICE void operator()(int64_t warp) const {
    each_query<W, T, D>(tree, warp, loop, [&](const Query<W, T, D>& query, const WarpCloud& cloud) {
      const int64_t others = cloud.points - (loop ? 0 : 1), count = k < others ? k : others;
      const int64_t edge = cloud.edge + query.self() * count;
      if (!write_nearest(query, cloud, count, no_limit<T>(), source + edge, target + edge)) W::put(tree.fault, 1);
    });
  }
};

template <typename W, typename T, int D>
struct CountWithin {
  WarpTree<T> tree;
  T limit;  // squared radius
  int64_t cap;  // < 0: none
  bool loop;
  int64_t* degree;

  ERWIN_DEVICE void operator()(int64_t warp) const {
    each_query<W, T, D>(tree, warp, loop, [&](const Query<W, T, D>& query, const WarpCloud& cloud) {
      Counter<W, T> counter({limit, kNoIndex});
      query.walk(counter);
      const int64_t count = counter.count();
      W::put(degree + cloud.row + query.self(), cap >= 0 && cap < count ? cap : count);
    });
  }
};

// The first edge of every point, from that of its chunk.
template <typename W, typename T>
struct SumDegrees {
  WarpTree<T> tree;
  const int64_t* degree;

  ERWIN_DEVICE void operator()(int64_t chunk) const {
    const int64_t end = (chunk + 1) * kChunk < tree.points ? (chunk + 1) * kChunk : tree.points;
    int64_t total = 0;
    for (int64_t i = chunk * kChunk; i < end; i += kWarp)
      total = exclusive_sums<W>(degree + i, end - i, total, tree.edge + i);
    W::put(tree.chunk_edge + chunk, total);
  }
};

// The first edge of every chunk; one warp.
template <typename W, typename T>
struct SumChunks {
  WarpTree<T> tree;

  ERWIN_DEVICE void operator()(int64_t) const {
    const int64_t chunks = (tree.points + kChunk - 1) / kChunk;
    int64_t total = 0;
    for (int64_t i = 0; i < chunks; i += kWarp)
      total = exclusive_sums<W>(tree.chunk_edge + i, chunks - i, total, tree.chunk_edge + i);
  }
};

template <typename W, typename T, int D>
struct FillWithin {
  WarpTree<T> tree;
  T limit;
  bool loop;
  const int64_t* degree;
  int64_t* source;
  int64_t* target;

  ERWIN_DEVICE void operator()(int64_t warp) const {
    each_query<W, T, D>(tree, warp, loop, [&](const Query<W, T, D>& query, const WarpCloud& cloud) {
      const int64_t point = cloud.row + query.self();
      const int64_t edge = tree.chunk_edge[point / kChunk] + tree.edge[point];
      const bool counted = degree[point] >= 0;
      if (!counted || !write_nearest(query, cloud, degree[point], {limit, kNoIndex}, source + edge, target + edge))
        W::put(tree.fault, 1);
    });
  }
};

}  // namespace erwin

#endif  // ERWIN_CUDA_NEIGHBORS_SEARCH_H_
