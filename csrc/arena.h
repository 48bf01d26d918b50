// Places arrays one after the other in one piece of memory: a caller's workspace, a thread's scratch memory, or the
// shared memory of a block.
//
// Everything has internal linkage, so that files compiled for different instruction sets can include it.
#ifndef ERWIN_ARENA_H_
#define ERWIN_ARENA_H_

#include <cstdint>

#include "host_device.h"

namespace erwin {
namespace {

constexpr int64_t kLine = 64;             // bytes of a CPU's cache line
constexpr int64_t kTooLarge = INT64_MAX;  // size in bytes that means "more than any memory"

// Every array starts at a multiple of Align bytes, a power of two, counted from the base.
// With `base` NULL the arena only counts bytes. Sizes are products of numbers that a caller passes: if they overflow,
// `used` becomes kTooLarge.
template <int64_t Align>
struct AlignedArena {
  char* base;
  int64_t used = 0;

  // Returns an array whose number of elements is the product of the counts.
  template <typename T, typename... N>
  ERWIN_HOST_DEVICE T* take(N... counts) {
#if defined(__CUDA_ARCH__)
    // Never NULL, so that the compiler knows that this is shared memory. Sizes are small and cannot overflow.
    T* const here = reinterpret_cast<T*>(base + used);
    used += ((static_cast<int64_t>(counts) * ...) * static_cast<int64_t>(sizeof(T)) + Align - 1) / Align * Align;
#else
    T* const here = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    int64_t bytes = sizeof(T);
    if ((__builtin_mul_overflow(bytes, static_cast<int64_t>(counts), &bytes) || ...) ||
        __builtin_add_overflow(bytes, Align - 1, &bytes) ||
        __builtin_add_overflow(used, bytes / Align * Align, &used)) {
      used = kTooLarge;
    }
#endif
    return here;
  }

  // Bytes that are enough if the memory may start at any address.
  int64_t bytes_anywhere() const { return used > kTooLarge - Align ? kTooLarge : used + Align - 1; }

  // The first aligned address in such memory.
  static char* aligned(void* memory) {
    return static_cast<char*>(memory) + (-reinterpret_cast<uintptr_t>(memory) & (Align - 1));
  }
};

using Arena = AlignedArena<kLine>;

}  // namespace
}  // namespace erwin

#endif  // ERWIN_ARENA_H_
