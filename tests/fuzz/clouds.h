// Batches of clouds and configurations of trees, for the cases of trees and neighbours.
#ifndef ERWIN_FUZZ_CLOUDS_H_
#define ERWIN_FUZZ_CLOUDS_H_

#include <vector>

#include "choices.h"
#include "erwin.h"
#include "guarded.h"

namespace fuzz {

constexpr int32_t kHostThreads[] = {1, 2, 3, 8};

inline erwin_context host(int32_t num_threads) {
  erwin_context context = {};
  context.device = ERWIN_HOST;
  context.num_threads = num_threads;
  return context;
}

// A context of the emulator (tests/emulator); the fuzzer's build contains it in place of GPUs.
inline erwin_context emulated() {
  erwin_context context = host(1);
  context.device = 0;
  return context;
}

erwin_layout make_layout(Choices& choices, bool perfect);

// Offsets of clouds with sizes near multiples of the ball size, with about `limit` points in total at most.
Guarded<int64_t> make_ptr(Choices& choices, int64_t ball_size, int64_t limit);

// Positions of many kinds: anywhere, on a grid, coincident, on a line, of denormal and of huge numbers, all finite.
// With `squares`, positions are small enough that squared distances do not overflow.
template <typename T>
Guarded<T> make_pos(Choices& choices, int64_t points, int64_t dim, bool squares);

// The largest number of points of a case; mostly small.
int64_t make_limit(Choices& choices);

// The tree of a cloud computed from its definition, with recursion and sorting (like tests/oracles/ball_tree.py).
template <typename T>
struct Oracle {
  std::vector<int64_t> perm;
  std::vector<uint8_t> mask;
  std::vector<std::vector<int64_t>> ball_len, group_len, perm_rot;  // per level

  // Adds a cloud; `rotation` may be NULL.
  void add(const erwin_layout& layout, const T* pos, int64_t points, int64_t dim, const T* rotation);
};

}  // namespace fuzz

#endif  // ERWIN_FUZZ_CLOUDS_H_
