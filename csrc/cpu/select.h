// The upper part of a tree on the host: one split of a large node, out of place and stable.
//
// The pivot is the first record that goes right. A histogram of a sample's coordinates gives the few bins that can hold
// it, and a selection among the records in these bins finds it. The partition also computes the ranges of both sides.
// It keeps the order of records on either side, so the records of a node always ascend by index and ties need no extra
// work.
#ifndef ERWIN_CPU_SELECT_H_
#define ERWIN_CPU_SELECT_H_

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "isa.h"
#include "record.h"
#include "team.h"

namespace erwin {

// Lowest and highest coordinate along an axis.
template <typename T>
struct Range {
  T low = std::numeric_limits<T>::infinity(), high = -std::numeric_limits<T>::infinity();

  void include(const Range& other) {
    low = std::min(low, other.low);
    high = std::max(high, other.high);
  }
};

// The ranges of a node's records along every axis; empty if the dimension is known only at run time (D = 0).
template <typename T, int D>
struct Box : std::array<Range<T>, D> {
  void include(const Box& other) {
    for (int32_t a = 0; a < D; ++a) (*this)[a].include(other[a]);
  }

  // Works on all lanes of a record at once; the result in the lane of the index is not used. Two minima are computed
  // side by side, because a minimum has a longer latency than a load.
  void include(const Record<T, D>* records, int64_t n) {
    typedef T Lanes __attribute__((vector_size(sizeof(Record<T, D>))));
    static_assert(sizeof(Record<T, D>) > D * sizeof(T), "a record has room for its index");
    if (n == 0) return;
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
    for (int32_t k = 0; k < 2; ++k)
      for (int32_t a = 0; a < D; ++a) (*this)[a].include({low[k][a], high[k][a]});
  }
};

template <typename T>
struct Box<T, 0> {
  void include(const Box&) {}
  void include(const Record<T, 0>*, int64_t) {}
};

template <typename T>
void find_ranges(const Record<T, 0>* records, int64_t n, int32_t dim, Range<T>* ranges) {
  for (int32_t a = 0; a < dim; ++a)
    for (int64_t i = 0; i < n; ++i) ranges[a].include({records[i].at(a), records[i].at(a)});
}

// The axis with the largest extent; if several are equal, the lowest.
template <typename T>
int32_t widest_axis(const Range<T>* ranges, int32_t dim) {
  int32_t axis = 0;
  T widest = -1;
  for (int32_t a = 0; a < dim; ++a) {
    const T extent = ranges[a].high - ranges[a].low;
    if (extent > widest) {
      widest = extent;
      axis = a;
    }
  }
  return axis;
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

// The bin that holds the k-th key; k becomes the place of that key inside the bin.
inline int32_t bin_of(const uint32_t* counts, int64_t* k) {
  int32_t bin = 0;
  for (; *k >= counts[bin]; ++bin) *k -= counts[bin];
  return bin;
}

// The k-th smallest of ranks with keys between low and high. Ranks with equal keys must come in ascending order.
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

// The numbers of records below an interval and inside it.
struct Part {
  int64_t below, inside;
};

// The vector code for passes over these records, or NULL if this processor or type has none.
template <typename T, int D>
const QuadPasses* quad_passes() {
  if constexpr (std::is_same_v<T, float> && (D == 2 || D == 3)) {
    static_assert(sizeof(Record<T, D>) == 4 * sizeof(T), "four lanes, the index after the coordinates");
    return geometry_kernels().quads;
  } else {
    return nullptr;
  }
}

// Writes the ranks of the records between first and last. There are no branches, because most would be mispredicted.
template <typename T, int D, typename K>
Part collect_ranks(const Record<T, D>* records, int64_t n, int32_t axis, T first, T last, Rank<K>* ranks) {
  Part part{0, 0};
  const QuadPasses* const quads = quad_passes<T, D>();
  if (quads != nullptr) {
    part.inside = quads->collect(reinterpret_cast<const float*>(records), n, {axis, D}, static_cast<float>(first),
                                 static_cast<float>(last), reinterpret_cast<uint32_t*>(ranks), &part.below);
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const T x = records[i].at(axis);
      std::memcpy(&ranks[part.inside].key, &x, sizeof(x));
      ranks[part.inside].index = records[i].index;
      part.inside += (x >= first) & (x <= last);
      part.below += x < first;
    }
  }
  for (int64_t i = 0; i < part.inside; ++i) {
    T x;
    std::memcpy(&x, &ranks[i].key, sizeof(x));
    ranks[i].key = ordered_key(x);
  }
  return part;
}

// Appends the records before the pivot to `left`, the others to `right`. Returns how many went left.
template <typename R, typename K>
int64_t partition_records(const R* records, int64_t n, int32_t axis, const Rank<K>& pivot, R* left, R* right) {
  using T = typename R::Scalar;
  const T pivot_x = coordinate_of(pivot.key);
  const int64_t gap = right - left;
  int64_t lefts = 0;
  for (int64_t i = 0; i < n; ++i) {
    const T x = records[i].at(axis);
    const bool is_left = (x < pivot_x) | ((x == pivot_x) & (records[i].index < pivot.index));
    // Computed without a branch, because half of the branches would be mispredicted.
    const int64_t to_right = gap + i - lefts;
    left[to_right + ((lefts - to_right) & -static_cast<int64_t>(is_left))] = records[i];
    lefts += is_left;
  }
  return lefts;
}

constexpr int64_t kChunkRecords = 8192;    // records of a large node that a thread takes at a time
constexpr int64_t kBlockRecords = 512;     // records that fit in the first-level cache: a second pass is fast
constexpr int64_t kHistogramPoints = 256;  // smaller nodes use the selection without a histogram
constexpr int64_t kSamplePoints = 16384;   // size of the sample in larger nodes

template <typename T, int D>
struct Boxes {
  Box<T, D> left, right;
};

// Partitions records and finds the boxes of both sides.
template <typename T, int D, typename K>
Boxes<T, D> partition_boxes(const Record<T, D>* records, int64_t n, int32_t axis, const Rank<K>& pivot,
                            Record<T, D>* left, Record<T, D>* right) {
  Boxes<T, D> boxes;
  const QuadPasses* const quads = quad_passes<T, D>();
  if (quads != nullptr) {
    QuadRange ranges[2];
    const auto x = static_cast<float>(coordinate_of(pivot.key));
    quads->partition(reinterpret_cast<const float*>(records), n, {axis, D}, x, pivot.index,
                     reinterpret_cast<float*>(left), reinterpret_cast<float*>(right), ranges);
    if constexpr (D > 0) {
      for (int32_t a = 0; a < D; ++a) {
        boxes.left[a] = {ranges[0].low[a], ranges[0].high[a]};
        boxes.right[a] = {ranges[1].low[a], ranges[1].high[a]};
      }
    }
    return boxes;
  }
  for (int64_t i = 0; i < n; i += kBlockRecords) {
    const int64_t size = std::min(kBlockRecords, n - i);
    const int64_t lefts = partition_records(records + i, size, axis, pivot, left, right);
    boxes.left.include(left, lefts);
    boxes.right.include(right, size - lefts);
    left += lefts;
    right += size - lefts;
  }
  return boxes;
}

// Moves records to `out`: the `left` smallest along the widest axis, then the others, both in their old order.
// 1 <= left < n. `out` is also used as scratch memory. `box` encloses the records; returns the boxes of both sides.
template <typename T, int D>
Boxes<T, D> split_records(Team& team, const Record<T, D>* in, Record<T, D>* out, int64_t n, int64_t left, int32_t dim,
                          const Box<T, D>& box) {
  using R = Record<T, D>;
  using K = decltype(ordered_key(T{}));
  static_assert(sizeof(Rank<K>) <= sizeof(R), "ranks are kept where records go");
  const int64_t step = team.size() == 1 ? n : kChunkRecords, chunks = ceil_div(n, step);
  const auto length = [=](int64_t chunk) { return std::min(step, n - chunk * step); };

  int32_t axis;
  Range<T> range;
  if constexpr (D > 0) {
    axis = widest_axis(box.data(), D);
    range = box[axis];
  } else {
    std::vector<Range<T>> ranges(static_cast<size_t>(chunks * dim));
    team.run(chunks, [&](int32_t, int64_t chunk) {
      find_ranges(in + chunk * step, length(chunk), dim, &ranges[chunk * dim]);
    });
    for (int64_t i = dim; i < chunks * dim; ++i) ranges[i % dim].include(ranges[i]);
    axis = widest_axis(ranges.data(), dim);
    range = ranges[axis];
  }
  const K low = ordered_key(range.low), high = ordered_key(range.high);
  if (n <= kHistogramPoints) {
    auto* const ranks = reinterpret_cast<Rank<K>*>(out);
    for (int64_t i = 0; i < n; ++i) ranks[i] = {ordered_key(in[i].at(axis)), in[i].index};
    partition_records(in, n, axis, nth_rank(ranks, n, left, low, high), out, out + left);
    return {};
  }

  std::vector<Part> parts(static_cast<size_t>(chunks));
  const auto collect = [&](K lowest, K highest) {
    const T first = coordinate_of(lowest), last = coordinate_of(highest);
    team.run(chunks, [&](int32_t, int64_t chunk) {
      auto* const ranks = reinterpret_cast<Rank<K>*>(out + chunk * step);
      parts[chunk] = collect_ranks(in + chunk * step, length(chunk), axis, first, last, ranks);
    });
    Part sum{0, 0};
    for (const Part& part : parts) sum = {sum.below + part.below, sum.inside + part.inside};
    return sum;
  };

  // Find an interval that holds the pivot. First try one from a sample, three standard deviations to either side of the
  // estimate; if the pivot is not in it, use the exact bin from a histogram of all records.
  const Bins<K> bins(low, high, n);
  K from, to;
  int64_t k;
  for (int64_t stride = n > kSamplePoints ? std::max<int64_t>(8, n / kSamplePoints) : 1;; stride = 1) {
    std::vector<Counts> counts(static_cast<size_t>(stride == 1 ? team.size() : 1));
    const auto count = [&](int32_t worker, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i += stride) ++counts[worker][bins.of(ordered_key(in[i].at(axis)))];
    };
    if (stride == 1) {
      team.run(chunks, [&](int32_t worker, int64_t chunk) {
        count(worker, chunk * step, chunk * step + length(chunk));
      });
    } else {
      count(0, 0, n);
    }
    for (size_t worker = 1; worker < counts.size(); ++worker)
      for (int32_t bin = 0; bin < bins.size(); ++bin) counts[0][bin] += counts[worker][bin];
    const int64_t sample = ceil_div(n, stride);
    const auto margin = stride == 1 ? 0 : static_cast<int64_t>(1.5 * std::sqrt(static_cast<double>(sample)));
    int64_t first = std::max<int64_t>(left / stride - margin, 0);
    int64_t last = std::min(left / stride + margin, sample - 1);
    from = bins.low(bin_of(counts[0].data(), &first));
    to = bins.high(bin_of(counts[0].data(), &last));
    const Part sum = collect(from, to);
    k = left - sum.below;
    if (k >= 0 && k < sum.inside) break;
  }
  Rank<K> pivot;
  if (chunks == 1) {
    pivot = nth_rank(reinterpret_cast<Rank<K>*>(out), parts[0].inside, k, from, to);
  } else {
    std::vector<Rank<K>> ranks;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const auto* const first = reinterpret_cast<const Rank<K>*>(out + chunk * step);
      ranks.insert(ranks.end(), first, first + parts[chunk].inside);
    }
    pivot = nth_rank(ranks.data(), static_cast<int64_t>(ranks.size()), k, from, to);
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
  std::vector<Boxes<T, D>> boxes(static_cast<size_t>(chunks));
  team.run(chunks, [&](int32_t, int64_t chunk) {
    R* const left_out = out + parts[chunk].below;
    R* const right_out = out + left + chunk * step - parts[chunk].below;
    boxes[chunk] = partition_boxes(in + chunk * step, length(chunk), axis, pivot, left_out, right_out);
  });
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    boxes[0].left.include(boxes[chunk].left);
    boxes[0].right.include(boxes[chunk].right);
  }
  return boxes[0];
}

}  // namespace erwin

#endif  // ERWIN_CPU_SELECT_H_
