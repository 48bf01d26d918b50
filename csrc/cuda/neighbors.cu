// Neighbour search on a GPU: every pass is a kernel. Nothing here waits for the GPU.
#include "launch.h"
#include "neighbors.h"
#include "warp.h"

namespace erwin {
namespace {

constexpr int32_t kWarpsPerBlock = 8;

template <typename Pass>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarp) run_warps(const __grid_constant__ Pass pass, int64_t warps) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (warp < warps) pass(warp);
}

class Gpu {
 public:
  using Warp = DeviceWarp;

  explicit Gpu(const erwin_context& context) : device_(context) {}

  template <typename Pass>
  void run(const Pass& pass, int64_t warps) {
    device_.launch(run_warps<Pass>, ceil_div(warps, kWarpsPerBlock), kWarpsPerBlock * kWarp, 0, pass, warps);
  }
  int32_t status() const { return device_.ok() ? ERWIN_OK : ERWIN_INTERNAL_ERROR; }

 private:
  cuda::Device device_;
};

// Sizes need no GPU.
struct NoGpu {
  using Warp = DeviceWarp;
};

template <typename F>
int32_t search(const NeighborsCall& call, const F& f) {
  return with_scalar(call.dtype, [&](auto scalar) {
    Gpu gpu(*call.context);
    WarpSearch<Gpu, decltype(scalar)> search(gpu, call);
    f(search);
    return gpu.status();
  });
}

}  // namespace

const NeighborsDevice kCudaNeighbors = {
    [](const NeighborsCall& call) {
      return with_scalar(call.dtype, [&](auto scalar) {
        NoGpu none;
        return WarpSearch<NoGpu, decltype(scalar)>(none, call).bytes();
      });
    },
    [](const NeighborsCall& call, int64_t k, bool loop, int64_t* source, int64_t* target) {
      return search(call, [&](auto& search) { search.knn(k, loop, source, target); });
    },
    [](const NeighborsCall& call, double radius, int64_t cap, bool loop, int64_t* degree) {
      return search(call, [&](auto& search) { search.radius_count(radius, cap, loop, degree); });
    },
    [](const NeighborsCall& call, double radius, bool loop, const int64_t* degree, int64_t* source, int64_t* target) {
      return search(call, [&](auto& search) { search.radius_fill(radius, loop, degree, source, target); });
    }};

}  // namespace erwin
