#include "neighbors.h"

#include "../devices.h"

namespace erwin {

const NeighborsKernels kCudaNeighbors = cuda::kNeighbors;

}  // namespace erwin
