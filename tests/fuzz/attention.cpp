// Compares ball attention and its gradients with plain loops in double precision; checks that it refuses bad arguments.
#include <cmath>
#include <deque>
#include <numeric>

#include "cases.h"
#include "clouds.h"

namespace fuzz {
namespace {

float from_bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

uint16_t to_bfloat16(float value) {  // towards zero
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

struct Shape {
  int64_t rows, heads, channels;
  int32_t dtype;
  int64_t size() const { return rows * heads * channels; }
};

// A tensor [rows, heads, channels] with random strides. No call may write to the gaps in its memory.
class Tensor {
 public:
  Tensor(Choices& choices, const Shape& shape) : shape_(shape), item_(shape.dtype == ERWIN_FLOAT32 ? 4 : 2) {
    const int64_t form = choices.below(4), gap = form == 1 ? choices.below(20) : 0;
    head_ = form == 3 ? std::max<int64_t>(shape.rows, 1) * shape.channels : shape.channels + gap;
    row_ = form == 3 ? shape.channels : shape.heads * head_ * (form == 2 ? 3 : 1) + gap;
    const int64_t count = shape.size() == 0 ? 0 : offset(shape.rows - 1, shape.heads - 1, shape.channels);
    memory_ = Guarded<char>(count * item_, choices.below(3) * item_);
    used_.resize(static_cast<size_t>(count));
    each([&](int64_t i, int64_t) { used_[static_cast<size_t>(i)] = true; });
  }

  erwin_heads heads() const { return {memory_.data(), row_, head_}; }

  void fill(Random& random, double size) {
    each([&](int64_t i, int64_t) {
      const auto value = static_cast<float>(size * random.unit());
      if (item_ == 4) std::memcpy(memory_.data() + 4 * i, &value, 4);
      const uint16_t bits = to_bfloat16(value);
      if (item_ == 2) std::memcpy(memory_.data() + 2 * i, &bits, 2);
    });
  }

  // The values, contiguous.
  std::vector<double> values() const {
    std::vector<double> out(static_cast<size_t>(shape_.size()));
    each([&](int64_t i, int64_t j) {
      float value;
      uint16_t bits;
      std::memcpy(&value, memory_.data() + (item_ == 4 ? 4 * i : 0), 4 / (item_ == 4 ? 1 : 2));
      std::memcpy(&bits, memory_.data() + 2 * i, 2);
      out[static_cast<size_t>(j)] = item_ == 4 ? value : from_bfloat16(bits);
    });
    return out;
  }

  // Checks, after a call has written the values, that the gaps are unchanged.
  void expect_gaps() const {
    const Guarded<char> junk(1);
    for (size_t i = 0; i < used_.size(); ++i) {
      for (int64_t b = 0; b < item_ && !used_[i]; ++b) {
        FUZZ_EXPECT(memory_[static_cast<int64_t>(i) * item_ + b] == junk[0], "wrote between rows of channels");
      }
    }
  }

  bool operator==(const Tensor& other) const { return values() == other.values(); }

 private:
  int64_t offset(int64_t row, int64_t head, int64_t channel) const { return row * row_ + head * head_ + channel; }

  template <typename F>
  void each(const F& body) const {
    for (int64_t r = 0, j = 0; r < shape_.rows; ++r)
      for (int64_t h = 0; h < shape_.heads; ++h)
        for (int64_t c = 0; c < shape_.channels; ++c) body(offset(r, h, c), j++);
  }

  Shape shape_;
  int64_t item_, row_, head_;
  Guarded<char> memory_;
  std::vector<bool> used_;
};

// A result, and the sum of the absolute values of its terms: rounding errors are relative to this sum.
struct Sum {
  double value = 0, size = 0;
  void add(double weight, double weight_size, double x) { value += weight * x, size += weight_size * std::fabs(x); }
};

using Sums = std::vector<Sum>;

template <typename Values>
void expect_near(const char* name, const Values& found, const Sums& expected, double tolerance) {
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::fabs(static_cast<double>(found[static_cast<int64_t>(i)]) - expected[i].value);
    FUZZ_EXPECT(error <= tolerance * expected[i].size + 1e-30, "%s is off by %g at %zu: %g, not %g", name, error, i,
                static_cast<double>(found[static_cast<int64_t>(i)]), expected[i].value);
  }
}

struct Expected {
  Sums out, lse, grad_q, grad_k, grad_v, grad_sigma, grad_pos;
  double highest = 1;  // score
};

// `x[3]`: values of q, k, v; `grad`: the gradient of the output; `at`: positions.
Expected attend(const erwin_attention& a, const std::vector<double> (&x)[3], const std::vector<double>& grad,
                const std::vector<double>& at) {
  const auto size = static_cast<size_t>(a.rows * a.heads * a.channels);
  Expected e{Sums(size), Sums(static_cast<size_t>(a.rows * a.heads)), Sums(size), Sums(size), Sums(size),
             Sums(static_cast<size_t>(a.heads)), Sums(static_cast<size_t>(a.rows * a.dim))};
  const auto& [q, k, v] = x;
  const auto row_of = [&](int64_t place) { return a.perm == nullptr ? place : a.perm[place]; };
  const auto dot = [&](const std::vector<double>& s, size_t i, const std::vector<double>& t, size_t j) {
    Sum sum;
    for (size_t c = 0; c < static_cast<size_t>(a.channels); ++c) sum.add(s[i + c], std::fabs(s[i + c]), t[j + c]);
    return sum;
  };
  int64_t start = 0;
  for (int64_t ball = 0; ball < a.balls; start += a.ball_len[ball++]) {
    const int64_t n = a.ball_len[ball];
    std::vector<double> distance(static_cast<size_t>(n)), weight(distance);
    std::vector<Sum> slope(distance.size());
    for (int64_t i = 0; i < n * a.heads; ++i) {
      const int64_t h = i / n, row = row_of(start + i % n);
      const auto r = static_cast<size_t>((row * a.heads + h) * a.channels);
      double highest = -INFINITY, total = 0, mean = 0, mean_size = 0;
      for (int64_t j = 0; j < n; ++j) {
        double square = 0;
        const int64_t other = row_of(start + j);
        for (int64_t d = 0; d < a.dim; ++d) {
          square += std::pow(at[static_cast<size_t>(row * a.dim + d)] - at[static_cast<size_t>(other * a.dim + d)], 2);
        }
        const size_t s = static_cast<size_t>((other * a.heads + h) * a.channels), m = static_cast<size_t>(j);
        distance[m] = std::sqrt(square);
        const double bias = static_cast<double>(a.sigma[h]) * distance[m];
        weight[m] = static_cast<double>(a.scale) * dot(q, r, k, s).value + bias;
        highest = std::max(highest, weight[m]);
        e.highest = std::max({e.highest, std::fabs(weight[m]), std::fabs(bias)});
        slope[m] = dot(grad, r, v, s);
      }
      for (double& w : weight) total += w = std::exp(w - highest);
      for (size_t m = 0; m < weight.size(); ++m) {
        weight[m] /= total;
        mean += weight[m] * slope[m].value, mean_size += weight[m] * slope[m].size;
      }
      const double lse = (highest + std::log(total)) / std::log(2.0);
      e.lse[r / static_cast<size_t>(std::max<int64_t>(a.channels, 1))] = {lse, 1 + std::fabs(lse)};
      for (int64_t j = 0; j < n; ++j) {
        const int64_t other = row_of(start + j);
        const size_t s = static_cast<size_t>((other * a.heads + h) * a.channels), m = static_cast<size_t>(j);
        const double g = weight[m] * (slope[m].value - mean), size_of_g = weight[m] * (slope[m].size + mean_size);
        const double scale = static_cast<double>(a.scale), sigma = static_cast<double>(a.sigma[h]);
        for (size_t c = 0; c < static_cast<size_t>(a.channels); ++c) {
          e.out[r + c].add(weight[m], weight[m], v[s + c]);
          e.grad_v[s + c].add(weight[m], weight[m], grad[r + c]);
          e.grad_q[r + c].add(g * scale, size_of_g * std::fabs(scale), k[s + c]);
          e.grad_k[s + c].add(g * scale, size_of_g * std::fabs(scale), q[r + c]);
        }
        e.grad_sigma[static_cast<size_t>(h)].add(g, size_of_g, distance[m]);
        for (int64_t d = 0; d < a.dim && distance[m] > 0; ++d) {
          const size_t from = static_cast<size_t>(other * a.dim + d), to = static_cast<size_t>(row * a.dim + d);
          const double step = (at[to] - at[from]) / distance[m];
          e.grad_pos[to].add(g * sigma, size_of_g * std::fabs(sigma), step);
          e.grad_pos[from].add(-g * sigma, size_of_g * std::fabs(sigma), step);
        }
      }
    }
  }
  return e;
}

// A call with all its arrays.
struct Case {
  erwin_context context = host(1);
  const erwin_context* context_at = &context;
  erwin_attention a = {};
  const erwin_attention* attention_at = &a;
  Guarded<int64_t> ball_len, perm;
  Guarded<double> double_pos;
  Guarded<float> float_pos, sigma;
  std::vector<double> at;
  std::deque<Tensor> qkv;
  // For calls that must be refused:
  int32_t backward = 0;
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
  int64_t* bytes = nullptr;
  erwin_heads out = {}, grad = {}, grads[3] = {};
  const erwin_heads *out_at = &out, *grad_at = &grad, *grad_q_at = &grads[0];
  float *lse = nullptr, *grad_sigma = nullptr;

  Shape shape() const { return {a.rows, a.heads, a.channels, a.dtype}; }

  Case(Choices& choices, bool small) {
    Random random = choices.random();
    const bool is_long = !small && (choices.threaded() || choices.one_in(96));
    a.isa = static_cast<int32_t>(std::min<int64_t>(choices.below(4), erwin_cpu_isa() + 1)) - 1;
    a.dtype = choices.one_in(3) ? ERWIN_BFLOAT16 : ERWIN_FLOAT32;
    a.pos_dtype = choices.one_in(3);
    a.heads = small ? 2 : is_long ? 1 + choices.below(2) : choices.of<int64_t>({1, 2, 3, 5, 0});
    a.channels = small ? 8 : is_long ? 1 + choices.below(9) : choices.of<int64_t>({8, 16, 1, 5, 31, 33, 64, 0});
    a.dim = choices.of<int64_t>({3, 2, 1, 4, 7});
    a.scale = choices.of({0.35f, 1.0f, 0.0f, -0.5f});
    std::vector<int64_t> lengths;
    for (int64_t balls = choices.below(is_long ? 5 : 9) + small; balls > 0; --balls) {
      const int64_t border = choices.of<int64_t>({0, 1, 2, 15, 16, 17, 33, is_long ? 512 : 64, is_long ? 513 : 65});
      lengths.push_back(small ? 3 : choices.below(4) == 0 ? border : random.below(is_long ? 700 : 40));
    }
    ball_len = Guarded<int64_t>(lengths);
    a.balls = ball_len.size(), a.ball_len = ball_len.data();
    a.rows = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    perm = Guarded<int64_t>(a.rows);
    for (int64_t i = 0; i < a.rows; ++i) {
      perm[i] = i;
      std::swap(perm[i], perm[random.below(i + 1)]);
    }
    if (small || choices.one_in(2)) a.perm = perm.data();
    // Positions are chosen so that their differences are exact, without rounding errors. Some points coincide.
    const double offset = choices.one_in(3) ? (a.pos_dtype == ERWIN_FLOAT64 ? 1 << 30 : 1 << 10) : 0;
    float_pos = Guarded<float>(a.pos_dtype == ERWIN_FLOAT32 ? a.rows * a.dim : 0);
    double_pos = Guarded<double>(a.pos_dtype == ERWIN_FLOAT64 ? a.rows * a.dim : 0);
    for (int64_t i = 0; i < a.rows * a.dim; ++i) {
      at.push_back(offset + static_cast<double>(random.below(256) - 128) / (random.below(4) == 0 ? 128 : 64));
      if (i >= a.dim && i / a.dim % 4 == 0) at.back() = at[static_cast<size_t>(i - a.dim)];
      if (a.pos_dtype == ERWIN_FLOAT32) float_pos[i] = static_cast<float>(at.back());
      else double_pos[i] = at.back();
    }
    a.pos = a.pos_dtype == ERWIN_FLOAT32 ? static_cast<void*>(float_pos.data()) : double_pos.data();
    sigma = Guarded<float>(a.heads);
    for (int64_t h = 0; h < a.heads; ++h) sigma[h] = static_cast<float>(2 * random.unit() - 1);
    a.sigma = sigma.data();
    for (erwin_heads* x : {&a.q, &a.k, &a.v}) {
      qkv.emplace_back(choices, shape());
      qkv.back().fill(random, 2);
      *x = qkv.back().heads();
    }
  }
};

Guarded<char> make_workspace(Choices& choices, const Case& c, int32_t backward) {
  int64_t bytes = 0;
  expect_ok("workspace", erwin_attention_workspace(&c.context, &c.a, backward, &bytes));
  return Guarded<char>(bytes, choices.below(64));  // a workspace may start at any address
}

void check_attention(Choices& choices) {
  Case c(choices, false);
  Random random = choices.random();
  Tensor grad(choices, c.shape());
  grad.fill(random, 1);
  const Expected e = attend(c.a, {c.qkv[0].values(), c.qkv[1].values(), c.qkv[2].values()}, grad.values(), c.at);
  const double exact = 3e-6 * (1 + e.highest), rounded = c.a.dtype == ERWIN_FLOAT32 ? exact : 0.02;
  const bool with_pos = choices.one_in(2);

  std::deque<Tensor> last;
  for (const int32_t threads : {kHostThreads[choices.below(4)], kHostThreads[choices.below(4)]}) {
    c.context.num_threads = threads;
    std::deque<Tensor> results;  // output and gradients of q, k, v
    for (int32_t i = 0; i < 4; ++i) results.emplace_back(choices, c.shape());
    erwin_heads heads[4], grad_heads = grad.heads();
    for (size_t i = 0; i < 4; ++i) heads[i] = results[i].heads();
    const Guarded<float> lse(c.a.rows * c.a.heads), sigma(c.a.heads), pos(with_pos ? c.a.rows * c.a.dim : 0);
    {
      const Guarded<char> workspace = make_workspace(choices, c, 0);
      expect_ok("forward", erwin_attention_forward(&c.context, &c.a, workspace.data(), workspace.size(), &heads[0],
                                                   lse.data()));
    }
    const Guarded<char> workspace = make_workspace(choices, c, with_pos ? 2 : 1);
    expect_ok("backward", erwin_attention_backward(&c.context, &c.a, workspace.data(), workspace.size(), &heads[0],
                                                   lse.data(), &grad_heads, &heads[1], &heads[2], &heads[3],
                                                   sigma.data(), with_pos ? pos.data() : nullptr));
    expect_near("out", results[0].values(), e.out, rounded);
    if (c.a.channels > 0) expect_near("lse", lse, e.lse, 1e-5);
    expect_near("grad_q", results[1].values(), e.grad_q, rounded);
    expect_near("grad_k", results[2].values(), e.grad_k, rounded);
    expect_near("grad_v", results[3].values(), e.grad_v, rounded);
    expect_near("grad_sigma", sigma, e.grad_sigma, rounded);
    if (with_pos) expect_near("grad_pos", pos, e.grad_pos, rounded);
    for (const Tensor& result : results) result.expect_gaps();
    FUZZ_EXPECT(last.empty() || last == results, "other bits on %d threads", threads);
    last.swap(results);
  }
}

const Fault<Case> kShared[] = {
    {"context NULL", [](Case& c) { c.context_at = nullptr; }},
    {"attention NULL", [](Case& c) { c.attention_at = nullptr; }},
    {"num_threads 0", [](Case& c) { c.context.num_threads = 0; }}, {"device 0", [](Case& c) { c.context.device = 0; }},
    {"device -7", [](Case& c) { c.context.device = -7; }}, {"isa 3", [](Case& c) { c.a.isa = 3; }},
    {"dtype 1", [](Case& c) { c.a.dtype = ERWIN_FLOAT64; }},
    {"pos_dtype 2", [](Case& c) { c.a.pos_dtype = ERWIN_BFLOAT16; }}, {"rows -1", [](Case& c) { c.a.rows = -1; }},
    {"rows + 1", [](Case& c) { c.a.rows += 1; }}, {"rows - 1", [](Case& c) { c.a.rows -= 1; }},
    {"balls -1", [](Case& c) { c.a.balls = -1; }}, {"balls - 1", [](Case& c) { c.a.balls -= 1; }},
    {"heads -1", [](Case& c) { c.a.heads = -1; }}, {"heads 2^60", [](Case& c) { c.a.heads = int64_t{1} << 60; }},
    {"channels -1", [](Case& c) { c.a.channels = -1; }},
    {"channels 2^60", [](Case& c) { c.a.channels = int64_t{1} << 60; }}, {"dim -1", [](Case& c) { c.a.dim = -1; }},
    {"dim 2^60", [](Case& c) { c.a.dim = int64_t{1} << 60; }},
    {"ball_len NULL", [](Case& c) { c.a.ball_len = nullptr; }}, {"ball_len -1", [](Case& c) { c.ball_len[0] = -1; }},
    {"ball_len 2^62 twice", [](Case& c) { c.ball_len[0] = c.ball_len[c.a.balls - 1] = int64_t{1} << 62; }},
};
const Fault<Case> kSize[] = {
    {"backward 3", [](Case& c) { c.backward = 3; }}, {"backward -1", [](Case& c) { c.backward = -1; }},
    {"bytes NULL", [](Case& c) { c.bytes = nullptr; }},
};
const Fault<Case> kMemory[] = {
    {"workspace NULL", [](Case& c) { c.workspace = nullptr; }},
    {"workspace small", [](Case& c) { c.workspace_bytes -= 1; }},
    {"workspace -1", [](Case& c) { c.workspace_bytes = -1; }}, {"perm -1", [](Case& c) { c.perm[1] = -1; }},
    {"perm far away", [](Case& c) { c.perm[1] = INT64_MAX; }},
    {"perm at the end", [](Case& c) { c.perm[1] = c.a.rows; }}, {"perm twice", [](Case& c) { c.perm[1] = c.perm[0]; }},
    {"q NULL", [](Case& c) { c.a.q.data = nullptr; }}, {"k NULL", [](Case& c) { c.a.k.data = nullptr; }},
    {"v NULL", [](Case& c) { c.a.v.data = nullptr; }}, {"pos NULL", [](Case& c) { c.a.pos = nullptr; }},
    {"sigma NULL", [](Case& c) { c.a.sigma = nullptr; }}, {"out NULL", [](Case& c) { c.out_at = nullptr; }},
    {"out's data NULL", [](Case& c) { c.out.data = nullptr; }}, {"lse NULL", [](Case& c) { c.lse = nullptr; }},
};
const Fault<Case> kBackward[] = {
    {"grad_out NULL", [](Case& c) { c.grad_at = nullptr; }},
    {"grad_out's data NULL", [](Case& c) { c.grad.data = nullptr; }},
    {"grad_q NULL", [](Case& c) { c.grad_q_at = nullptr; }},
    {"grad_k's data NULL", [](Case& c) { c.grads[1].data = nullptr; }},
    {"grad_sigma NULL", [](Case& c) { c.grad_sigma = nullptr; }},
};

}  // namespace

void attention_case(Choices& choices) {
  stage("attention");
  check_attention(choices);
}

void bad_attention_case(Choices& choices) {
  stage("bad attention", "preparation");
  Case c(choices, true);
  Random random = choices.random();
  std::deque<Tensor> tensors;
  for (erwin_heads* x : {&c.out, &c.grad, &c.grads[0], &c.grads[1], &c.grads[2]}) {
    tensors.emplace_back(choices, c.shape());
    tensors.back().fill(random, 1);
    *x = tensors.back().heads();
  }
  const int64_t entry = choices.below(3), part = choices.below(3);  // size, forward, backward
  const Guarded<float> lse(c.a.rows * c.a.heads), sigma(c.a.heads);
  std::fill(lse.begin(), lse.end(), 1.0f);
  const Guarded<int64_t> bytes(1);
  const Guarded<char> workspace = make_workspace(choices, c, entry == 2);
  c.lse = lse.data(), c.grad_sigma = sigma.data(), c.bytes = bytes.data();
  c.workspace = workspace.data(), c.workspace_bytes = workspace.size();
  stage("bad attention", part == 0                 ? spoil(choices, kShared, c)
                         : entry == 0              ? spoil(choices, kSize, c)
                         : entry == 2 && part == 2 ? spoil(choices, kBackward, c)
                                                   : spoil(choices, kMemory, c));
  if (entry == 0) return expect_refusal(erwin_attention_workspace(c.context_at, c.attention_at, c.backward, c.bytes));
  const int32_t status =
      entry == 1 ? erwin_attention_forward(c.context_at, c.attention_at, c.workspace, c.workspace_bytes, c.out_at,
                                           c.lse)
                 : erwin_attention_backward(c.context_at, c.attention_at, c.workspace, c.workspace_bytes, c.out_at,
                                            c.lse, c.grad_at, c.grad_q_at, &c.grads[1], &c.grads[2], c.grad_sigma,
                                            nullptr);
  expect_refusal(status);
}

}  // namespace fuzz
