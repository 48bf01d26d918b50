// Arrays one after the other in memory that the caller has.
#ifndef ERWIN_SECTIONS_H_
#define ERWIN_SECTIONS_H_

#include <cstdint>

#include "layout.h"

namespace erwin {

// Lays arrays out in memory that need not exist yet.
class Sections {
 public:
  static constexpr int64_t kAlign = 64;  // bytes, of every array

  explicit Sections(char* base) : base_(base) {}

  template <typename X>
  X* take(int64_t count) {
    X* const start = reinterpret_cast<X*>(base_ + size_);
    size_ += ceil_div(count * static_cast<int64_t>(sizeof(X)), kAlign) * kAlign;
    return start;
  }
  int64_t size() const { return size_; }

 private:
  char* base_;
  int64_t size_ = 0;
};

}  // namespace erwin

#endif  // ERWIN_SECTIONS_H_
