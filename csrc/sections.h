// Arrays one after the other in memory that the caller has.
#ifndef ERWIN_SECTIONS_H_
#define ERWIN_SECTIONS_H_

#include <cstdint>

#include "layout.h"
#include "sizes.h"

namespace erwin {

// Where memory that starts anywhere is aligned: up to alignment - 1 bytes further on.
inline char* aligned(void* memory, int64_t alignment) {
  const auto address = reinterpret_cast<uintptr_t>(memory);
  return static_cast<char*>(memory) + (-address & (static_cast<uintptr_t>(alignment) - 1));
}

// Lays arrays out in memory that need not exist yet.
class Sections {
 public:
  static constexpr int64_t kAlign = 64;  // bytes, of every array

  explicit Sections(char* base) : base_(base) {}

  // An array of as many elements as the product of the counts.
  template <typename X, typename... N>
  X* take(N... counts) {
    const int64_t bytes = checked_product(counts..., static_cast<int64_t>(sizeof(X)));
    X* const start = reinterpret_cast<X*>(behind(base_, size_));
    size_ = checked_sum(size_, checked_sum(bytes, kAlign - 1) / kAlign * kAlign);
    return start;
  }
  int64_t size() const { return size_; }

 private:
  char* base_;
  int64_t size_ = 0;
};

}  // namespace erwin

#endif  // ERWIN_SECTIONS_H_
