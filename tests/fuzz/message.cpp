// Compares message passing with plain loops in double precision, and tests sorting by groups and small entry points.
// Checks that they refuse bad arguments.
#include <cmath>
#include <limits>

#include "cases.h"
#include "clouds.h"

namespace fuzz {
namespace {

int64_t padded(int64_t channels) { return (channels + ERWIN_ROW - 1) / ERWIN_ROW * ERWIN_ROW; }

// Rows of channels, with padding.
struct Matrix {
  int64_t rows, channels;
  Guarded<float> memory;

  // Filled with junk, like results that have not been written yet.
  Matrix(int64_t n, int64_t width) : rows(n), channels(width), memory(n * padded(width)) {}
  // Padded with zeros.
  Matrix(Random& random, int64_t n, int64_t width) : Matrix(n, width) {
    std::fill(memory.begin(), memory.end(), 0.0f);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < channels; ++c) memory[r * padded(channels) + c] = static_cast<float>(random.unit());
  }
  double at(int64_t row, int64_t channel) const { return memory[row * padded(channels) + channel]; }
  bool operator==(const Matrix& other) const {
    for (int64_t r = 0; r < rows; ++r) {
      const float *x = &memory[r * padded(channels)], *y = &other.memory[r * padded(channels)];
      if (!std::equal(x, x + channels, y)) return false;
    }
    return true;
  }
};

struct Sum {
  double value = 0, size = 0;
  void add(double x, double size_of_x) { value += x, size += size_of_x; }
};

void expect_near(const char* name, const Matrix& found, const std::vector<Sum>& expected, double tolerance) {
  for (size_t i = 0; i < expected.size(); ++i) {
    const double x = found.at(static_cast<int64_t>(i) / found.channels, static_cast<int64_t>(i) % found.channels);
    FUZZ_EXPECT(std::fabs(x - expected[i].value) <= tolerance * expected[i].size + 1e-30, "%s at %zu: %g, not %g", name,
                i, x, expected[i].value);
  }
}

struct Case {
  erwin_context context = host(1);
  const erwin_context* context_at = &context;
  erwin_message m = {};
  const erwin_message* message_at = &m;
  Guarded<int64_t> source, target, source_ptr, target_ptr, source_order, target_order;
  Guarded<double> double_pos;
  Guarded<float> float_pos;
  std::vector<double> at;
  std::vector<Matrix> inputs;  // source_rows, target_rows, weight, norm_weight, norm_bias
  // For calls that must be refused:
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
  int64_t* bytes = nullptr;
  float *mean = nullptr, *grad_mean = nullptr, *grad_source = nullptr, *grad_weights = nullptr;

  Case(Choices& choices, bool small) {
    Random random = choices.random();
    const bool is_large = !small && (choices.threaded() || choices.one_in(64));
    m.isa = static_cast<int32_t>(std::min<int64_t>(choices.below(4), erwin_cpu_isa() + 1)) - 1;
    m.pos_dtype = choices.one_in(3);
    m.eps = choices.of({1e-5f, 1e-2f});
    m.nodes = small ? 9 : is_large ? 300 + choices.below(400) : choices.of<int64_t>({7, 0, 1, 2, 40, 127, 128, 129});
    m.edges = small ? 20 : m.nodes == 0 ? 0 : is_large ? 4000 : random.below(1 + choices.of<int64_t>({0, 1, 10, 300}));
    m.channels = is_large ? 20 + choices.below(40)
                          : choices.of<int64_t>({16, 1, 2, 5, 15, 17, 31, 32, 33, 48, 64, 65, 100, 130});
    m.dim = choices.of<int64_t>({3, 2, 1, 4, 9});
    source = Guarded<int64_t>(m.edges), target = Guarded<int64_t>(m.edges);
    const int64_t hubs = 1 + (m.nodes > 0 ? random.below(m.nodes) : 0);  // edges use only some nodes
    for (int64_t e = 0; e < m.edges; ++e) source[e] = random.below(hubs), target[e] = random.below(m.nodes);
    const auto group = [&](const Guarded<int64_t>& key, Guarded<int64_t>* ptr, Guarded<int64_t>* order) {
      *ptr = Guarded<int64_t>(m.nodes + 1), *order = Guarded<int64_t>(m.edges);
      expect_ok("group", erwin_group(key.data(), m.edges, m.nodes, ptr->data(), order->data()));
    };
    group(source, &source_ptr, &source_order), group(target, &target_ptr, &target_order);
    float_pos = Guarded<float>(m.pos_dtype == ERWIN_FLOAT32 ? m.nodes * m.dim : 0);
    double_pos = Guarded<double>(m.pos_dtype == ERWIN_FLOAT64 ? m.nodes * m.dim : 0);
    for (int64_t i = 0; i < m.nodes * m.dim; ++i) {
      at.push_back(random.unit());
      if (m.pos_dtype == ERWIN_FLOAT32) float_pos[i] = static_cast<float>(at.back());
      else double_pos[i] = at.back() += 1 << 20;
    }
    for (const int64_t rows : {m.nodes, m.nodes, m.dim, int64_t{1}, int64_t{1}}) {
      inputs.emplace_back(random, rows, m.channels);
    }
    m.source = source.data(), m.target = target.data();
    m.target_ptr = target_ptr.data(), m.target_order = target_order.data();
    m.source_ptr = source_ptr.data(), m.source_order = source_order.data();
    m.source_rows = inputs[0].memory.data(), m.target_rows = inputs[1].memory.data();
    m.pos = m.pos_dtype == ERWIN_FLOAT32 ? static_cast<void*>(float_pos.data()) : double_pos.data();
    m.weight = inputs[2].memory.data();
    m.norm_weight = inputs[3].memory.data(), m.norm_bias = inputs[4].memory.data();
  }

  double offset(int64_t from, int64_t to, int64_t axis) const {
    return at[static_cast<size_t>(from * m.dim + axis)] - at[static_cast<size_t>(to * m.dim + axis)];
  }
};

struct Expected {
  std::vector<Sum> mean, grad_source, grad_target, grad_weights;
  double steepest = 1;  // the largest factor by which a normalisation enlarges differences
};

Expected pass(const Case& c, const Matrix& grad) {
  const erwin_message& m = c.m;
  const auto channels = static_cast<size_t>(m.channels), nodes = static_cast<size_t>(m.nodes);
  Expected e;
  e.mean = e.grad_source = e.grad_target = std::vector<Sum>(nodes * channels);
  e.grad_weights = std::vector<Sum>(static_cast<size_t>(m.dim + 2) * channels);
  std::vector<double> degree(nodes), x(channels), y(channels), g(channels);
  for (int64_t i = 0; i < m.edges; ++i) degree[static_cast<size_t>(m.target[i])] += 1;
  const double count = static_cast<double>(m.channels);
  for (int64_t edge = 0; edge < m.edges; ++edge) {
    const int64_t j = m.source[edge], i = m.target[edge];
    double mean = 0, variance = 0;
    for (int64_t b = 0; b < m.channels; ++b) {
      double z = c.inputs[0].at(j, b) + c.inputs[1].at(i, b);
      for (int64_t d = 0; d < m.dim; ++d) {
        z += c.inputs[2].at(d, b) * c.offset(j, i, d);
      }
      x[static_cast<size_t>(b)] = z;
      mean += z * std::erfc(-z * std::sqrt(0.5)) / 2 / count;
    }
    for (const double z : x) variance += std::pow(z * std::erfc(-z * std::sqrt(0.5)) / 2 - mean, 2) / count;
    const double slope = 1 / std::sqrt(variance + static_cast<double>(m.eps));
    const double share = 1 / degree[static_cast<size_t>(i)];
    e.steepest = std::max(e.steepest, slope);
    double g_mean = 0, gy_mean = 0, size = 1e-3;
    for (size_t b = 0; b < channels; ++b) {
      const auto channel = static_cast<int64_t>(b);
      y[b] = (x[b] * std::erfc(-x[b] * std::sqrt(0.5)) / 2 - mean) * slope;
      const double upper = share * grad.at(i, channel);
      const double size_of_y = 1 + std::fabs(y[b]);
      const double sent = y[b] * c.inputs[3].at(0, channel) + c.inputs[4].at(0, channel);
      e.mean[static_cast<size_t>(i) * channels + b].add(share * sent, share * size_of_y);
      e.grad_weights[static_cast<size_t>(m.dim) * channels + b].add(upper * y[b], std::fabs(upper) * size_of_y);
      e.grad_weights[static_cast<size_t>(m.dim + 1) * channels + b].add(upper, std::fabs(upper));
      g[b] = upper * c.inputs[3].at(0, channel);
      g_mean += g[b] / count, gy_mean += g[b] * y[b] / count;
      size = std::max(size, share);
    }
    for (size_t b = 0; b < channels; ++b) {
      const double phi = std::exp(-x[b] * x[b] / 2) / std::sqrt(2 * M_PI);
      const double dz = slope * (g[b] - g_mean - y[b] * gy_mean) * (std::erfc(-x[b] * std::sqrt(0.5)) / 2 + x[b] * phi);
      const double size_of_dz = 4 * slope * size;
      e.grad_source[static_cast<size_t>(j) * channels + b].add(dz, size_of_dz);
      e.grad_target[static_cast<size_t>(i) * channels + b].add(dz, size_of_dz);
      for (int64_t d = 0; d < m.dim; ++d) {
        e.grad_weights[static_cast<size_t>(d) * channels + b].add(dz * c.offset(j, i, d), size_of_dz * 2);
      }
    }
  }
  return e;
}

void check_message(Choices& choices) {
  Case c(choices, false);
  Random random = choices.random();
  const Matrix grad(random, c.m.nodes, c.m.channels);
  const Expected e = pass(c, grad);
  const double tolerance = 4e-6 * e.steepest;
  int64_t bytes = 0;
  expect_ok("workspace", erwin_message_workspace(&c.m, &bytes));
  std::vector<Matrix> last;
  for (const int32_t threads : {kHostThreads[choices.below(4)], kHostThreads[choices.below(4)]}) {
    c.context.num_threads = threads;
    std::vector<Matrix> results;  // mean, gradients of source_rows, target_rows and weights
    for (const int64_t rows : {c.m.nodes, c.m.nodes, c.m.nodes, c.m.dim + 2}) results.emplace_back(rows, c.m.channels);
    const Guarded<char> workspace(bytes, choices.of<int64_t>({0, 16}));
    expect_ok("forward", erwin_message_forward(&c.context, &c.m, results[0].memory.data()));
    expect_ok("backward", erwin_message_backward(&c.context, &c.m, grad.memory.data(), workspace.data(), bytes,
                                                 results[1].memory.data(), results[2].memory.data(),
                                                 results[3].memory.data()));
    expect_near("mean", results[0], e.mean, tolerance);
    expect_near("grad_source", results[1], e.grad_source, tolerance);
    expect_near("grad_target", results[2], e.grad_target, tolerance);
    expect_near("grad_weights", results[3], e.grad_weights, tolerance);
    FUZZ_EXPECT(last.empty() || last == results, "other bits on %d threads", threads);
    last.swap(results);
  }
}

const Fault<Case> kShared[] = {
    {"context NULL", [](Case& c) { c.context_at = nullptr; }},
    {"num_threads 0", [](Case& c) { c.context.num_threads = 0; }}, {"device 0", [](Case& c) { c.context.device = 0; }},
    {"device -7", [](Case& c) { c.context.device = -7; }}, {"isa 3", [](Case& c) { c.m.isa = 3; }},
    {"pos_dtype 2", [](Case& c) { c.m.pos_dtype = ERWIN_BFLOAT16; }},
};
const Fault<Case> kShape[] = {
    {"message NULL", [](Case& c) { c.message_at = nullptr; }}, {"nodes -1", [](Case& c) { c.m.nodes = -1; }},
    {"nodes 2^62", [](Case& c) { c.m.nodes = int64_t{1} << 62; }}, {"edges -1", [](Case& c) { c.m.edges = -1; }},
    {"edges 2^62", [](Case& c) { c.m.edges = int64_t{1} << 62; }}, {"channels 0", [](Case& c) { c.m.channels = 0; }},
    {"channels -1", [](Case& c) { c.m.channels = -1; }},
    {"channels 2^60", [](Case& c) { c.m.channels = int64_t{1} << 60; }}, {"dim 0", [](Case& c) { c.m.dim = 0; }},
    {"dim 2^60", [](Case& c) { c.m.dim = int64_t{1} << 60; }},
};
const Fault<Case> kMemory[] = {
    {"source NULL", [](Case& c) { c.m.source = nullptr; }},
    {"target_ptr NULL", [](Case& c) { c.m.target_ptr = nullptr; }},
    {"target_order NULL", [](Case& c) { c.m.target_order = nullptr; }},
    {"source_rows NULL", [](Case& c) { c.m.source_rows = nullptr; }},
    {"target_rows NULL", [](Case& c) { c.m.target_rows = nullptr; }}, {"pos NULL", [](Case& c) { c.m.pos = nullptr; }},
    {"weight NULL", [](Case& c) { c.m.weight = nullptr; }},
    {"norm_weight NULL", [](Case& c) { c.m.norm_weight = nullptr; }}, {"source -1", [](Case& c) { c.source[3] = -1; }},
    {"source at the end", [](Case& c) { c.source[3] = c.m.nodes; }},
    {"source far away", [](Case& c) { c.source[3] = INT64_MAX; }},
    {"target_order -1", [](Case& c) { c.target_order[3] = -1; }},
    {"target_order at the end", [](Case& c) { c.target_order[3] = c.m.edges; }},
    {"target_ptr from -1", [](Case& c) { c.target_ptr[0] = -1; }},
    {"target_ptr beyond the end", [](Case& c) { c.target_ptr[c.m.nodes] += 1; }},
    {"target_ptr far away", [](Case& c) { c.target_ptr[1] = INT64_MAX; }},
};
const Fault<Case> kForward[] = {
    {"mean NULL", [](Case& c) { c.mean = nullptr; }}, {"norm_bias NULL", [](Case& c) { c.m.norm_bias = nullptr; }},
};
const Fault<Case> kBackward[] = {
    {"grad_mean NULL", [](Case& c) { c.grad_mean = nullptr; }},
    {"grad_source NULL", [](Case& c) { c.grad_source = nullptr; }},
    {"grad_weights NULL", [](Case& c) { c.grad_weights = nullptr; }},
    {"workspace NULL", [](Case& c) { c.workspace = nullptr; }},
    {"workspace small", [](Case& c) { c.workspace_bytes -= 1; }},
    {"workspace -1", [](Case& c) { c.workspace_bytes = -1; }},
    {"source_ptr NULL", [](Case& c) { c.m.source_ptr = nullptr; }},
    {"source_order NULL", [](Case& c) { c.m.source_order = nullptr; }},
    {"source_order at the end", [](Case& c) { c.source_order[3] = c.m.edges; }},
    {"source_ptr far away", [](Case& c) { c.source_ptr[1] = INT64_MAX; }},
    {"target at the end", [](Case& c) { c.target[3] = c.m.nodes; }},
};
const Fault<Case> kBytes[] = {{"bytes NULL", [](Case& c) { c.bytes = nullptr; }}};

template <typename T>
void check_finite(Choices& choices) {
  stage("finite");
  const int64_t count = choices.of<int64_t>({0, 1, 7, 300, 4096, 4097, 9000});
  const Guarded<T> values = make_pos<T>(choices, count, 1, false);
  const T bad = choices.of<T>({0, std::numeric_limits<T>::infinity(), -std::numeric_limits<T>::infinity(),
                               std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::max()});
  if (count > 0) values[choices.below(count)] = bad;
  int32_t finite = 7;
  expect_ok("status", erwin_is_finite(sizeof(T) == 8, values.data(), count, &finite));
  FUZZ_EXPECT(finite == (count == 0 || std::isfinite(bad)), "finite is %d", finite);
  stage("finite", "refusals");
  expect_refusal(erwin_is_finite(sizeof(T) == 8, values.data(), -1, &finite));
  expect_refusal(erwin_is_finite(ERWIN_BFLOAT16, values.data(), count, &finite));
  stage("finite", "finite NULL");
  expect_refusal(erwin_is_finite(sizeof(T) == 8, values.data(), count, nullptr));
  stage("finite", "values NULL");
  if (count > 0) expect_refusal(erwin_is_finite(sizeof(T) == 8, nullptr, count, &finite));
}

void check_group(Choices& choices) {
  stage("group");
  const int64_t groups = choices.of<int64_t>({1, 2, 3, 50, 0}), count = groups > 0 ? choices.below(200) : 0;
  const Guarded<int64_t> key(count), ptr(groups + 1), order(count);
  Random random = choices.random();
  for (int64_t i = 0; i < count; ++i) key[i] = random.below(groups);
  expect_ok("status", erwin_group(key.data(), count, groups, ptr.data(), order.data()));
  FUZZ_EXPECT(ptr[0] == 0 && ptr[groups] == count, "ptr");
  for (int64_t g = 0, i = 0; g < groups; ++g) {
    for (int64_t at = ptr[g]; at < ptr[g + 1]; ++at) {
      FUZZ_EXPECT(i < count && order[at] >= 0 && order[at] < count && key[order[at]] == g, "group %td", g);
      FUZZ_EXPECT(at == ptr[g] || order[at] > order[at - 1], "order");
      ++i;
    }
  }
  stage("group", "refusals");
  expect_refusal(erwin_group(key.data(), -1, groups, ptr.data(), order.data()));
  expect_refusal(erwin_group(key.data(), count, -1, ptr.data(), order.data()));
  if (count > 0) {
    key[choices.below(count)] = choices.of<int64_t>({-1, groups, INT64_MAX, INT64_MIN});
    expect_refusal(erwin_group(key.data(), count, groups, ptr.data(), order.data()));
    stage("group", "key NULL");
    expect_refusal(erwin_group(nullptr, count, groups, ptr.data(), order.data()));
    stage("group", "order NULL");
    expect_refusal(erwin_group(key.data(), count, groups, ptr.data(), nullptr));
  }
  stage("group", "ptr NULL");
  expect_refusal(erwin_group(key.data(), count, groups, nullptr, order.data()));
}

void check_permutations(Choices& choices) {
  stage("permutations");
  const int64_t runs = choices.below(6);
  const Guarded<int64_t> lengths(runs), wrong(1);
  int64_t rows = 0, longest = 0;
  for (int64_t& length : lengths) {
    length = choices.of<int64_t>({0, 1, 2, 7, 8, 9, 200});
    rows += length;
    longest = std::max(longest, length);
  }
  const Guarded<int64_t> perm(rows);
  const Guarded<uint8_t> seen((longest + 7) / 8);
  Random random = choices.random();
  for (int64_t run = 0, first = 0; run < runs; first += lengths[run++]) {
    for (int64_t i = 0; i < lengths[run]; ++i) {
      const int64_t other = random.below(i + 1);  // Fisher-Yates
      perm[first + i] = perm[first + other], perm[first + other] = i;
    }
  }
  const auto first_wrong = [&] {
    expect_ok("permutations", erwin_permutations(perm.data(), rows, lengths.data(), runs, seen.data(), wrong.data()));
    return wrong[0];
  };
  FUZZ_EXPECT(first_wrong() == -1, "a permutation was refused");
  if (rows > 0) {
    const int64_t at = choices.below(rows);
    int64_t run = 0, first = 0;
    while (at >= first + lengths[run]) first += lengths[run++];
    // A number that is not there, or one that is there twice then.
    perm[at] = choices.one_in(2) && lengths[run] > 1 ? (perm[at] + 1) % lengths[run]
                                                     : choices.of<int64_t>({-1, lengths[run], INT64_MAX, INT64_MIN});
    FUZZ_EXPECT(first_wrong() == run, "run %td was accepted", static_cast<ptrdiff_t>(run));
  }
  stage("permutations", "refusals");
  expect_refusal(erwin_permutations(perm.data(), rows + 1, lengths.data(), runs, seen.data(), wrong.data()));
  expect_refusal(erwin_permutations(perm.data(), rows, lengths.data(), runs, seen.data(), nullptr));
  expect_refusal(erwin_permutations(perm.data(), rows, lengths.data(), -1, seen.data(), wrong.data()));
  if (rows > 0) {
    expect_refusal(erwin_permutations(nullptr, rows, lengths.data(), runs, seen.data(), wrong.data()));
    expect_refusal(erwin_permutations(perm.data(), rows, lengths.data(), runs, nullptr, wrong.data()));
    expect_refusal(erwin_permutations(perm.data(), rows, nullptr, runs, seen.data(), wrong.data()));
    expect_refusal(erwin_permutations(perm.data(), rows - 1, lengths.data(), runs, seen.data(), wrong.data()));
  }
}

}  // namespace

void message_case(Choices& choices) {
  stage("message");
  check_message(choices);
}

void bad_message_case(Choices& choices) {
  stage("bad message", "preparation");
  Case c(choices, true);
  Random random = choices.random();
  const Matrix grad(random, c.m.nodes, c.m.channels);
  std::vector<Matrix> results;
  for (const int64_t rows : {c.m.nodes, c.m.nodes, c.m.nodes, c.m.dim + 2}) results.emplace_back(rows, c.m.channels);
  const Guarded<int64_t> bytes(1);
  expect_ok("workspace", erwin_message_workspace(&c.m, bytes.data()));
  const Guarded<char> workspace(bytes[0]);
  c.workspace = workspace.data(), c.workspace_bytes = workspace.size(), c.bytes = bytes.data();
  c.mean = results[0].memory.data(), c.grad_mean = grad.memory.data();
  c.grad_source = results[1].memory.data(), c.grad_weights = results[3].memory.data();
  const int64_t entry = choices.below(3), part = choices.below(4);  // size, forward, backward
  stage("bad message", part == 0 && entry > 0 ? spoil(choices, kShared, c)
                       : part <= 1            ? spoil(choices, kShape, c)
                       : entry == 0           ? spoil(choices, kBytes, c)
                       : part == 2            ? spoil(choices, kMemory, c)
                       : entry == 1           ? spoil(choices, kForward, c)
                                              : spoil(choices, kBackward, c));
  if (entry == 0) return expect_refusal(erwin_message_workspace(c.message_at, c.bytes));
  if (entry == 1) return expect_refusal(erwin_message_forward(c.context_at, c.message_at, c.mean));
  expect_refusal(erwin_message_backward(c.context_at, c.message_at, c.grad_mean, c.workspace, c.workspace_bytes,
                                        c.grad_source, results[2].memory.data(), c.grad_weights));
}

void small_case(Choices& choices) {
  if (choices.one_in(3)) return check_permutations(choices);
  if (choices.one_in(2)) return check_group(choices);
  choices.one_in(2) ? check_finite<double>(choices) : check_finite<float>(choices);
}

}  // namespace fuzz
