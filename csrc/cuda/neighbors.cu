#include "neighbors.h"

namespace erwin {

const NeighborsDevice kCudaNeighbors = cuda::kNeighbors;

}  // namespace erwin
