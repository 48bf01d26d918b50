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

int64_t count_edges(const NeighborsCall& call, int64_t k, bool loop) {
  const int64_t *const points = call.points.ptr, *const queries = call.queries.ptr;
  int64_t edges = 0;
  for (int64_t g = 0; g < call.clouds; ++g) {
    const int64_t degree = most_neighbors(points[g + 1] - points[g], k, loop);
    edges = checked_sum(edges, checked_product(queries[g + 1] - queries[g], degree));
  }
  return edges;
}

bool make_points(const erwin_layout* layout, const void* pos, const int64_t* ptr, int64_t clouds, const int64_t* perm,
                 Points* points) {
  *points = {{}, pos, ptr, perm};
  return make_layout(layout, &points->layout) && points->layout.kind == ERWIN_BALANCED && valid_ptr(ptr, clouds);
}

// The arguments that the entry points have in common.
struct Arguments {
  const erwin_context* context;
  const erwin_layout* layout;
  int32_t dtype;
  const void* pos;
  const int64_t* ptr;
  int64_t clouds, dim;
  const int64_t* perm;
  const erwin_queries* queries;
};

// Checks them and stores them in the call.
int32_t prepare(const Arguments& given, NeighborsCall* call, const NeighborsKernels** kernels) {
  const erwin_queries* const queries = given.queries;
  *call = {given.context, given.dtype, given.clouds, given.dim, {}, {}, queries == nullptr, nullptr};
  if (!valid_context(given.context) || !valid_scalar(given.dtype) || !valid_dim(given.dim)) return ERWIN_INVALID_ARGUMENT;
  if (!make_points(given.layout, given.pos, given.ptr, given.clouds, given.perm, &call->points))
    return ERWIN_INVALID_ARGUMENT;
  call->queries = call->points;
  if (queries != nullptr &&
      !make_points(queries->layout, queries->pos, queries->ptr, given.clouds, queries->perm, &call->queries))
    return ERWIN_INVALID_ARGUMENT;
  const DeviceKernels* const device = find_device(given.context->device);
  if (device == nullptr) return ERWIN_UNSUPPORTED;
  *kernels = device->neighbors;
  return ERWIN_OK;
}

bool are_given(const Points& points, int64_t clouds) {
  return is_given(points.pos, points.ptr[clouds]) && is_given(points.perm, points.ptr[clouds]);
}

// Checks the arguments and the size of the workspace, then calls f with the search and the device's kernels.
template <typename F>
int32_t run(const Arguments& given, const void* box, void* workspace, int64_t workspace_bytes, const F& f) {
  NeighborsCall call;
  const NeighborsKernels* kernels = nullptr;
  const int32_t status = prepare(given, &call, &kernels);
  if (status != ERWIN_OK) return status;
  if (box != nullptr) return ERWIN_UNSUPPORTED;
  if (!are_given(call.points, call.clouds) || !are_given(call.queries, call.clouds)) return ERWIN_INVALID_ARGUMENT;
  return guarded([&]() -> int32_t {
    const int64_t needed = kernels->workspace(call);
    if (needed == kTooLarge) return ERWIN_INVALID_ARGUMENT;
    if (workspace_bytes < needed) return ERWIN_WORKSPACE_TOO_SMALL;
    if (workspace == nullptr) return ERWIN_INVALID_ARGUMENT;
    if (call.context->device != ERWIN_HOST && !valid_device_memory(workspace)) return ERWIN_INVALID_ARGUMENT;
    call.workspace = workspace;
    return f(*kernels, call);
  });
}

}  // namespace
}  // namespace erwin

using erwin::NeighborsCall;
using erwin::NeighborsKernels;

int32_t erwin_neighbors_workspace(const erwin_context* context, const erwin_layout* layout, int32_t dtype,
                                  const int64_t* ptr, int64_t clouds, int64_t dim, const erwin_queries* queries,
                                  int64_t* bytes) {
  NeighborsCall call;
  const NeighborsKernels* kernels = nullptr;
  const int32_t status =
      erwin::prepare({context, layout, dtype, nullptr, ptr, clouds, dim, nullptr, queries}, &call, &kernels);
  if (status != ERWIN_OK) return status;
  if (bytes == nullptr) return ERWIN_INVALID_ARGUMENT;
  return erwin::guarded([&]() -> int32_t {
    const int64_t needed = kernels->workspace(call);
    if (needed == erwin::kTooLarge) return ERWIN_INVALID_ARGUMENT;
    *bytes = needed;
    return ERWIN_OK;
  });
}

int32_t erwin_knn(const erwin_context* context, const erwin_layout* layout, int32_t dtype, const void* pos,
                  const int64_t* ptr, int64_t clouds, int64_t dim, const int64_t* perm, const erwin_queries* queries,
                  const void* box, int64_t k, int32_t loop, void* workspace, int64_t workspace_bytes, int64_t* source,
                  int64_t* target) {
  if (k < 1) return ERWIN_INVALID_ARGUMENT;
  return erwin::run({context, layout, dtype, pos, ptr, clouds, dim, perm, queries}, box, workspace, workspace_bytes,
                    [&](const NeighborsKernels& kernels, const NeighborsCall& call) -> int32_t {
    const bool any = loop != 0 || !call.within;
    const int64_t edges = erwin::count_edges(call, k, any);
    if (!erwin::is_given(source, edges) || !erwin::is_given(target, edges)) return ERWIN_INVALID_ARGUMENT;
    return kernels.knn(call, k, any, source, target);
  });
}

int32_t erwin_radius_count(const erwin_context* context, const erwin_layout* layout, int32_t dtype, const void* pos,
                           const int64_t* ptr, int64_t clouds, int64_t dim, const int64_t* perm,
                           const erwin_queries* queries, const void* box, double radius, int64_t cap, int32_t loop,
                           void* workspace, int64_t workspace_bytes, int64_t* degree, erwin_found** found) {
  if (found == nullptr) return ERWIN_INVALID_ARGUMENT;
  *found = nullptr;
  if (!(radius >= 0)) return ERWIN_INVALID_ARGUMENT;
  return erwin::run({context, layout, dtype, pos, ptr, clouds, dim, perm, queries}, box, workspace, workspace_bytes,
                    [&](const NeighborsKernels& kernels, const NeighborsCall& call) -> int32_t {
    if (!erwin::is_given(degree, call.queries.ptr[clouds])) return ERWIN_INVALID_ARGUMENT;
    return kernels.radius_count(call, radius, cap, loop != 0 || !call.within, degree, found);
  });
}

int32_t erwin_radius_fill(const erwin_context* context, const erwin_layout* layout, int32_t dtype, const void* pos,
                          const int64_t* ptr, int64_t clouds, int64_t dim, const int64_t* perm,
                          const erwin_queries* queries, const void* box, double radius, int64_t cap, int32_t loop,
                          void* workspace, int64_t workspace_bytes, const int64_t* degree, const erwin_found* found,
                          int64_t* source, int64_t* target) {
  if (!(radius >= 0)) return ERWIN_INVALID_ARGUMENT;
  return erwin::run({context, layout, dtype, pos, ptr, clouds, dim, perm, queries}, box, workspace, workspace_bytes,
                    [&](const NeighborsKernels& kernels, const NeighborsCall& call) -> int32_t {
    if (!erwin::is_given(degree, call.queries.ptr[clouds])) return ERWIN_INVALID_ARGUMENT;
    return kernels.radius_fill(call, radius, cap, loop != 0 || !call.within, found, degree, source, target);
  });
}

void erwin_found_free(erwin_found* found) { delete found; }
