// The search structure of a batch on a GPU: leaves of up to 32 points, one for each lane of a warp, and above them
// nodes with 32 children.
//
// The leaves of a cloud are nodes of its ball tree. A leaf's number is its path from the root: at each step one bit, 1
// for the right child. All paths are extended to the length of the longest one, so a leaf with a shorter path is
// followed by empty leaves. Then the node on level l above leaf i has the number i >> (5 * l), and no links are stored.
// Coordinates are stored axis by axis in the order of the tree, boxes in the order of the nodes, so that the lanes of a
// warp read consecutive memory.
#ifndef ERWIN_CUDA_NEIGHBORS_TREE_H_
#define ERWIN_CUDA_NEIGHBORS_TREE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "../arena.h"
#include "../layout.h"
#include "../neighbors.h"
#include "runtime.h"

namespace erwin::cuda {
namespace {

constexpr int32_t kWarpLanes = 32;        // threads of a warp
constexpr int32_t kLevelBits = 5;         // bits of a leaf's number per level: 32 children
constexpr int32_t kSearchLevels = 6;      // enough for 2^30 points
constexpr int32_t kNoIndex = 0x7fffffff;  // larger than the index of every point
constexpr int64_t kEdgeChunk = 1024;      // points whose edges a warp counts

// One cloud of a batch.
struct WarpCloud {
  int64_t row;                   // its first point
  int64_t edge;                  // its first edge of a search for nearest neighbours
  int64_t first[kSearchLevels];  // the number of its first node on each level, among all nodes
  int32_t points;
  int32_t depth;  // bits of a leaf's number in this cloud
  int32_t plain;  // whether leaves are blocks of 32 points instead of nodes of the ball tree

  // The highest level: at most 32 nodes, which have no parents.
  ERWIN_HOST_DEVICE int32_t top() const { return depth <= kLevelBits ? 0 : (depth - 1) / kLevelBits; }
  ERWIN_HOST_DEVICE int32_t nodes(int32_t level) const {
    return points == 0 || level > top() ? 0 : 1 << (depth - kLevelBits * level);
  }
};

// Pointers into the workspace, for float or double coordinates.
template <typename T>
struct WarpTree {
  int32_t* fault;       // 1 if the arguments turn out to be invalid
  WarpCloud* clouds;  // [num_clouds]
  T* coords;            // [dim, points]
  int32_t* index;       // [points]: of the point at each place of the tree, in its cloud
  int32_t* place;       // [points]: the inverse
  int32_t* start;       // [leaves]: the first place in the cloud
  T* boxes;             // [2, dim, nodes]
  int32_t* lowest;      // [nodes]: the lowest index
  int64_t* edge;        // [points]: its first edge in a radius search, relative to its chunk
  int64_t* chunk_edge;  // [chunks]
  int64_t num_clouds;
  int64_t points;
  int64_t nodes;
  int64_t first[kSearchLevels + 1];  // node of every level
  int32_t dim;

  void lay_out(Arena& arena) {
    fault = arena.take<int32_t>(1);
    clouds = arena.take<WarpCloud>(num_clouds);
    coords = arena.take<T>(points, dim);
    index = arena.take<int32_t>(points);
    place = arena.take<int32_t>(points);
    start = arena.take<int32_t>(first[1]);
    boxes = arena.take<T>(nodes, dim, 2);
    lowest = arena.take<int32_t>(nodes);
    edge = arena.take<int64_t>(points);
    chunk_edge = arena.take<int64_t>(ceil_div(points, kEdgeChunk));
  }

  // The cloud of a node.
  __device__ int64_t owner(int64_t node, int32_t level) const {
    int64_t low = 0, high = num_clouds;
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2;
      if (clouds[middle].first[level] <= node) low = middle;
      else high = middle;
    }
    return low;
  }

  // The places of a leaf in its cloud, by the number of the leaf in the cloud.
  __device__ int32_t begin(const WarpCloud& cloud, int32_t leaf) const { return start[cloud.first[0] + leaf]; }
  __device__ int32_t end(const WarpCloud& cloud, int32_t leaf) const {
    return leaf + 1 < cloud.nodes(0) ? start[cloud.first[0] + leaf + 1] : cloud.points;
  }
};

// ---- On the host: how large everything is ---------------------------------------------------------------------------

// Leaves of 32 points; only the last ones of a cloud may have fewer.
inline Layout plain_layout() {
  Layout layout{};
  layout.kind = ERWIN_BALANCED;
  layout.levels = 1;
  layout.ball[0] = layout.blocks_per_ball = kWarpLanes;
  layout.span[0] = 1;
  return layout;
}

// The length of the longest path to a leaf, or -1 if it is longer than `most`. The nodes of a level have only few
// different sizes, so only sizes are followed.
inline int32_t longest_path(const Layout& layout, int64_t points, int32_t most) {
  using Size = std::pair<int64_t, int64_t>;  // points, balls
  std::vector<Size> sizes, next;
  const auto add = [&next](const Node& node) {
    const Size size{node.points, node.balls};
    if (node.points > kWarpLanes && std::find(next.begin(), next.end(), size) == next.end()) next.push_back(size);
  };
  add(layout.root(points));
  for (int32_t depth = 0;; ++depth) {
    if (next.empty()) return depth;
    if (depth == most) return -1;
    sizes.swap(next);
    next.clear();
    for (const Size& size : sizes) {
      const Children children = layout.split(Node{0, size.first, 0, size.first, size.second});
      add(children.left);
      add(children.right);
    }
  }
}

// The clouds of a batch, and the sizes of the tree.
template <typename T>
std::vector<WarpCloud> plan_search(const Points& points, int64_t num_clouds, int64_t dim, WarpTree<T>* tree) {
  const int64_t* const ptr = points.ptr;
  const Layout plain = plain_layout();
  std::vector<WarpCloud> clouds(static_cast<size_t>(num_clouds));
  int64_t total[kSearchLevels] = {};
  for (int64_t g = 0; g < num_clouds; ++g) {
    WarpCloud& cloud = clouds[g];
    cloud = g > 0 ? clouds[g - 1] : WarpCloud{};
    cloud.row = ptr[g];
    if (cloud.points != ptr[g + 1] - ptr[g]) {
      cloud.points = static_cast<int32_t>(ptr[g + 1] - ptr[g]);
      // If strides are not powers of two, a few paths may be long, and there would be very many empty leaves.
      const int32_t least = longest_path(plain, cloud.points, 30);
      cloud.depth = longest_path(points.layout, cloud.points, least + 2);
      cloud.plain = cloud.depth < 0;
      if (cloud.plain) cloud.depth = least;
    }
    for (int32_t level = 0; level < kSearchLevels; ++level) {
      cloud.first[level] = total[level];
      total[level] += cloud.nodes(level);
    }
  }
  tree->first[0] = 0;
  for (int32_t level = 0; level < kSearchLevels; ++level) tree->first[level + 1] = tree->first[level] + total[level];
  for (WarpCloud& cloud : clouds)
    for (int32_t level = 0; level < kSearchLevels; ++level) cloud.first[level] += tree->first[level];
  tree->num_clouds = num_clouds;
  tree->points = ptr[num_clouds];
  tree->nodes = tree->first[kSearchLevels];
  tree->dim = static_cast<int32_t>(dim);
  return clouds;
}

// ---- On the device: passes, each a function of the warp's number ----------------------------------------------------

// Writes the table of clouds, a part at a time. The values are arguments of the kernel, so no copy to the device is
// needed.
template <typename T>
struct WriteClouds {
  static constexpr int64_t kCloudsAtOnce = 32;

  WarpTree<T> tree;
  int64_t begin, count;
  WarpCloud clouds[kCloudsAtOnce];

  __device__ void operator()(int64_t warp) const {
    if (lane() > 0) return;
    if (warp < count) tree.clouds[begin + warp] = clouds[warp];
    if (begin + warp == 0) *tree.fault = 0;
  }
};

// Writes where the leaves start; each warp handles 32 leaves.
template <typename T>
struct StartLeaves {
  WarpTree<T> tree;
  Layout layout, plain;

  __device__ void operator()(int64_t warp) const {
    const int64_t leaf = warp * kWarpLanes + lane();
    if (leaf >= tree.first[1]) return;
    const WarpCloud& cloud = tree.clouds[tree.owner(leaf, 0)];
    tree.start[leaf] = find(cloud.plain ? plain : layout, cloud, static_cast<int32_t>(leaf - cloud.first[0]));
  }

  static __device__ int32_t find(const Layout& layout, const WarpCloud& cloud, int32_t leaf) {
    Node node = layout.root(cloud.points);
    for (int32_t bits = cloud.depth; bits > 0; --bits) {
      if (node.points <= kWarpLanes) {  // the first number below it is the leaf itself, the others are empty leaves
        const bool empty = (leaf & ((1 << bits) - 1)) != 0;
        return static_cast<int32_t>(node.begin + (empty ? node.points : 0));
      }
      const Children children = layout.split(node);
      node = leaf >> (bits - 1) & 1 ? children.right : children.left;
    }
    return static_cast<int32_t>(node.begin);
  }
};

// Writes the box of a node: the smallest box around the boxes in the lanes.
template <typename T>
__device__ void write_box(const WarpTree<T>& tree, int64_t node, int32_t axis, T low, T high) {
  low = warp_least(low);
  high = warp_largest(high);
  if (lane() > 0) return;
  tree.boxes[axis * tree.nodes + node] = low;
  tree.boxes[(tree.dim + axis) * tree.nodes + node] = high;
}

template <typename T>
__device__ void write_lowest(const WarpTree<T>& tree, int64_t node, int32_t index) {
  index = warp_least(index);
  if (lane() == 0) tree.lowest[node] = index;
}

// Gathers the points of a leaf and computes their box.
template <typename T>
struct FillLeaf {
  WarpTree<T> tree;
  const T* pos;         // [points, dim]
  const int64_t* perm;  // [points]

  __device__ void operator()(int64_t leaf) const {
    const WarpCloud& cloud = tree.clouds[tree.owner(leaf, 0)];
    const auto number = static_cast<int32_t>(leaf - cloud.first[0]);
    const int32_t begin = tree.begin(cloud, number), size = tree.end(cloud, number) - begin;
    const bool here = lane() < size;
    const int64_t place = cloud.row + begin + lane();
    int64_t i = here ? perm[place] : 0;
    if (i < 0 || i >= cloud.points) {  // an invalid index must not cause an access outside the arrays
      *tree.fault = 1;
      i = 0;
    }
    for (int32_t axis = 0; axis < tree.dim; ++axis) {
      const T x = here ? pos[(cloud.row + i) * tree.dim + axis] : T{0};
      if (!(x - x == 0)) *tree.fault = 1;  // not finite
      if (here) tree.coords[axis * tree.points + place] = x;
      write_box(tree, leaf, axis, here ? x : static_cast<T>(INFINITY), here ? x : -static_cast<T>(INFINITY));
    }
    write_lowest(tree, leaf, here ? static_cast<int32_t>(i) : kNoIndex);
    if (!here) return;
    tree.index[place] = static_cast<int32_t>(i);
    tree.place[cloud.row + i] = begin + lane();
  }
};

// Checks that no point is listed twice in `perm`, for a tree whose points are not queries; those of queries are checked
// when they are searched.
template <typename T>
struct CheckPlaces {
  WarpTree<T> tree;

  __device__ void operator()(int64_t leaf) const {
    const WarpCloud& cloud = tree.clouds[tree.owner(leaf, 0)];
    const auto number = static_cast<int32_t>(leaf - cloud.first[0]);
    const int32_t place = tree.begin(cloud, number) + lane();
    if (place < tree.end(cloud, number) && tree.place[cloud.row + tree.index[cloud.row + place]] != place)
      *tree.fault = 1;
  }
};

// Joins the boxes of the 32 children of a node of a level above the leaves.
template <typename T>
struct JoinBoxes {
  WarpTree<T> tree;
  int32_t level;

  __device__ void operator()(int64_t warp) const {
    const int64_t node = tree.first[level] + warp;
    const WarpCloud& cloud = tree.clouds[tree.owner(node, level)];
    const int64_t first = cloud.first[level - 1] + (node - cloud.first[level]) * kWarpLanes;
    for (int32_t axis = 0; axis < tree.dim; ++axis) {
      const T* const low = tree.boxes + axis * tree.nodes + first;
      const T* const high = low + tree.dim * tree.nodes;
      write_box(tree, node, axis, low[lane()], high[lane()]);
    }
    write_lowest(tree, node, tree.lowest[first + lane()]);
  }
};

}  // namespace
}  // namespace erwin::cuda

#endif  // ERWIN_CUDA_NEIGHBORS_TREE_H_
