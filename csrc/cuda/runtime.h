// What kernels need in addition to plain CUDA: atomics and collectives, overloaded by type. Compiled for the host,
// kernels run in the emulator of the tests (tests/emulator).
//
// A kernel is a function template with __global__; `launch` (launch.h) launches it. All lanes of a warp must call
// collectives together.
#ifndef ERWIN_CUDA_RUNTIME_H_
#define ERWIN_CUDA_RUNTIME_H_

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define ERWIN_SHARED_MEMORY(name) extern __shared__ __align__(16) char name[]
#define ERWIN_UNROLL _Pragma("unroll")
#else
#include "emulator.h"
#endif

namespace erwin::cuda {
namespace {

constexpr uint32_t kWarp = 0xffffffffu;

__device__ inline int lane() { return static_cast<int>(threadIdx.x % 32); }
__device__ inline int warp() { return static_cast<int>(threadIdx.x / 32); }
__device__ inline int thread() { return static_cast<int>(threadIdx.x); }
__device__ inline int threads() { return static_cast<int>(blockDim.x); }

__device__ inline int significant_bits(uint32_t x) { return 32 - __clz(static_cast<int>(x)); }
__device__ inline int significant_bits(uint64_t x) { return 64 - __clzll(static_cast<long long>(x)); }

__device__ inline void lower(uint32_t* to, uint32_t x) { atomicMin(to, x); }
__device__ inline void lower(uint64_t* to, uint64_t x) { atomicMin(reinterpret_cast<unsigned long long*>(to), x); }
__device__ inline void raise(uint32_t* to, uint32_t x) { atomicMax(to, x); }
__device__ inline void raise(uint64_t* to, uint64_t x) { atomicMax(reinterpret_cast<unsigned long long*>(to), x); }

template <typename K>
__device__ K warp_least(K x) {
  for (int mask = 16; mask > 0; mask /= 2) {
    const K other = __shfl_xor_sync(kWarp, x, mask);
    x = other < x ? other : x;
  }
  return x;
}

template <typename K>
__device__ K warp_largest(K x) {
  for (int mask = 16; mask > 0; mask /= 2) {
    const K other = __shfl_xor_sync(kWarp, x, mask);
    x = other > x ? other : x;
  }
  return x;
}

template <typename V>
__device__ V warp_sum(V x) {
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(kWarp, x, mask);
  return x;
}

// The sum of the values in the lanes with lower numbers.
template <typename V>
__device__ V warp_exclusive_scan(V x) {
  V sum = x;
  for (int step = 1; step < 32; step *= 2) {
    const V below = __shfl_up_sync(kWarp, sum, step);
    if (lane() >= step) sum += below;
  }
  return sum - x;
}

// The sum of the values in the threads with lower numbers; `total` receives the sum over the block.
template <typename V>
__device__ V block_exclusive_scan(V x, V* total) {
  __shared__ V sums[32];
  V before = warp_exclusive_scan(x);
  if (lane() == 31) sums[warp()] = before + x;
  __syncthreads();
  const V own = lane() < threads() / 32 ? sums[lane()] : V{};
  const V below = warp_exclusive_scan(own);
  before += __shfl_sync(kWarp, below, warp());
  *total = __shfl_sync(kWarp, below + own, 31);
  __syncthreads();
  return before;
}

// Reads a value that other blocks may write at the same time.
template <typename V>
__device__ V read_volatile(const V* from) {
  return *static_cast<const volatile V*>(from);
}

__device__ inline void publish(uint64_t* to, uint64_t value) {
  atomicExch(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}

}  // namespace
}  // namespace erwin::cuda

#endif  // ERWIN_CUDA_RUNTIME_H_
