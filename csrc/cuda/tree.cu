#include "tree_build.h"

#include "../devices.h"

namespace erwin {

const DeviceTreeKernels kCudaTree = cuda::kTree;

}  // namespace erwin
