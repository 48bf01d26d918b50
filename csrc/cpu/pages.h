// A hint to the system that makes the first writes to a large output much faster.
#ifndef ERWIN_CPU_PAGES_H_
#define ERWIN_CPU_PAGES_H_

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace erwin {

// Asks the system for large pages if the array spans several of them.
template <typename X>
void use_large_pages(X* array, int64_t count) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096, kLargePage = 2 << 20;
  const auto begin = (reinterpret_cast<uintptr_t>(array) + kPage - 1) / kPage * kPage;
  const auto end = reinterpret_cast<uintptr_t>(array + count) / kPage * kPage;
  if (end > begin + 2 * kLargePage) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  static_cast<void>(array);
  static_cast<void>(count);
#endif
}

}  // namespace erwin

#endif  // ERWIN_CPU_PAGES_H_
