// Runs CUDA kernels on the host, so that they are tested on machines without a GPU.
//
// The threads of a block are fibers of the calling thread. At a barrier or an exchange of a warp, the next fiber runs.
// Blocks run one after the other. The order of threads and of blocks is shuffled, so a kernel that depends on an order
// gives wrong results. Exchanges need whole warps: all 32 lanes take part, and none may have returned.
#ifndef ERWIN_EMULATOR_H_
#define ERWIN_EMULATOR_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static thread_local
#define ERWIN_SHARED_MEMORY(name) char* const name = erwin::emulator::shared_memory()
#define ERWIN_UNROLL

namespace erwin::emulator {

struct Index {
  unsigned x;
};

// Calls kernel(argument) in every thread of every block; `threads` is a multiple of 32.
void run(unsigned blocks, unsigned threads, size_t shared_bytes, void (*kernel)(void*), void* argument);

char* shared_memory();

// Returns the values of all lanes. They stay valid during the lane's next exchange, but not longer.
const uint64_t* exchange(uint64_t value);

// Lets the other threads run.
void yield();

template <typename T>
uint64_t bits_of(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace erwin::emulator

extern thread_local erwin::emulator::Index threadIdx, blockIdx, blockDim, gridDim;

void __syncthreads();

inline void __syncwarp() { erwin::emulator::exchange(0); }
inline void __threadfence() {}
inline void __nanosleep(unsigned) { erwin::emulator::yield(); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __ffs(uint32_t x) { return __builtin_ffs(static_cast<int>(x)); }
inline int __clz(uint32_t x) { return x == 0 ? 32 : __builtin_clz(x); }
inline int __clzll(uint64_t x) { return x == 0 ? 64 : __builtin_clzll(x); }

template <typename T>
T __shfl_sync(uint32_t, T value, int lane) {
  return erwin::emulator::from_bits<T>(erwin::emulator::exchange(erwin::emulator::bits_of(value))[lane & 31]);
}

template <typename T>
T __shfl_up_sync(uint32_t, T value, unsigned distance) {
  const unsigned lane = threadIdx.x % 32;
  const uint64_t* const all = erwin::emulator::exchange(erwin::emulator::bits_of(value));
  return erwin::emulator::from_bits<T>(all[lane < distance ? lane : lane - distance]);
}

template <typename T>
T __shfl_xor_sync(uint32_t, T value, int mask) {
  const unsigned lane = threadIdx.x % 32;
  return erwin::emulator::from_bits<T>(erwin::emulator::exchange(erwin::emulator::bits_of(value))[lane ^ mask]);
}

inline uint32_t __ballot_sync(uint32_t, bool predicate) {
  const uint64_t* const all = erwin::emulator::exchange(predicate);
  uint32_t mask = 0;
  for (int lane = 0; lane < 32; ++lane) mask |= static_cast<uint32_t>(all[lane]) << lane;
  return mask;
}

inline uint32_t __reduce_min_sync(uint32_t, uint32_t value) {
  const uint64_t* const all = erwin::emulator::exchange(value);
  return static_cast<uint32_t>(*std::min_element(all, all + 32));
}

inline uint32_t __match_any_sync(uint32_t, uint32_t value) {
  const uint64_t* const all = erwin::emulator::exchange(value);
  uint32_t mask = 0;
  for (int lane = 0; lane < 32; ++lane) mask |= static_cast<uint32_t>(all[lane] == value) << lane;
  return mask;
}

template <typename T, typename V>
T atomicAdd(T* to, V value) {
  const T old = *to;
  *to = static_cast<T>(old + value);
  return old;
}

template <typename T>
T atomicExch(T* to, T value) {
  const T old = *to;
  *to = value;
  return old;
}

template <typename T, typename V>
T atomicMin(T* to, V value) {
  const T old = *to;
  if (value < old) *to = static_cast<T>(value);
  return old;
}

template <typename T, typename V>
T atomicMax(T* to, V value) {
  const T old = *to;
  if (value > old) *to = static_cast<T>(value);
  return old;
}

#endif  // ERWIN_EMULATOR_H_
