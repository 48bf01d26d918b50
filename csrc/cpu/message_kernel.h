// Message passing for one instruction set; included by one source file for each.
//
// The lanes of a vector are channels. An edge's message is not stored; only the backward pass stores four numbers per
// edge. It computes the message twice again, once in the order of the targets and once in the order of the sources.
#ifndef ERWIN_CPU_MESSAGE_KERNEL_H_
#define ERWIN_CPU_MESSAGE_KERNEL_H_

#include "message.h"
#include "vector.h"

namespace erwin {
namespace {

using Lanes = Vector<kLanes>;

// The normal distribution function is 1/2 + z P(z^2), and the derivative of GELU is 1/2 + z Q(z^2), up to |z| = kTail;
// beyond it both are 0 or 1, with an error of at most 6e-7. P and Q are polynomials in u = 2 z^2 / kTail^2 - 1, fitted
// to minimise the largest error of the functions, which is 4e-8; with rounding errors it is 1.4e-7 and 2.5e-7.
constexpr float kTail = 5.5f;
constexpr float kDistribution[] = {
    0x1.07463cp-3f, -0x1.06d9b8p-4f, 0x1.870fbap-5f, -0x1.3dbeccp-5f, 0x1.06d04ap-5f, -0x1.abd3ap-6f,
    0x1.4c65ecp-6f, -0x1.e0c066p-7f, 0x1.57096ap-7f, -0x1.f6f762p-8f, 0x1.15a1ep-8f, -0x1.42487cp-10f,
    0x1.0c675ap-10f, -0x1.66d452p-10f, 0x1.1a1a3ap-11f};
constexpr float kSlope[] = {
    0x1.07b2e8p-3f, -0x1.0d4516p-4f, 0x1.b7a00ap-5f, -0x1.b844aap-5f, 0x1.ee1b54p-5f, -0x1.19292ep-4f,
    0x1.301134p-4f, -0x1.2f4796p-4f, 0x1.0b4df4p-4f, -0x1.9a54a2p-5f, 0x1.40ab3ep-5f, -0x1.06c2c6p-5f,
    0x1.18a45p-6f, -0x1.b9e95cp-9f, 0x1.e067c8p-9f, -0x1.7af60ep-8f, 0x1.236574p-9f};

// u, u^2, u^4, u^8, u^16
struct Powers {
  Lanes of[5];
};

// The terms First .. Last - 1 of a polynomial, divided by u^First. The terms are split at powers of two (Estrin's
// scheme): the chain of dependent products is a third as long as with Horner's rule.
template <int First, int Last, int N>
ERWIN_INLINE Lanes polynomial(const Powers& powers, const float (&coefficients)[N]) {
  if constexpr (Last - First == 1) {
    return broadcast<kLanes>(coefficients[First]);
  } else {
    constexpr int terms = Last - First;
    constexpr int level = terms > 16 ? 4 : terms > 8 ? 3 : terms > 4 ? 2 : terms > 2 ? 1 : 0;
    constexpr int middle = First + (1 << level);
    return polynomial<middle, Last>(powers, coefficients) * powers.of[level] +
           polynomial<First, middle>(powers, coefficients);
  }
}

template <int N>
ERWIN_INLINE Lanes polynomial(const Powers& powers, const float (&coefficients)[N]) {
  return polynomial<0, N>(powers, coefficients);
}

struct Gelu {
  Lanes value, slope;
};

// Exact GELU (no tanh approximation) and, if wanted, its derivative. The result of NaN is NaN.
template <bool WithSlope>
ERWIN_INLINE Gelu gelu(Lanes z) {
  const Lanes square = z * z;
  Powers powers;
  powers.of[0] = square * (2 / (kTail * kTail)) - 1.0f;
  for (int i = 1; i < 5; ++i) powers.of[i] = powers.of[i - 1] * powers.of[i - 1];
  const Lanes tail = z > 0.0f ? broadcast<kLanes>(1.0f) : Lanes{};
  const auto within = square < kTail * kTail;
  Gelu g;
  g.value = z * (within ? z * polynomial(powers, kDistribution) + 0.5f : tail);
  if constexpr (WithSlope) g.slope = within ? z * polynomial(powers, kSlope) + 0.5f : tail;
  return g;
}

constexpr int64_t kAhead = 8;  // how many edges ahead rows are prefetched

// P is the type of the coordinates. W is the number of floats of a row and D the dimension; both are 0 if they are
// known only at run time.
template <typename P, int W, int D>
class Messages {
 public:
  Messages(const erwin_message& message, float* scratch)
      : m_(message),
        width_(W ? W : round_up(message.channels, ERWIN_ROW)),
        dim_(D ? D : message.dim),
        per_channel_(1.0f / static_cast<float>(message.channels)),
        scratch_(scratch) {}

  bool forward(int64_t first, int64_t last, float* mean) const {
    float local[2][W ? W : 1], near[D ? D : 1];
    float* const value = W ? local[0] : scratch_;
    float* const total = W ? local[1] : scratch_ + width_;
    float* const offset = D ? near : scratch_ + 2 * width_;
    const auto fetch_source = [&](int64_t, int64_t j) { fetch(m_.source_rows + j * width_); };
    for (int64_t i = first; i < last; ++i) {
      clear(total);
      const bool valid = for_edges(into(), i, fetch_source, [&](int64_t, int64_t j) {
        const Moments moments = normalise<false>(j, i, offset, value, nullptr);
        for (int64_t c = 0; c < width_; c += kLanes) add(total + c, load<kLanes>(value + c) * moments.inverse_std);
      });
      if (!valid) return false;
      const int64_t degree = m_.target_ptr[i + 1] - m_.target_ptr[i];
      const float weight = degree > 0 ? 1.0f / static_cast<float>(degree) : 0.0f, bias = degree > 0 ? 1.0f : 0.0f;
      for (int64_t c = 0; c < width_; c += kLanes) {
        const Lanes scaled = load<kLanes>(total + c) * weight * load<kLanes>(m_.norm_weight + c);
        store<kLanes>(mean + i * width_ + c, scaled + load<kLanes>(m_.norm_bias + c) * bias);
      }
    }
    return true;
  }

  bool backward_target(int64_t first, int64_t last, const MessageGradients& gradients, float* partial) const {
    float local[4][W ? W : 1], near[D ? D : 1];
    float* const value = W ? local[0] : scratch_;
    float* const slope = W ? local[1] : scratch_ + width_;
    float* const total = W ? local[2] : scratch_ + 2 * width_;
    float* const gradient = W ? local[3] : scratch_ + 3 * width_;
    float* const offset = D ? near : scratch_ + 4 * width_;
    const auto fetch_source = [&](int64_t, int64_t j) { fetch(m_.source_rows + j * width_); };
    for (int64_t d = 0; d < dim_ + 2; ++d) clear(partial + d * width_);
    for (int64_t i = first; i < last; ++i) {
      const int64_t degree = m_.target_ptr[i + 1] - m_.target_ptr[i];
      const float weight = degree > 0 ? 1.0f / static_cast<float>(degree) : 0.0f;
      const float* const grad_mean = gradients.grad_mean + i * width_;
      float* const scaled = gradients.scaled + i * width_;
      Lanes sums = {};
      for (int64_t c = 0; c < width_; c += kLanes) {
        const Lanes u = load<kLanes>(grad_mean + c) * load<kLanes>(m_.norm_weight + c) * weight;
        store<kLanes>(scaled + c, u);
        sums += u;
      }
      const float mean_scaled = sum<kLanes>(sums) * per_channel_;
      clear(total);
      clear(gradient);
      const bool valid = for_edges(into(), i, fetch_source, [&](int64_t edge, int64_t j) {
        const Moments moments = normalise<true>(j, i, offset, value, slope);
        Lanes products = {};
        for (int64_t c = 0; c < width_; c += kLanes) products += load<kLanes>(value + c) * load<kLanes>(scaled + c);
        const float r = moments.inverse_std, projection = sum<kLanes>(products) * per_channel_;
        const EdgeGradient e = {moments.mean, r, -r * r * r * projection, -r * mean_scaled};
        gradients.edge[edge] = e;
        for (int64_t c = 0; c < width_; c += kLanes) {
          const Lanes centred = load<kLanes>(value + c);
          add(total + c, centred * r);
          const Lanes dz = (load<kLanes>(scaled + c) * r + centred * e.slope + e.shift) * load<kLanes>(slope + c);
          add(gradient + c, dz);
          for (int64_t d = 0; d < dim_; ++d) add(partial + d * width_ + c, dz * offset[d]);
        }
      });
      if (!valid) return false;
      float* const grad_norm = partial + dim_ * width_;
      for (int64_t c = 0; c < width_; c += kLanes) {
        store<kLanes>(gradients.grad_target + i * width_ + c, load<kLanes>(gradient + c));
        if (degree == 0) continue;
        add(grad_norm + c, load<kLanes>(grad_mean + c) * load<kLanes>(total + c) * weight);
        add(grad_norm + width_ + c, load<kLanes>(grad_mean + c));
      }
    }
    return true;
  }

  bool backward_source(int64_t first, int64_t last, const MessageGradients& gradients) const {
    float local[1][W ? W : 1], near[D ? D : 1];
    float* const gradient = W ? local[0] : scratch_;
    float* const offset = D ? near : scratch_ + width_;
    const auto fetch_target = [&](int64_t edge, int64_t i) {
      __builtin_prefetch(gradients.edge + edge);
      fetch(m_.target_rows + i * width_);
      fetch(gradients.scaled + i * width_);
    };
    for (int64_t j = first; j < last; ++j) {
      clear(gradient);
      const bool valid = for_edges(out_of(), j, fetch_target, [&](int64_t edge, int64_t i) {
        const EdgeGradient e = gradients.edge[edge];
        const float* const scaled = gradients.scaled + i * width_;
        subtract(j, i, offset);
        for (int64_t c = 0; c < width_; c += kLanes) {
          const Gelu g = gelu<true>(argument(j, i, offset, c));
          const Lanes dg = load<kLanes>(scaled + c) * e.inverse_std + (g.value - e.mean) * e.slope + e.shift;
          add(gradient + c, dg * g.slope);
        }
      });
      if (!valid) return false;
      for (int64_t c = 0; c < width_; c += kLanes) {
        store<kLanes>(gradients.grad_source + j * width_ + c, load<kLanes>(gradient + c));
      }
    }
    return true;
  }

 private:
  struct Moments {
    float mean, inverse_std;
  };

  // The table of the edges at every node; for every edge, its end at that node (`own`) and the other end.
  struct Incidence {
    const int64_t *ptr, *order, *own, *other;
  };

  ERWIN_INLINE Incidence into() const { return {m_.target_ptr, m_.target_order, m_.target, m_.source}; }
  ERWIN_INLINE Incidence out_of() const { return {m_.source_ptr, m_.source_order, m_.source, m_.target}; }

  static ERWIN_INLINE void add(float* to, Lanes x) { store<kLanes>(to, load<kLanes>(to) + x); }

  ERWIN_INLINE void fetch(const float* row) const {
    for (int64_t c = 0; c < width_; c += ERWIN_ROW) __builtin_prefetch(row + c);
  }

  ERWIN_INLINE void clear(float* row) const {
    for (int64_t c = 0; c < width_; c += kLanes) store<kLanes>(row + c, Lanes{});
  }

  // Calls body(edge, other end) for the edges of a node, and some edges earlier ahead(edge, other end), which
  // prefetches what body reads. Returns false if an end is not a node, or if the table cannot be a result of
  // erwin_group: the listed edges must belong to the node and ascend, so that no edge is visited twice.
  template <typename Ahead, typename F>
  ERWIN_INLINE bool for_edges(const Incidence& at, int64_t node, const Ahead& ahead, const F& body) const {
    const int64_t first = at.ptr[node], last = at.ptr[node + 1];
    if (first < 0 || last < first || last > m_.edges) return false;
    int64_t before = -1;
    for (int64_t k = first; k < last; ++k) {
      if (k + kAhead < m_.edges) {
        const int64_t edge = at.order[k + kAhead];
        if (is_below(edge, m_.edges)) {
          __builtin_prefetch(at.own + edge);
          if (is_below(at.other[edge], m_.nodes)) ahead(edge, at.other[edge]);
        }
      }
      const int64_t edge = at.order[k];
      if (edge <= before || edge >= m_.edges || at.own[edge] != node) return false;
      const int64_t other = at.other[edge];
      if (!is_below(other, m_.nodes)) return false;
      body(edge, other);
      before = edge;
    }
    return true;
  }

  static ERWIN_INLINE bool is_below(int64_t index, int64_t count) {
    return static_cast<uint64_t>(index) < static_cast<uint64_t>(count);
  }

  // Writes the coordinates of source j relative to target i.
  ERWIN_INLINE void subtract(int64_t j, int64_t i, float* offset) const {
    const P* const pos = static_cast<const P*>(m_.pos);
    for (int64_t d = 0; d < dim_; ++d) offset[d] = static_cast<float>(pos[j * dim_ + d] - pos[i * dim_ + d]);
  }

  // The argument of GELU at an edge from j to i.
  ERWIN_INLINE Lanes argument(int64_t j, int64_t i, const float* offset, int64_t c) const {
    Lanes z = load<kLanes>(m_.source_rows + j * width_ + c) + load<kLanes>(m_.target_rows + i * width_ + c);
    for (int64_t d = 0; d < dim_; ++d) z += load<kLanes>(m_.weight + d * width_ + c) * offset[d];
    return z;
  }

  // Writes GELU at one edge minus its mean over the channels to `centred`, and its derivative to `slope`.
  template <bool WithSlope>
  ERWIN_INLINE Moments normalise(int64_t j, int64_t i, float* offset, float* centred, float* slope) const {
    subtract(j, i, offset);
    Lanes sums = {};
    for (int64_t c = 0; c < width_; c += kLanes) {
      const Gelu g = gelu<WithSlope>(argument(j, i, offset, c));
      store<kLanes>(centred + c, g.value);
      if constexpr (WithSlope) store<kLanes>(slope + c, g.slope);
      sums += g.value;  // padding is zero, and GELU(0) = 0
    }
    const float mean = sum<kLanes>(sums) * per_channel_;
    if constexpr (W == 0) {
      for (int64_t c = m_.channels; c < width_; ++c) centred[c] = mean;  // then padding adds nothing to the variance
    }
    Lanes squares = {};
    for (int64_t c = 0; c < width_; c += kLanes) {
      const Lanes x = load<kLanes>(centred + c) - mean;
      store<kLanes>(centred + c, x);
      squares += x * x;
    }
    return {mean, 1.0f / __builtin_sqrtf(sum<kLanes>(squares) * per_channel_ + m_.eps)};
  }

  const erwin_message& m_;
  const int64_t width_;
  const int64_t dim_;
  const float per_channel_;
  float* const scratch_;
};

// Calls run(messages) with the matching template: rows of common lengths are kept in registers.
template <typename P, int D, typename F>
bool with_width(const erwin_message& message, float* scratch, const F& run) {
  switch (message.channels) {
    case 16:
      return run(Messages<P, 16, D>(message, scratch));
    case 32:
      return run(Messages<P, 32, D>(message, scratch));
    case 64:
      return run(Messages<P, 64, D>(message, scratch));
    default:
      return run(Messages<P, 0, D>(message, scratch));
  }
}

template <typename F>
bool dispatch(const erwin_message& message, float* scratch, const F& run) {
  if (message.pos_dtype == ERWIN_FLOAT64) return run(Messages<double, 0, 0>(message, scratch));
  if (message.dim == 3) return with_width<float, 3>(message, scratch, run);
  return run(Messages<float, 0, 0>(message, scratch));
}

int64_t scratch_size(const erwin_message& message) {
  return 4 * (message.channels + ERWIN_ROW) + message.dim;
}

bool forward(const erwin_message& message, int64_t first, int64_t last, float* scratch, float* mean) {
  return dispatch(message, scratch, [&](const auto& messages) { return messages.forward(first, last, mean); });
}

bool backward_target(const erwin_message& message, int64_t first, int64_t last, const MessageGradients& gradients,
                     float* scratch, float* partial) {
  return dispatch(message, scratch,
                  [&](const auto& messages) { return messages.backward_target(first, last, gradients, partial); });
}

bool backward_source(const erwin_message& message, int64_t first, int64_t last, const MessageGradients& gradients,
                     float* scratch) {
  return dispatch(message, scratch,
                  [&](const auto& messages) { return messages.backward_source(first, last, gradients); });
}

constexpr MessageKernel kMessageKernel = {scratch_size, forward, backward_target, backward_source};

}  // namespace
}  // namespace erwin

#endif  // ERWIN_CPU_MESSAGE_KERNEL_H_
