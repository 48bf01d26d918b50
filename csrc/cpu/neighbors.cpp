// Exact neighbour search on the host, over the nodes of a balanced tree.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "../arena.h"
#include "../arguments.h"
#include "../devices.h"
#include "../neighbors.h"
#include "../scalars.h"
#include "../sizes.h"
#include "found.h"
#include "isa.h"
#include "pages.h"
#include "parallel.h"
#include "search.h"
#include "search_tree.h"

namespace erwin {
namespace {

constexpr int64_t kListBytes = 64 << 10;  // bytes of the candidate lists that a thread keeps at a time
constexpr int64_t kManyEdges = 1 << 28;   // edges of 4 GiB: with as many, a search first checks that memory can be had
constexpr int64_t kMostKeys = 8;          // most keys in a vector
constexpr int64_t kQueriesAtOnce = 512;   // queries whose edges a thread writes at a time
constexpr int64_t kListsAhead = 16;       // how many lists ahead lists are prefetched

template <typename T>
const Kernels<T>& kernels(int64_t dim) {
  const KernelTable& table = *geometry_kernels().search;
  if constexpr (std::is_same_v<T, double>) return table.of_double[dim <= 3 ? dim : 0];
  else return table.of_float[dim <= 3 ? dim : 0];
}

// Whether the system may have memory for this number of edges.
bool has_memory(int64_t edges) {
  if (!is_count(edges)) return false;
  void* volatile const memory = std::malloc(checked_product(edges, int64_t{2}, static_cast<int64_t>(sizeof(int64_t))));
  std::free(memory);
  return memory != nullptr;
}

// Not many more threads than groups of queries, because each thread has scratch memory of its own.
int32_t threads_for(const NeighborsCall& call) {
  const int64_t items = std::max(call.points.ptr[call.clouds], call.queries.ptr[call.clouds]);
  if (items < kSerialPoints) return 1;
  return static_cast<int32_t>(std::min<int64_t>(call.context->num_threads, items / (kGroupLeaves * kLeaf / 2)));
}

template <typename T>
class HostSearch {
 public:
  explicit HostSearch(const NeighborsCall& call)
      : points_(call.points, call.clouds, call.dim, Arena::aligned(call.workspace)),
        others_(call.queries, call.clouds, call.dim,
                call.within ? nullptr
                            : Arena::aligned(call.workspace) +
                                  SearchTree<T>::bytes(call.points, call.clouds, call.dim)),
        queries_(call.within ? points_ : others_),
        clouds_(call.clouds),
        dim_(static_cast<int32_t>(call.dim)),
        num_threads_(threads_for(call)),
        kernels_(kernels<T>(call.dim)),
        interrupts_(*call.context) {}
  HostSearch(const HostSearch&) = delete;

  // The workspace may start anywhere.
  static int64_t bytes(const NeighborsCall& call) {
    Arena arena{nullptr};
    arena.take<char>(SearchTree<T>::bytes(call.points, call.clouds, call.dim));
    if (!call.within) arena.take<char>(SearchTree<T>::bytes(call.queries, call.clouds, call.dim));
    return arena.bytes_anywhere();
  }

  // Returns false if an order is not a permutation of the points of every cloud.
  bool build() {
    return points_.build(interrupts_, num_threads_) &&
           (&queries_ == &points_ || others_.build(interrupts_, num_threads_));
  }

  void knn(int64_t k, bool loop, int64_t* source, int64_t* target) {
    // The first edge of every cloud.
    std::vector<int64_t> first_edge(static_cast<size_t>(clouds_ + 1), 0);
    for (int64_t g = 0; g < clouds_; ++g) first_edge[g + 1] = first_edge[g] + queries_.points(g) * most(k, g, loop);
    use_large_pages(source, first_edge[clouds_]);
    use_large_pages(target, first_edge[clouds_]);
    for_each_group(kListLeaves, 0, k, [&](int32_t, const Scratch<T>& own, int64_t g, int32_t first, int32_t last) {
      const int64_t neighbors = most(k, g, loop);
      if (neighbors == 0) return;
      const KnnSearch<T> search{neighbors, loop, source + first_edge[g], target + first_edge[g]};
      kernels_.knn(points_.cloud(g), queries_.cloud(g), dim_, first, last, search, own);
    });
  }

  void radius(T limit, int64_t cap, bool loop, int64_t* degree, erwin_found* found) {
    const int64_t sure = sure_edges(limit, cap, loop);
    if (sure >= kManyEdges && !has_memory(sure)) throw std::bad_alloc();
    const int64_t largest = points_.largest_cloud();
    if (cap == 0 || largest == 0) {
      std::fill_n(degree, queries_.all_points(), int64_t{0});
    } else {
      const int64_t kept = cap < largest ? cap : 0;  // neighbours kept per query; 0: all
      for_each_group(largest, largest, kept,
                     [&](int32_t worker, const Scratch<T>& own, int64_t g, int32_t first, int32_t last) {
        const RadiusSearch<T> search{limit,
                                     loop,
                                     cap < most(kNoCap, g, loop) ? cap : kNoCap,
                                     degree + queries_.row(g),
                                     found->neighbors.data() + queries_.row(g),
                                     &found->lists[worker],
                                     [](Lists* lists, int64_t count) { return lists->take(count); }};
        kernels_.radius(points_.cloud(g), queries_.cloud(g), dim_, first, last, search, own);
      });
    }
    found->degree.assign(degree, degree + queries_.all_points());
  }

 private:
  int64_t most(int64_t k, int64_t g, bool loop) const { return most_neighbors(points_.points(g), k, loop); }

  // A bound of the squared distance between points of two boxes: the largest one if `at_most`, else the smallest.
  T apart(const T* a, const T* b, bool at_most) const {
    T sum = 0;
    for (int32_t axis = 0; axis < dim_; ++axis) {
      const T ab = b[dim_ + axis] - a[axis], ba = a[dim_ + axis] - b[axis];
      const T d = at_most ? std::max(ab, ba) : std::max(-std::min(ab, ba), T{0});
      sum += d * d;
    }
    return sum;
  }

  // A lower bound of the number of edges that a radius search will find, computed from boxes only. It is close to the
  // true number if the radius is far too large for the cloud.
  int64_t sure_edges(T limit, int64_t cap, bool loop) {
    const auto is_small = [](const SearchNode& node) { return node.points <= kGroupLeaves * kLeaf; };
    int64_t edges = 0;
    for (int64_t g = 0; g < clouds_; ++g) {
      const SearchCloud<T> points = points_.cloud(g), queries = queries_.cloud(g);
      const auto box = [&](const SearchCloud<T>& cloud, int32_t id) {
        return cloud.boxes + static_cast<int64_t>(id) * 2 * dim_;
      };
      if (queries.points * most(cap, g, loop) < kManyEdges) continue;
      for (int32_t id = 0; id < queries.num_nodes && is_count(edges);) {
        const SearchNode& own = queries.nodes[id];
        if (!is_small(own)) {
          ++id;
          continue;
        }
        interrupts_.check();
        int64_t within = 0;
        for (int32_t other = 0; other < points.num_nodes;) {
          const T *const here = box(queries, id), *const there = box(points, other);
          const bool inside = apart(here, there, true) <= limit;
          if (inside) within += points.nodes[other].points;
          const bool done = inside || is_small(points.nodes[other]) || apart(here, there, false) > limit;
          other = done ? points.nodes[other].next : other + 1;
        }
        edges += own.points * std::clamp<int64_t>(within - (loop ? 0 : 1), 0, cap);
        id = own.next;
      }
    }
    return edges;
  }

  // Calls body(worker, scratch, cloud, first leaf, last leaf) for groups of leaves of queries. The scratch memory holds
  // `room` leaves around a group, `candidates` candidates of a query, and lists of the `nearest` ones of some queries.
  template <typename F>
  void for_each_group(int64_t room, int64_t candidates, int64_t nearest, const F& body) {
    int64_t width = 0, batch = 0;
    if (nearest > 0) {
      width = std::max(ceil_pow2(std::min(nearest, std::max<int64_t>(points_.largest_cloud(), 1))), kMostKeys);
      const int64_t key_bytes = 2 * static_cast<int64_t>(sizeof(T));
      batch = std::clamp<int64_t>(kListBytes / (width * key_bytes * kLeaf), 1, kGroupLeaves);
      candidates = std::max(candidates, 2 * width + 3 * kLeaf);
    }
    std::vector<int64_t> first_group(static_cast<size_t>(clouds_ + 1), 0);
    int64_t leaves = 0;
    for (int64_t g = 0; g < clouds_; ++g) {
      first_group[g + 1] = first_group[g] + ceil_div(queries_.leaves(g), kGroupLeaves);
      leaves = std::max(leaves, points_.leaves(g));
    }
    room = std::min(room, leaves);
    const auto lay_out = [&](char* base, Scratch<T>* own) {
      const int64_t stride = room + kLeaf, most = std::max(room, candidates) + 2 * kLeaf;
      Arena arena{base};
      for (LeafList<T>* list : {&own->around, &own->near}) {
        list->boxes = arena.take<T>(stride, dim_, 2);
        list->leaf = arena.take<int32_t>(stride);
        list->index = arena.take<int32_t>(stride);
        list->stride = stride;
      }
      own->box = arena.take<T>(dim_, 2);
      for (Candidates<T>& found : own->found) {
        found.distance = arena.take<T>(most);
        found.index = arena.take<int32_t>(most);
      }
      own->keys = arena.take<T>(2 * most);
      own->lists = arena.take<T>(2 * batch * kLeaf * width);
      own->room = room;
      own->batch = static_cast<int32_t>(batch);
      return arena.bytes_anywhere();
    };
    std::vector<Scratch<T>> scratch(static_cast<size_t>(num_threads_));
    // The memory must be initialised, because whole vectors are read, also beyond the last candidate. calloc() costs
    // little: the system provides zeros when a page is first used.
    struct Free {
      void operator()(void* block) const { std::free(block); }
    };
    std::vector<std::unique_ptr<void, Free>> memory(scratch.size());
    for (size_t worker = 0; worker < scratch.size(); ++worker) {
      const int64_t bytes = lay_out(nullptr, &scratch[worker]);
      if (bytes == kTooLarge) throw std::bad_alloc();
      memory[worker].reset(std::calloc(static_cast<size_t>(bytes), 1));
      if (memory[worker] == nullptr) throw std::bad_alloc();
      lay_out(Arena::aligned(memory[worker].get()), &scratch[worker]);
    }
    parallel_for(interrupts_, num_threads_, first_group[clouds_], 1, [&](int32_t worker, int64_t group) {
      const int64_t g = owner(first_group.data(), clouds_, group);
      const int64_t first = (group - first_group[g]) * kGroupLeaves;
      const int64_t last = std::min(first + kGroupLeaves, queries_.leaves(g));
      body(worker, scratch[worker], g, static_cast<int32_t>(first), static_cast<int32_t>(last));
    });
  }

  SearchTree<T> points_;
  SearchTree<T> others_;
  const SearchTree<T>& queries_;  // one of these two
  int64_t clouds_;
  int32_t dim_;
  int32_t num_threads_;
  const Kernels<T>& kernels_;
  Interrupts interrupts_;
};

// Calls f with a search. f returns false if it finds an invalid argument.
template <typename F>
int32_t search(const NeighborsCall& call, const F& f) {
  const bool valid = with_scalar(call.dtype, [&](auto scalar) {
    HostSearch<decltype(scalar)> own(call);
    return f(own, scalar);
  });
  return valid ? ERWIN_OK : ERWIN_INVALID_ARGUMENT;
}

// Writes the edges that were found. Returns false if `degree` is not the number of neighbours found for every query.
bool write_edges(const NeighborsCall& call, const erwin_found& found, const int64_t* degree, int64_t* source,
                 int64_t* target) {
  const int64_t* const ptr = call.queries.ptr;
  const int64_t queries = ptr[call.clouds];
  if (!std::equal(found.degree.begin(), found.degree.end(), degree, degree + queries)) return false;
  std::vector<int64_t> first_edge(static_cast<size_t>(queries + 1), 0);
  for (int64_t i = 0; i < queries; ++i) first_edge[i + 1] = first_edge[i] + degree[i];
  const int64_t edges = first_edge[queries];
  if (!is_given(source, edges) || !is_given(target, edges)) return false;
  use_large_pages(source, edges);
  use_large_pages(target, edges);
  Interrupts interrupts(*call.context);
  parallel_for(interrupts, threads_for(call), ceil_div(queries, kQueriesAtOnce), 1, [&](int32_t, int64_t part) {
    const int64_t end = std::min((part + 1) * kQueriesAtOnce, queries);
    int64_t g = owner(ptr, call.clouds, part * kQueriesAtOnce);
    for (int64_t i = part * kQueriesAtOnce; i < end; ++i) {
      // Lists lie in memory in the order of the tree, so the processor cannot predict where the next one is: prefetch
      // it.
      const int64_t ahead = std::min(i + kListsAhead, end - 1);
      for (int64_t j = 0; j < std::min<int64_t>(degree[ahead], 64); j += 16) __builtin_prefetch(found.neighbors[ahead] + j);
      while (ptr[g + 1] <= i) ++g;
      const int64_t first = first_edge[i], count = degree[i], row = call.points.ptr[g];
      const int32_t* const neighbors = found.neighbors[i];
      for (int64_t j = 0; j < count; ++j) source[first + j] = row + neighbors[j];
      std::fill_n(target + first, count, i);
    }
  });
  return true;
}

constexpr NeighborsKernels kKernels = {
    [](const NeighborsCall& call) {
      return with_scalar(call.dtype, [&](auto scalar) {
        return HostSearch<decltype(scalar)>::bytes(call);
      });
    },
    [](const NeighborsCall& call, int64_t k, bool loop, int64_t* source, int64_t* target) {
      return search(call, [&](auto& own, auto) {
        if (!own.build()) return false;
        own.knn(k, loop, source, target);
        return true;
      });
    },
    [](const NeighborsCall& call, double radius, int64_t cap, bool loop, int64_t* degree, erwin_found** found) {
      auto edges = std::make_unique<erwin_found>(call.queries.ptr[call.clouds], threads_for(call));
      return search(call, [&](auto& own, auto scalar) {
        if (!own.build()) return false;
        own.radius(squared<decltype(scalar)>(radius), cap < 0 ? kNoCap : cap, loop, degree, edges.get());
        *found = edges.release();
        return true;
      });
    },
    [](const NeighborsCall& call, double, int64_t, bool, const erwin_found* found, const int64_t* degree,
       int64_t* source, int64_t* target) -> int32_t {
      const bool valid = found != nullptr && write_edges(call, *found, degree, source, target);
      return valid ? ERWIN_OK : ERWIN_INVALID_ARGUMENT;
    }};

}  // namespace

const NeighborsKernels kHostNeighbors = kKernels;

}  // namespace erwin
