// The table of the devices.
#include "devices.h"

namespace erwin {
namespace {

constexpr DeviceKernels kHost = {nullptr, &kHostNeighbors};
#if defined(ERWIN_WITH_CUDA)
constexpr DeviceKernels kCuda = {&kCudaTree, &kCudaNeighbors};
#endif

}  // namespace

const DeviceKernels* find_device(int32_t device) {
  if (device == ERWIN_HOST) return &kHost;
#if defined(ERWIN_WITH_CUDA)
  if (device >= 0) return &kCuda;  // the ordinal of a CUDA device; CUDA reports an error if it does not exist
#endif
  return nullptr;
}

}  // namespace erwin
