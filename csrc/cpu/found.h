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
  explicit Lists(int64_t block) : block_(block) {}

  // Room for a list.
  int32_t* take(int64_t count) {
    if (count > left_) add_block(std::max(count, block_));
    left_ -= count;
    return std::exchange(next_, next_ + count);
  }

 private:
  void add_block(int64_t size) {
    std::unique_ptr<int32_t[]> block(new int32_t[static_cast<size_t>(size)]);
    use_large_pages(block.get(), size);
    blocks_.push_back(std::move(block));
    next_ = blocks_.back().get();
    left_ = size;
  }

  const int64_t block_;  // numbers that memory is got for at a time, at least
  std::vector<std::unique_ptr<int32_t[]>> blocks_;
  int32_t* next_ = nullptr;  // in the last block
  int64_t left_ = 0;
};

}  // namespace erwin

struct erwin_found {
  erwin_found(int64_t points, int32_t num_threads) : neighbors(static_cast<size_t>(points)) {
    // One block for the neighbours of all points, as many as are usual. Beyond 8 MB large pages fill it well enough.
    constexpr int64_t kUsual = 16, kMostNumbers = int64_t{2} << 20;
    lists.reserve(static_cast<size_t>(num_threads));
    for (int32_t i = 0; i < num_threads; ++i) lists.emplace_back(std::min(kUsual * points / num_threads, kMostNumbers));
  }

  std::vector<int64_t> degree;            // [points], once the search has ended
  std::vector<const int32_t*> neighbors;  // [points]: rows of their cloud, nearest first
  std::vector<erwin::Lists> lists;        // of every thread
};

#endif  // ERWIN_CPU_FOUND_H_
