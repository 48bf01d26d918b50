// The upper part of a tree on the host: one split of a large node, out of place and stable.
//
// The record that the left ones precede is found by a histogram of the coordinate's leading bits and a selection among
// the few records in one bin; the partition keeps the order on either side, so that records of a node always ascend by
// index and ties need no thought.
#ifndef ERWIN_CPU_SELECT_H_
#define ERWIN_CPU_SELECT_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "record.h"
#include "team.h"

namespace erwin {

// Lowest and highest coordinate along an axis.
template <typename T>
struct Range {
  T low, high;
};

// The lowest and highest coordinates along every axis, found for all lanes of a record at once; what the lane of the
// index gives is not used. Two records at a time, because a minimum takes longer than a load.
template <typename T, int D>
void find_ranges(const Record<T, D>* records, int64_t n, int32_t, Range<T>* ranges) {
  constexpr size_t kLanes = sizeof(Record<T, D>) / sizeof(T);
  typedef T Lanes __attribute__((vector_size(sizeof(Record<T, D>))));
  Lanes low[2], high[2];
  for (int32_t k = 0; k < 2; ++k) {
    std::memcpy(&low[k], records, sizeof(Lanes));
    high[k] = low[k];
  }
  for (int64_t i = n % 2; i < n; i += 2) {
    for (int32_t k = 0; k < 2; ++k) {
      Lanes x;
      std::memcpy(&x, records + i + k, sizeof(Lanes));
      low[k] = x < low[k] ? x : low[k];
      high[k] = x > high[k] ? x : high[k];
    }
  }
  for (int32_t a = 0; a < D; ++a) ranges[a] = {std::min(low[0][a], low[1][a]), std::max(high[0][a], high[1][a])};
  static_assert(kLanes > D, "a record has room for its index");
}

template <typename T>
void find_ranges(const Record<T, 0>* records, int64_t n, int32_t dim, Range<T>* ranges) {
  for (int32_t a = 0; a < dim; ++a) {
    ranges[a] = {records[0].at(a), records[0].at(a)};
    for (int64_t i = 1; i < n; ++i) {
      ranges[a].low = std::min(ranges[a].low, records[i].at(a));
      ranges[a].high = std::max(ranges[a].high, records[i].at(a));
    }
  }
}

// A record's place in the order along an axis.
template <typename K>
struct Rank {
  K key;
  int32_t index;
  bool operator<(const Rank& other) const {
    return (key < other.key) | ((key == other.key) & (index < other.index));
  }
};

// Equal intervals of keys, at most 2^kMaxBits of them.
template <typename K>
class Bins {
 public:
  Bins(K low, K high, int64_t n) : low_(low), high_(high) {
    int32_t bits = 6;
    while (bits < kMaxBits && int64_t{16} << bits < n) ++bits;
    while ((high - low) >> shift_ >> bits != 0) ++shift_;
    size_ = static_cast<int32_t>((high - low) >> shift_) + 1;
  }
  int32_t size() const { return size_; }
  int32_t of(K key) const { return static_cast<int32_t>((key - low_) >> shift_); }
  K low(int32_t bin) const { return low_ + (static_cast<K>(bin) << shift_); }
  K high(int32_t bin) const { return low(bin) + std::min<K>((K{1} << shift_) - 1, high_ - low(bin)); }

  static constexpr int32_t kMaxBits = 11;

 private:
  K low_, high_;
  int32_t shift_ = 0;
  int32_t size_;
};

using Counts = std::array<uint32_t, 1 << Bins<uint32_t>::kMaxBits>;

// The bin of the k-th key; k becomes its place inside the bin.
inline int32_t bin_of(const uint32_t* counts, int64_t* k) {
  int32_t bin = 0;
  for (; *k >= counts[bin]; ++bin) *k -= counts[bin];
  return bin;
}

// The k-th of ranks whose keys lie between low and high. Ranks of equal key ascend.
template <typename K>
Rank<K> nth_rank(Rank<K>* ranks, int64_t n, int64_t k, K low, K high) {
  while (n > 512 && low < high) {
    const Bins<K> bins(low, high, n);
    Counts counts{};
    for (int64_t i = 0; i < n; ++i) ++counts[bins.of(ranks[i].key)];
    const int32_t bin = bin_of(counts.data(), &k);
    int64_t kept = 0;
    for (int64_t i = 0; i < n; ++i) {
      const Rank<K> rank = ranks[i];
      ranks[kept] = rank;
      kept += bins.of(rank.key) == bin;
    }
    n = kept;
    low = bins.low(bin);
    high = bins.high(bin);
  }
  if (low < high) std::nth_element(ranks, ranks + k, ranks + n);
  return ranks[k];
}

// Appends the records before the pivot to `left`, the others to `right`.
template <typename R, typename K>
void partition_records(const R* records, int64_t n, int32_t axis, const Rank<K>& pivot, R* left, R* right) {
  using T = typename R::Scalar;
  const T pivot_x = coordinate_of(pivot.key);
  const int64_t gap = right - left;
  int64_t lefts = 0;
  for (int64_t i = 0; i < n; ++i) {
    const T x = records[i].at(axis);
    const bool is_left = (x < pivot_x) | ((x == pivot_x) & (records[i].index < pivot.index));
    // Arithmetic, because a branch would be mispredicted every other time.
    const int64_t to_right = gap + i - lefts;
    left[to_right + ((lefts - to_right) & -static_cast<int64_t>(is_left))] = records[i];
    lefts += is_left;
  }
}

constexpr int64_t kChunk = 8192;           // records of a large node that a thread takes at a time
constexpr int64_t kHistogramPoints = 256;  // smaller nodes are selected from as they are

// Moves records to `out`: the `left` smallest along the widest axis, then the others, both in their old order.
// 1 <= left < n. `out` also serves as scratch before.
template <typename R>
void split_records(Team& team, const R* in, R* out, int64_t n, int64_t left, int32_t dim) {
  using T = typename R::Scalar;
  using K = decltype(ordered_key(T{}));
  static_assert(sizeof(Rank<K>) <= sizeof(R), "ranks are kept where records go");
  const int64_t step = team.size() == 1 ? n : kChunk, chunks = ceil_div(n, step);
  const auto length = [=](int64_t chunk) { return std::min(step, n - chunk * step); };

  // The widest axis; the lowest one wins ties.
  std::vector<Range<T>> ranges(static_cast<size_t>(chunks * dim));
  team.run(chunks, [&](int32_t, int64_t chunk) {
    find_ranges(in + chunk * step, length(chunk), dim, &ranges[chunk * dim]);
  });
  int32_t axis = 0;
  T widest = -1;
  for (int32_t a = 0; a < dim; ++a) {
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      ranges[a].low = std::min(ranges[a].low, ranges[chunk * dim + a].low);
      ranges[a].high = std::max(ranges[a].high, ranges[chunk * dim + a].high);
    }
    const T extent = ranges[a].high - ranges[a].low;
    if (extent > widest) {
      widest = extent;
      axis = a;
    }
  }
  const K low = ordered_key(ranges[axis].low), high = ordered_key(ranges[axis].high);
  if (n <= kHistogramPoints) {
    auto* const ranks = reinterpret_cast<Rank<K>*>(out);
    for (int64_t i = 0; i < n; ++i) ranks[i] = {ordered_key(in[i].at(axis)), in[i].index};
    return partition_records(in, n, axis, nth_rank(ranks, n, left, low, high), out, out + left);
  }
  const Bins<K> bins(low, high, n);

  // What falls below the bin of the record that the left ones precede, and what into it.
  std::vector<Counts> counts(static_cast<size_t>(team.size()));
  team.run(chunks, [&](int32_t worker, int64_t chunk) {
    uint32_t* const count = counts[worker].data();
    const R* const records = in + chunk * step;
    const int64_t size = length(chunk);
    for (int64_t i = 0; i < size; ++i) ++count[bins.of(ordered_key(records[i].at(axis)))];
  });
  for (size_t worker = 1; worker < counts.size(); ++worker)
    for (int32_t bin = 0; bin < bins.size(); ++bin) counts[0][bin] += counts[worker][bin];
  int64_t k = left;
  const int32_t bin = bin_of(counts[0].data(), &k);
  const T first = coordinate_of(bins.low(bin)), last = coordinate_of(bins.high(bin));
  struct Part {
    int64_t below, inside;
  };
  std::vector<Part> parts(static_cast<size_t>(chunks));
  team.run(chunks, [&](int32_t, int64_t chunk) {
    const R* const records = in + chunk * step;
    auto* const ranks = reinterpret_cast<Rank<K>*>(out + chunk * step);
    const int64_t size = length(chunk);
    int64_t below = 0, inside = 0;
    for (int64_t i = 0; i < size; ++i) {
      const T x = records[i].at(axis);
      std::memcpy(&ranks[inside].key, &x, sizeof(x));
      ranks[inside].index = records[i].index;
      inside += (x >= first) & (x <= last);
      below += x < first;
    }
    for (int64_t i = 0; i < inside; ++i) {
      T x;
      std::memcpy(&x, &ranks[i].key, sizeof(x));
      ranks[i].key = ordered_key(x);
    }
    parts[chunk] = {below, inside};
  });
  Rank<K> pivot;
  if (chunks == 1) {
    pivot = nth_rank(reinterpret_cast<Rank<K>*>(out), parts[0].inside, k, bins.low(bin), bins.high(bin));
  } else {
    std::vector<Rank<K>> ranks;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const auto* const first = reinterpret_cast<const Rank<K>*>(out + chunk * step);
      ranks.insert(ranks.end(), first, first + parts[chunk].inside);
    }
    pivot = nth_rank(ranks.data(), static_cast<int64_t>(ranks.size()), k, bins.low(bin), bins.high(bin));
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const auto* const first = reinterpret_cast<const Rank<K>*>(out + chunk * step);
      parts[chunk].below +=
          std::count_if(first, first + parts[chunk].inside, [=](const Rank<K>& rank) { return rank < pivot; });
    }
  }
  int64_t before = 0;  // of the records on the left, those in chunks before this one
  for (Part& part : parts) {
    const int64_t here = part.below;
    part.below = before;
    before += here;
  }
  team.run(chunks, [&](int32_t, int64_t chunk) {
    R* const left_out = out + parts[chunk].below;
    R* const right_out = out + left + chunk * step - parts[chunk].below;
    partition_records(in + chunk * step, length(chunk), axis, pivot, left_out, right_out);
  });
}

}  // namespace erwin

#endif  // ERWIN_CPU_SELECT_H_
