// The builder of trees on a device, as the entry points call it.
#ifndef ERWIN_CUDA_TREE_H_
#define ERWIN_CUDA_TREE_H_

#include "../layout.h"

namespace erwin {

// The arguments of erwin_tree_build_device that are memory; all of it is the device's but the rotation.
struct DeviceTree {
  const void* pos;
  const int64_t* ptr;
  const void* rotation;
  void* workspace;
  int64_t* perm;
  uint8_t* mask;
  int64_t* const* perm_rot;
};

int32_t cuda_tree_workspace(const erwin_context& context, const Layout& layout, int32_t dtype, int64_t dim,
                            const erwin_tree_bounds& bounds, bool rotated, int64_t* bytes);
int32_t cuda_tree_build(const erwin_context& context, const Layout& layout, int32_t dtype, int64_t dim,
                        const erwin_tree_bounds& bounds, const DeviceTree& tree);

}  // namespace erwin

#endif  // ERWIN_CUDA_TREE_H_
