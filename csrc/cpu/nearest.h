// The nearest candidates of a query: (squared distance, index) pairs as one integer each, sorted without branches.
#ifndef ERWIN_CPU_NEAREST_H_
#define ERWIN_CPU_NEAREST_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../layout.h"

namespace erwin {

constexpr int32_t kLeaf = 16;  // most points of a search leaf: candidates come in at most as many at a time

// A candidate as one integer that orders by (squared distance, index): distances are not negative, and then their bits
// order as they do.
template <typename T>
struct Pack;

template <>
struct Pack<float> {
  using Bits = uint32_t;
  using Key = uint64_t;
};

template <>
struct Pack<double> {
  using Bits = uint64_t;
  using Key = unsigned __int128;
};

// All bits set: the distance is no number, and nothing exceeds it.
template <typename T>
constexpr typename Pack<T>::Key kNoBound = ~typename Pack<T>::Key{0};

template <typename T>
typename Pack<T>::Key make_key(T distance, int32_t index) {
  typename Pack<T>::Bits bits;
  std::memcpy(&bits, &distance, sizeof(T));
  return static_cast<typename Pack<T>::Key>(bits) << 32 | static_cast<uint32_t>(index);
}

template <typename T>
T key_distance(typename Pack<T>::Key key) {
  const auto bits = static_cast<typename Pack<T>::Bits>(key >> 32);
  T distance;
  std::memcpy(&distance, &bits, sizeof(T));
  return distance;
}

template <typename T>
int64_t key_index(typename Pack<T>::Key key) {
  return static_cast<uint32_t>(key);
}

template <typename Key>
void order(Key& a, Key& b) {
  const Key low = a < b ? a : b, high = a < b ? b : a;
  a = low;
  b = high;
}

// Sorts runs of 2 * half keys that a first step of a bitonic merge has left.
template <typename Key>
void clean(Key* keys, int64_t size, int64_t half) {
  for (; half > 0; half /= 2) {
    for (int64_t first = 0; first + half < size; first += 2 * half) {
      const int64_t last = std::min(first + half, size - half);
      for (int64_t i = first; i < last; ++i) order(keys[i], keys[i + half]);
    }
  }
}

// Bitonic sort: lists are short, and a network has no branches to mispredict. The smaller key always goes to the lower
// place, so that places beyond `size` can be left out.
template <typename Key>
void sort_keys(Key* keys, int64_t size) {
  for (int64_t run = 2; run < 2 * size; run *= 2) {
    for (int64_t first = 0; first < size; first += run) {
      for (int64_t i = std::max<int64_t>(0, first + run - size); i < run / 2; ++i)
        order(keys[first + i], keys[first + run - 1 - i]);
    }
    clean(keys, size, run / 4);
  }
}

// The nearest candidates of a query. Those that have come in lately wait until they are worth a merge.
template <typename T>
class Nearest {
  using Key = typename Pack<T>::Key;

 public:
  static int64_t width(int64_t k) { return std::max<int64_t>(kLeaf, ceil_pow2(k)); }
  static int64_t room(int64_t k) { return 2 * width(k) + kLeaf; }

  void reset(Key* keys, int64_t k) {
    best_ = keys;
    width_ = width(k);
    fresh_ = end = keys + width_;
    k_ = k;
    std::fill_n(best_, width_, kNoBound<T>);
  }

  // The k-th nearest: the key that a candidate must stay below. It falls with every merge.
  Key bound() const { return best_[k_ - 1]; }
  const Key* keys() const { return best_; }

  // To be called after at most kLeaf keys were written to `end`.
  void settle() {
    if (end - fresh_ >= width_ - 1) merge();
  }

  void merge() {
    sort_keys(fresh_, end - fresh_);
    const int64_t count = std::min<int64_t>(end - fresh_, width_);
    for (int64_t i = 0; i < count; ++i) best_[width_ - 1 - i] = std::min(best_[width_ - 1 - i], fresh_[i]);
    clean(best_, width_, width_ / 2);
    end = fresh_;
  }

  Key* end;  // where the next candidate goes

 private:
  Key* best_;   // [width], ascending
  Key* fresh_;  // [width + kLeaf]
  int64_t width_, k_;
};

}  // namespace erwin

#endif  // ERWIN_CPU_NEAREST_H_
