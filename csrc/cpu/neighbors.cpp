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
#include "../layout.h"
#include "../neighbors.h"
#include "../scalars.h"
#include "../sizes.h"
#include "found.h"
#include "isa.h"
#include "pages.h"
#include "parallel.h"
#include "permutations.h"
#include "search.h"

namespace erwin {
namespace {

constexpr int64_t kLeavesAtOnce = 8;      // search leaves that a thread fills at a time
constexpr int64_t kListBytes = 64 << 10;  // bytes of the candidate lists that a thread keeps at a time
constexpr int64_t kManyEdges = 1 << 28;   // edges of 4 GiB: with as many, a search first checks that memory can be had
constexpr int64_t kMostKeys = 8;          // most keys in a vector
constexpr int64_t kPointsAtOnce = 512;    // points whose edges a thread writes at a time
constexpr int64_t kListsAhead = 16;       // how many lists ahead lists are prefetched

template <typename T>
const Kernels<T>& kernels(int64_t dim) {
  const KernelTable& table = *geometry_kernels().search;
  if constexpr (std::is_same_v<T, double>) return table.of_double[dim <= 3 ? dim : 0];
  else return table.of_float[dim <= 3 ? dim : 0];
}

int64_t count_leaves(const Layout& layout, const Node& node) {
  if (node.points <= kLeaf) return node.points > 0;
  const Children children = layout.split(node);
  return count_leaves(layout, children.left) + count_leaves(layout, children.right);
}

// The group that an item belongs to. `first` [groups + 1]: the first item of each group.
int64_t owner(const int64_t* first, int64_t groups, int64_t number) {
  return std::upper_bound(first, first + groups + 1, number) - first - 1;
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
  const int64_t points = call.ptr[call.clouds];
  if (points < kSerialPoints) return 1;
  return static_cast<int32_t>(std::min<int64_t>(call.context->num_threads, points / (kGroupLeaves * kLeaf / 2)));
}

template <typename T>
class SearchTree {
 public:
  explicit SearchTree(const NeighborsCall& call)
      : layout_(call.layout),
        pos_(static_cast<const T*>(call.pos)),
        ptr_(call.ptr),
        clouds_(call.clouds),
        dim_(static_cast<int32_t>(call.dim)),
        perm_(call.perm),
        workspace_(Arena::aligned(call.workspace)),
        num_threads_(threads_for(call)),
        kernels_(kernels<T>(call.dim)),
        interrupts_(*call.context) {}

  // The workspace may start anywhere.
  static int64_t bytes(const Layout& layout, const int64_t* ptr, int64_t clouds, int64_t dim) {
    int64_t leaves = 0;
    for (int64_t g = 0; g < clouds; ++g) leaves += count_leaves(layout, layout.root(ptr[g + 1] - ptr[g]));
    return Arrays(nullptr, clouds, leaves, dim).bytes;
  }

  // Returns false if `perm` is not a permutation of the points of every cloud, for example if it is from an outdated
  // tree.
  bool build() {
    if (!valid_perm()) return false;
    const std::vector<int64_t> first_leaf = find_leaves();
    at_ = Arrays(workspace_, clouds_, first_leaf.back(), dim_);
    std::copy(first_leaf.begin(), first_leaf.end(), at_.first_leaf);
    parallel_for(interrupts_, num_threads_, clouds_, 1, [this](int32_t, int64_t g) {
      if (ptr_[g + 1] == ptr_[g]) return;
      int32_t nodes = 0, leaves = 0;
      number(layout_.root(ptr_[g + 1] - ptr_[g]), at_.nodes + 2 * at_.first_leaf[g],
             at_.leaves + at_.first_leaf[g], &nodes, &leaves);
    });
    parallel_for(interrupts_, num_threads_, at_.first_leaf[clouds_], kLeavesAtOnce,
                 [this](int32_t, int64_t leaf) { fill_leaf(leaf); });
    parallel_for(interrupts_, num_threads_, clouds_, 1, [this](int32_t, int64_t g) { merge_boxes(g); });
    return true;
  }

  void knn(int64_t k, bool loop, int64_t* source, int64_t* target) {
    // The first edge of every cloud.
    std::vector<int64_t> first_edge(static_cast<size_t>(clouds_ + 1), 0);
    for (int64_t g = 0; g < clouds_; ++g)
      first_edge[g + 1] = first_edge[g] + (ptr_[g + 1] - ptr_[g]) * most(k, g, loop);
    use_large_pages(source, first_edge[clouds_]);
    use_large_pages(target, first_edge[clouds_]);
    for_each_group(kListLeaves, 0, k, [&](int32_t, const Scratch<T>& own, int64_t g, int32_t first, int32_t last) {
      const int64_t neighbors = most(k, g, loop);
      if (neighbors == 0) return;
      kernels_.knn(cloud(g), dim_, first, last, {neighbors, loop, source + first_edge[g], target + first_edge[g]}, own);
    });
  }

  void radius(T limit, int64_t cap, bool loop, int64_t* degree, erwin_found* found) {
    const int64_t sure = sure_edges(limit, cap, loop);
    if (sure >= kManyEdges && !has_memory(sure)) throw std::bad_alloc();
    if (cap == 0) {
      std::fill_n(degree, ptr_[clouds_], int64_t{0});
    } else {
      const int64_t kept = cap < largest_cloud() ? cap : 0;  // neighbours kept per query; 0: all
      for_each_group(largest_cloud(), largest_cloud(), kept,
                     [&](int32_t worker, const Scratch<T>& own, int64_t g, int32_t first, int32_t last) {
        const RadiusSearch<T> search{limit,
                                     loop,
                                     cap < most(kNoCap, g, loop) ? cap : kNoCap,
                                     degree + ptr_[g],
                                     found->neighbors.data() + ptr_[g],
                                     &found->lists[worker],
                                     [](Lists* lists, int64_t count) { return lists->take(count); }};
        kernels_.radius(cloud(g), dim_, first, last, search, own);
      });
    }
    found->degree.assign(degree, degree + ptr_[clouds_]);
  }

 private:
  // The search structure in the workspace.
  struct Arrays {
    int64_t* first_leaf;  // [clouds + 1]
    SearchNode* nodes;    // [2 leaves]
    T* boxes;             // [2 leaves, 2, dim]
    int32_t* leaves;      // [leaves]: their nodes
    T* coords;            // [leaves, dim, kLeaf]
    int32_t* index;       // [leaves, kLeaf]
    int64_t bytes;

    Arrays() = default;
    Arrays(char* workspace, int64_t clouds, int64_t num_leaves, int64_t dim) {
      Arena arena{workspace};
      first_leaf = arena.take<int64_t>(clouds + 1);
      nodes = arena.take<SearchNode>(2 * num_leaves);
      boxes = arena.take<T>(num_leaves, dim, 4);
      leaves = arena.take<int32_t>(num_leaves);
      coords = arena.take<T>(num_leaves, dim, kLeaf);
      index = arena.take<int32_t>(num_leaves, kLeaf);
      bytes = arena.bytes_anywhere();
    }
  };

  int64_t most(int64_t k, int64_t g, bool loop) const { return most_neighbors(ptr_[g + 1] - ptr_[g], k, loop); }

  bool valid_perm() {
    std::vector<uint8_t> seen(static_cast<size_t>(ceil_div(largest_cloud(), 8)));
    for (int64_t g = 0; g < clouds_; ++g) {
      const auto look = [this] { interrupts_.check(); };
      if (!is_permutation(perm_ + ptr_[g], ptr_[g + 1] - ptr_[g], seen.data(), look)) return false;
    }
    return true;
  }

  // The first leaf of every cloud, and at the end the number of all leaves.
  std::vector<int64_t> find_leaves() const {
    std::vector<int64_t> first_leaf(static_cast<size_t>(clouds_ + 1), 0);
    for (int64_t g = 0; g < clouds_; ++g)
      first_leaf[g + 1] = first_leaf[g] + count_leaves(layout_, layout_.root(ptr_[g + 1] - ptr_[g]));
    return first_leaf;
  }

  void number(const Node& node, SearchNode* nodes, int32_t* leaves, int32_t* num_nodes, int32_t* num_leaves) const {
    const int32_t id = (*num_nodes)++;
    nodes[id].leaf = *num_leaves;
    nodes[id].points = static_cast<int32_t>(node.points);
    nodes[id].index = static_cast<int32_t>(node.begin);  // for a leaf: its first place, until its points are filled in
    if (node.points <= kLeaf) {
      leaves[(*num_leaves)++] = id;
    } else {
      const Children children = layout_.split(node);
      number(children.left, nodes, leaves, num_nodes, num_leaves);
      number(children.right, nodes, leaves, num_nodes, num_leaves);
    }
    nodes[id].next = *num_nodes;
  }

  SearchCloud<T> cloud(int64_t g) const {
    const int64_t first = at_.first_leaf[g];
    return {ptr_[g],
            ptr_[g + 1] - ptr_[g],
            static_cast<int32_t>(2 * (at_.first_leaf[g + 1] - first) - 1),
            at_.nodes + 2 * first,
            at_.boxes + 2 * first * 2 * dim_,
            at_.leaves + first,
            at_.coords + first * dim_ * kLeaf,
            at_.index + first * kLeaf};
  }

  // Gathers the points of a leaf and their box.
  void fill_leaf(int64_t leaf) const {
    const int64_t g = owner(at_.first_leaf, clouds_, leaf);
    const int64_t id = 2 * at_.first_leaf[g] + at_.leaves[leaf];
    SearchNode& node = at_.nodes[id];
    const int64_t* const perm = perm_ + ptr_[g] + node.index;
    T* const low = at_.boxes + id * 2 * dim_;
    T* const high = low + dim_;
    T* const coords = at_.coords + leaf * dim_ * kLeaf;
    int32_t* const index = at_.index + leaf * kLeaf;
    for (int32_t i = 0; i < node.points; ++i) index[i] = static_cast<int32_t>(perm[i]);
    std::fill(index + node.points, index + kLeaf, std::numeric_limits<int32_t>::max());
    node.index = *std::min_element(index, index + node.points);
    for (int32_t a = 0; a < dim_; ++a) {
      T* const x = coords + a * kLeaf;
      for (int32_t i = 0; i < node.points; ++i) x[i] = pos_[(ptr_[g] + index[i]) * dim_ + a];
      std::fill(x + node.points, x + kLeaf, std::numeric_limits<T>::quiet_NaN());
      low[a] = high[a] = x[0];
      for (int32_t i = 1; i < node.points; ++i) {
        low[a] = x[i] < low[a] ? x[i] : low[a];
        high[a] = x[i] > high[a] ? x[i] : high[a];
      }
    }
  }

  void merge_boxes(int64_t g) const {
    SearchNode* const nodes = at_.nodes + 2 * at_.first_leaf[g];
    T* const boxes = at_.boxes + 2 * at_.first_leaf[g] * 2 * dim_;
    const int64_t num_nodes = 2 * (at_.first_leaf[g + 1] - at_.first_leaf[g]) - 1;
    for (int64_t id = num_nodes - 1; id >= 0; --id) {
      if (nodes[id].next == id + 1) continue;
      const int64_t left_id = id + 1, right_id = nodes[left_id].next;
      nodes[id].index = std::min(nodes[left_id].index, nodes[right_id].index);
      const T* const left = boxes + left_id * 2 * dim_;
      const T* const right = boxes + right_id * 2 * dim_;
      T* const low = boxes + id * 2 * dim_;
      for (int32_t a = 0; a < dim_; ++a) low[a] = std::min(left[a], right[a]);
      for (int32_t a = dim_; a < 2 * dim_; ++a) low[a] = std::max(left[a], right[a]);
    }
  }

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
      const SearchCloud<T> own = cloud(g);
      const auto box = [&](int32_t id) { return own.boxes + static_cast<int64_t>(id) * 2 * dim_; };
      if (own.points * most(cap, g, loop) < kManyEdges) continue;
      for (int32_t id = 0; id < own.num_nodes && is_count(edges);) {
        if (!is_small(own.nodes[id])) {
          ++id;
          continue;
        }
        interrupts_.check();
        int64_t within = 0;
        for (int32_t other = 0; other < own.num_nodes;) {
          const bool inside = apart(box(id), box(other), true) <= limit;
          if (inside) within += own.nodes[other].points;
          const bool done = inside || is_small(own.nodes[other]) || apart(box(id), box(other), false) > limit;
          other = done ? own.nodes[other].next : other + 1;
        }
        edges += own.nodes[id].points * std::clamp<int64_t>(within - (loop ? 0 : 1), 0, cap);
        id = own.nodes[id].next;
      }
    }
    return edges;
  }

  int64_t largest_cloud() const {
    int64_t largest = 0;
    for (int64_t g = 0; g < clouds_; ++g) largest = std::max(largest, ptr_[g + 1] - ptr_[g]);
    return largest;
  }

  // Calls body(worker, scratch, cloud, first leaf, last leaf) for groups of leaves. The scratch memory holds `room`
  // leaves around a group, `candidates` candidates of a query, and lists of the `nearest` ones of some queries.
  template <typename F>
  void for_each_group(int64_t room, int64_t candidates, int64_t nearest, const F& body) {
    int64_t width = 0, batch = 0;
    if (nearest > 0) {
      width = std::max(ceil_pow2(std::min(nearest, std::max<int64_t>(largest_cloud(), 1))), kMostKeys);
      const int64_t key_bytes = 2 * static_cast<int64_t>(sizeof(T));
      batch = std::clamp<int64_t>(kListBytes / (width * key_bytes * kLeaf), 1, kGroupLeaves);
      candidates = std::max(candidates, 2 * width + 3 * kLeaf);
    }
    std::vector<int64_t> first_group(static_cast<size_t>(clouds_ + 1), 0);
    int64_t leaves = 0;
    for (int64_t g = 0; g < clouds_; ++g) {
      const int64_t of_cloud = at_.first_leaf[g + 1] - at_.first_leaf[g];
      first_group[g + 1] = first_group[g] + ceil_div(of_cloud, kGroupLeaves);
      leaves = std::max(leaves, of_cloud);
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
      const int64_t last = std::min(first + kGroupLeaves, at_.first_leaf[g + 1] - at_.first_leaf[g]);
      body(worker, scratch[worker], g, static_cast<int32_t>(first), static_cast<int32_t>(last));
    });
  }

  const Layout& layout_;
  const T* pos_;
  const int64_t* ptr_;
  int64_t clouds_;
  int32_t dim_;
  const int64_t* perm_;
  char* workspace_;
  int32_t num_threads_;
  const Kernels<T>& kernels_;
  Interrupts interrupts_;
  Arrays at_;
};

// Calls f with a search tree. f returns false if it finds an invalid argument.
template <typename F>
int32_t search(const NeighborsCall& call, const F& f) {
  const bool valid = with_scalar(call.dtype, [&](auto scalar) {
    SearchTree<decltype(scalar)> tree(call);
    return f(tree, scalar);
  });
  return valid ? ERWIN_OK : ERWIN_INVALID_ARGUMENT;
}

// Writes the edges that were found. Returns false if `degree` is not the number of neighbours found for every point.
bool write_edges(const NeighborsCall& call, const erwin_found& found, const int64_t* degree, int64_t* source,
                 int64_t* target) {
  const int64_t points = call.ptr[call.clouds];
  if (!std::equal(found.degree.begin(), found.degree.end(), degree, degree + points)) return false;
  std::vector<int64_t> first_edge(static_cast<size_t>(points + 1), 0);
  for (int64_t i = 0; i < points; ++i) first_edge[i + 1] = first_edge[i] + degree[i];
  const int64_t edges = first_edge[points];
  if (!is_given(source, edges) || !is_given(target, edges)) return false;
  use_large_pages(source, edges);
  use_large_pages(target, edges);
  Interrupts interrupts(*call.context);
  parallel_for(interrupts, threads_for(call), ceil_div(points, kPointsAtOnce), 1, [&](int32_t, int64_t part) {
    const int64_t end = std::min((part + 1) * kPointsAtOnce, points);
    int64_t g = owner(call.ptr, call.clouds, part * kPointsAtOnce);
    for (int64_t i = part * kPointsAtOnce; i < end; ++i) {
      // Lists lie in memory in the order of the tree, so the processor cannot predict where the next one is: prefetch
      // it.
      const int64_t ahead = std::min(i + kListsAhead, end - 1);
      for (int64_t j = 0; j < std::min<int64_t>(degree[ahead], 64); j += 16) __builtin_prefetch(found.neighbors[ahead] + j);
      while (call.ptr[g + 1] <= i) ++g;
      const int64_t first = first_edge[i], count = degree[i], row = call.ptr[g];
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
        return SearchTree<decltype(scalar)>::bytes(call.layout, call.ptr, call.clouds, call.dim);
      });
    },
    [](const NeighborsCall& call, int64_t k, bool loop, int64_t* source, int64_t* target) {
      return search(call, [&](auto& tree, auto) {
        if (!tree.build()) return false;
        tree.knn(k, loop, source, target);
        return true;
      });
    },
    [](const NeighborsCall& call, double radius, int64_t cap, bool loop, int64_t* degree, erwin_found** found) {
      auto own = std::make_unique<erwin_found>(call.ptr[call.clouds], threads_for(call));
      return search(call, [&](auto& tree, auto scalar) {
        if (!tree.build()) return false;
        tree.radius(squared<decltype(scalar)>(radius), cap < 0 ? kNoCap : cap, loop, degree, own.get());
        *found = own.release();
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
