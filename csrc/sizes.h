// Arithmetic on sizes that a caller passes. A sum or product that would overflow throws an exception.
#ifndef ERWIN_SIZES_H_
#define ERWIN_SIZES_H_

#include <cstdint>
#include <limits>

namespace erwin {

// Thrown if a size is larger than any memory.
struct TooLarge {};

// The sum, and below the product, of numbers that are not negative.
inline int64_t checked_sum(int64_t a, int64_t b) {
  if (a > std::numeric_limits<int64_t>::max() - b) throw TooLarge{};
  return a + b;
}

inline int64_t checked_product() { return 1; }

template <typename... N>
int64_t checked_product(int64_t first, N... others) {
  const int64_t rest = checked_product(others...);
  if (rest != 0 && first > std::numeric_limits<int64_t>::max() / rest) throw TooLarge{};
  return first * rest;
}

}  // namespace erwin

#endif  // ERWIN_SIZES_H_
