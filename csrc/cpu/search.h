// The search structure over a tree, and the searches that are compiled for several instruction sets.
#ifndef ERWIN_CPU_SEARCH_H_
#define ERWIN_CPU_SEARCH_H_

#include <cstdint>

namespace erwin {

constexpr int32_t kLeaf = 16;          // points of a search leaf, at most; they are compared with a query side by side
constexpr int32_t kGroupLeaves = 16;   // consecutive leaves of queries that share a walk through the tree
constexpr int64_t kListLeaves = 1024;  // leaves that are searched, at most, before bounds are lowered
constexpr int64_t kNoCap = INT64_MAX;  // in place of a number: keep all neighbours

// Nodes are numbered in preorder, in each cloud from 0: the left child follows its parent, the right child follows the
// left subtree.
struct SearchNode {
  int32_t next;    // first node after the subtree: a leaf's own number + 1
  int32_t leaf;    // first leaf of the subtree
  int32_t points;  // number of points in the subtree
  int32_t index;   // the lowest index of its points
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
  const T* coords;        // [leaves, dim, kLeaf]; NaN in lanes without a point, because NaN is within no distance
  const int32_t* index;   // [leaves, kLeaf]
};

// The leaves around some queries; their boxes lie side by side, for vector loads.
template <typename T>
struct LeafList {
  T* boxes;  // [2, dim, stride]
  int32_t* leaf;
  int32_t* index;  // the lowest index of the leaf's points
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
  LeafList<T> around, near;  // the leaves around a group of leaves, and those of them that are near one leaf
  T* box;                    // [2, dim]: the box of the group
  Candidates<T> found[2];    // the candidates of a query and of the query before it, or leaves around it
  void* keys;                // keys of as many candidates, for sorting
  void* lists;               // the k nearest, for each query of `batch` leaves
  int64_t room;              // how many leaves fit in `around`
  int32_t batch;             // leaves whose queries are answered together
};

template <typename T>
struct KnnSearch {
  int64_t k;  // neighbours per query, at most the points that a query can have
  bool loop;
  int64_t* source;  // the edges of the cloud's queries
  int64_t* target;
};

class Lists;

template <typename T>
struct RadiusSearch {
  T limit;  // squared radius
  bool loop;
  int64_t most;  // how many of the nearest neighbours are kept, or kNoCap
  int64_t* degree;            // of the cloud's queries
  const int32_t** neighbors;  // of the cloud's queries
  Lists* lists;
  int32_t* (*take)(Lists*, int64_t count);  // a pointer, because files for wider instruction sets must not compile it
};

// Searches a cloud for the neighbours of the points in the leaves `first` to `last` of a cloud of queries. If both
// clouds have the same nodes in memory, they are the same cloud.
template <typename T>
struct Kernels {
  void (*knn)(const SearchCloud<T>&, const SearchCloud<T>& queries, int32_t dim, int32_t first, int32_t last,
              const KnnSearch<T>&, const Scratch<T>&);
  void (*radius)(const SearchCloud<T>&, const SearchCloud<T>& queries, int32_t dim, int32_t first, int32_t last,
                 const RadiusSearch<T>&, const Scratch<T>&);
};

// Indexed by the dimension, 1 to 3; entry 0 is for any dimension.
struct KernelTable {
  Kernels<float> of_float[4];
  Kernels<double> of_double[4];
};

extern const KernelTable kSearchBaseline, kSearchAvx2, kSearchAvx512;

}  // namespace erwin

#endif  // ERWIN_CPU_SEARCH_H_
