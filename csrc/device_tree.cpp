// The entry points of tree building on a device.
#include "device_tree.h"

#include <algorithm>
#include <cstdint>

#include "arguments.h"
#include "devices.h"
#include "guarded.h"

namespace erwin {
namespace {

// Limits: rows, so that sizes in bytes do not overflow; clouds, so that 32 bits are enough to number all trees.
constexpr int64_t kMostRows = int64_t{1} << 40, kMostClouds = int64_t{1} << 26;

bool valid(const erwin_tree_bounds& bounds, int32_t levels) {
  if (bounds.clouds < 0 || bounds.clouds > kMostClouds) return false;
  if (bounds.points < 0 || bounds.points > kMostRows) return false;
  if (bounds.largest < 0 || bounds.largest > std::min(bounds.points, int64_t{1} << 30)) return false;
  return std::all_of(bounds.rows, bounds.rows + levels, [](int64_t rows) { return rows >= 0 && rows <= kMostRows; });
}

// Fills a call with the arguments that both entry points share.
int32_t prepare(const erwin_context* context, const erwin_layout* config, int32_t dtype, int64_t dim,
                const erwin_tree_bounds* bounds, bool rotated, DeviceTreeCall* call,
                const DeviceTreeKernels** kernels) {
  *call = {context, {}, dtype, dim, bounds, rotated};
  if (!valid_context(context) || !make_layout(config, &call->layout)) return ERWIN_INVALID_ARGUMENT;
  if (!valid_scalar(dtype) || !valid_dim(dim)) return ERWIN_INVALID_ARGUMENT;
  if (bounds == nullptr || !valid(*bounds, call->layout.levels)) return ERWIN_INVALID_ARGUMENT;
  if (dim > ERWIN_DEVICE_MAX_DIM) return ERWIN_UNSUPPORTED;
  const DeviceKernels* const device = find_device(context->device);
  if (device == nullptr || device->tree == nullptr) return ERWIN_UNSUPPORTED;
  *kernels = device->tree;
  return ERWIN_OK;
}

// Whether no array that a build needs is NULL; `bytes` is the size of the workspace.
bool memory_is_given(const Layout& layout, const erwin_tree_bounds& bounds, const DeviceTree& tree, int64_t bytes) {
  if (tree.ptr == nullptr || !is_given(tree.pos, bounds.points) || !is_given(tree.perm, bounds.rows[0])) return false;
  if (bytes > 0 && !valid_device_memory(tree.workspace)) return false;
  if (tree.rotation == nullptr) return true;
  for (int32_t l = 0; l < layout.levels; ++l)
    if (tree.perm_rot == nullptr || !is_given(tree.perm_rot[l], bounds.rows[l])) return false;
  return true;
}

}  // namespace
}  // namespace erwin

using erwin::DeviceTreeCall;
using erwin::DeviceTreeKernels;

int32_t erwin_tree_device_workspace(const erwin_context* context, const erwin_layout* config, int32_t dtype,
                                    int64_t dim, const erwin_tree_bounds* bounds, int32_t rotated, int64_t* bytes) {
  DeviceTreeCall call;
  const DeviceTreeKernels* kernels = nullptr;
  if (bytes == nullptr) return ERWIN_INVALID_ARGUMENT;
  const int32_t status = erwin::prepare(context, config, dtype, dim, bounds, rotated != 0, &call, &kernels);
  return status == ERWIN_OK ? kernels->workspace(call, bytes) : status;
}

int32_t erwin_tree_build_device(const erwin_context* context, const erwin_layout* config, int32_t dtype,
                                const void* pos, const int64_t* ptr, int64_t dim, const erwin_tree_bounds* bounds,
                                const void* rotation, void* workspace, int64_t workspace_bytes, int64_t* perm,
                                uint8_t* mask, int64_t* const* perm_rot) {
  DeviceTreeCall call;
  const DeviceTreeKernels* kernels = nullptr;
  int32_t status = erwin::prepare(context, config, dtype, dim, bounds, rotation != nullptr, &call, &kernels);
  int64_t bytes = 0;
  if (status == ERWIN_OK) status = kernels->workspace(call, &bytes);
  if (status != ERWIN_OK) return status;
  if (workspace_bytes < bytes) return ERWIN_WORKSPACE_TOO_SMALL;
  const erwin::DeviceTree tree = {pos, ptr, rotation, workspace, perm, mask, perm_rot};
  if (!erwin::memory_is_given(call.layout, *bounds, tree, bytes)) return ERWIN_INVALID_ARGUMENT;
  return erwin::guarded([&] { return kernels->build(call, tree); });
}
