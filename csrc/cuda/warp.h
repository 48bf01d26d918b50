// A warp of 32 lanes that take every branch together.
//
// Code that is written for a warp W holds two kinds of values: plain ones, which are the same in all lanes, and
// W::Lanes<T>, one in each lane. On a GPU (DeviceWarp) a lane is a thread, and both are a register; on the host
// (SerialWarp) one thread does the work of all lanes, one after the other.
#ifndef ERWIN_CUDA_WARP_H_
#define ERWIN_CUDA_WARP_H_

#include <algorithm>
#include <cstdint>

#if defined(__CUDACC__)
#define ERWIN_DEVICE __device__ __forceinline__
#define ERWIN_UNROLL _Pragma("unroll")  // arrays that are to stay in registers
#else
#define ERWIN_DEVICE
#define ERWIN_UNROLL
#endif

namespace erwin {

constexpr int32_t kWarp = 32;

#if !defined(__CUDACC__)

template <typename T>
struct SerialLanes {
  T at[kWarp];

  SerialLanes() = default;
  SerialLanes(T same) {  // NOLINT: on a GPU a plain value is one in each lane, too
    for (T& x : at) x = same;
  }

  template <typename F>
  static SerialLanes make(const F& f) {
    SerialLanes lanes;
    for (int32_t i = 0; i < kWarp; ++i) lanes.at[i] = f(i);
    return lanes;
  }

  friend SerialLanes operator+(const SerialLanes& a, const SerialLanes& b) {
    return make([&](int32_t i) { return a.at[i] + b.at[i]; });
  }
  friend SerialLanes operator-(const SerialLanes& a, const SerialLanes& b) {
    return make([&](int32_t i) { return a.at[i] - b.at[i]; });
  }
  friend SerialLanes operator*(const SerialLanes& a, const SerialLanes& b) {
    return make([&](int32_t i) { return a.at[i] * b.at[i]; });
  }
  friend SerialLanes operator^(const SerialLanes& a, const SerialLanes& b) {
    return make([&](int32_t i) { return a.at[i] ^ b.at[i]; });
  }
  friend SerialLanes operator&(const SerialLanes& a, const SerialLanes& b) {
    return make([&](int32_t i) { return a.at[i] & b.at[i]; });
  }
  friend SerialLanes operator|(const SerialLanes& a, const SerialLanes& b) {
    return make([&](int32_t i) { return a.at[i] | b.at[i]; });
  }
  friend SerialLanes<bool> operator<(const SerialLanes& a, const SerialLanes& b) {
    return SerialLanes<bool>::make([&](int32_t i) { return a.at[i] < b.at[i]; });
  }
  friend SerialLanes<bool> operator==(const SerialLanes& a, const SerialLanes& b) {
    return SerialLanes<bool>::make([&](int32_t i) { return a.at[i] == b.at[i]; });
  }
  friend SerialLanes<bool> operator!=(const SerialLanes& a, const SerialLanes& b) {
    return SerialLanes<bool>::make([&](int32_t i) { return a.at[i] != b.at[i]; });
  }
};

struct SerialWarp {
  template <typename T>
  using Lanes = SerialLanes<T>;

  static Lanes<int32_t> lane() {
    return Lanes<int32_t>::make([](int32_t i) { return i; });
  }
  // Calls f(lane) in every lane, which may branch there.
  template <typename F>
  static void each_lane(const F& f) {
    for (int32_t i = 0; i < kWarp; ++i) f(i);
  }
  // What each_lane() reads of such a value.
  template <typename T>
  static T own(const Lanes<T>& x, int32_t lane) {
    return x.at[lane];
  }
  // from[offset] where `here`.
  template <typename T>
  static Lanes<T> load(const T* from, const Lanes<int32_t>& offset, const Lanes<bool>& here, T otherwise) {
    return Lanes<T>::make([&](int32_t i) { return here.at[i] ? from[offset.at[i]] : otherwise; });
  }
  template <typename T>
  static void store(T* to, const Lanes<int32_t>& offset, const Lanes<bool>& here, const Lanes<T>& value) {
    for (int32_t i = 0; i < kWarp; ++i)
      if (here.at[i]) to[offset.at[i]] = value.at[i];
  }
  // A value that all lanes share.
  template <typename T>
  static void put(T* to, const T& value) {
    *to = value;
  }
  template <typename T>
  static Lanes<T> select(const Lanes<bool>& choice, const Lanes<T>& yes, const Lanes<T>& no) {
    return Lanes<T>::make([&](int32_t i) { return choice.at[i] ? yes.at[i] : no.at[i]; });
  }
  // Bit i is the answer of lane i.
  static uint32_t ballot(const Lanes<bool>& x) {
    uint32_t bits = 0;
    for (int32_t i = 0; i < kWarp; ++i) bits |= static_cast<uint32_t>(x.at[i]) << i;
    return bits;
  }
  static Lanes<bool> member(uint32_t bits) {
    return Lanes<bool>::make([&](int32_t i) { return (bits >> i & 1) != 0; });
  }
  static int32_t count(uint32_t bits) { return __builtin_popcount(bits); }
  static int32_t lowest(uint32_t bits) { return __builtin_ctz(bits); }
  template <typename T>
  static T broadcast(const Lanes<T>& x, int32_t from) {
    return x.at[from];
  }
  // Of the lane that each one names, modulo their number.
  template <typename T>
  static Lanes<T> shuffle(const Lanes<T>& x, const Lanes<int32_t>& from) {
    return Lanes<T>::make([&](int32_t i) { return x.at[from.at[i] & (kWarp - 1)]; });
  }
  // Of the lane whose number differs by the bits of `flip`.
  template <typename T>
  static Lanes<T> exchange(const Lanes<T>& x, int32_t flip) {
    return Lanes<T>::make([&](int32_t i) { return x.at[i ^ flip]; });
  }
  // The smallest; none may be negative or NaN.
  template <typename T>
  static T least(const Lanes<T>& x) {
    return *std::min_element(x.at, x.at + kWarp);
  }
};

#else

// The lanes are the threads of a warp, all of them there.
struct DeviceWarp {
  template <typename T>
  using Lanes = T;

  static constexpr uint32_t kAll = 0xffffffffu;

  static __device__ int32_t lane() { return threadIdx.x % kWarp; }
  template <typename F>
  static __device__ void each_lane(const F& f) {
    f(lane());
  }
  template <typename T>
  static __device__ T own(T x, int32_t) {
    return x;
  }
  template <typename T>
  static __device__ T load(const T* from, int32_t offset, bool here, T otherwise) {
    return here ? from[offset] : otherwise;
  }
  template <typename T>
  static __device__ void store(T* to, int32_t offset, bool here, T value) {
    if (here) to[offset] = value;
  }
  template <typename T>
  static __device__ void put(T* to, T value) {
    if (lane() == 0) *to = value;
  }
  template <typename T>
  static __device__ T select(bool choice, T yes, T no) {
    return choice ? yes : no;
  }
  static __device__ uint32_t ballot(bool x) { return __ballot_sync(kAll, x); }
  static __device__ bool member(uint32_t bits) { return (bits >> lane() & 1) != 0; }
  static __device__ int32_t count(uint32_t bits) { return __popc(bits); }
  static __device__ int32_t lowest(uint32_t bits) { return __ffs(static_cast<int32_t>(bits)) - 1; }
  template <typename T>
  static __device__ T broadcast(T x, int32_t from) {
    return __shfl_sync(kAll, x, from);
  }
  template <typename T>
  static __device__ T shuffle(T x, int32_t from) {
    return __shfl_sync(kAll, x, from);
  }
  template <typename T>
  static __device__ T exchange(T x, int32_t flip) {
    return __shfl_xor_sync(kAll, x, flip);
  }
  // Not negative, they order as their bits do.
  static __device__ float least(float x) { return __uint_as_float(__reduce_min_sync(kAll, __float_as_uint(x))); }
  static __device__ double least(double x) {
    for (int32_t flip = kWarp / 2; flip > 0; flip /= 2) x = fmin(x, exchange(x, flip));
    return x;
  }
};

#endif

// The smallest of all lanes.
template <typename W, typename T>
ERWIN_DEVICE T smallest(typename W::template Lanes<T> x) {
  for (int32_t flip = kWarp / 2; flip > 0; flip /= 2) {
    const typename W::template Lanes<T> other = W::exchange(x, flip);
    x = W::select(other < x, other, x);
  }
  return W::broadcast(x, 0);
}

template <typename W, typename T>
ERWIN_DEVICE T largest(typename W::template Lanes<T> x) {
  for (int32_t flip = kWarp / 2; flip > 0; flip /= 2) {
    const typename W::template Lanes<T> other = W::exchange(x, flip);
    x = W::select(x < other, other, x);
  }
  return W::broadcast(x, 0);
}

// Writes the sums of `before` and all values that precede each of at most 32; returns that of all.
template <typename W>
ERWIN_DEVICE int64_t exclusive_sums(const int64_t* x, int64_t count, int64_t before, int64_t* sums) {
  using Lanes = typename W::template Lanes<int64_t>;
  const auto lane = W::lane();
  const auto here = lane < static_cast<int32_t>(count < kWarp ? count : kWarp);
  const Lanes own = W::load(x, lane, here, int64_t{0});
  Lanes sum = own;
  for (int32_t step = 1; step < kWarp; step *= 2) {
    const Lanes other = W::shuffle(sum, lane - step);
    sum = W::select(lane < step, sum, sum + other);
  }
  W::store(sums, lane, here, sum - own + Lanes(before));
  return before + W::broadcast(sum, kWarp - 1);
}

}  // namespace erwin

#endif  // ERWIN_CUDA_WARP_H_
