// Exact neighbour search on the host, over the nodes of a balanced tree.
//
// The queries are answered a search leaf at a time: the boxes that come near enough to the leaf's own box are gathered
// once for all of its points. Pruning is exact: the distance to a box is computed with the operations, in the axis
// order, of the distance to a point, and rounding is monotonic, so it never exceeds that of a point inside.
// Comparisons with a limit are negated, because that of a query with too few candidates (kNoBound) is NaN.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "../layout.h"
#include "nearest.h"
#include "parallel.h"

namespace erwin {
namespace {

constexpr int64_t kAlign = 64;         // bytes, of every section of the workspace
constexpr int64_t kLeavesAtOnce = 8;  // search leaves that a thread takes at a time
constexpr int32_t kNoNode = -1;

// Nodes are numbered in preorder, in each cloud from 0: the left child follows its parent, the right child follows the
// left subtree.
struct SearchNode {
  int32_t next;   // first node after the subtree; `this + 1` marks a leaf
  int32_t begin;  // first point, in tree order
  int32_t size;   // points
  int32_t index;  // of a leaf: the lowest index of its points
};

int64_t count_leaves(const Layout& layout, const Node& node) {
  if (node.points <= kLeaf) return node.points > 0;
  const Children children = layout.split(node);
  return count_leaves(layout, children.left) + count_leaves(layout, children.right);
}

// Where everything lies in the workspace.
struct Sections {
  int64_t first_leaf, coords, index, leaves, nodes, boxes, end;

  Sections(int64_t clouds, int64_t points, int64_t num_leaves, int64_t dim, int64_t scalar) {
    int64_t at = 0;
    const auto take = [&at](int64_t bytes) {
      const int64_t start = at;
      at += ceil_div(bytes, kAlign) * kAlign;
      return start;
    };
    first_leaf = take((clouds + 1) * 8);
    coords = take((points * dim + kLeaf) * scalar);  // the last leaf is read at full width
    index = take(points * 4);
    leaves = take(num_leaves * 4);
    nodes = take(2 * num_leaves * static_cast<int64_t>(sizeof(SearchNode)));
    boxes = take(2 * num_leaves * 2 * dim * scalar);
    end = at;
  }
};

// D is the dimension, or 0 where it is known at run time only.
template <typename T, int D>
class Search {
  using Key = typename Pack<T>::Key;

  // One cloud of the search structure.
  struct Cloud {
    int64_t first;  // row of the cloud's first point
    int64_t points;
    const T* coords;       // [dim, points], in tree order
    const int32_t* index;  // [points]
    const SearchNode* nodes;
    int32_t num_nodes;
    const T* boxes;  // [nodes, 2, dim]
  };

  // A leaf that is near a leaf of queries.
  struct Near {
    T distance;  // squared, between the boxes
    int32_t node;
    int32_t index;  // the lowest of its points
    bool operator<(const Near& other) const {
      return distance < other.distance || (distance == other.distance && index < other.index);
    }
  };

  // What one thread needs to answer a leaf of queries.
  struct Scratch {
    std::vector<T> query;    // [dim]
    std::vector<Near> near;  // [leaves]
    std::vector<T> boxes;    // [leaves / kLeaf, 2, dim, kLeaf], of `near`
    std::vector<Key> keys;
    Nearest<T> nearest[kLeaf];  // of every query
  };

 public:
  Search(const Layout& layout, const void* pos, const int64_t* ptr, int64_t clouds, int64_t dim, const int64_t* perm,
         void* workspace, int32_t num_threads)
      : layout_(layout),
        pos_(static_cast<const T*>(pos)),
        ptr_(ptr),
        clouds_(clouds),
        runtime_dim_(static_cast<int32_t>(dim)),
        perm_(perm),
        workspace_(static_cast<char*>(workspace)),
        num_threads_(ptr[clouds] < kSerialPoints ? 1 : std::max(num_threads, 1)),
        first_leaf_(reinterpret_cast<int64_t*>(workspace_)) {}

  static int64_t bytes(const Layout& layout, const int64_t* ptr, int64_t clouds, int64_t dim) {
    int64_t leaves = 0;
    for (int64_t g = 0; g < clouds; ++g) leaves += count_leaves(layout, layout.root(ptr[g + 1] - ptr[g]));
    return Sections(clouds, ptr[clouds], leaves, dim, sizeof(T)).end;
  }

  // False where `perm` is no permutation of the points of every cloud, which a stale tree's is not.
  bool build() {
    if (!valid_perm()) return false;
    first_leaf_[0] = 0;
    for (int64_t g = 0; g < clouds_; ++g)
      first_leaf_[g + 1] = first_leaf_[g] + count_leaves(layout_, layout_.root(ptr_[g + 1] - ptr_[g]));
    attach();
    parallel_for(num_threads_, clouds_, 1, [this](int32_t, int64_t g) {
      if (ptr_[g + 1] == ptr_[g]) return;
      int32_t nodes = 0, leaves = 0;
      number(layout_.root(ptr_[g + 1] - ptr_[g]), nodes_ + 2 * first_leaf_[g], leaves_ + first_leaf_[g], &nodes,
             &leaves);
    });
    std::fill_n(coords_ + ptr_[clouds_] * dim(), kLeaf, T{0});
    parallel_for(num_threads_, first_leaf_[clouds_], kLeavesAtOnce,
                 [this](int32_t, int64_t leaf) { fill_leaf(leaf); });
    parallel_for(num_threads_, clouds_, 1, [this](int32_t, int64_t g) { merge_boxes(g); });
    return true;
  }

  // Takes over the structure that an earlier call built in the same workspace.
  void attach() {
    const Sections at(clouds_, ptr_[clouds_], first_leaf_[clouds_], dim(), sizeof(T));
    coords_ = reinterpret_cast<T*>(workspace_ + at.coords);
    index_ = reinterpret_cast<int32_t*>(workspace_ + at.index);
    leaves_ = reinterpret_cast<int32_t*>(workspace_ + at.leaves);
    nodes_ = reinterpret_cast<SearchNode*>(workspace_ + at.nodes);
    boxes_ = reinterpret_cast<T*>(workspace_ + at.boxes);
  }

  void knn(int64_t k, bool loop, int64_t* source, int64_t* target) {
    // First edge of every cloud.
    std::vector<int64_t> first_edge(static_cast<size_t>(clouds_ + 1), 0);
    for (int64_t g = 0; g < clouds_; ++g) {
      const int64_t points = ptr_[g + 1] - ptr_[g];
      first_edge[g + 1] = first_edge[g] + points * std::min(k, points - (loop ? 0 : 1));
    }
    const int64_t room = Nearest<T>::room(std::min(k, largest_cloud()));
    std::vector<Scratch> scratch = make_scratch(kLeaf * room);
    for_each_leaf(scratch, [&](Scratch& own, const Cloud& cloud, int64_t g, int32_t leaf) {
      const int64_t neighbors = std::min(k, cloud.points - (loop ? 0 : 1));
      if (neighbors == 0) return;
      knn_leaf(own, cloud, leaf, neighbors, room, loop);
      const SearchNode& queries = cloud.nodes[leaf];
      for (int32_t i = 0; i < queries.size; ++i) {
        const int32_t self = cloud.index[queries.begin + i];
        const int64_t edge = first_edge[g] + self * neighbors;
        write(cloud, self, own.nearest[i].keys(), neighbors, source + edge, target + edge);
      }
    });
  }

  void radius_count(T limit, int64_t cap, bool loop, int64_t* degree) {
    const Key bound = make_key(limit, -1);  // every index
    std::vector<Scratch> scratch = make_scratch(0);
    for_each_leaf(scratch, [&](Scratch& own, const Cloud& cloud, int64_t, int32_t leaf) {
      gather(own, cloud, leaf, limit, kNoNode);
      const SearchNode& queries = cloud.nodes[leaf];
      for (int32_t i = queries.begin; i < queries.begin + queries.size; ++i) {
        load_query(own, cloud, i);
        int64_t count = loop ? 0 : -1;  // itself
        visit_near(own, cloud, bound, [&](const SearchNode& node, const T* distance) {
          const int32_t size = node.size;
          typename Pack<T>::Bits within = 0;
#pragma omp simd reduction(+ : within)
          for (int32_t j = 0; j < kLeaf; ++j) within += (j < size) & !(distance[j] > limit);
          count += within;
          return bound;
        });
        count = std::max<int64_t>(count, 0);
        degree[cloud.first + cloud.index[i]] = cap < 0 ? count : std::min(cap, count);
      }
    });
  }

  // False where a degree is none that the count can have given: the edges of that point are not written.
  bool radius_fill(T limit, bool loop, const int64_t* degree, int64_t* source, int64_t* target) {
    std::atomic<bool> counted{true};
    const int64_t points = ptr_[clouds_];
    std::vector<int64_t> first_edge(static_cast<size_t>(points + 1), 0);
    for (int64_t i = 0; i < points; ++i) first_edge[i + 1] = first_edge[i] + degree[i];
    const Key bound = make_key(limit, -1);  // every index
    std::vector<Scratch> scratch = make_scratch(largest_cloud() + 1);
    for_each_leaf(scratch, [&](Scratch& own, const Cloud& cloud, int64_t, int32_t leaf) {
      gather(own, cloud, leaf, limit, kNoNode);
      const SearchNode& queries = cloud.nodes[leaf];
      for (int32_t i = queries.begin; i < queries.begin + queries.size; ++i) {
        load_query(own, cloud, i);
        const int32_t self = cloud.index[i], excluded = loop ? -1 : self;
        Key* const keys = own.keys.data();
        Key* end = keys;
        visit_near(own, cloud, bound, [&](const SearchNode& node, const T* distance) {
          end = append(cloud, node, distance, limit, kNoBound<T>, excluded, end);
          return bound;
        });
        const int64_t row = cloud.first + self, count = degree[row];
        if (count < 0 || count > end - keys) {
          counted.store(false, std::memory_order_relaxed);
          continue;
        }
        if (count < end - keys) std::nth_element(keys, keys + count, end);
        sort_keys(keys, count);
        write(cloud, self, keys, count, source + first_edge[row], target + first_edge[row]);
      }
    });
    return counted;
  }

 private:
  int32_t dim() const { return D > 0 ? D : runtime_dim_; }

  bool valid_perm() const {
    std::vector<bool> seen(static_cast<size_t>(ptr_[clouds_]), false);
    for (int64_t g = 0; g < clouds_; ++g) {
      for (int64_t i = ptr_[g]; i < ptr_[g + 1]; ++i) {
        if (perm_[i] < 0 || perm_[i] >= ptr_[g + 1] - ptr_[g] || seen[ptr_[g] + perm_[i]]) return false;
        seen[ptr_[g] + perm_[i]] = true;
      }
    }
    return true;
  }

  void number(const Node& node, SearchNode* nodes, int32_t* leaves, int32_t* num_nodes, int32_t* num_leaves) const {
    const int32_t id = (*num_nodes)++;
    nodes[id].begin = static_cast<int32_t>(node.begin);
    nodes[id].size = static_cast<int32_t>(node.points);
    if (node.points <= kLeaf) {
      leaves[(*num_leaves)++] = id;
    } else {
      const Children children = layout_.split(node);
      number(children.left, nodes, leaves, num_nodes, num_leaves);
      number(children.right, nodes, leaves, num_nodes, num_leaves);
    }
    nodes[id].next = *num_nodes;
  }

  int64_t cloud_of(int64_t leaf) const {
    return std::upper_bound(first_leaf_, first_leaf_ + clouds_ + 1, leaf) - first_leaf_ - 1;
  }

  Cloud cloud(int64_t g) const {
    const int64_t first = ptr_[g], leaf = first_leaf_[g];
    return {first,
            ptr_[g + 1] - first,
            coords_ + first * dim(),
            index_ + first,
            nodes_ + 2 * leaf,
            static_cast<int32_t>(2 * (first_leaf_[g + 1] - leaf) - 1),
            boxes_ + 2 * leaf * 2 * dim()};
  }

  const T* box(const Cloud& cloud, int32_t node) const { return cloud.boxes + static_cast<int64_t>(node) * 2 * dim(); }

  // Gathers the points of a leaf and their box.
  void fill_leaf(int64_t leaf) const {
    const int64_t g = cloud_of(leaf), first = ptr_[g], points = ptr_[g + 1] - first;
    const int32_t id = leaves_[leaf];
    SearchNode& node = nodes_[2 * first_leaf_[g] + id];
    node.index = std::numeric_limits<int32_t>::max();
    T* const low = boxes_ + (2 * first_leaf_[g] + id) * 2 * dim();
    T* const high = low + dim();
    for (int32_t i = node.begin; i < node.begin + node.size; ++i) {
      const int64_t source = perm_[first + i];
      index_[first + i] = static_cast<int32_t>(source);
      node.index = std::min(node.index, static_cast<int32_t>(source));
      for (int32_t a = 0; a < dim(); ++a) {
        const T x = pos_[(first + source) * dim() + a];
        coords_[first * dim() + a * points + i] = x;
        low[a] = i == node.begin || x < low[a] ? x : low[a];
        high[a] = i == node.begin || x > high[a] ? x : high[a];
      }
    }
  }

  void merge_boxes(int64_t g) const {
    const SearchNode* const nodes = nodes_ + 2 * first_leaf_[g];
    T* const boxes = boxes_ + 2 * first_leaf_[g] * 2 * dim();
    const int64_t num_nodes = 2 * (first_leaf_[g + 1] - first_leaf_[g]) - 1;
    for (int64_t id = num_nodes - 1; id >= 0; --id) {
      if (nodes[id].next == id + 1) continue;
      const T* const left = boxes + (id + 1) * 2 * dim();
      const T* const right = boxes + static_cast<int64_t>(nodes[id + 1].next) * 2 * dim();
      T* const low = boxes + id * 2 * dim();
      for (int32_t a = 0; a < dim(); ++a) low[a] = std::min(left[a], right[a]);
      for (int32_t a = dim(); a < 2 * dim(); ++a) low[a] = std::max(left[a], right[a]);
    }
  }

  int64_t largest_cloud() const {
    int64_t largest = 0;
    for (int64_t g = 0; g < clouds_; ++g) largest = std::max(largest, ptr_[g + 1] - ptr_[g]);
    return largest;
  }

  // Everything is allocated here, where an exception may still be thrown.
  std::vector<Scratch> make_scratch(int64_t keys) const {
    int64_t leaves = 0;
    for (int64_t g = 0; g < clouds_; ++g) leaves = std::max(leaves, first_leaf_[g + 1] - first_leaf_[g]);
    std::vector<Scratch> scratch(static_cast<size_t>(num_threads_));
    for (Scratch& own : scratch) {
      own.query.resize(dim());
      own.near.reserve(leaves);
      own.boxes.resize(ceil_div(leaves, kLeaf) * kLeaf * 2 * dim());
      own.keys.resize(keys);
    }
    return scratch;
  }

  template <typename F>
  void for_each_leaf(std::vector<Scratch>& scratch, const F& body) const {
    parallel_for(num_threads_, first_leaf_[clouds_], kLeavesAtOnce, [&](int32_t worker, int64_t leaf) {
      const int64_t g = cloud_of(leaf);
      body(scratch[worker], cloud(g), g, leaves_[leaf]);
    });
  }

  void load_query(Scratch& own, const Cloud& cloud, int32_t i) const {
    for (int32_t a = 0; a < dim(); ++a) own.query[a] = cloud.coords[a * cloud.points + i];
  }

  // distance[j] = sum over the axes of difference(a, j) squared, for kLeaf lanes whatever the size of the leaf: loops
  // that compilers vectorise. The order of the loops has no effect on the sums.
  template <typename F>
  void sum_squares(T* __restrict distance, const F& difference) const {
    if constexpr (D > 0) {
#pragma omp simd
      for (int32_t j = 0; j < kLeaf; ++j) {
        T sum = 0;
        for (int32_t a = 0; a < D; ++a) sum += difference(a, j) * difference(a, j);
        distance[j] = sum;
      }
    } else {
      std::fill_n(distance, kLeaf, T{0});
      for (int32_t a = 0; a < runtime_dim_; ++a) {
#pragma omp simd
        for (int32_t j = 0; j < kLeaf; ++j) distance[j] += difference(a, j) * difference(a, j);
      }
    }
  }

  // Squared distances of the query to the points of a leaf; lanes beyond its size mean nothing.
  void leaf_distances(const T* query, const Cloud& cloud, const SearchNode& node, T* __restrict distance) const {
    const T* const x = cloud.coords + node.begin;
    const int64_t points = cloud.points;
    sum_squares(distance, [=](int32_t a, int32_t j) { return x[a * points + j] - query[a]; });
  }

  // Squared distances of the query to boxes [2, dim, kLeaf].
  void box_distances(const T* query, const T* low, T* __restrict distance) const {
    const T* const high = low + dim() * kLeaf;
    sum_squares(distance, [=](int32_t a, int32_t j) {
      const T q = query[a], l = low[a * kLeaf + j], h = high[a * kLeaf + j];
      const T x = q < l ? l : q;
      return (x > h ? h : x) - q;
    });
  }

  // A bit for each of the first `size` lanes that is within the limit.
  static uint32_t lanes_within(const T* distance, T limit, int64_t size) {
    typename Pack<T>::Bits lanes = 0;
#pragma omp simd reduction(| : lanes)
    for (int32_t j = 0; j < kLeaf; ++j) lanes |= distance[j] > limit ? 0 : 1 << j;
    return static_cast<uint32_t>(lanes) & ((1u << size) - 1);
  }

  // Lists the leaves outside the subtree of `home` that come within `limit` of a leaf of queries.
  void gather(Scratch& own, const Cloud& cloud, int32_t leaf, T limit, int32_t home) const {
    const T* const query_low = box(cloud, leaf);
    const T* const query_high = query_low + dim();
    own.near.clear();
    for (int32_t id = 0; id < cloud.num_nodes;) {
      const SearchNode& node = cloud.nodes[id];
      const T* const low = box(cloud, id);
      const T* const high = low + dim();
      T sum = 0;
      for (int32_t a = 0; a < dim(); ++a) {
        const T below = low[a] - query_high[a], above = query_low[a] - high[a];
        const T d = std::max(std::max(below, above), T{0});
        sum += d * d;
      }
      if (id == home || sum > limit) {
        id = node.next;
      } else {
        if (node.next == id + 1) own.near.push_back({sum, id, node.index});
        ++id;
      }
    }
    if (home != kNoNode) std::sort(own.near.begin(), own.near.end());
    for (size_t c = 0; c < own.near.size(); ++c) {
      const T* const from = box(cloud, own.near[c].node);
      T* const to = own.boxes.data() + c / kLeaf * kLeaf * 2 * dim() + c % kLeaf;
      for (int32_t a = 0; a < 2 * dim(); ++a) to[a * kLeaf] = from[a];
    }
  }

  // Calls body(leaf, squared distances) for the near leaves that may hold a point below the bound, which the body
  // returns anew.
  template <typename F>
  void visit_near(const Scratch& own, const Cloud& cloud, Key bound, const F& body) const {
    const T* const query = own.query.data();
    T box_distance[kLeaf], distance[kLeaf];
    const int64_t count = static_cast<int64_t>(own.near.size());
    for (int64_t first = 0; first < count; first += kLeaf) {
      const Near* const near = own.near.data() + first;
      if (near[0].distance > key_distance<T>(bound)) break;  // nearest first, or all within
      box_distances(query, own.boxes.data() + first * 2 * dim(), box_distance);
      uint32_t lanes = lanes_within(box_distance, key_distance<T>(bound), std::min<int64_t>(kLeaf, count - first));
      for (; lanes != 0; lanes &= lanes - 1) {
        const int j = __builtin_ctz(lanes);
        const T limit = key_distance<T>(bound);
        if (box_distance[j] > limit || (box_distance[j] == limit && near[j].index > key_index<T>(bound))) continue;
        const SearchNode& node = cloud.nodes[near[j].node];
        leaf_distances(query, cloud, node, distance);
        bound = body(node, distance);
      }
    }
  }

  // Adds the points of a leaf within the limit and below the bound; `end` may be written one place beyond them.
  Key* append(const Cloud& cloud, const SearchNode& node, const T* distance, T limit, Key bound, int32_t excluded,
              Key* end) const {
    const int32_t* const index = cloud.index + node.begin;
    for (uint32_t lanes = lanes_within(distance, limit, node.size); lanes != 0; lanes &= lanes - 1) {
      const int j = __builtin_ctz(lanes);
      *end = make_key(distance[j], index[j]);
      end += (*end < bound) & (index[j] != excluded);
    }
    return end;
  }

  void write(const Cloud& cloud, int32_t self, const Key* keys, int64_t count, int64_t* source,
             int64_t* target) const {
    for (int64_t j = 0; j < count; ++j) {
      source[j] = cloud.first + static_cast<uint32_t>(keys[j]);
      target[j] = cloud.first + self;
    }
  }

  // The smallest node that holds the leaf and at least `points` points.
  int32_t find_home(const Cloud& cloud, int32_t leaf, int64_t points) const {
    int32_t id = 0;
    while (id != leaf) {
      const int32_t right = cloud.nodes[id + 1].next;
      const int32_t child = leaf < right ? id + 1 : right;
      if (cloud.nodes[child].size < points) break;
      id = child;
    }
    return id;
  }

  // Adds what a leaf has to the nearest of a query.
  void take(Nearest<T>& nearest, const Cloud& cloud, const SearchNode& node, const T* distance,
            int32_t excluded) const {
    const Key bound = nearest.bound();
    nearest.end = append(cloud, node, distance, key_distance<T>(bound), bound, excluded, nearest.end);
    nearest.settle();
  }

  void knn_leaf(Scratch& own, const Cloud& cloud, int32_t leaf, int64_t k, int64_t room, bool loop) const {
    const SearchNode& queries = cloud.nodes[leaf];
    // The nearest of the points around set the first bounds.
    const int32_t home = find_home(cloud, leaf, k + 1);
    T limit = 0, distance[kLeaf];
    for (int32_t i = 0; i < queries.size; ++i) {
      load_query(own, cloud, queries.begin + i);
      const int32_t excluded = loop ? -1 : cloud.index[queries.begin + i];
      Nearest<T>& nearest = own.nearest[i];
      nearest.reset(own.keys.data() + i * room, k);
      for (int32_t id = home; id < cloud.nodes[home].next; ++id) {
        const SearchNode& node = cloud.nodes[id];
        if (node.next != id + 1) continue;
        leaf_distances(own.query.data(), cloud, node, distance);
        take(nearest, cloud, node, distance, excluded);
      }
      nearest.merge();
      limit = std::max(limit, key_distance<T>(nearest.bound()));
    }
    gather(own, cloud, leaf, limit, home);
    for (int32_t i = 0; i < queries.size; ++i) {
      load_query(own, cloud, queries.begin + i);
      const int32_t excluded = loop ? -1 : cloud.index[queries.begin + i];
      Nearest<T>& nearest = own.nearest[i];
      visit_near(own, cloud, nearest.bound(), [&](const SearchNode& node, const T* near) {
        take(nearest, cloud, node, near, excluded);
        return nearest.bound();
      });
      nearest.merge();
    }
  }

  const Layout& layout_;
  const T* pos_;
  const int64_t* ptr_;
  int64_t clouds_;
  int32_t runtime_dim_;
  const int64_t* perm_;
  char* workspace_;
  int32_t num_threads_;
  int64_t* first_leaf_;
  T* coords_ = nullptr;
  int32_t* index_ = nullptr;
  int32_t* leaves_ = nullptr;
  SearchNode* nodes_ = nullptr;
  T* boxes_ = nullptr;
};

}  // namespace
}  // namespace erwin

using erwin::Layout;

namespace {

// Whether the arguments that every entry point shares can be searched.
bool valid(const Layout& layout, int32_t dtype, const int64_t* ptr, int64_t clouds, int64_t dim) {
  if (layout.kind != ERWIN_BALANCED || (dtype != ERWIN_FLOAT32 && dtype != ERWIN_FLOAT64)) return false;
  return dim >= 1 && erwin::valid_ptr(ptr, clouds);
}

// Calls f(T{}, D) with the types of the instance for a dtype and dimension.
template <typename F>
auto dispatch(int32_t dtype, int64_t dim, const F& f) {
  const auto of_type = [&](auto scalar) {
    switch (dim) {
      case 1: return f(scalar, std::integral_constant<int, 1>{});
      case 2: return f(scalar, std::integral_constant<int, 2>{});
      case 3: return f(scalar, std::integral_constant<int, 3>{});
      default: return f(scalar, std::integral_constant<int, 0>{});
    }
  };
  return dtype == ERWIN_FLOAT64 ? of_type(double{}) : of_type(float{});
}

}  // namespace

int32_t erwin_neighbors_workspace(const erwin_layout* config, int32_t dtype, const int64_t* ptr, int64_t clouds,
                                  int64_t dim, int64_t* bytes) {
  Layout layout;
  if (!erwin::make_layout(config, &layout) || !valid(layout, dtype, ptr, clouds, dim)) return ERWIN_INVALID_ARGUMENT;
  *bytes = dispatch(dtype, dim, [&](auto scalar, auto d) {
    return erwin::Search<decltype(scalar), d()>::bytes(layout, ptr, clouds, dim);
  });
  return ERWIN_OK;
}

int32_t erwin_knn(const erwin_context* context, const erwin_layout* config, int32_t dtype, const void* pos,
                  const int64_t* ptr, int64_t clouds, int64_t dim, const int64_t* perm, const void* box, int64_t k,
                  int32_t loop, void* workspace, int64_t workspace_bytes, int64_t* source, int64_t* target) {
  int64_t bytes = 0;
  const int32_t status = erwin_neighbors_workspace(config, dtype, ptr, clouds, dim, &bytes);
  if (status != ERWIN_OK) return status;
  if (k < 1) return ERWIN_INVALID_ARGUMENT;
  if (context->device >= 0 || box != nullptr) return ERWIN_UNSUPPORTED;
  if (workspace_bytes < bytes) return ERWIN_WORKSPACE_TOO_SMALL;
  Layout layout;
  erwin::make_layout(config, &layout);
  bool built = true;
  const int32_t found = erwin::guarded([&] {
    dispatch(dtype, dim, [&](auto scalar, auto d) {
      erwin::Search<decltype(scalar), d()> search(layout, pos, ptr, clouds, dim, perm, workspace,
                                                  context->num_threads);
      built = search.build();
      if (built) search.knn(k, loop != 0, source, target);
    });
  });
  return found == ERWIN_OK && !built ? ERWIN_INVALID_ARGUMENT : found;
}

int32_t erwin_radius_count(const erwin_context* context, const erwin_layout* config, int32_t dtype, const void* pos,
                           const int64_t* ptr, int64_t clouds, int64_t dim, const int64_t* perm, const void* box,
                           double radius, int64_t cap, int32_t loop, void* workspace, int64_t workspace_bytes,
                           int64_t* degree) {
  int64_t bytes = 0;
  const int32_t status = erwin_neighbors_workspace(config, dtype, ptr, clouds, dim, &bytes);
  if (status != ERWIN_OK) return status;
  if (!(radius >= 0)) return ERWIN_INVALID_ARGUMENT;
  if (context->device >= 0 || box != nullptr) return ERWIN_UNSUPPORTED;
  if (workspace_bytes < bytes) return ERWIN_WORKSPACE_TOO_SMALL;
  Layout layout;
  erwin::make_layout(config, &layout);
  bool built = true;
  const int32_t found = erwin::guarded([&] {
    dispatch(dtype, dim, [&](auto scalar, auto d) {
      using T = decltype(scalar);
      erwin::Search<T, d()> search(layout, pos, ptr, clouds, dim, perm, workspace, context->num_threads);
      built = search.build();
      if (built) search.radius_count(static_cast<T>(radius) * static_cast<T>(radius), cap, loop != 0, degree);
    });
  });
  return found == ERWIN_OK && !built ? ERWIN_INVALID_ARGUMENT : found;
}

int32_t erwin_radius_fill(const erwin_context* context, const erwin_layout* config, int32_t dtype, const void* pos,
                          const int64_t* ptr, int64_t clouds, int64_t dim, const int64_t* perm, const void* box,
                          double radius, int64_t, int32_t loop, void* workspace, int64_t workspace_bytes,
                          const int64_t* degree, int64_t* source, int64_t* target) {
  int64_t bytes = 0;
  const int32_t status = erwin_neighbors_workspace(config, dtype, ptr, clouds, dim, &bytes);
  if (status != ERWIN_OK) return status;
  if (!(radius >= 0)) return ERWIN_INVALID_ARGUMENT;
  if (context->device >= 0 || box != nullptr) return ERWIN_UNSUPPORTED;
  if (workspace_bytes < bytes) return ERWIN_WORKSPACE_TOO_SMALL;
  Layout layout;
  erwin::make_layout(config, &layout);
  bool counted = true;
  const int32_t filled = erwin::guarded([&] {
    dispatch(dtype, dim, [&](auto scalar, auto d) {
      using T = decltype(scalar);
      erwin::Search<T, d()> search(layout, pos, ptr, clouds, dim, perm, workspace, context->num_threads);
      search.attach();
      counted = search.radius_fill(static_cast<T>(radius) * static_cast<T>(radius), loop != 0, degree, source, target);
    });
  });
  return filled == ERWIN_OK && !counted ? ERWIN_INVALID_ARGUMENT : filled;
}
