// Ball attention for one instruction set; included by one source file for each.
//
// The lanes of a vector are queries: a tile holds the scores of a block of queries and some consecutive keys,
// transposed, as [keys, queries]. Then the softmax over keys is a loop over vectors that never combines lanes; keys and
// values are read as scalars, with any number of channels; and no key is padded. Only the gradients of k and v, which
// are sums over queries, use lanes for channels. All matrix products are done by `multiply`.
#ifndef ERWIN_CPU_ATTENTION_KERNEL_H_
#define ERWIN_CPU_ATTENTION_KERNEL_H_

#include "../arena.h"
#include "attention.h"
#include "vector_math.h"

namespace erwin {
namespace {

// Registers hold kRows x kColumns vectors of sums.
#if defined(__AVX512F__)
constexpr int kRows = 8, kColumns = 2;
#elif defined(__AVX2__)
constexpr int kRows = 4, kColumns = 3;
#elif defined(__aarch64__)
constexpr int kRows = 8, kColumns = 2;
#else
constexpr int kRows = 4, kColumns = 2;
#endif

constexpr int64_t kQueries = kColumns * kLanes;  // queries of a tile, which is also its row stride
constexpr int64_t kForwardKeys = 128;            // keys of a tile
constexpr int64_t kBackwardKeys = 64;            // keys of each of the two tiles that are in use at the same time
constexpr int64_t kCachedLength = 512;           // rows; for longer balls every head computes the distances again
constexpr int64_t kFetchChannels = 16;           // channels that a product of scores handles between two prefetches
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLowest = -3.40282347e+38f;

ERWIN_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows of channels, padded to whole vectors.
struct Rows {
  const float* data;
  int64_t stride;
};

template <int N>
struct Number {
  static constexpr int value = N;
};

// Calls body(Number<rows>, first) for groups of R rows, then for what is left in groups of R / 2, ..., down to one row.
template <int R, typename Body>
ERWIN_INLINE void for_rows(int64_t first, int64_t last, const Body& body) {
  for (; first + R <= last; first += R) body(Number<R>{}, first);
  if constexpr (R > 1) for_rows<R / 2>(first, last, body);
}

// sums[r][c] += sum over k < count of a[r * row + k * step] * b[k * stride + c * L], b in vectors of L.
template <int L, int R, int C>
ERWIN_INLINE void multiply(const float* a, int64_t row, int64_t step, const float* b, int64_t stride, int64_t count,
                           Vector<L> (&sums)[R][C]) {
#pragma GCC unroll 4
  for (int64_t k = 0; k < count; ++k) {
    Vector<L> right[C];
    for (int c = 0; c < C; ++c) right[c] = load<L>(b + k * stride + c * L);
    for (int r = 0; r < R; ++r) {
      const Vector<L> left = broadcast<L>(a[r * row + k * step]);
      for (int c = 0; c < C; ++c) sums[r][c] += left * right[c];
    }
  }
}

// Adds the product above to out[r * out_stride + c] for all rows r and columns c, in vectors of L. If `out` holds no
// sum yet, the product is stored instead.
template <int L, int R, int C>
ERWIN_INLINE void accumulate(const float* a, int64_t row, int64_t step, const float* b, int64_t stride, int64_t count,
                             float* out, int64_t out_stride, int64_t rows, bool first_sum) {
  for_rows<R>(0, rows, [&](auto block, int64_t first) __attribute__((always_inline)) {
    constexpr int r_end = decltype(block)::value;
    Vector<L> sums[r_end][C] = {};
    float* const to = out + first * out_stride;
    for (int r = 0; r < r_end && !first_sum; ++r) {
      for (int c = 0; c < C; ++c) sums[r][c] = load<L>(to + r * out_stride + c * L);
    }
    multiply<L, r_end, C>(a + first * row, row, step, b, stride, count, sums);
    for (int r = 0; r < r_end; ++r) {
      for (int c = 0; c < C; ++c) store<L>(to + r * out_stride + c * L, sums[r][c]);
    }
  });
}

// out[j, c] += sum over i < queries of tile[j, i] * x[i, c]. Lanes are channels; the last channels use narrower
// vectors.
template <int L>
void accumulate_keys(const float* tile, int64_t keys, Rows x, int64_t queries, float* out, int64_t stride,
                     int64_t first, int64_t channels, bool first_sum) {
  for (; first + 2 * L <= channels; first += 2 * L) {
    accumulate<L, kRows, 2>(tile, kQueries, 1, x.data + first, x.stride, queries, out + first, stride, keys, first_sum);
  }
  for (; first + L <= channels; first += L) {
    accumulate<L, 2 * kRows, 1>(tile, kQueries, 1, x.data + first, x.stride, queries, out + first, stride, keys,
                                first_sum);
  }
  if constexpr (L > 4) accumulate_keys<L / 2>(tile, keys, x, queries, out, stride, first, channels, first_sum);
}

template <int S, int... I>
struct Lanes {};
template <int S, int N, int... I>
struct LanesUpTo : LanesUpTo<S, N - 1, N - 1, I...> {};
template <int S, int... I>
struct LanesUpTo<S, 0, I...> {
  typedef Lanes<S, I...> type;
};

// Exchanges the blocks of S lanes off the diagonal of two rows.
template <int L, int S, int... I>
ERWIN_INLINE void exchange(Vector<L>& a, Vector<L>& b, Lanes<S, I...>) {
  const Vector<L> first = __builtin_shufflevector(a, b, ((I & S) ? L + I - S : I)...);
  b = __builtin_shufflevector(a, b, ((I & S) ? L + I : I + S)...);
  a = first;
}

template <int L, int S>
ERWIN_INLINE void transpose_blocks(Vector<L> (&rows)[L]) {
  for (int i = 0; i < L; ++i) {
    if ((i & S) == 0) exchange<L>(rows[i], rows[i + S], typename LanesUpTo<S, L>::type{});
  }
  if constexpr (S > 1) transpose_blocks<L, S / 2>(rows);
}

// out[c, r] = factor[c] * in[r, c] for a block of kLanes x kLanes. If `in` has fewer rows (`in_rows`), its last row is
// repeated; `out_rows` rows of `out` are written.
ERWIN_INLINE void transpose(const float* in, int64_t in_stride, int64_t in_rows, Vector<kLanes> factor, float* out,
                            int64_t out_stride, int64_t out_rows) {
  Vector<kLanes> square[kLanes];
  for (int i = 0; i < kLanes; ++i) square[i] = load<kLanes>(in + least(i, in_rows - 1) * in_stride) * factor;
  transpose_blocks<kLanes, kLanes / 2>(square);
  for (int i = 0; i < kLanes; ++i) {
    if (i < out_rows) store<kLanes>(out + i * out_stride, square[i]);
  }
}

ERWIN_INLINE void to_float(const uint16_t* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
    std::memcpy(to + i, &bits, sizeof bits);
  }
}

// Rounds to nearest, ties to even.
ERWIN_INLINE void to_bfloat16(const float* from, int64_t count, uint16_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const uint32_t quiet_nan = (bits >> 16) | 0x40;
    to[i] = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded);
  }
}

// What all heads of a ball share: where its rows lie in memory, and the distances between them.
//
// Scratch memory is laid out once, for the longest ball of a call. Every ball uses the front of these arrays, so a
// shorter ball must never need a larger array than a longer one.
struct Ball {
  const erwin_attention& attention;
  int64_t stride;     // elements of a row of channels in scratch memory
  float* place;       // [dim, padded] coordinates; queries beyond the length have those of the first row
  float* distance;    // [length, padded] or, if not cached, [keys of a tile, kQueries]
  int64_t start = 0, length = 0;
  int64_t padded = 0;  // length, rounded up to whole tiles
  bool cached = false;

  Ball(const erwin_attention& a, int64_t longest, Arena& arena)
      : attention(a),
        stride(round_up(a.channels, kLanes)),
        place(arena.take<float>(a.dim, round_up(longest, kQueries))),
        distance(take_distances(least(longest, kCachedLength), arena)) {}

  // Memory that is enough for every ball with cached distances, and for one tile of a ball without.
  static float* take_distances(int64_t longest_cached, Arena& arena) {
    static_assert(kForwardKeys <= kCachedLength && kBackwardKeys <= kCachedLength && kQueries <= kCachedLength);
    return arena.take<float>(longest_cached, round_up(longest_cached, kQueries));
  }

  void begin(const AttentionTask& task) {
    start = task.start;
    length = task.length;
    padded = round_up(length, kQueries);
    cached = length <= kCachedLength;
  }

  int64_t row(int64_t i) const { return attention.perm == nullptr ? start + i : attention.perm[start + i]; }

  // The element where row `i` of a head begins.
  int64_t offset(const erwin_heads& x, int64_t head, int64_t i) const {
    return row(i) * x.row_stride + head * x.head_stride;
  }

  void locate() {
    if (attention.pos_dtype == ERWIN_FLOAT64) {
      read_positions(static_cast<const double*>(attention.pos));
    } else {
      read_positions(static_cast<const float*>(attention.pos));
    }
    if (cached) measure(0, length, 0, padded, distance, padded);
  }

  // Coordinates relative to the first row. The subtraction is in float64, because float32 would lose small differences
  // far from the origin.
  template <typename T>
  void read_positions(const T* pos) {
    const T* const origin = pos + row(0) * attention.dim;
    for (int64_t i = 0; i < padded; ++i) {
      const T* const from = i < length ? pos + row(i) * attention.dim : origin;
      for (int64_t k = 0; k < attention.dim; ++k) {
        place[k * padded + i] = static_cast<float>(sizeof(T) == 8 ? from[k] - origin[k] : from[k]);
      }
    }
  }

  // Writes to[j, i], the distance from key row `key` + j to query row `query` + i, for `keys` and `queries` rows.
  void measure(int64_t key, int64_t keys, int64_t query, int64_t queries, float* to, int64_t to_stride) const {
    for (int64_t j = 0; j < keys; ++j) {
      for (int64_t i = 0; i < queries; i += kLanes) {
        Vector<kLanes> square{};
        for (int64_t k = 0; k < attention.dim; ++k) {
          const float* const axis = place + k * padded;
          const Vector<kLanes> difference = load<kLanes>(axis + query + i) - axis[key + j];
          square += difference * difference;
        }
        store<kLanes>(to + j * to_stride + i, square_root<kLanes>(square));
      }
    }
  }

  // Distances of a tile, and their row stride.
  const float* tile(int64_t key, int64_t keys, int64_t query, int64_t queries, int64_t& tile_stride) const {
    if (cached) {
      tile_stride = padded;
      return distance + key * padded + query;
    }
    tile_stride = kQueries;
    measure(key, keys, query, queries, distance, kQueries);
    return distance;
  }

  // Copies `count` rows, starting with `first`, as [count, stride]; padding channels are zero.
  void read(const erwin_heads& x, int64_t head, int64_t first, int64_t count, float* to) const {
    const int64_t channels = attention.channels;
    for (int64_t i = 0; i < count; ++i, to += stride) {
      const int64_t at = offset(x, head, first + i);
      if (attention.dtype == ERWIN_FLOAT32) {
        const float* const from = static_cast<const float*>(x.data) + at;
        for (int64_t c = 0; c < channels; ++c) to[c] = from[c];
      } else {
        to_float(static_cast<const uint16_t*>(x.data) + at, channels, to);
      }
      for (int64_t c = channels; c < stride; ++c) to[c] = 0;
    }
  }

  // Whether rows can be used in place: no permutation or conversion is needed, and a row is a whole number of vectors.
  bool direct() const {
    return attention.dtype == ERWIN_FLOAT32 && attention.perm == nullptr && attention.channels == stride;
  }

  // The same rows, either in place or copied to `scratch`.
  Rows view(const erwin_heads& x, int64_t head, int64_t first, int64_t count, float* scratch) const {
    if (direct()) return {static_cast<const float*>(x.data) + offset(x, head, first), x.row_stride};
    read(x, head, first, count, scratch);
    return {scratch, stride};
  }

  // to[c, i] = factor * rows[i, c] for C vectors of queries; missing queries repeat the last one.
  template <int C>
  void transpose_in(Rows rows, int64_t queries, float factor, float* to) const {
    for (int i = 0; i < C * kLanes; i += kLanes) {
      for (int64_t c = 0; c < stride; c += kLanes) {
        transpose(rows.data + i * rows.stride + c, rows.stride, queries - i, broadcast<kLanes>(factor),
                  to + c * kQueries + i, kQueries, kLanes);
      }
    }
  }

  // Writes factor[i] * from[c, i] as rows.
  template <int C>
  void transpose_out(const float* from, const Vector<kLanes> (&factor)[C], const erwin_heads& x, int64_t head,
                     int64_t first, int64_t queries, float* scratch) const {
    const bool at_once = direct();
    float* const to = at_once ? static_cast<float*>(x.data) + offset(x, head, first) : scratch;
    const int64_t to_stride = at_once ? x.row_stride : stride;
    for (int i = 0; i < C; ++i) {
      for (int64_t c = 0; c < stride; c += kLanes) {
        transpose(from + c * kQueries + i * kLanes, kQueries, kLanes, factor[i], to + i * kLanes * to_stride + c,
                  to_stride, queries - i * kLanes);
      }
    }
    if (!at_once) write(x, head, first, queries, 1, scratch);
  }

  // Writes the rows [count, stride], times `factor`.
  void write(const erwin_heads& x, int64_t head, int64_t first, int64_t count, float factor, float* from) const {
    const int64_t channels = attention.channels;
    for (int64_t i = 0; i < count; ++i, from += stride) {
      const int64_t at = offset(x, head, first + i);
      if (attention.dtype == ERWIN_FLOAT32) {
        float* const to = static_cast<float*>(x.data) + at;
        for (int64_t c = 0; c < channels; ++c) to[c] = factor * from[c];
      } else {
        for (int64_t c = 0; c < channels; ++c) from[c] *= factor;
        to_bfloat16(from, channels, static_cast<uint16_t*>(x.data) + at);
      }
    }
  }
};

// While one head is computed, prefetches the rows of N tensors that the next head reads and writes. These pieces of
// memory are too far apart for the processor's own prefetchers.
template <int N>
struct Ahead {
  const Ball& ball;
  const erwin_heads* tensors[N];
  int64_t head = 0, next = 0, last = 0;

  void begin(int64_t of_head, int64_t last_head) {
    head = of_head;
    next = 0;
    // Pieces shorter than a cache line are on the same line as the previous head: nothing to prefetch.
    last = of_head < last_head && ball.attention.channels * item() >= kLine ? ball.length : 0;
  }

  // How many rows to prefetch at each of the `steps` points of a block of scores, so that all rows are requested by the
  // end of the head, which has length^2 / (kRows * kQueries) blocks.
  int64_t share(int64_t steps) const { return (kRows * kQueries + ball.length * steps - 1) / (ball.length * steps); }

  ERWIN_INLINE void advance() { fetch(share(1)); }

  ERWIN_INLINE void fetch(int64_t rows) {
    for (const int64_t end = least(next + rows, last); next < end; ++next) {
      for (const erwin_heads* const x : tensors) {
        const char* const piece = static_cast<const char*>(x->data) + ball.offset(*x, head, next) * item();
        for (int64_t at = 0; at < ball.attention.channels * item(); at += kLine) __builtin_prefetch(piece + at);
      }
    }
  }

  int64_t item() const { return ball.attention.dtype == ERWIN_FLOAT32 ? 4 : 2; }
};

void fill(float* to, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

// Calls body(Number<columns>) with the number of vectors that hold `queries`, at most C.
template <int C, typename Body>
ERWIN_INLINE void with_columns(int64_t queries, const Body& body) {
  if constexpr (C > 1) {
    if (queries <= (C - 1) * kLanes) return with_columns<C - 1>(queries, body);
  }
  body(Number<C>{});
}

struct Forward {
  Ball ball;
  float *key_rows, *value_rows;  // [length, stride]: copies of rows that cannot be used in place
  float* rows;           // [kQueries, stride]: the same for the block's queries and outputs
  float* query;          // [stride, kQueries]: transposed, in units of log(2)
  float* out;            // [stride, kQueries]: transposed
  float* tile;           // [kForwardKeys, kQueries]
  Rows key, value;       // of the head

  Forward(const erwin_attention& a, int64_t longest, Arena& arena)
      : ball(a, longest, arena),
        key_rows(arena.take<float>(longest, ball.stride)),
        value_rows(arena.take<float>(longest, ball.stride)),
        rows(arena.take<float>(kQueries, ball.stride)),
        query(arena.take<float>(kQueries, ball.stride)),
        out(arena.take<float>(kQueries, ball.stride)),
        tile(arena.take<float>(kForwardKeys, kQueries)) {}

  void run(const AttentionTask& task, const erwin_heads& to, float* lse) {
    const erwin_attention& a = ball.attention;
    ball.begin(task);
    Ahead<4> ahead{ball, {&a.q, &a.k, &a.v, &to}};
    ahead.begin(task.first_head, task.last_head);
    ahead.fetch(ball.length);
    ball.locate();
    for (int64_t head = task.first_head; head < task.last_head; ++head) {
      ahead.begin(head + 1, task.last_head);
      key = ball.view(a.k, head, 0, ball.length, key_rows);
      value = ball.view(a.v, head, 0, ball.length, value_rows);
      for (int64_t first = 0; first < ball.length; first += kQueries) {
        const int64_t queries = least(kQueries, ball.length - first);
        with_columns<kColumns>(queries, [&](auto columns) {
          block<decltype(columns)::value>(head, first, queries, to, lse, ahead);
        });
      }
    }
  }

  template <int C>
  void block(int64_t head, int64_t first, int64_t queries, const erwin_heads& to, float* lse, Ahead<4>& ahead) {
    typedef Vector<kLanes> V;
    const erwin_attention& a = ball.attention;
    const float sigma = a.sigma[head] * kLog2E;
    ball.transpose_in<C>(ball.view(a.q, head, first, queries, rows), queries, a.scale * kLog2E, query);

    V top[C], total[C];
    for (int c = 0; c < C; ++c) top[c] = broadcast<kLanes>(kLowest), total[c] = V{};
    for (int64_t j = 0; j < ball.length; j += kForwardKeys) {
      const int64_t keys = least(kForwardKeys, ball.length - j);
      V tops[C];
      for (int c = 0; c < C; ++c) tops[c] = top[c];
      scores<C>(first, j, keys, sigma, tops, ahead);
      if (j > 0) {
        for (int c = 0; c < C; ++c) {
          const V shrink = exp2<kLanes>(top[c] - tops[c]);
          total[c] *= shrink;
          for (int64_t k = 0; k < a.channels; ++k) {
            float* const sums = out + k * kQueries + c * kLanes;
            store<kLanes>(sums, load<kLanes>(sums) * shrink);
          }
        }
      }
      for (int c = 0; c < C; ++c) top[c] = tops[c];
      weigh<C>(keys, top, total);
      accumulate<kLanes, kRows, C>(value.data + j * value.stride, 1, value.stride, tile, kQueries, keys, out, kQueries,
                                   a.channels, j == 0);
    }

    V share[C];
    float sums[kQueries];
    for (int c = 0; c < C; ++c) {
      share[c] = 1.0f / total[c];
      store<kLanes>(sums + c * kLanes, top[c] + log2<kLanes>(total[c]));
    }
    for (int64_t i = 0; i < queries; ++i) lse[ball.row(first + i) * a.heads + head] = sums[i];
    ball.transpose_out<C>(out, share, to, head, first, queries, rows);
  }

  // Computes the tile's scores, and updates the largest score of every query.
  template <int C>
  ERWIN_INLINE void scores(int64_t first, int64_t j, int64_t keys, float sigma, Vector<kLanes> (&top)[C],
                           Ahead<4>& ahead) {
    int64_t stride;
    const float* const distance = ball.tile(j, keys, first, C * kLanes, stride);
    const int64_t channels = ball.attention.channels;
    const int64_t steps = channels > kFetchChannels ? round_up(channels, kFetchChannels) / kFetchChannels : 1;
    const int64_t share = ahead.share(steps);
    for_rows<kRows>(0, keys, [&](auto block, int64_t from) __attribute__((always_inline)) {
      constexpr int r_end = decltype(block)::value;
      const float* const from_key = key.data + (j + from) * key.stride;
      Vector<kLanes> sums[r_end][C] = {};
      // Prefetches are spread out, because many at once would wait for each other.
      for (int64_t c = 0; c < channels; c += kFetchChannels) {
        ahead.fetch(share);
        multiply<kLanes, r_end, C>(from_key + c, key.stride, 1, query + c * kQueries, kQueries,
                                   least(kFetchChannels, channels - c), sums);
      }
      for (int r = 0; r < r_end; ++r) {
        for (int c = 0; c < C; ++c) {
          const Vector<kLanes> score = sums[r][c] + sigma * load<kLanes>(distance + (from + r) * stride + c * kLanes);
          top[c] = larger<kLanes>(top[c], score);
          store<kLanes>(tile + (from + r) * kQueries + c * kLanes, score);
        }
      }
    });
  }

  // Replaces scores by weights relative to the largest score: 2^(score - top).
  template <int C>
  ERWIN_INLINE void weigh(int64_t keys, const Vector<kLanes> (&top)[C], Vector<kLanes> (&total)[C]) {
    for_rows<4>(0, keys, [&](auto block, int64_t from) __attribute__((always_inline)) {
      for (int r = 0; r < decltype(block)::value; ++r) {
        for (int c = 0; c < C; ++c) {
          float* const at = tile + (from + r) * kQueries + c * kLanes;
          const Vector<kLanes> weight = exp2<kLanes>(load<kLanes>(at) - top[c]);
          total[c] += weight;
          store<kLanes>(at, weight);
        }
      }
    });
  }
};

struct Backward {
  Ball ball;
  float *key_rows, *value_rows;                // [length, stride]: as in the forward pass
  float *grad_key, *grad_value;                // [length, stride]
  float *rows, *grad_rows, *other;             // [kQueries, stride]: the same for what a block reads and writes
  float *query, *grad, *grad_query;            // [stride, kQueries]: transposed
  float *weight, *slope;                       // [kBackwardKeys, kQueries]: weights; gradients at scores
  float *lse, *offset;                         // [kQueries]
  float* pull;                                 // [length, padded]: sum over heads of sigma * slope, or NULL
  float* grad_place;                           // [dim, padded] or NULL
  Rows key, value;                             // of the head

  Backward(const erwin_attention& a, int64_t longest, bool grad_pos, Arena& arena)
      : ball(a, longest, arena),
        key_rows(arena.take<float>(longest, ball.stride)),
        value_rows(arena.take<float>(longest, ball.stride)),
        grad_key(arena.take<float>(longest, ball.stride)),
        grad_value(arena.take<float>(longest, ball.stride)),
        rows(arena.take<float>(kQueries, ball.stride)),
        grad_rows(arena.take<float>(kQueries, ball.stride)),
        other(arena.take<float>(kQueries, ball.stride)),
        query(arena.take<float>(kQueries, ball.stride)),
        grad(arena.take<float>(kQueries, ball.stride)),
        grad_query(arena.take<float>(kQueries, ball.stride)),
        weight(arena.take<float>(kBackwardKeys, kQueries)),
        slope(arena.take<float>(kBackwardKeys, kQueries)),
        lse(arena.take<float>(kQueries)),
        offset(arena.take<float>(kQueries)),
        pull(grad_pos ? arena.take<float>(longest, round_up(longest, kQueries)) : nullptr),
        grad_place(grad_pos ? arena.take<float>(a.dim, round_up(longest, kQueries)) : nullptr) {}

  void run(const AttentionTask& task, const AttentionGradients& to, const float* saved_lse) {
    const erwin_attention& a = ball.attention;
    ball.begin(task);
    Ahead<8> ahead{ball, {&a.q, &a.k, &a.v, &to.out, &to.grad_out, &to.grad_q, &to.grad_k, &to.grad_v}};
    ahead.begin(task.first_head, task.last_head);
    ahead.fetch(ball.length);
    ball.locate();
    if (pull != nullptr) fill(pull, ball.length * ball.padded, 0);
    for (int64_t head = task.first_head; head < task.last_head; ++head) {
      ahead.begin(head + 1, task.last_head);
      key = ball.view(a.k, head, 0, ball.length, key_rows);
      value = ball.view(a.v, head, 0, ball.length, value_rows);
      float grad_sigma = 0;
      for (int64_t first = 0; first < ball.length; first += kQueries) {
        const int64_t queries = least(kQueries, ball.length - first);
        with_columns<kColumns>(queries, [&](auto columns) {
          grad_sigma += block<decltype(columns)::value>(head, first, queries, to, saved_lse, ahead);
        });
      }
      ball.write(to.grad_k, head, 0, ball.length, a.scale, grad_key);
      ball.write(to.grad_v, head, 0, ball.length, 1, grad_value);
      to.grad_sigma[task.ball * a.heads + head] = grad_sigma;
    }
    if (pull != nullptr) write_grad_pos(to.grad_pos);
  }

  // Returns what the block adds to the gradient of sigma.
  template <int C>
  float block(int64_t head, int64_t first, int64_t queries, const AttentionGradients& to, const float* saved_lse,
              Ahead<8>& ahead) {
    typedef Vector<kLanes> V;
    const erwin_attention& a = ball.attention;
    const int64_t stride = ball.stride, used = round_up(a.channels, 4);
    const Rows q = ball.view(a.q, head, first, queries, rows);
    const Rows grads = ball.view(to.grad_out, head, first, queries, grad_rows);
    ball.transpose_in<C>(q, queries, a.scale * kLog2E, query);
    ball.transpose_in<C>(grads, queries, 1, grad);
    read_sums(head, first, queries, C * kLanes, grads, ball.view(to.out, head, first, queries, other), saved_lse);
    const float sigma = a.sigma[head] * kLog2E;
    V lse_of[C], offset_of[C], grad_sigma[C];
    for (int c = 0; c < C; ++c) {
      lse_of[c] = load<kLanes>(lse + c * kLanes);
      offset_of[c] = load<kLanes>(offset + c * kLanes);
      grad_sigma[c] = V{};
    }
    for (int64_t j = 0; j < ball.length; j += kBackwardKeys) {
      const int64_t keys = least(kBackwardKeys, ball.length - j);
      int64_t distance_stride;
      const float* const distance = ball.tile(j, keys, first, C * kLanes, distance_stride);
      for_rows<kRows>(0, keys, [&](auto block, int64_t from) __attribute__((always_inline)) {
        constexpr int r_end = decltype(block)::value;
        ahead.advance();
        V sums[r_end][C] = {};
        multiply<kLanes, r_end, C>(key.data + (j + from) * key.stride, key.stride, 1, query, kQueries, a.channels,
                                   sums);
        for (int r = 0; r < r_end; ++r) {
          for (int c = 0; c < C; ++c) {
            const V score = sums[r][c] + sigma * load<kLanes>(distance + (from + r) * distance_stride + c * kLanes);
            store<kLanes>(weight + (from + r) * kQueries + c * kLanes, exp2<kLanes>(score - lse_of[c]));
          }
        }
      });
      for_rows<kRows>(0, keys, [&](auto block, int64_t from) __attribute__((always_inline)) {
        constexpr int r_end = decltype(block)::value;
        ahead.advance();
        V sums[r_end][C] = {};
        multiply<kLanes, r_end, C>(value.data + (j + from) * value.stride, value.stride, 1, grad, kQueries, a.channels,
                                   sums);
        for (int r = 0; r < r_end; ++r) {
          for (int c = 0; c < C; ++c) {
            const int64_t at = (from + r) * kQueries + c * kLanes;
            const V slope_of = load<kLanes>(weight + at) * (sums[r][c] - offset_of[c]);
            grad_sigma[c] += slope_of * load<kLanes>(distance + (from + r) * distance_stride + c * kLanes);
            store<kLanes>(slope + at, slope_of);
          }
        }
      });
      if (pull != nullptr) add_pull(a.sigma[head], j, keys, first, C * kLanes);
      accumulate<kLanes, kRows, C>(key.data + j * key.stride, 1, key.stride, slope, kQueries, keys, grad_query,
                                   kQueries, a.channels, j == 0);
      accumulate_keys<kLanes>(weight, keys, grads, queries, grad_value + j * stride, stride, 0, used, first == 0);
      accumulate_keys<kLanes>(slope, keys, q, queries, grad_key + j * stride, stride, 0, used, first == 0);
    }
    V scale[C];
    for (int c = 0; c < C; ++c) scale[c] = broadcast<kLanes>(a.scale);
    ball.transpose_out<C>(grad_query, scale, to.grad_q, head, first, queries, other);
    float all = 0;
    for (int c = 0; c < C; ++c) all += sum<kLanes>(grad_sigma[c]);
    return all;
  }

  // Reads, for every query, the dot product of its output and the output's gradient, and the logarithm of the sum of
  // weights that the forward pass saved. Queries beyond the end of the block get weight zero.
  void read_sums(int64_t head, int64_t first, int64_t queries, int64_t padded, Rows grads, Rows outs,
                 const float* saved_lse) {
    for (int64_t r = 0; r < padded; r += kLanes) {
      Vector<kLanes> products[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const int64_t at = least(r + i, queries - 1);
        products[i] = Vector<kLanes>{};
        for (int64_t c = 0; c < ball.stride; c += kLanes) {
          const Vector<kLanes> grad_of = load<kLanes>(grads.data + at * grads.stride + c);
          products[i] += grad_of * load<kLanes>(outs.data + at * outs.stride + c);
        }
      }
      transpose_blocks<kLanes, kLanes / 2>(products);
      for (int i = 1; i < kLanes; ++i) products[0] += products[i];
      store<kLanes>(offset + r, products[0]);
    }
    for (int64_t i = 0; i < padded; ++i) {
      lse[i] = i < queries ? saved_lse[ball.row(first + i) * ball.attention.heads + head] : -kLowest;
    }
  }

  void add_pull(float sigma, int64_t j, int64_t keys, int64_t first, int64_t queries) {
    for (int64_t r = 0; r < keys; ++r) {
      float* const to = pull + (j + r) * ball.padded + first;
      for (int64_t i = 0; i < queries; ++i) to[i] += sigma * slope[r * kQueries + i];
    }
  }

  // The gradient from each pair of rows points along the line between them, in opposite directions at the two rows.
  void write_grad_pos(float* grad_pos) {
    typedef Vector<kLanes> V;
    const int64_t dim = ball.attention.dim, padded = ball.padded;
    fill(grad_place, dim * padded, 0);
    for (int64_t j = 0; j < ball.length; ++j) {
      float* const force = pull + j * padded;
      for (int64_t i = 0; i < padded; i += kLanes) {
        V square{};
        for (int64_t k = 0; k < dim; ++k) {
          const V difference = load<kLanes>(ball.place + k * padded + i) - ball.place[k * padded + j];
          square += difference * difference;
        }
        const V apart = square_root<kLanes>(square);
        store<kLanes>(force + i, apart > 0.0f ? load<kLanes>(force + i) / apart : V{});
      }
      for (int64_t k = 0; k < dim; ++k) {
        float* const axis = ball.place + k * padded;
        float* const to = grad_place + k * padded;
        V opposite{};
        for (int64_t i = 0; i < padded; i += kLanes) {
          const V along = load<kLanes>(force + i) * (load<kLanes>(axis + i) - axis[j]);
          store<kLanes>(to + i, load<kLanes>(to + i) + along);
          opposite += along;
        }
        to[j] -= sum<kLanes>(opposite);
      }
    }
    for (int64_t i = 0; i < ball.length; ++i) {
      for (int64_t k = 0; k < dim; ++k) grad_pos[ball.row(i) * dim + k] = grad_place[k * padded + i];
    }
  }
};

int64_t forward_scratch(const erwin_attention& attention, int64_t longest) {
  Arena arena{nullptr};
  Forward(attention, longest, arena);
  return arena.used;
}

int64_t backward_scratch(const erwin_attention& attention, int64_t longest, bool grad_pos) {
  Arena arena{nullptr};
  Backward(attention, longest, grad_pos, arena);
  return arena.used;
}

void forward(const erwin_attention& attention, const AttentionTask& task, const erwin_heads& out, float* lse,
             const AttentionScratch& scratch) {
  Arena arena{scratch.memory};
  Forward(attention, scratch.longest, arena).run(task, out, lse);
}

void backward(const erwin_attention& attention, const AttentionTask& task, const AttentionGradients& gradients,
              const float* lse, const AttentionScratch& scratch) {
  Arena arena{scratch.memory};
  Backward(attention, scratch.longest, gradients.grad_pos != nullptr, arena).run(task, gradients, lse);
}

constexpr AttentionKernel kAttentionKernel = {forward_scratch, backward_scratch, forward, backward};

}  // namespace
}  // namespace erwin

#endif  // ERWIN_CPU_ATTENTION_KERNEL_H_
