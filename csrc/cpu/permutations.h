// Checks that an array is a permutation.
#ifndef ERWIN_CPU_PERMUTATIONS_H_
#define ERWIN_CPU_PERMUTATIONS_H_

#include <algorithm>
#include <cstdint>

namespace erwin {

// Whether `perm` [length] holds every number below its length exactly once. `seen` is scratch memory of one bit per
// number, rounded up to bytes. look() is called about once a millisecond.
template <typename F>
bool is_permutation(const int64_t* perm, int64_t length, uint8_t* seen, const F& look) {
  constexpr int64_t kUnasked = 1 << 16;  // numbers between two calls of look()
  std::fill(seen, seen + (length + 7) / 8, uint8_t{0});
  for (int64_t i = 0; i < length; ++i) {
    if (i % kUnasked == 0) look();
    const int64_t value = perm[i];
    if (value < 0 || value >= length) return false;
    const auto bit = static_cast<uint8_t>(1 << (value & 7));
    if (seen[value >> 3] & bit) return false;
    seen[value >> 3] |= bit;
  }
  return true;
}

inline bool is_permutation(const int64_t* perm, int64_t length, uint8_t* seen) {
  return is_permutation(perm, length, seen, [] {});
}

}  // namespace erwin

#endif  // ERWIN_CPU_PERMUTATIONS_H_
