// The devices that calls run on.
#ifndef ERWIN_DEVICES_H_
#define ERWIN_DEVICES_H_

#include <cstdint>

#include "device_tree.h"
#include "neighbors.h"

namespace erwin {

struct DeviceKernels {
  const DeviceTreeKernels* tree;  // NULL: built by erwin_tree_build
  const NeighborsKernels* neighbors;
};

// By the number in a context; NULL where this build has no such device.
const DeviceKernels* find_device(int32_t device);

extern const NeighborsKernels kHostNeighbors, kCudaNeighbors;
extern const DeviceTreeKernels kCudaTree;

}  // namespace erwin

#endif  // ERWIN_DEVICES_H_
