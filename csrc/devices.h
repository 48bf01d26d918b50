// The devices that calls run on.
#ifndef ERWIN_DEVICES_H_
#define ERWIN_DEVICES_H_

#include <cstdint>

#include "device_tree.h"
#include "neighbors.h"

namespace erwin {

struct DeviceKernels {
  const DeviceTreeKernels* tree;  // NULL: this device uses erwin_tree_build
  const NeighborsKernels* neighbors;
};

// Finds a device by the number in a context. Returns NULL if this build does not support it.
const DeviceKernels* find_device(int32_t device);

extern const NeighborsKernels kHostNeighbors, kCudaNeighbors;
extern const DeviceTreeKernels kCudaTree;

}  // namespace erwin

#endif  // ERWIN_DEVICES_H_
