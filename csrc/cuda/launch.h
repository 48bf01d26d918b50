// Launches kernels on a CUDA stream; compiled for the host, in the emulator of the tests.
#ifndef ERWIN_CUDA_LAUNCH_H_
#define ERWIN_CUDA_LAUNCH_H_

#include <cstddef>
#include <cstdint>

#include "../erwin.h"
#include "../error.h"
#include "runtime.h"
#if !defined(__CUDACC__)
#include "emulated_device.h"
#endif

namespace erwin::cuda {
namespace {

#if defined(__CUDACC__)

// The device and stream of a call, and the first CUDA error in it.
class Device {
 public:
  explicit Device(const erwin_context& context) : stream_(static_cast<cudaStream_t>(context.stream)) {
    keep(cudaGetDevice(&before_));
    device_ = context.device;
    // Setting a device for the first time allocates memory on it, so it is only set if the call uses another device.
    if (device_ != before_) keep(cudaSetDevice(device_));
    keep(cudaDeviceGetAttribute(&shared_bytes_, cudaDevAttrMaxSharedMemoryPerBlockOptin, context.device));
    keep(cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, context.device));
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() {
    if (device_ != before_) cudaSetDevice(before_);
  }

  // Bytes of dynamic shared memory that a block may use; 1 KiB is left for static arrays, which need less.
  int64_t shared_bytes() const { return shared_bytes_ - 1024; }
  int64_t processors() const { return processors_; }
  static constexpr int tile_threads() { return 512; }
  static constexpr int block_threads() { return 1024; }
  static constexpr int32_t search_warps() { return 8; }  // warps of a block
  static constexpr int32_t handed_rows() { return 512; }  // a block hands over nodes of up to so many rows
  // With fewer rows than this a launch has too little work for the device. Then fewer launches, which use more memory,
  // are faster.
  static constexpr int64_t few_rows() { return int64_t{1} << 18; }
  bool ok() const { return error_ == cudaSuccess; }
  // Whether a kernel is known to have marked the arguments as invalid. Always false here, because kernels run later.
  static constexpr bool knows(const int32_t*) { return false; }

  template <typename... P, typename... A>
  void launch(void (*kernel)(P...), int64_t blocks, int threads, int64_t shared_bytes, const A&... arguments) {
    if (!ok() || blocks == 0) return;
    // Every call sets the same value, so several threads may do this at the same time.
    if (shared_bytes > 40 * 1024) {
      keep(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(this->shared_bytes())));
    }
    kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<size_t>(shared_bytes),
             stream_>>>(arguments...);
    keep(cudaGetLastError());
  }

 private:
  void keep(cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // clears the error; otherwise the next call would report it
    if (!ok()) return;
    error_ = error;
    set_last_error(cudaGetErrorString(error));
  }

  cudaStream_t stream_;
  int device_ = 0, before_ = 0, shared_bytes_ = 0, processors_ = 0;
  cudaError_t error_ = cudaSuccess;
};

#else

using emulator::Device;

#endif

}  // namespace
}  // namespace erwin::cuda

#endif  // ERWIN_CUDA_LAUNCH_H_
