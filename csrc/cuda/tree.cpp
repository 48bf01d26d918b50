// The entry points of the builder on a device, and its kernels for the emulator.
#include "tree_build.h"

namespace erwin {
namespace {

bool valid(const erwin_layout* config, int32_t dtype, int64_t dim, const erwin_tree_bounds* bounds, Layout* layout) {
  if (!make_layout(config, layout) || bounds == nullptr) return false;
  if (dtype != ERWIN_FLOAT32 && dtype != ERWIN_FLOAT64) return false;
  if (dim < 1 || bounds->clouds < 0 || bounds->points < 0) return false;
  if (bounds->largest < 0 || bounds->largest > std::min(bounds->points, int64_t{1} << 30)) return false;
  return std::all_of(bounds->rows, bounds->rows + layout->levels, [](int64_t rows) { return rows >= 0; });
}

}  // namespace
}  // namespace erwin

int32_t erwin_tree_device_workspace(const erwin_context* context, const erwin_layout* config, int32_t dtype,
                                    int64_t dim, const erwin_tree_bounds* bounds, int32_t rotated, int64_t* bytes) {
  erwin::Layout layout;
  if (!erwin::valid(config, dtype, dim, bounds, &layout)) return ERWIN_INVALID_ARGUMENT;
  if (dim > ERWIN_DEVICE_MAX_DIM || context->device == ERWIN_HOST) return ERWIN_UNSUPPORTED;
  if (context->device == ERWIN_EMULATED) {
    return erwin::cuda::tree_workspace(*context, layout, dtype, dim, *bounds, rotated != 0, bytes);
  }
#if defined(ERWIN_WITH_CUDA)
  return erwin::cuda_tree_workspace(*context, layout, dtype, dim, *bounds, rotated != 0, bytes);
#else
  return ERWIN_UNSUPPORTED;
#endif
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
  if (context->device == ERWIN_EMULATED) {
    return erwin::cuda::tree_build(*context, layout, dtype, dim, *bounds, tree);
  }
#if defined(ERWIN_WITH_CUDA)
  return erwin::cuda_tree_build(*context, layout, dtype, dim, *bounds, tree);
#else
  return ERWIN_UNSUPPORTED;
#endif
}
