// The entry points of the builder on a device, and its kernels for the emulator.
#include "../arguments.h"
#include "../guarded.h"
#include "tree_build.h"

namespace erwin {
namespace {

// Numbers of rows whose memory can be computed without an overflow, and of trees that 32 bits can count.
constexpr int64_t kMostRows = int64_t{1} << 40, kMostClouds = int64_t{1} << 26;

bool valid(const erwin_layout* config, int32_t dtype, int64_t dim, const erwin_tree_bounds* bounds, Layout* layout) {
  if (!make_layout(config, layout) || bounds == nullptr || !valid_scalar(dtype) || !valid_dim(dim)) return false;
  if (bounds->clouds < 0 || bounds->clouds > kMostClouds) return false;
  if (bounds->points < 0 || bounds->points > kMostRows) return false;
  if (bounds->largest < 0 || bounds->largest > std::min(bounds->points, int64_t{1} << 30)) return false;
  return std::all_of(bounds->rows, bounds->rows + layout->levels,
                     [](int64_t rows) { return rows >= 0 && rows <= kMostRows; });
}

// Whether the memory of a build is there; `bytes` is the workspace's.
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

int32_t erwin_tree_device_workspace(const erwin_context* context, const erwin_layout* config, int32_t dtype,
                                    int64_t dim, const erwin_tree_bounds* bounds, int32_t rotated, int64_t* bytes) {
  erwin::Layout layout;
  if (!erwin::valid_context(context) || bytes == nullptr) return ERWIN_INVALID_ARGUMENT;
  if (!erwin::valid(config, dtype, dim, bounds, &layout)) return ERWIN_INVALID_ARGUMENT;
  if (dim > ERWIN_DEVICE_MAX_DIM) return ERWIN_UNSUPPORTED;
  if (context->device == ERWIN_EMULATED) {
    return erwin::cuda::tree_workspace(*context, layout, dtype, dim, *bounds, rotated != 0, bytes);
  }
#if defined(ERWIN_WITH_CUDA)
  if (context->device >= 0) {
    return erwin::cuda_tree_workspace(*context, layout, dtype, dim, *bounds, rotated != 0, bytes);
  }
#endif
  return ERWIN_UNSUPPORTED;
}

int32_t erwin_tree_build_device(const erwin_context* context, const erwin_layout* config, int32_t dtype,
                                const void* pos, const int64_t* ptr, int64_t dim, const erwin_tree_bounds* bounds,
                                const void* rotation, void* workspace, int64_t workspace_bytes, int64_t* perm,
                                uint8_t* mask, int64_t* const* perm_rot) {
  int64_t bytes = 0;
  const int32_t status =
      erwin_tree_device_workspace(context, config, dtype, dim, bounds, rotation != nullptr, &bytes);
  if (status != ERWIN_OK) return status;
  if (workspace_bytes < bytes) return ERWIN_WORKSPACE_TOO_SMALL;
  erwin::Layout layout;
  erwin::make_layout(config, &layout);
  const erwin::DeviceTree tree = {pos, ptr, rotation, workspace, perm, mask, perm_rot};
  if (!erwin::memory_is_given(layout, *bounds, tree, bytes)) return ERWIN_INVALID_ARGUMENT;
  if (context->device == ERWIN_EMULATED) {
    return erwin::guarded(
        [&] { return erwin::cuda::tree_build(*context, layout, dtype, dim, *bounds, tree); });
  }
#if defined(ERWIN_WITH_CUDA)
  return erwin::cuda_tree_build(*context, layout, dtype, dim, *bounds, tree);
#else
  return ERWIN_UNSUPPORTED;
#endif
}
