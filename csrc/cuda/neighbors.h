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
      : call_(call), clouds_(plan_search(call.layout, call.ptr, call.clouds, call.dim, &tree_)) {
    bytes_ = tree_.lay_out(static_cast<char*>(call.workspace));
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
    for (WarpCloud& cloud : clouds_) {
      cloud.edge = edges;
      edges += cloud.points * most_neighbors(cloud.points, k, loop);
    }
    build();
    for_dim([&](auto dim) {
      run(FindNearest<T, dim()>{tree_, k, loop, source, target}, tree_.first[1] * kWarpsPerLeaf);
    });
  }

  void radius_count(double radius, int64_t cap, bool loop, int64_t* degree) {
    build();
    for_dim([&](auto dim) {
      run(CountWithin<T, dim()>{tree_, squared<T>(radius), cap, loop, degree},
                   tree_.first[1] * kWarpsPerLeaf);
    });
  }

  void radius_fill(double radius, int64_t cap, bool loop, const int64_t* degree, int64_t* source, int64_t* target) {
    run(SumDegrees<T>{tree_, cap < 0 ? tree_.points : std::min(cap, tree_.points), degree},
        ceil_div(tree_.points, kEdgeChunk));
    run(SumChunks<T>{tree_, source != nullptr && target != nullptr}, 1);
    for_dim([&](auto dim) {
      run(FillWithin<T, dim()>{tree_, squared<T>(radius), loop, degree, source, target},
                   tree_.first[1] * kWarpsPerLeaf);
    });
  }

 private:
  void build() {
    WriteClouds<T> write{tree_, 0, 0, {}};
    do {
      write.count = std::min<int64_t>(write.kCloudsAtOnce, call_.clouds - write.begin);
      std::copy_n(clouds_.begin() + write.begin, write.count, write.clouds);
      run(write, std::max<int64_t>(write.count, 1));
      write.begin += write.kCloudsAtOnce;
    } while (write.begin < call_.clouds);
    run(StartLeaves<T>{tree_, call_.layout, plain_layout()}, ceil_div(tree_.first[1], kWarpLanes));
    run(FillLeaf<T>{tree_, static_cast<const T*>(call_.pos), call_.perm}, tree_.first[1]);
    for (int32_t level = 1; level < kSearchLevels; ++level)
      run(JoinBoxes<T>{tree_, level}, tree_.first[level + 1] - tree_.first[level]);
  }

  // Calls f with the dimension as a compile-time constant, or with 0 if no search is compiled for it.
  template <typename F>
  void for_dim(const F& f) const {
    if (call_.dim == 2) f(std::integral_constant<int, 2>{});
    else if (call_.dim == 3) f(std::integral_constant<int, 3>{});
    else f(std::integral_constant<int, 0>{});
  }

  template <typename Pass>
  void run(const Pass& pass, int64_t warps) const {
    device_->launch(run_warps<Pass>, ceil_div(warps, kWarpsPerBlock), kWarpsPerBlock * kWarpLanes, 0, pass, warps);
  }

  const NeighborsCall& call_;
  Device* device_ = nullptr;
  WarpTree<T> tree_;
  std::vector<WarpCloud> clouds_;
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
