// The functions of a device that the entry points of tree building call, after they have checked the arguments.
#ifndef ERWIN_DEVICE_TREE_H_
#define ERWIN_DEVICE_TREE_H_

#include <cstdint>

#include "layout.h"

namespace erwin {

// The arguments that determine the size of the workspace; a build needs them too.
struct DeviceTreeCall {
  const erwin_context* context;
  Layout layout;
  int32_t dtype;
  int64_t dim;
  const erwin_tree_bounds* bounds;
  bool rotated;
};

// The arrays that erwin_tree_build_device gets. All are in the device's memory, except the rotation.
struct DeviceTree {
  const void* pos;
  const int64_t* ptr;
  const void* rotation;
  void* workspace;
  int64_t* perm;
  uint8_t* mask;
  int64_t* const* perm_rot;
};

// Both return an erwin_status.
struct DeviceTreeKernels {
  int32_t (*workspace)(const DeviceTreeCall&, int64_t* bytes);
  int32_t (*build)(const DeviceTreeCall&, const DeviceTree&);
};

}  // namespace erwin

#endif  // ERWIN_DEVICE_TREE_H_
