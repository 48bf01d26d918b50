// The nearest candidates of a query: lists of (squared distance, index), sorted by networks that have no branches.
#ifndef ERWIN_CPU_NEAREST_H_
#define ERWIN_CPU_NEAREST_H_

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "lanes.h"

namespace erwin {
namespace {

template <int64_t... I>
Longs lane_numbers(std::integer_sequence<int64_t, I...>) {
  return Longs{I...};
}
inline Longs lane_numbers() { return lane_numbers(std::make_integer_sequence<int64_t, kKeyLanes>{}); }

// kKeyLanes candidates, ordered by (squared distance, index). Distances are not negative, so they have the same order
// as their bits. With float32, distance and index together are one integer of 64 bits. An offset, the bits of the
// smallest normal double, makes the bits of every candidate those of a normal positive double with the same order. So
// the minimum of doubles, which every instruction set has, can compare candidates, even where the processor flushes
// denormals to zero.
template <typename T>
struct Keys;

template <>
struct Keys<float> {
  Doubles key;

  static constexpr int64_t kOffset = int64_t{1} << 52;

  static Keys load(const float* distance, const int32_t* index) {
    const Longs bits = __builtin_convertvector(erwin::load<Words>(distance), Longs);
    const Longs low = __builtin_convertvector(erwin::load<Words>(index), Longs);
    return {reinterpret_cast<Doubles>((bits << 32 | low) + kOffset)};
  }
  // The first `count` lanes of this vector, then the lanes of `rest`.
  Keys first(int64_t count, const Keys& rest) const {
    return {lane_numbers() < count ? key : rest.key};
  }
  template <typename P>
  Keys permute(const P& p) const {
    return {p(key)};
  }
  template <typename P>
  static Keys blend(const Keys& a, const Keys& b, const P& p) {
    return {p(a.key, b.key)};
  }
  static int64_t bits(const Keys* keys, int64_t i) {
    int64_t key;
    std::memcpy(&key, reinterpret_cast<const char*>(keys) + 8 * i, 8);
    return key - kOffset;
  }
  static float distance(const Keys* keys, int64_t i) {
    const auto high = static_cast<uint32_t>(bits(keys, i) >> 32);
    float distance;
    std::memcpy(&distance, &high, 4);
    return distance;
  }
  static int32_t index(const Keys* keys, int64_t i) { return static_cast<int32_t>(bits(keys, i)); }
};

template <>
struct Keys<double> {
  Doubles far;
  Longs id;

  static Keys load(const double* distance, const int32_t* index) {
    return {erwin::load<Doubles>(distance), __builtin_convertvector(erwin::load<Words>(index), Longs)};
  }
  Keys first(int64_t count, const Keys& rest) const {
    return {lane_numbers() < count ? far : rest.far, lane_numbers() < count ? id : rest.id};
  }
  template <typename P>
  Keys permute(const P& p) const {
    return {p(far), p(id)};
  }
  template <typename P>
  static Keys blend(const Keys& a, const Keys& b, const P& p) {
    return {p(a.far, b.far), p(a.id, b.id)};
  }
  static double distance(const Keys* keys, int64_t i) { return keys[i / kKeyLanes].far[i % kKeyLanes]; }
  static int32_t index(const Keys* keys, int64_t i) { return static_cast<int32_t>(keys[i / kKeyLanes].id[i % kKeyLanes]); }
};

inline void order(Keys<float>& a, Keys<float>& b) {
  const Keys<float> low{smaller(a.key, b.key)};
  b.key = larger(a.key, b.key);
  a = low;
}

inline void order(Keys<double>& a, Keys<double>& b) {
  const Longs less = (a.far < b.far) | ((a.far == b.far) & (a.id < b.id));
  const Keys<double> low{less ? a.far : b.far, less ? a.id : b.id};
  b = {less ? b.far : a.far, less ? b.id : a.id};
  a = low;
}

// Every lane gets the value of the lane whose number differs by the bits of X.
template <int X, int... I>
auto flip(std::integer_sequence<int, I...>) {
  return [](const auto& v) { return __builtin_shufflevector(v, v, (I ^ X)...); };
}

// Lanes whose number lacks the bit B come from the first argument, the others from the second.
template <int B, int... I>
auto halves(std::integer_sequence<int, I...>) {
  return [](const auto& a, const auto& b) {
    return Longs{(I & B ? 0 : -1)...} ? a : b;
  };
}

using Lanes = std::make_integer_sequence<int, kKeyLanes>;

// Orders pairs of lanes whose numbers differ by the bits of X. The lane whose number lacks the bit B gets the smaller
// key.
template <int X, int B, typename T>
void exchange(Keys<T>& v) {
  Keys<T> low = v, high = v.permute(flip<X>(Lanes{}));
  order(low, high);
  v = Keys<T>::blend(low, high, halves<B>(Lanes{}));
}

// Sorts each group of 2 * B lanes of a vector; each must be bitonic: first ascending, then descending, up to a
// rotation.
template <int B, typename T>
void clean_lanes(Keys<T>& v) {
  if constexpr (B > 0) {
    exchange<B, B>(v);
    clean_lanes<B / 2>(v);
  }
}

template <int Run = 2, typename T>
void sort_lanes(Keys<T>& v) {
  if constexpr (Run <= kKeyLanes) {
    exchange<Run - 1, Run / 2>(v);
    clean_lanes<Run / 4>(v);
    sort_lanes<2 * Run>(v);
  }
}

template <typename T>
Keys<T> reversed(const Keys<T>& v) {
  return v.permute(flip<kKeyLanes - 1>(Lanes{}));
}

// In the sorting networks the smaller key always goes to the lower place. So the number of vectors need not be a power
// of two: the missing places at the end are simply left out. For few vectors the networks are straight-line code on
// registers.

// Compares two vectors, the first lane of one with the last lane of the other and so on: the first step of a merge.
template <typename T>
void order_mirrored(Keys<T>& a, Keys<T>& z) {
  Keys<T> b = reversed(z);
  order(a, b);
  z = reversed(b);
}

template <typename F, int... I>
void repeat(const F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}

// Sorts groups of 2 * Half vectors, each of them bitonic.
template <int Size, int Half, typename T>
void clean(Keys<T> (&v)[Size]) {
  if constexpr (Half > 0) {
    repeat([&](auto i) {
      if constexpr ((i() & Half) == 0 && i() + Half < Size) order(v[i()], v[i() + Half]);
    }, std::make_integer_sequence<int, Size>{});
    clean<Size, Half / 2>(v);
  } else {
    repeat([&](auto i) { clean_lanes<kKeyLanes / 2>(v[i()]); }, std::make_integer_sequence<int, Size>{});
  }
}

// Merges ascending runs of Run / 2 vectors.
template <int Size, int Run, typename T>
void merge_runs(Keys<T> (&v)[Size]) {
  if constexpr (Run < 2 * Size) {
    repeat([&](auto i) {
      constexpr int mirror = i() / Run * Run + Run - 1 - i() % Run;
      if constexpr (i() < mirror && mirror < Size) order_mirrored(v[i()], v[mirror]);
    }, std::make_integer_sequence<int, Size>{});
    clean<Size, Run / 4>(v);
    merge_runs<Size, 2 * Run>(v);
  }
}

template <int Size, typename T>
__attribute__((flatten)) void sort_in_registers(Keys<T>* keys) {
  Keys<T> v[Size];
  repeat([&](auto i) { sort_lanes(v[i()] = keys[i()]); }, std::make_integer_sequence<int, Size>{});
  merge_runs<Size, 2>(v);
  repeat([&](auto i) { keys[i()] = v[i()]; }, std::make_integer_sequence<int, Size>{});
}

template <int Size, typename T>
__attribute__((flatten)) void clean_in_registers(Keys<T>* keys) {
  Keys<T> v[Size];
  repeat([&](auto i) { v[i()] = keys[i()]; }, std::make_integer_sequence<int, Size>{});
  clean<Size, Size / 2>(v);
  repeat([&](auto i) { keys[i()] = v[i()]; }, std::make_integer_sequence<int, Size>{});
}

template <typename T>
void clean(Keys<T>* keys, int64_t size, int64_t half) {
  for (; half > 0; half /= 2) {
    for (int64_t first = 0; first + half < size; first += 2 * half) {
      const int64_t last = first + half < size - half ? first + half : size - half;
      for (int64_t i = first; i < last; ++i) order(keys[i], keys[i + half]);
    }
  }
  for (int64_t i = 0; i < size; ++i) clean_lanes<kKeyLanes / 2>(keys[i]);
}

// Bitonic sort of `size` vectors.
template <typename T>
void sort_keys(Keys<T>* keys, int64_t size) {
  switch (size) {
    case 0: return;
    case 1: return sort_in_registers<1>(keys);
    case 2: return sort_in_registers<2>(keys);
    case 3: return sort_in_registers<3>(keys);
    case 4: return sort_in_registers<4>(keys);
    case 5: return sort_in_registers<5>(keys);
    case 6: return sort_in_registers<6>(keys);
    default: break;
  }
  for (int64_t i = 0; i < size; ++i) sort_lanes(keys[i]);
  for (int64_t run = 2; run < 2 * size; run *= 2) {
    for (int64_t first = 0; first < size; first += run) {
      for (int64_t i = first + run > size ? first + run - size : 0; i < run / 2; ++i)
        order_mirrored(keys[first + i], keys[first + run - 1 - i]);
    }
    clean(keys, size, run / 4);
  }
}

constexpr int32_t kNoIndex = std::numeric_limits<int32_t>::max();  // larger than the index of every point

// Keys that stand for no point: they come after all candidates up to the distance `farthest`.
template <typename T>
Keys<T> no_keys(T farthest = std::numeric_limits<T>::infinity()) {
  T distance[kKeyLanes];
  int32_t index[kKeyLanes];
  for (int j = 0; j < kKeyLanes; ++j) {
    distance[j] = farthest;
    index[j] = kNoIndex;
  }
  return Keys<T>::load(distance, index);
}

// Packs candidates into vectors and returns the number of vectors. Reads up to kKeyLanes - 1 values beyond `count`.
template <typename T>
int64_t pack(const T* distance, const int32_t* index, int64_t count, Keys<T>* keys) {
  int64_t size = 0;
  for (; size * kKeyLanes < count; ++size) keys[size] = Keys<T>::load(distance + size * kKeyLanes, index + size * kKeyLanes);
  if (count % kKeyLanes != 0) keys[size - 1] = keys[size - 1].first(count % kKeyLanes, no_keys<T>());
  return size;
}

// The k nearest candidates of a query up to a distance.
template <typename T>
class Nearest {
 public:
  void reset(Keys<T>* keys, int64_t k, T farthest) {
    best_ = keys;
    k_ = k;
    width_ = 1;
    while (width_ * kKeyLanes < k) width_ *= 2;
    for (int64_t i = 0; i < width_; ++i) keys[i] = no_keys<T>(farthest);
    update();
  }

  T limit() const { return limit_; }      // the distance that a candidate must not exceed
  int32_t last() const { return last_; }  // the index that it must not exceed at that distance
  int64_t width() const { return width_; }
  const Keys<T>* keys() const { return best_; }

  // The number of candidates found so far, at most k.
  int64_t count() const {
    int64_t count = k_;
    while (count > 0 && Keys<T>::index(best_, count - 1) == kNoIndex) --count;
    return count;
  }

  // Merges new candidates into the list; sorts `fresh` in place.
  void merge(Keys<T>* fresh, int64_t size) {
    sort_keys(fresh, size);
    for (int64_t i = 0; i < size && i < width_; ++i) {
      Keys<T> b = reversed(fresh[i]);
      order(best_[width_ - 1 - i], b);
    }
    switch (width_) {
      case 1: clean_lanes<kKeyLanes / 2>(best_[0]); break;
      case 2: clean_in_registers<2>(best_); break;
      case 4: clean_in_registers<4>(best_); break;
      default: clean(best_, width_, width_ / 2);
    }
    update();
  }

 private:
  void update() {
    limit_ = Keys<T>::distance(best_, k_ - 1);
    last_ = Keys<T>::index(best_, k_ - 1);
  }

  Keys<T>* best_;  // [width_], ascending
  int64_t width_, k_;
  T limit_;
  int32_t last_;
};

}  // namespace
}  // namespace erwin

#endif  // ERWIN_CPU_NEAREST_H_
