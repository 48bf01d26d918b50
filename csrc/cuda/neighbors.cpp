// Neighbour search once more for the emulator.
#include "neighbors.h"

namespace erwin {

const NeighborsDevice kEmulatedNeighbors = cuda::kNeighbors;

}  // namespace erwin
