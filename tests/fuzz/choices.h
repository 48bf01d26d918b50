// The choices that define a case. They are read from bytes, which come from a seed or from a fuzzer.
#ifndef ERWIN_FUZZ_CHOICES_H_
#define ERWIN_FUZZ_CHOICES_H_

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace fuzz {

// Random numbers for large arrays, the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed + 0x9E3779B97F4A7C15u) {}

  uint64_t bits() {  // splitmix64
    uint64_t x = state_ += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  // In [-1, 1), a multiple of 2^-20: exact in every dtype except bfloat16.
  double unit() { return static_cast<double>(below(1 << 21) - (1 << 20)) / (1 << 20); }

 private:
  uint64_t state_;
};

class Choices {
 public:
  // With `threaded`, sizes are large enough that calls start threads.
  Choices(const uint8_t* data, size_t size, bool threaded) : data_(data), size_(size), threaded_(threaded) {}

  bool threaded() const { return threaded_; }

  // A number in [0, n); always 0 after the last byte.
  int64_t below(int64_t n) {
    uint64_t value = 0;
    for (int64_t range = 1; range < n; range *= 256) value = value << 8 | byte();
    return static_cast<int64_t>(value % static_cast<uint64_t>(n));
  }
  bool one_in(int64_t n) { return below(n) == n - 1; }
  template <typename X>
  X of(std::initializer_list<X> values) {
    return values.begin()[below(static_cast<int64_t>(values.size()))];
  }
  Random random() { return Random(static_cast<uint64_t>(below(int64_t{1} << 32))); }

 private:
  uint8_t byte() { return at_ < size_ ? data_[at_++] : 0; }

  const uint8_t* data_;
  size_t size_, at_ = 0;
  bool threaded_;
};

}  // namespace fuzz

#endif  // ERWIN_FUZZ_CHOICES_H_
