// Memory dealt out to arrays in lines of 64 bytes.
//
// Everything has internal linkage, so that files of any instruction set may use it.
#ifndef ERWIN_CPU_ARENA_H_
#define ERWIN_CPU_ARENA_H_

#include <cstdint>

namespace erwin {
namespace {

constexpr int64_t kLine = 64;               // bytes of a cache line
constexpr int64_t kTooLarge = INT64_MAX;    // of an arena that no memory could hold

// From NULL it only counts. Sizes are products of what a caller states: once their sum does not fit it is kTooLarge.
struct Arena {
  char* base;
  int64_t used = 0;

  // An array [rows, columns].
  template <typename T>
  T* take(int64_t rows, int64_t columns = 1) {
    T* const here = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    int64_t bytes;
    if (__builtin_mul_overflow(rows, columns, &bytes) ||
        __builtin_mul_overflow(bytes, static_cast<int64_t>(sizeof(T)), &bytes) ||
        __builtin_add_overflow(bytes, kLine - 1, &bytes) ||
        __builtin_add_overflow(used, bytes / kLine * kLine, &used)) {
      used = kTooLarge;
    }
    return here;
  }
};

// The first line that begins in `memory`.
[[maybe_unused]] char* aligned(void* memory) {
  return static_cast<char*>(memory) + (-reinterpret_cast<uintptr_t>(memory) & (kLine - 1));
}

}  // namespace
}  // namespace erwin

#endif  // ERWIN_CPU_ARENA_H_
