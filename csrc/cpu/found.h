// What a radius search found, kept until its caller knows how many edges there are and has memory for them.
#ifndef ERWIN_CPU_FOUND_H_
#define ERWIN_CPU_FOUND_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../erwin.h"
#include "pages.h"

namespace erwin {

// Lists of numbers, of one thread: they stay where they are while others are added. Aligned, as threads that write to
// the same line of a cache slow each other down.
class alignas(64) Lists {
 public:
  // Room for a list.
  int32_t* take(int64_t count, int64_t block) {
    if (count > left_) add_block(std::max(count, block));
    left_ -= count;
    return std::exchange(next_, next_ + count);
  }

 private:
  void add_block(int64_t size) {
    blocks_.emplace_back(new int32_t[static_cast<size_t>(size)]);
    next_ = blocks_.back().get();
    left_ = size;
    use_large_pages(next_, size);
  }

  std::vector<std::unique_ptr<int32_t[]>> blocks_;
  int32_t* next_ = nullptr;  // in the last block
  int64_t left_ = 0;
};

}  // namespace erwin

// Neighbours are rows of their cloud.
struct erwin_found {
  erwin_found(int64_t points, int32_t num_threads)
      : degree(static_cast<size_t>(points)),
        neighbors(static_cast<size_t>(points)),
        lists(static_cast<size_t>(num_threads)),
        block(std::clamp<int64_t>(kGuess * points / num_threads, kLeast, kMost)) {}

  std::vector<int64_t> degree;            // [points]
  std::vector<const int32_t*> neighbors;  // [points]: nearest first
  std::vector<erwin::Lists> lists;        // of every thread
  int64_t block;                          // numbers that a thread gets memory for at a time

 private:
  static constexpr int64_t kGuess = 16;  // neighbours of a point
  static constexpr int64_t kLeast = 1 << 10, kMost = 1 << 21;
};

#endif  // ERWIN_CPU_FOUND_H_
