// Neighbour search on a device. Every pass is a kernel whose work is divided among warps. Nothing here waits for the
// device.
#ifndef ERWIN_CUDA_NEIGHBORS_H_
#define ERWIN_CUDA_NEIGHBORS_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../neighbors.h"
#include "../scalars.h"
#include "launch.h"
#include "neighbors_search.h"
#include "neighbors_tree.h"

namespace erwin::cuda {
namespace {

constexpr int32_t kWarpsPerBlock = Device::search_warps();

template <typename Pass>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpLanes) run_warps(const __grid_constant__ Pass pass, int64_t warps) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpLanes;
  if (warp < warps) pass(warp);
}

template <typename T>
class WarpSearch {
 public:
  explicit WarpSearch(const NeighborsCall& call)
      : call_(call), clouds_(plan_search(call.points, call.clouds, call.dim, &tree_)) {
    Arena arena{static_cast<char*>(call.workspace)};
    tree_.lay_out(arena);
    if (call.within) {
      queries_ = tree_;
    } else {
      query_clouds_ = plan_search(call.queries, call.clouds, call.dim, &queries_);
      queries_.lay_out(arena);
      queries_.fault = tree_.fault;
    }
    bytes_ = arena.used;
  }

  int64_t bytes() const { return bytes_; }

  // Calls f with a device to search on; returns the status.
  template <typename F>
  int32_t on_device(const F& f) {
    Device device(*call_.context);
    device_ = &device;
    f();
    if (!device.ok()) return ERWIN_INTERNAL_ERROR;
    return device.knows(tree_.fault) ? ERWIN_INVALID_ARGUMENT : ERWIN_OK;
  }

  void knn(int64_t k, bool loop, int64_t* source, int64_t* target) {
    int64_t edges = 0;
    std::vector<WarpCloud>& owners = call_.within ? clouds_ : query_clouds_;
    for (int64_t g = 0; g < call_.clouds; ++g) {
      owners[g].edge = edges;
      edges += owners[g].points * most_neighbors(clouds_[g].points, k, loop);
    }
    build();
    with_trees([&](auto dim, const auto& trees, auto within) {
      run(FindNearest<T, dim(), within()>{trees, k, loop, source, target}, query_warps());
    });
  }

  void radius_count(double radius, int64_t cap, bool loop, int64_t* degree) {
    build();
    with_trees([&](auto dim, const auto& trees, auto within) {
      run(CountWithin<T, dim(), within()>{trees, squared<T>(radius), cap, loop, degree}, query_warps());
    });
  }

  void radius_fill(double radius, int64_t cap, bool loop, const int64_t* degree, int64_t* source, int64_t* target) {
    run(SumDegrees<T>{queries_, cap < 0 ? tree_.points : std::min(cap, tree_.points), degree},
        ceil_div(queries_.points, kEdgeChunk));
    run(SumChunks<T>{queries_, source != nullptr && target != nullptr}, 1);
    with_trees([&](auto dim, const auto& trees, auto within) {
      run(FillWithin<T, dim(), within()>{trees, squared<T>(radius), loop, degree, source, target}, query_warps());
    });
  }

 private:
  void build() {
    // The tables of clouds come first, because this also resets the fault, which both trees share.
    write_clouds(tree_, clouds_);
    if (!call_.within) write_clouds(queries_, query_clouds_);
    fill_leaves(tree_, call_.points);
    for (int32_t level = 1; level < kSearchLevels; ++level)
      run(JoinBoxes<T>{tree_, level}, tree_.first[level + 1] - tree_.first[level]);
    if (call_.within) return;
    run(CheckPlaces<T>{tree_}, tree_.first[1]);
    fill_leaves(queries_, call_.queries);
  }

  void write_clouds(const WarpTree<T>& tree, const std::vector<WarpCloud>& clouds) {
    WriteClouds<T> write{tree, 0, 0, {}};
    do {
      write.count = std::min<int64_t>(write.kCloudsAtOnce, call_.clouds - write.begin);
      std::copy_n(clouds.begin() + write.begin, write.count, write.clouds);
      run(write, std::max<int64_t>(write.count, 1));
      write.begin += write.kCloudsAtOnce;
    } while (write.begin < call_.clouds);
  }

  void fill_leaves(const WarpTree<T>& tree, const Points& points) {
    run(StartLeaves<T>{tree, points.layout, plain_layout()}, ceil_div(tree.first[1], kWarpLanes));
    run(FillLeaf<T>{tree, static_cast<const T*>(points.pos), points.perm}, tree.first[1]);
  }

  int64_t query_warps() const { return queries_.first[1] * kWarpsPerLeaf; }

  // Calls f(dim, trees, within): the dimension as a compile-time constant, or 0 if no search is compiled for it, and
  // whether the queries are the points themselves.
  template <typename F>
  void with_trees(const F& f) const {
    const auto with_dim = [&](auto dim) {
      if (call_.within) f(dim, Trees<T, true>{tree_}, std::true_type{});
      else f(dim, Trees<T, false>{tree_, queries_}, std::false_type{});
    };
    if (call_.dim == 2) with_dim(std::integral_constant<int, 2>{});
    else if (call_.dim == 3) with_dim(std::integral_constant<int, 3>{});
    else with_dim(std::integral_constant<int, 0>{});
  }

  template <typename Pass>
  void run(const Pass& pass, int64_t warps) const {
    device_->launch(run_warps<Pass>, ceil_div(warps, kWarpsPerBlock), kWarpsPerBlock * kWarpLanes, 0, pass, warps);
  }

  const NeighborsCall& call_;
  Device* device_ = nullptr;
  WarpTree<T> tree_;     // of the points
  WarpTree<T> queries_;  // the same one in a search among the points themselves
  std::vector<WarpCloud> clouds_, query_clouds_;
  int64_t bytes_;
};

constexpr NeighborsKernels kNeighbors = {
    [](const NeighborsCall& call) {
      return with_scalar(call.dtype, [&](auto scalar) { return WarpSearch<decltype(scalar)>(call).bytes(); });
    },
    [](const NeighborsCall& call, int64_t k, bool loop, int64_t* source, int64_t* target) {
      return with_scalar(call.dtype, [&](auto scalar) {
        WarpSearch<decltype(scalar)> search(call);
        return search.on_device([&] { search.knn(k, loop, source, target); });
      });
    },
    [](const NeighborsCall& call, double radius, int64_t cap, bool loop, int64_t* degree, erwin_found**) {
      return with_scalar(call.dtype, [&](auto scalar) {
        WarpSearch<decltype(scalar)> search(call);
        return search.on_device([&] { search.radius_count(radius, cap, loop, degree); });
      });
    },
    [](const NeighborsCall& call, double radius, int64_t cap, bool loop, const erwin_found*, const int64_t* degree,
       int64_t* source, int64_t* target) {
      return with_scalar(call.dtype, [&](auto scalar) {
        WarpSearch<decltype(scalar)> search(call);
        return search.on_device([&] { search.radius_fill(radius, cap, loop, degree, source, target); });
      });
    }};

}  // namespace
}  // namespace erwin::cuda

#endif  // ERWIN_CUDA_NEIGHBORS_H_
