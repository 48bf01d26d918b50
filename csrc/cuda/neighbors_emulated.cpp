// Neighbour search with the passes of the GPU, one warp after the other on the host.
#include "neighbors.h"
#include "warp.h"

namespace erwin {
namespace {

struct Emulator {
  using Warp = SerialWarp;

  template <typename Pass>
  void run(const Pass& pass, int64_t warps) const {
    for (int64_t warp = 0; warp < warps; ++warp) pass(warp);
  }
};

// Calls f with a search; the status is that of its arguments.
template <typename F>
int32_t search(const NeighborsCall& call, const F& f) {
  return with_scalar(call.dtype, [&](auto scalar) -> int32_t {
    Emulator host;
    WarpSearch<Emulator, decltype(scalar)> search(host, call);
    f(search);
    return search.faulty() ? ERWIN_INVALID_ARGUMENT : ERWIN_OK;
  });
}

}  // namespace

const NeighborsDevice kEmulatedNeighbors = {
    [](const NeighborsCall& call) {
      return with_scalar(call.dtype, [&](auto scalar) {
        Emulator host;
        return WarpSearch<Emulator, decltype(scalar)>(host, call).bytes();
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
