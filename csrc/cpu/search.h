// The search structure over a tree, and the searches that are compiled for several instruction sets.
#ifndef ERWIN_CPU_SEARCH_H_
#define ERWIN_CPU_SEARCH_H_

#include <cstdint>

namespace erwin {

constexpr int32_t kLeaf = 16;          // most points of a search leaf, which are compared with a query side by side
constexpr int32_t kGroupLeaves = 16;   // consecutive leaves of queries that share a walk through the tree
constexpr int64_t kListLeaves = 1024;  // most leaves that are looked at before bounds are lowered
constexpr int64_t kNoCap = INT64_MAX;  // neighbours that are kept where all are

// Nodes are numbered in preorder, in each cloud from 0: the left child follows its parent, the right child follows the
// left subtree.
struct SearchNode {
  int32_t next;    // first node after the subtree: a leaf's own number + 1
  int32_t leaf;    // first leaf of the subtree
  int32_t points;  // of the subtree
  int32_t index;   // the lowest of its points
};

// One cloud of the search structure.
template <typename T>
struct SearchCloud {
  int64_t first;  // row of the cloud's first point
  int64_t points;
  int32_t num_nodes;
  const SearchNode* nodes;
  const T* boxes;         // [nodes, 2, dim]
  const int32_t* leaves;  // [leaves]: their nodes
  const T* coords;        // [leaves, dim, kLeaf]; NaN, which is within no distance, in lanes without a point
  const int32_t* index;   // [leaves, kLeaf]
};

// Leaves around the queries: boxes side by side.
template <typename T>
struct LeafList {
  T* boxes;  // [2, dim, stride]
  int32_t* leaf;
  int32_t* index;  // the lowest of the leaf's points
  int64_t stride;
};

template <typename T>
struct Candidates {
  T* distance;
  int32_t* index;
};

// What one thread needs to answer queries.
template <typename T>
struct Scratch {
  LeafList<T> around, near;  // of a group, of a leaf
  T* box;                    // [2, dim], of the group
  Candidates<T> found[2];    // of a query and the one before it, or leaves around it
  void* keys;                // of so many candidates, to be sorted
  void* lists;               // the k nearest, for each query of `batch` leaves
  int64_t room;              // leaves in `around`
  int32_t batch;             // leaves
};

template <typename T>
struct KnnSearch {
  int64_t k;  // at most the points that a query may take
  bool loop;
  int64_t* source;  // of the cloud
  int64_t* target;
};

class Lists;

template <typename T>
struct RadiusSearch {
  T limit;  // squared radius
  bool loop;
  int64_t most;  // neighbours that are kept, the nearest, or kNoCap
  int64_t* degree;            // of the cloud
  const int32_t** neighbors;  // of the cloud
  Lists* lists;
  int32_t* (*take)(Lists*, int64_t count);  // a pointer, as files for wider instruction sets must not emit its code
};

// Searches for the points of the leaves `first` to `last` of a cloud.
template <typename T>
struct Kernels {
  void (*knn)(const SearchCloud<T>&, int32_t dim, int32_t first, int32_t last, const KnnSearch<T>&, const Scratch<T>&);
  void (*radius)(const SearchCloud<T>&, int32_t dim, int32_t first, int32_t last, const RadiusSearch<T>&,
                 const Scratch<T>&);
};

// For dimension 1, 2, 3, and at 0 for any.
struct KernelTable {
  Kernels<float> of_float[4];
  Kernels<double> of_double[4];
};

extern const KernelTable kSearchBaseline, kSearchAvx2, kSearchAvx512;

}  // namespace erwin

#endif  // ERWIN_CPU_SEARCH_H_
