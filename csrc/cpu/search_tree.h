// The search structure of a batch on the host: the nodes of its tree down to leaves of at most kLeaf points.
#ifndef ERWIN_CPU_SEARCH_TREE_H_
#define ERWIN_CPU_SEARCH_TREE_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../arena.h"
#include "../layout.h"
#include "../neighbors.h"
#include "parallel.h"
#include "permutations.h"
#include "search.h"

namespace erwin {
namespace {

constexpr int64_t kLeavesAtOnce = 8;  // search leaves that a thread fills at a time

inline int64_t count_leaves(const Layout& layout, const Node& node) {
  if (node.points <= kLeaf) return node.points > 0;
  const Children children = layout.split(node);
  return count_leaves(layout, children.left) + count_leaves(layout, children.right);
}

// The group that an item belongs to. `first` [groups + 1]: the first item of each group.
inline int64_t owner(const int64_t* first, int64_t groups, int64_t number) {
  return std::upper_bound(first, first + groups + 1, number) - first - 1;
}

template <typename T>
class SearchTree {
 public:
  // `workspace` has the size and the alignment that Arrays needs.
  SearchTree(const Points& points, int64_t clouds, int64_t dim, char* workspace)
      : layout_(points.layout),
        pos_(static_cast<const T*>(points.pos)),
        ptr_(points.ptr),
        clouds_(clouds),
        dim_(static_cast<int32_t>(dim)),
        perm_(points.perm),
        workspace_(workspace) {}

  // Bytes of a workspace that starts at a multiple of kLine.
  static int64_t bytes(const Points& points, int64_t clouds, int64_t dim) {
    int64_t leaves = 0;
    for (int64_t g = 0; g < clouds; ++g)
      leaves += count_leaves(points.layout, points.layout.root(points.ptr[g + 1] - points.ptr[g]));
    return Arrays(nullptr, clouds, leaves, dim).bytes;
  }

  // Returns false if `perm` is not a permutation of the points of every cloud, for example if it is from an outdated
  // tree.
  bool build(Interrupts& interrupts, int32_t num_threads) {
    if (!valid_perm(interrupts)) return false;
    const std::vector<int64_t> first_leaf = find_leaves();
    at_ = Arrays(workspace_, clouds_, first_leaf.back(), dim_);
    std::copy(first_leaf.begin(), first_leaf.end(), at_.first_leaf);
    parallel_for(interrupts, num_threads, clouds_, 1, [this](int32_t, int64_t g) {
      if (points(g) == 0) return;
      int32_t nodes = 0, leaves = 0;
      number(layout_.root(points(g)), at_.nodes + 2 * at_.first_leaf[g], at_.leaves + at_.first_leaf[g], &nodes,
             &leaves);
    });
    parallel_for(interrupts, num_threads, at_.first_leaf[clouds_], kLeavesAtOnce,
                 [this](int32_t, int64_t leaf) { fill_leaf(leaf); });
    parallel_for(interrupts, num_threads, clouds_, 1, [this](int32_t, int64_t g) { merge_boxes(g); });
    return true;
  }

  int64_t row(int64_t g) const { return ptr_[g]; }  // of the first point of a cloud
  int64_t points(int64_t g) const { return ptr_[g + 1] - ptr_[g]; }
  int64_t leaves(int64_t g) const { return at_.first_leaf[g + 1] - at_.first_leaf[g]; }
  int64_t all_points() const { return ptr_[clouds_]; }

  int64_t largest_cloud() const {
    int64_t largest = 0;
    for (int64_t g = 0; g < clouds_; ++g) largest = std::max(largest, points(g));
    return largest;
  }

  SearchCloud<T> cloud(int64_t g) const {
    const int64_t first = at_.first_leaf[g];
    return {ptr_[g],
            points(g),
            static_cast<int32_t>(num_nodes(g)),
            at_.nodes + 2 * first,
            at_.boxes + 2 * first * 2 * dim_,
            at_.leaves + first,
            at_.coords + first * dim_ * kLeaf,
            at_.index + first * kLeaf};
  }

 private:
  // The search structure in the workspace.
  struct Arrays {
    int64_t* first_leaf;  // [clouds + 1]
    SearchNode* nodes;    // [2 leaves]
    T* boxes;             // [2 leaves, 2, dim]
    int32_t* leaves;      // [leaves]: their nodes
    T* coords;            // [leaves, dim, kLeaf]
    int32_t* index;       // [leaves, kLeaf]
    int64_t bytes;

    Arrays() = default;
    Arrays(char* workspace, int64_t clouds, int64_t num_leaves, int64_t dim) {
      Arena arena{workspace};
      first_leaf = arena.take<int64_t>(clouds + 1);
      nodes = arena.take<SearchNode>(2 * num_leaves);
      boxes = arena.take<T>(num_leaves, dim, 4);
      leaves = arena.take<int32_t>(num_leaves);
      coords = arena.take<T>(num_leaves, dim, kLeaf);
      index = arena.take<int32_t>(num_leaves, kLeaf);
      bytes = arena.used;
    }
  };

  int64_t num_nodes(int64_t g) const { return std::max<int64_t>(2 * leaves(g) - 1, 0); }

  bool valid_perm(Interrupts& interrupts) const {
    std::vector<uint8_t> seen(static_cast<size_t>(ceil_div(largest_cloud(), 8)));
    for (int64_t g = 0; g < clouds_; ++g) {
      const auto look = [&] { interrupts.check(); };
      if (!is_permutation(perm_ + ptr_[g], points(g), seen.data(), look)) return false;
    }
    return true;
  }

  // The first leaf of every cloud, and at the end the number of all leaves.
  std::vector<int64_t> find_leaves() const {
    std::vector<int64_t> first_leaf(static_cast<size_t>(clouds_ + 1), 0);
    for (int64_t g = 0; g < clouds_; ++g)
      first_leaf[g + 1] = first_leaf[g] + count_leaves(layout_, layout_.root(points(g)));
    return first_leaf;
  }

  void number(const Node& node, SearchNode* nodes, int32_t* leaves, int32_t* num_nodes, int32_t* num_leaves) const {
    const int32_t id = (*num_nodes)++;
    nodes[id].leaf = *num_leaves;
    nodes[id].points = static_cast<int32_t>(node.points);
    nodes[id].index = static_cast<int32_t>(node.begin);  // for a leaf: its first place, until its points are filled in
    if (node.points <= kLeaf) {
      leaves[(*num_leaves)++] = id;
    } else {
      const Children children = layout_.split(node);
      number(children.left, nodes, leaves, num_nodes, num_leaves);
      number(children.right, nodes, leaves, num_nodes, num_leaves);
    }
    nodes[id].next = *num_nodes;
  }

  // Gathers the points of a leaf and their box.
  void fill_leaf(int64_t leaf) const {
    const int64_t g = owner(at_.first_leaf, clouds_, leaf);
    const int64_t id = 2 * at_.first_leaf[g] + at_.leaves[leaf];
    SearchNode& node = at_.nodes[id];
    const int64_t* const perm = perm_ + ptr_[g] + node.index;
    T* const low = at_.boxes + id * 2 * dim_;
    T* const high = low + dim_;
    T* const coords = at_.coords + leaf * dim_ * kLeaf;
    int32_t* const index = at_.index + leaf * kLeaf;
    for (int32_t i = 0; i < node.points; ++i) index[i] = static_cast<int32_t>(perm[i]);
    std::fill(index + node.points, index + kLeaf, std::numeric_limits<int32_t>::max());
    node.index = *std::min_element(index, index + node.points);
    for (int32_t a = 0; a < dim_; ++a) {
      T* const x = coords + a * kLeaf;
      for (int32_t i = 0; i < node.points; ++i) x[i] = pos_[(ptr_[g] + index[i]) * dim_ + a];
      std::fill(x + node.points, x + kLeaf, std::numeric_limits<T>::quiet_NaN());
      low[a] = high[a] = x[0];
      for (int32_t i = 1; i < node.points; ++i) {
        low[a] = x[i] < low[a] ? x[i] : low[a];
        high[a] = x[i] > high[a] ? x[i] : high[a];
      }
    }
  }

  void merge_boxes(int64_t g) const {
    SearchNode* const nodes = at_.nodes + 2 * at_.first_leaf[g];
    T* const boxes = at_.boxes + 2 * at_.first_leaf[g] * 2 * dim_;
    for (int64_t id = num_nodes(g) - 1; id >= 0; --id) {
      if (nodes[id].next == id + 1) continue;
      const int64_t left_id = id + 1, right_id = nodes[left_id].next;
      nodes[id].index = std::min(nodes[left_id].index, nodes[right_id].index);
      const T* const left = boxes + left_id * 2 * dim_;
      const T* const right = boxes + right_id * 2 * dim_;
      T* const low = boxes + id * 2 * dim_;
      for (int32_t a = 0; a < dim_; ++a) low[a] = std::min(left[a], right[a]);
      for (int32_t a = dim_; a < 2 * dim_; ++a) low[a] = std::max(left[a], right[a]);
    }
  }

  const Layout& layout_;
  const T* pos_;
  const int64_t* ptr_;
  int64_t clouds_;
  int32_t dim_;
  const int64_t* perm_;
  char* workspace_;
  Arrays at_ = {};
};

}  // namespace
}  // namespace erwin

#endif  // ERWIN_CPU_SEARCH_TREE_H_
