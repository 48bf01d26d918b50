// Neighbour search in passes over warps, on any machine that runs them: the GPU, or the host one warp after the other.
//
// A Machine has a type Warp, a status, and run(pass, warps), which calls pass(i) for every warp i after all passes
// before have ended.
#ifndef ERWIN_CUDA_NEIGHBORS_H_
#define ERWIN_CUDA_NEIGHBORS_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../neighbors.h"
#include "neighbors_search.h"
#include "neighbors_tree.h"

namespace erwin {

template <typename Machine, typename T>
class WarpSearch {
 public:
  using W = typename Machine::Warp;

  WarpSearch(Machine& machine, const NeighborsCall& call)
      : machine_(machine), call_(call), clouds_(plan_search(call.layout, call.ptr, call.clouds, call.dim, &tree_)) {
    bytes_ = tree_.lay_out(static_cast<char*>(call.workspace));
  }

  int64_t bytes() const { return bytes_; }
  bool faulty() const { return *tree_.fault != 0; }  // where the host may read the workspace

  void knn(int64_t k, bool loop, int64_t* source, int64_t* target) {
    int64_t edges = 0;
    for (WarpCloud& cloud : clouds_) {
      cloud.edge = edges;
      edges += cloud.points * std::max<int64_t>(0, std::min<int64_t>(k, cloud.points - (loop ? 0 : 1)));
    }
    build();
    for_dim([&](auto dim) {
      machine_.run(FindNearest<W, T, dim()>{tree_, k, loop, source, target}, tree_.first[1] * kWarpsPerLeaf);
    });
  }

  void radius_count(double radius, int64_t cap, bool loop, int64_t* degree) {
    build();
    for_dim([&](auto dim) {
      machine_.run(CountWithin<W, T, dim()>{tree_, squared(radius), cap, loop, degree},
                   tree_.first[1] * kWarpsPerLeaf);
    });
  }

  void radius_fill(double radius, bool loop, const int64_t* degree, int64_t* source, int64_t* target) {
    machine_.run(SumDegrees<W, T>{tree_, degree}, ceil_div(tree_.points, kChunk));
    machine_.run(SumChunks<W, T>{tree_}, 1);
    for_dim([&](auto dim) {
      machine_.run(FillWithin<W, T, dim()>{tree_, squared(radius), loop, degree, source, target},
                   tree_.first[1] * kWarpsPerLeaf);
    });
  }

 private:
  static T squared(double radius) { return static_cast<T>(radius) * static_cast<T>(radius); }

  void build() {
    WriteClouds<W, T> write{tree_, 0, 0, {}};
    do {
      write.count = std::min<int64_t>(write.kMost, call_.clouds - write.begin);
      std::copy_n(clouds_.begin() + write.begin, write.count, write.clouds);
      machine_.run(write, std::max<int64_t>(write.count, 1));
      write.begin += write.kMost;
    } while (write.begin < call_.clouds);
    machine_.run(StartLeaves<W, T>{tree_, call_.layout, plain_layout()}, ceil_div(tree_.first[1], kWarp));
    machine_.run(FillLeaf<W, T>{tree_, static_cast<const T*>(call_.pos), call_.perm}, tree_.first[1]);
    for (int32_t level = 1; level < kSearchLevels; ++level)
      machine_.run(JoinBoxes<W, T>{tree_, level}, tree_.first[level + 1] - tree_.first[level]);
  }

  // Calls f with the dimension, or 0 where no search is compiled for it, as a constant.
  template <typename F>
  void for_dim(const F& f) const {
    if (call_.dim == 2) f(std::integral_constant<int, 2>{});
    else if (call_.dim == 3) f(std::integral_constant<int, 3>{});
    else f(std::integral_constant<int, 0>{});
  }

  Machine& machine_;
  const NeighborsCall& call_;
  WarpTree<T> tree_;
  std::vector<WarpCloud> clouds_;
  int64_t bytes_;
};

}  // namespace erwin

#endif  // ERWIN_CUDA_NEIGHBORS_H_
