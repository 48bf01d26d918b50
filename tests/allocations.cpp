// Lets the allocations of trees and searches fail, one after the other: arguments are the library and a number of threads.
//
// Every call must succeed or say that it is out of memory, and the next one, with memory, must find what it always finds.
#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <vector>

#include "../csrc/erwin.h"

namespace {

constexpr int64_t kNever = INT64_MAX;

std::atomic<int64_t> allocations{0}, first_failure{kNever}, last_failure{kNever};

void* allocate(std::size_t size, std::size_t alignment) {
  const int64_t number = allocations.fetch_add(1);
  if (number >= first_failure && number <= last_failure) return nullptr;
  return alignment == 0 ? std::malloc(size + 1) : std::aligned_alloc(alignment, (size / alignment + 1) * alignment);
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
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {

void* library;
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

// Calls run(result), which returns a status, with every allocation failing in turn: alone and with all that follow.
void sweep(const std::function<int32_t(Indices*)>& run) {
  Indices expected;
  require(run(&expected) == ERWIN_OK, "a call fails with all its memory", -1);
  for (const bool alone : {true, false}) {
    bool failed = true;
    for (int64_t number = 0; failed; number += 1 + number / 6) {
      Indices result(expected.size(), -1);  // whose memory is there before
      allocations = 0;
      last_failure = alone ? number : kNever - 1;
      first_failure = number;
      const int32_t status = run(&result);
      first_failure = kNever;
      failed = allocations > number;
      failures += failed;
      require(status == ERWIN_OK || status == ERWIN_OUT_OF_MEMORY, "another status", number);
      if (status == ERWIN_OK) require(result == expected, "another result", number);
      require(run(&result) == ERWIN_OK && result == expected, "a call afterwards fails", number);
    }
  }
}

// A batch of clouds, everything that is the caller's, and the calls on it.
struct Batch {
  erwin_context context;
  erwin_layout layout{};
  int32_t dtype;
  int64_t dim, clouds, points;
  Indices ptr{0};
  std::vector<double> pos, rotation;  // of either type
  std::vector<char> tree_space, search_space;

  Batch(int32_t threads, int32_t type, int64_t dimension, const Indices& sizes)
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
    ERWIN_ENTRY(erwin_neighbors_workspace)(&context, &layout, dtype, ptr.data(), clouds, dim, &bytes);
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
    return ERWIN_ENTRY(erwin_knn)(&context, &layout, dtype, pos.data(), ptr.data(), clouds, dim, perm.data(), nullptr, k,
                                  0, search_space.data(), size(search_space), result->data(),
                                  result->data() + k * points);
  }

  int32_t count(const Indices& perm, int64_t cap, Indices* degree) {
    degree->resize(static_cast<size_t>(points), -1);
    return ERWIN_ENTRY(erwin_radius_count)(&context, &layout, dtype, pos.data(), ptr.data(), clouds, dim, perm.data(),
                                           nullptr, kRadius, cap, 0, search_space.data(), size(search_space),
                                           degree->data());
  }

  int32_t fill(const Indices& perm, int64_t cap, const Indices& degree, Indices* result) {
    int64_t edges = 0;
    for (const int64_t d : degree) edges += d;
    result->resize(static_cast<size_t>(2 * edges), -1);
    return ERWIN_ENTRY(erwin_radius_fill)(&context, &layout, dtype, pos.data(), ptr.data(), clouds, dim, perm.data(),
                                          nullptr, kRadius, cap, 0, search_space.data(), size(search_space),
                                          degree.data(), result->data(), result->data() + edges);
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
    sweep([&](Indices* result) { return batch.count(perm, cap, result); });
    batch.count(perm, cap, &degree);
    sweep([&](Indices* result) { return batch.fill(perm, cap, degree, result); });
  }
}

}  // namespace

int main(int, char** arguments) {
  library = dlopen(arguments[1], RTLD_NOW);
  if (library == nullptr) {
    std::printf("%s\n", dlerror());
    return 1;
  }
  const int32_t threads = std::atoi(arguments[2]);
  sweep_tree({threads, ERWIN_FLOAT32, 3, {700, 0, 800}});
  sweep_tree({threads, ERWIN_FLOAT64, 2, {33000}});  // which all threads split together
  sweep_tree({threads, ERWIN_FLOAT32, 5, {400, 1200}});
  sweep_tree({threads, ERWIN_FLOAT32, 4, {33000}});
  sweep_searches({threads, ERWIN_FLOAT32, 3, {500, 700}});
  sweep_searches({threads, ERWIN_FLOAT64, 5, {500, 700}});
  std::printf("%lld\n", static_cast<long long>(failures));
}
