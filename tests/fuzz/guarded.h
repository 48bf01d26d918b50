// Arrays between guard zones. Writes to a zone are detected; with AddressSanitizer, reads are too.
#ifndef ERWIN_FUZZ_GUARDED_H_
#define ERWIN_FUZZ_GUARDED_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "check.h"

#if defined(__SANITIZE_ADDRESS__)
#define FUZZ_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FUZZ_ASAN
#endif
#endif
#if defined(FUZZ_ASAN)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(start, bytes)
#endif

namespace fuzz {

template <typename X>
class Guarded {
 public:
  // The array is filled with junk. It starts `shift` bytes after a multiple of 64.
  explicit Guarded(int64_t count = 0, int64_t shift = 0)
      : bytes_(static_cast<size_t>(count) * sizeof(X)),
        all_(2 * kZone + bytes_ + 128),
        memory_(new unsigned char[all_]) {
    std::memset(memory_.get(), kFill, all_);
    start_ = kZone + (64 - reinterpret_cast<uintptr_t>(memory_.get()) % 64) + static_cast<size_t>(shift);
    std::memset(memory_.get() + start_, kJunk, bytes_);
    ASAN_POISON_MEMORY_REGION(memory_.get(), start_);
    ASAN_POISON_MEMORY_REGION(memory_.get() + start_ + bytes_, all_ - start_ - bytes_);
  }
  explicit Guarded(const std::vector<X>& values) : Guarded(static_cast<int64_t>(values.size())) {
    std::copy(values.begin(), values.end(), begin());
  }
  Guarded(Guarded&& other) noexcept { *this = std::move(other); }
  Guarded& operator=(Guarded&& other) noexcept {
    std::swap(bytes_, other.bytes_), std::swap(all_, other.all_), std::swap(start_, other.start_);
    memory_.swap(other.memory_);
    return *this;
  }
  ~Guarded() {
    if (memory_ == nullptr) return;
    ASAN_UNPOISON_MEMORY_REGION(memory_.get(), all_);
    for (size_t i = 0; i < all_; ++i) {
      if (i >= start_ && i < start_ + bytes_) continue;
      if (memory_[i] == kFill) continue;
      fail("wrote at byte %td of an array of %zu", static_cast<ptrdiff_t>(i - start_), bytes_);
    }
  }

  X* data() const { return reinterpret_cast<X*>(memory_.get() + start_); }
  X* begin() const { return data(); }
  X* end() const { return data() + size(); }
  int64_t size() const { return static_cast<int64_t>(bytes_ / sizeof(X)); }
  size_t bytes() const { return bytes_; }
  X& operator[](int64_t i) const { return data()[i]; }
  bool operator==(const Guarded& other) const {
    return bytes_ == other.bytes_ && (bytes_ == 0 || std::memcmp(data(), other.data(), bytes_) == 0);
  }

 private:
  static constexpr size_t kZone = 512;  // bytes
  static constexpr unsigned char kFill = 0xA5, kJunk = 0x5B;
  size_t bytes_ = 0, all_ = 0, start_ = 0;
  std::unique_ptr<unsigned char[]> memory_;
};

}  // namespace fuzz

#endif  // ERWIN_FUZZ_GUARDED_H_
