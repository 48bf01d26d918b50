// The entry points of neighbour search, for all devices.
#include "neighbors.h"

#include <cstdint>

#include "arena.h"
#include "arguments.h"
#include "cpu/found.h"
#include "devices.h"
#include "guarded.h"
#include "sizes.h"

namespace erwin {
namespace {

int64_t count_edges(const int64_t* ptr, int64_t clouds, int64_t k, bool loop) {
  int64_t edges = 0;
  for (int64_t g = 0; g < clouds; ++g)
    edges = checked_sum(edges, checked_product(ptr[g + 1] - ptr[g], most_neighbors(ptr[g + 1] - ptr[g], k, loop)));
  return edges;
}

// Checks the arguments that all entry points have in common, except the workspace, and stores them in the call.
int32_t prepare(const erwin_context* context, const erwin_layout* config, int32_t dtype, const void* pos,
                const int64_t* ptr, int64_t clouds, int64_t dim, const int64_t* perm, NeighborsCall* call,
                const NeighborsKernels** kernels) {
  *call = {context, {}, dtype, pos, ptr, clouds, dim, perm, nullptr};
  if (!valid_context(context) || !make_layout(config, &call->layout)) return ERWIN_INVALID_ARGUMENT;
  if (call->layout.kind != ERWIN_BALANCED || !valid_scalar(dtype) || !valid_dim(dim)) return ERWIN_INVALID_ARGUMENT;
  if (!valid_ptr(ptr, clouds)) return ERWIN_INVALID_ARGUMENT;
  const DeviceKernels* const device = find_device(context->device);
  if (device == nullptr) return ERWIN_UNSUPPORTED;
  *kernels = device->neighbors;
  return ERWIN_OK;
}

// Checks the arguments and the size of the workspace, then calls f with the search and the device's kernels.
template <typename F>
int32_t run(const erwin_context* context, const erwin_layout* config, int32_t dtype, const void* pos,
            const int64_t* ptr, int64_t clouds, int64_t dim, const int64_t* perm, const void* box, void* workspace,
            int64_t workspace_bytes, const F& f) {
  NeighborsCall call;
  const NeighborsKernels* kernels = nullptr;
  const int32_t status = prepare(context, config, dtype, pos, ptr, clouds, dim, perm, &call, &kernels);
  if (status != ERWIN_OK) return status;
  if (box != nullptr) return ERWIN_UNSUPPORTED;
  if (!is_given(pos, ptr[clouds]) || !is_given(perm, ptr[clouds])) return ERWIN_INVALID_ARGUMENT;
  return guarded([&]() -> int32_t {
    const int64_t needed = kernels->workspace(call);
    if (needed == kTooLarge) return ERWIN_INVALID_ARGUMENT;
    if (workspace_bytes < needed) return ERWIN_WORKSPACE_TOO_SMALL;
    if (workspace == nullptr) return ERWIN_INVALID_ARGUMENT;
    if (context->device != ERWIN_HOST && !valid_device_memory(workspace)) return ERWIN_INVALID_ARGUMENT;
    call.workspace = workspace;
    return f(*kernels, call);
  });
}

}  // namespace
}  // namespace erwin

using erwin::NeighborsCall;
using erwin::NeighborsKernels;

int32_t erwin_neighbors_workspace(const erwin_context* context, const erwin_layout* config, int32_t dtype,
                                  const int64_t* ptr, int64_t clouds, int64_t dim, int64_t* bytes) {
  NeighborsCall call;
  const NeighborsKernels* kernels = nullptr;
  const int32_t status =
      erwin::prepare(context, config, dtype, nullptr, ptr, clouds, dim, nullptr, &call, &kernels);
  if (status != ERWIN_OK) return status;
  if (bytes == nullptr) return ERWIN_INVALID_ARGUMENT;
  return erwin::guarded([&]() -> int32_t {
    const int64_t needed = kernels->workspace(call);
    if (needed == erwin::kTooLarge) return ERWIN_INVALID_ARGUMENT;
    *bytes = needed;
    return ERWIN_OK;
  });
}

int32_t erwin_knn(const erwin_context* context, const erwin_layout* config, int32_t dtype, const void* pos,
                  const int64_t* ptr, int64_t clouds, int64_t dim, const int64_t* perm, const void* box, int64_t k,
                  int32_t loop, void* workspace, int64_t workspace_bytes, int64_t* source, int64_t* target) {
  if (k < 1) return ERWIN_INVALID_ARGUMENT;
  return erwin::run(context, config, dtype, pos, ptr, clouds, dim, perm, box, workspace, workspace_bytes,
                    [&](const NeighborsKernels& kernels, const NeighborsCall& call) -> int32_t {
    const int64_t edges = erwin::count_edges(ptr, clouds, k, loop != 0);
    if (!erwin::is_given(source, edges) || !erwin::is_given(target, edges)) return ERWIN_INVALID_ARGUMENT;
    return kernels.knn(call, k, loop != 0, source, target);
  });
}

int32_t erwin_radius_count(const erwin_context* context, const erwin_layout* config, int32_t dtype, const void* pos,
                           const int64_t* ptr, int64_t clouds, int64_t dim, const int64_t* perm, const void* box,
                           double radius, int64_t cap, int32_t loop, void* workspace, int64_t workspace_bytes,
                           int64_t* degree, erwin_found** found) {
  if (found == nullptr) return ERWIN_INVALID_ARGUMENT;
  *found = nullptr;
  if (!(radius >= 0)) return ERWIN_INVALID_ARGUMENT;
  return erwin::run(context, config, dtype, pos, ptr, clouds, dim, perm, box, workspace, workspace_bytes,
                    [&](const NeighborsKernels& kernels, const NeighborsCall& call) -> int32_t {
    if (!erwin::is_given(degree, ptr[clouds])) return ERWIN_INVALID_ARGUMENT;
    return kernels.radius_count(call, radius, cap, loop != 0, degree, found);
  });
}

int32_t erwin_radius_fill(const erwin_context* context, const erwin_layout* config, int32_t dtype, const void* pos,
                          const int64_t* ptr, int64_t clouds, int64_t dim, const int64_t* perm, const void* box,
                          double radius, int64_t cap, int32_t loop, void* workspace, int64_t workspace_bytes,
                          const int64_t* degree, const erwin_found* found, int64_t* source, int64_t* target) {
  if (!(radius >= 0)) return ERWIN_INVALID_ARGUMENT;
  return erwin::run(context, config, dtype, pos, ptr, clouds, dim, perm, box, workspace, workspace_bytes,
                    [&](const NeighborsKernels& kernels, const NeighborsCall& call) -> int32_t {
    if (!erwin::is_given(degree, ptr[clouds])) return ERWIN_INVALID_ARGUMENT;
    return kernels.radius_fill(call, radius, cap, loop != 0, found, degree, source, target);
  });
}

void erwin_found_free(erwin_found* found) { delete found; }
