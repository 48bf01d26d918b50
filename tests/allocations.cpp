// Makes each allocation of trees and searches fail, one after the other. The arguments of the program are the library
// and a number of threads.
//
// Every call must succeed or report that it is out of memory. The next call, with enough memory, must give the usual
// result.
#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <utility>
#include <vector>

#include "../csrc/erwin.h"

namespace {

constexpr int64_t kNever = INT64_MAX;

std::atomic<int64_t> allocations{0}, blocks{0}, first_failure{kNever}, last_failure{kNever};  // blocks: not yet freed

void* allocate(std::size_t size, std::size_t alignment) {
  const int64_t number = allocations.fetch_add(1);
  if (number >= first_failure && number <= last_failure) return nullptr;
  ++blocks;
  return alignment == 0 ? std::malloc(size + 1) : std::aligned_alloc(alignment, (size / alignment + 1) * alignment);
}

void release(void* memory) {
  if (memory != nullptr) --blocks;
  std::free(memory);
}

}  // namespace

void* operator new(std::size_t size) {
  if (void* const memory = allocate(size, 0)) return memory;
  throw std::bad_alloc();
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  if (void* const memory = allocate(size, static_cast<std::size_t>(alignment))) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { release(memory); }
void operator delete(void* memory, std::size_t) noexcept { release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { release(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { release(memory); }

namespace {

void* library;
int32_t threads;
int64_t failures = 0;

template <typename F>
F* entry(const char* name) {
  return reinterpret_cast<F*>(dlsym(library, name));
}
#define ERWIN_ENTRY(name) entry<decltype(name)>(#name)

typedef std::vector<int64_t> Indices;

void require(bool good, const char* what, int64_t number) {
  if (good) return;
  std::printf("%s, with allocation %lld failing\n", what, static_cast<long long>(number));
  std::exit(1);
}

// Calls run(result), which returns a status, once for every allocation: this one fails, alone or with all later ones.
void sweep(const std::function<int32_t(Indices*)>& run) {
  Indices expected;
  require(run(&expected) == ERWIN_OK, "a call fails with all its memory", -1);
  for (const bool alone : {true, false}) {
    bool failed = true;
    for (int64_t number = 0; failed; number += number < 40 ? 1 : number / 6) {
      Indices result(expected.size(), -1);  // allocated before allocations fail
      const int64_t before = blocks;
      allocations = 0;
      last_failure = alone ? number : kNever - 1;
      first_failure = number;
      const int32_t status = run(&result);
      first_failure = kNever;
      failed = allocations > number;
      failures += failed;
      require(status == ERWIN_OK || status == ERWIN_OUT_OF_MEMORY, "another status", number);
      // Helper threads live on and keep the memory of their invitations.
      if (threads == 1) require(blocks == before, "a call leaves memory behind", number);
      if (status == ERWIN_OK) require(result == expected, "another result", number);
      require(run(&result) == ERWIN_OK && result == expected, "a call afterwards fails", number);
    }
  }
}

// A batch of clouds, all arrays of the caller, and the calls on them.
struct Batch {
  erwin_context context;
  erwin_layout layout{};
  int32_t dtype;
  int64_t dim, clouds, points;
  Indices ptr{0};
  std::vector<double> pos, rotation;  // float32 or float64 numbers
  std::vector<char> tree_space, search_space;

  Batch(int32_t type, int64_t dimension, const Indices& sizes)
      : context{ERWIN_HOST, threads, nullptr, nullptr},
        dtype(type),
        dim(dimension),
        clouds(static_cast<int64_t>(sizes.size())),
        rotation(static_cast<size_t>(dim * dim), 0.3) {
    layout.kind = ERWIN_BALANCED;
    layout.levels = 2;
    for (int32_t l = 0; l < layout.levels; ++l) layout.ball_sizes[l] = 16, layout.strides[l] = 2;
    for (const int64_t size : sizes) ptr.push_back(ptr.back() + size);
    points = ptr.back();
    pos.resize(static_cast<size_t>(points * dim));
    uint32_t state = 1;
    for (size_t i = 0; i < pos.size(); ++i) {
      state = state * 1664525u + 1013904223u;
      const double x = (state >> 8) / 1000.0;
      if (type == ERWIN_FLOAT64) pos[i] = x;
      else reinterpret_cast<float*>(pos.data())[i] = static_cast<float>(x);
    }
    int64_t bytes = 0;
    ERWIN_ENTRY(erwin_tree_workspace)(&layout, dtype, ptr.data(), clouds, dim, &bytes);
    tree_space.resize(static_cast<size_t>(bytes));
    ERWIN_ENTRY(erwin_neighbors_workspace)(&context, &layout, dtype, ptr.data(), clouds, dim, nullptr, &bytes);
    search_space.resize(static_cast<size_t>(bytes));
  }

  // The main tree, and the rotated trees of both levels.
  int32_t tree(Indices* result) {
    result->resize(static_cast<size_t>(3 * points), -1);
    int64_t* const perm = result->data();
    int64_t* const rotated[] = {perm + points, perm + 2 * points};
    return ERWIN_ENTRY(erwin_tree_build)(&context, &layout, dtype, pos.data(), ptr.data(), clouds, dim, rotation.data(),
                                         tree_space.data(), size(tree_space), perm, nullptr, rotated);
  }

  int32_t knn(const Indices& perm, Indices* result) {
    constexpr int64_t k = 5;
    result->resize(static_cast<size_t>(2 * k * points), -1);
    return ERWIN_ENTRY(erwin_knn)(&context, &layout, dtype, pos.data(), ptr.data(), clouds, dim, perm.data(), nullptr,
                                  nullptr, k, 0, search_space.data(), size(search_space), result->data(),
                                  result->data() + k * points);
  }

  int32_t count(const Indices& perm, int64_t cap, Indices* degree, erwin_found** found) {
    degree->resize(static_cast<size_t>(points), -1);
    return ERWIN_ENTRY(erwin_radius_count)(&context, &layout, dtype, pos.data(), ptr.data(), clouds, dim, perm.data(),
                                           nullptr, nullptr, kRadius, cap, 0, search_space.data(), size(search_space),
                                           degree->data(), found);
  }

  int32_t fill(const Indices& perm, int64_t cap, const Indices& degree, const erwin_found* found, Indices* result) {
    int64_t edges = 0;
    for (const int64_t d : degree) edges += d;
    result->resize(static_cast<size_t>(2 * edges), -1);
    return ERWIN_ENTRY(erwin_radius_fill)(&context, &layout, dtype, pos.data(), ptr.data(), clouds, dim, perm.data(),
                                          nullptr, nullptr, kRadius, cap, 0, search_space.data(), size(search_space),
                                          degree.data(), found, result->data(), result->data() + edges);
  }

  static constexpr double kRadius = 2000;
  static int64_t size(const std::vector<char>& space) { return static_cast<int64_t>(space.size()); }
};

void sweep_tree(Batch batch) {
  sweep([&](Indices* result) { return batch.tree(result); });
}

void sweep_searches(Batch batch) {
  Indices perm, degree;
  batch.tree(&perm);
  sweep([&](Indices* result) { return batch.knn(perm, result); });
  for (const int64_t cap : {-1, 2}) {
    erwin_found* found = nullptr;
    const auto forget = [&] { ERWIN_ENTRY(erwin_found_free)(std::exchange(found, nullptr)); };
    sweep([&](Indices* result) {
      const int32_t status = batch.count(perm, cap, result, &found);
      require((status == ERWIN_OK) == (found != nullptr), "a failed search left what it found, or another did not", -1);
      forget();
      return status;
    });
    batch.count(perm, cap, &degree, &found);
    sweep([&](Indices* result) { return batch.fill(perm, cap, degree, found, result); });
    forget();
  }
}

// Numbers of an array that a result can be compared with.
int64_t* as_numbers(Indices* result, size_t floats) {
  result->resize((floats + 1) / 2, -1);
  return result->data();
}

// Ball attention and its gradients, with enough balls for several threads.
void sweep_attention() {
  const int64_t heads = 4, channels = 8, dim = 2;
  const Indices lengths{300, 0, 200, 100};
  const int64_t rows = 600, row = heads * channels;
  std::vector<float> values(static_cast<size_t>(rows * row)), pos(static_cast<size_t>(rows * dim)), sigma(heads, -1);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 17) / 17;
  for (size_t i = 0; i < pos.size(); ++i) pos[i] = static_cast<float>(i % 23) / 23;
  const auto tensor = [&](float* data) { return erwin_heads{data, row, channels}; };
  erwin_attention a{};
  a.isa = -1, a.scale = 0.3f;
  a.rows = rows, a.heads = heads, a.channels = channels, a.dim = dim, a.balls = 4;
  a.ball_len = lengths.data(), a.pos = pos.data(), a.sigma = sigma.data();
  a.q = a.k = a.v = tensor(values.data());
  const erwin_context context{ERWIN_HOST, threads, nullptr, nullptr};
  std::vector<char> space;
  for (const int32_t backward : {0, 1, 2}) {
    int64_t bytes = 0;
    ERWIN_ENTRY(erwin_attention_workspace)(&context, &a, backward, &bytes);
    space.resize(std::max(space.size(), static_cast<size_t>(bytes)));
  }
  const auto size = static_cast<int64_t>(space.size());
  std::vector<float> out(values.size()), lse(static_cast<size_t>(rows * heads));
  const erwin_heads to = tensor(out.data());
  sweep([&](Indices* result) {
    auto* const data = reinterpret_cast<float*>(as_numbers(result, values.size()));
    const erwin_heads own = tensor(data);
    return ERWIN_ENTRY(erwin_attention_forward)(&context, &a, space.data(), size, &own, lse.data());
  });
  require(ERWIN_ENTRY(erwin_attention_forward)(&context, &a, space.data(), size, &to, lse.data()) == ERWIN_OK, "out", -1);
  for (const bool of_pos : {false, true}) {
    sweep([&](Indices* result) {
      auto* const data = reinterpret_cast<float*>(as_numbers(result, 3 * values.size() + pos.size() + sigma.size()));
      const erwin_heads q = tensor(data), k = tensor(data + values.size()), v = tensor(data + 2 * values.size());
      float* const grad_sigma = data + 3 * values.size();
      return ERWIN_ENTRY(erwin_attention_backward)(&context, &a, space.data(), size, &to, lse.data(), &to, &q, &k, &v,
                                                   grad_sigma, of_pos ? grad_sigma + sigma.size() : nullptr);
    });
  }
}

// Message passing and its gradients, with enough edges for several threads.
void sweep_message() {
  const int64_t nodes = 600, edges = 6000, width = 16, dim = 3;
  Indices ends[2], ptr[2], order[2];
  for (int64_t end = 0; end < 2; ++end) {
    for (int64_t e = 0; e < edges; ++e) ends[end].push_back((e * (7 + end) + e / 600) % nodes);
    ptr[end].resize(static_cast<size_t>(nodes + 1)), order[end].resize(static_cast<size_t>(edges));
    ERWIN_ENTRY(erwin_group)(ends[end].data(), edges, nodes, ptr[end].data(), order[end].data());
  }
  std::vector<float> rows(static_cast<size_t>(nodes * width)), weights(static_cast<size_t>(dim * width), 0.1f);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i % 17) / 17;
  erwin_message m{};
  m.isa = -1, m.eps = 1e-5f;
  m.nodes = nodes, m.edges = edges, m.channels = width, m.dim = dim;
  m.source = ends[0].data(), m.target = ends[1].data();
  m.target_ptr = ptr[1].data(), m.target_order = order[1].data();
  m.source_ptr = ptr[0].data(), m.source_order = order[0].data();
  m.source_rows = m.target_rows = rows.data(), m.pos = rows.data();
  m.weight = m.norm_weight = m.norm_bias = weights.data();
  const erwin_context context{ERWIN_HOST, threads, nullptr, nullptr};
  int64_t bytes = 0;
  ERWIN_ENTRY(erwin_message_workspace)(&m, &bytes);
  std::vector<char> space(static_cast<size_t>(bytes));
  sweep([&](Indices* result) {
    auto* const mean = reinterpret_cast<float*>(as_numbers(result, rows.size()));
    return ERWIN_ENTRY(erwin_message_forward)(&context, &m, mean);
  });
  sweep([&](Indices* result) {
    auto* const data = reinterpret_cast<float*>(as_numbers(result, 2 * rows.size() + (dim + 2) * width));
    return ERWIN_ENTRY(erwin_message_backward)(&context, &m, rows.data(), space.data(), bytes, data, data + rows.size(),
                                               data + 2 * rows.size());
  });
}

}  // namespace

int main(int, char** arguments) {
  library = dlopen(arguments[1], RTLD_NOW);
  if (library == nullptr) {
    std::printf("%s\n", dlerror());
    return 1;
  }
  threads = std::atoi(arguments[2]);
  sweep_tree({ERWIN_FLOAT32, 3, {700, 0, 800}});
  sweep_tree({ERWIN_FLOAT64, 2, {33000}});  // large enough that all threads split it together
  sweep_tree({ERWIN_FLOAT32, 5, {400, 1200}});
  sweep_tree({ERWIN_FLOAT32, 4, {33000}});
  sweep_searches({ERWIN_FLOAT32, 3, {500, 700}});
  sweep_searches({ERWIN_FLOAT64, 5, {500, 700}});
  sweep_attention();
  sweep_message();
  std::printf("%lld\n", static_cast<long long>(failures));
}
