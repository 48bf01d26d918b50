// Memory dealt out to arrays, one after the other: workspaces of callers, scratch of threads, a block's shared memory.
//
// Everything has internal linkage, so that files of any instruction set may use it.
#ifndef ERWIN_ARENA_H_
#define ERWIN_ARENA_H_

#include <cstdint>

#include "host_device.h"

namespace erwin {
namespace {

constexpr int64_t kLine = 64;             // bytes of a CPU's cache line
constexpr int64_t kTooLarge = INT64_MAX;  // of an arena that no memory could hold

// Every array starts at a multiple of Align bytes, a power of two, counted from the base.
// From NULL it only counts. Sizes are products of what a caller states: once they do not fit, `used` is kTooLarge.
template <int64_t Align>
struct AlignedArena {
  char* base;
  int64_t used = 0;

  // An array with as many elements as the product of the counts.
  template <typename T, typename... N>
  ERWIN_HOST_DEVICE T* take(N... counts) {
#if defined(__CUDA_ARCH__)
    // Never NULL, so that the compiler sees what memory this is, and small.
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

  // Bytes of memory that may start anywhere.
  int64_t bytes_anywhere() const { return used > kTooLarge - Align ? kTooLarge : used + Align - 1; }

  // The first place in such memory that an arena may start at.
  static char* aligned(void* memory) {
    return static_cast<char*>(memory) + (-reinterpret_cast<uintptr_t>(memory) & (Align - 1));
  }
};

using Arena = AlignedArena<kLine>;

}  // namespace
}  // namespace erwin

#endif  // ERWIN_ARENA_H_
