// The result of a radius search. It is kept until the caller knows the number of edges and has allocated memory for
// them.
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

// The lists of numbers of one thread. A list does not move in memory when others are added. The struct is aligned to a
// cache line, because threads that write to the same line slow each other down.
class alignas(64) Lists {
 public:
  explicit Lists(int64_t block) : block_(block) {}

  // Returns memory for a list of `count` numbers.
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

  const int64_t block_;  // numbers in an allocated block, at least
  std::vector<std::unique_ptr<int32_t[]>> blocks_;
  int32_t* next_ = nullptr;  // the first free number in the last block
  int64_t left_ = 0;
};

}  // namespace erwin

struct erwin_found {
  erwin_found(int64_t queries, int32_t num_threads) : neighbors(static_cast<size_t>(queries)) {
    // Each thread's first block is large enough for its queries at the usual number of neighbours, up to 8 MB. A larger
    // block would not be faster, because from this size on large pages are used.
    constexpr int64_t kUsual = 16, kMostNumbers = int64_t{2} << 20;
    lists.reserve(static_cast<size_t>(num_threads));
    for (int32_t i = 0; i < num_threads; ++i) lists.emplace_back(std::min(kUsual * queries / num_threads, kMostNumbers));
  }

  std::vector<int64_t> degree;            // [queries], set when the search has ended
  std::vector<const int32_t*> neighbors;  // [queries]: rows of their cloud, nearest first
  std::vector<erwin::Lists> lists;        // of every thread
};

#endif  // ERWIN_CPU_FOUND_H_
