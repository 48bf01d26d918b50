// Ball tree on the host: large nodes are split one by one (select.h), small ones finished in cache (leaves.h).
#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

#include "../arena.h"
#include "../arguments.h"
#include "../layout.h"
#include "../scalars.h"
#include "leaves.h"
#include "pages.h"
#include "parallel.h"
#include "select.h"

namespace erwin {
namespace {

constexpr int64_t kTaskPoints = 32768;  // larger clouds are split by all threads together

// Two buffers of records and the centroids of a level. If records only point to their coordinates (D = 0), also the
// rotated coordinates.
template <typename T, int D>
struct Workspace {
  using R = Record<T, D>;
  using Arena = AlignedArena<alignof(R)>;
  R *in, *out;
  T *centroids, *rotated;

  // The size of memory that may start at any address; kTooLarge if the number does not fit.
  static int64_t bytes(int64_t rows, int64_t pooled_rows, int64_t dim) {
    if (rows == 0) return 0;
    Arena arena{nullptr};
    Workspace(arena, rows, pooled_rows, dim);
    return arena.bytes_anywhere();
  }

  Workspace() = default;
  Workspace(Arena& arena, int64_t rows, int64_t pooled_rows, int64_t dim)
      : in(arena.template take<R>(rows)),
        out(arena.template take<R>(rows)),
        centroids(arena.template take<T>(pooled_rows, dim)),
        rotated(arena.template take<T>(D == 0 ? rows : 0, dim)) {}

  Workspace from(int64_t row, int64_t pooled_row, int64_t dim) const {
    Workspace part = *this;
    part.in += row;
    part.out += row;
    part.centroids += pooled_row * dim;
    part.rotated += row * dim;
    return part;
  }
};

template <typename T, int D>
class Builder {
 public:
  Builder(const Layout& layout, const void* pos, const int64_t* ptr, int64_t clouds, int64_t dim, const void* rotation,
          void* workspace, int64_t* perm, uint8_t* mask, int64_t* const* perm_rot, Interrupts& interrupts)
      : layout_(layout),
        pos_(static_cast<const T*>(pos)),
        ptr_(ptr),
        clouds_(clouds),
        dim_(static_cast<int32_t>(dim)),
        rotation_(static_cast<const T*>(rotation)),
        pooled_(layout.first_pooled_level()),
        first_(static_cast<size_t>((clouds + 1) * (layout.levels + 1))),
        perm_(perm),
        mask_(mask),
        perm_rot_(perm_rot),
        interrupts_(interrupts) {
    for (int64_t g = 0; g < clouds; ++g) {
      const Node root = layout.root(ptr[g + 1] - ptr[g]);
      for (int32_t l = 0; l < layout.levels; ++l) first_row(g + 1)[l] = first_row(g)[l] + layout.rows(root, l);
    }
    typename Space::Arena arena{Space::Arena::aligned(workspace)};
    workspace_ = Space(arena, first_row(clouds)[0], first_row(clouds)[pooled_], dim);
  }

  void run(int32_t num_threads) {
    const auto workers = static_cast<int32_t>(std::min<int64_t>(num_threads, ceil_div(ptr_[clouds_], kSerialPoints)));
    if constexpr (D > 0)
      for (int32_t i = 0; i < std::max(workers, 1); ++i) leaves_.push_back(std::make_unique<Leaves<T, D>>(layout_));
    with_team(workers, interrupts_, [this](Team& team) {
      for (int64_t g = 0; g < clouds_; ++g)
        if (is_large(g)) cloud(team, 0, g);
      team.run_last(clouds_, [this](int32_t worker, int64_t g) {
        Team alone(interrupts_);
        if (!is_large(g)) cloud(alone, worker, g);
      });
    });
  }

 private:
  using R = Record<T, D>;
  using Space = Workspace<T, D>;

  static constexpr int32_t kMain = -1;
  static constexpr int64_t kLeafPoints = Leaves<T, std::max(D, 1)>::kPoints;

  // The main tree, or the rotated tree of a level.
  struct Tree {
    int32_t level;
    int64_t* perm;
    uint8_t* mask;
  };

  // A node: its rows in ascending order (`in`), and space for the same number of rows (`out`), which the next split
  // uses.
  struct Subtree {
    Node node;
    R *in, *out;
    Box<T, D> box;
  };

  struct Halves {
    Subtree left, right;
  };

  bool is_large(int64_t g) const { return ptr_[g + 1] - ptr_[g] > kTaskPoints; }

  // The first row of a cloud on every level, and one more entry for a level without rows.
  int64_t* first_row(int64_t g) { return &first_[static_cast<size_t>(g * (layout_.levels + 1))]; }

  // Builds the main tree of a cloud and the rotated trees. The calling thread leads `team`; `worker` is its number in
  // the team in which it was called.
  void cloud(Team& team, int32_t worker, int64_t g) {
    const int64_t points = ptr_[g + 1] - ptr_[g];
    if (points == 0) return;
    const int32_t dim = D > 0 ? D : dim_;  // a constant if D > 0, so that loops are unrolled
    const Node root = layout_.root(points);
    const int64_t* const first = first_row(g);
    const T* const pos = pos_ + ptr_[g] * dim;
    int64_t* const perm = perm_ + first[0];
    uint8_t* const mask = mask_ == nullptr ? nullptr : mask_ + first[0];
    const Space space = workspace_.from(first[0], first[pooled_], dim);

    const Box<T, D> box = load(team, space.in, points, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) space.in[i].load(pos + i * dim, i);
    });
    build(team, worker, {kMain, perm, mask}, {root, space.in, space.out, box});
    if (rotation_ == nullptr) return;

    const auto row = [=](int32_t level, int64_t i) {
      return level < pooled_ ? pos + perm[i] * dim : space.centroids + i * dim;
    };
    // Computes the centroids of the rows of a level whose first child is in [begin, end) on the level below.
    const auto pool = [=](int32_t level, int64_t begin, int64_t end) {
      const int64_t stride = layout_.span[level] / layout_.span[level - 1];
      const int64_t children = layout_.rows(root, level - 1);
      for (int64_t start = ceil_div(begin, stride) * stride; start < end; start += stride) {
        const int64_t last = std::min(start + stride, children);
        for (int32_t a = 0; a < dim; ++a) {
          T sum = row(level - 1, start)[a];
          for (int64_t child = start + 1; child < last; ++child) sum += row(level - 1, child)[a];
          space.centroids[start / stride * dim + a] = sum / static_cast<T>(last - start);
        }
      }
    };
    for (int32_t level = 0; level < layout_.levels; ++level) {
      const int64_t level_rows = layout_.rows(root, level);
      // Centroids of centroids overwrite these in place, from front to back. Centroids of points are computed while the
      // points are loaded, below.
      if (level > pooled_) pool(level, 0, layout_.rows(root, level - 1));
      const Box<T, D> level_box = load(team, space.in, level_rows, [=](int64_t begin, int64_t end) {
        if (level < pooled_ && level_rows > kLeafPoints)  // these points are far apart in memory
          for (int64_t i = begin; i < end; ++i) __builtin_prefetch(row(level, i));
        for (int64_t i = begin; i < end; ++i) {
          if constexpr (D > 0) {
            space.in[i].load_rotated(row(level, i), rotation_, i);
          } else {
            rotate(row(level, i), rotation_, dim, space.rotated + i * dim);
            space.in[i].load(space.rotated + i * dim, i);
          }
        }
        if (level + 1 == pooled_ && pooled_ < layout_.levels) pool(pooled_, begin, end);
      });
      build(team, worker, {level, perm_rot_[level] + first[level], nullptr}, {root, space.in, space.out, level_box});
    }
  }

  // Calls body(begin, end), which loads records, for blocks of rows. Returns the box of all records if it will be
  // needed.
  template <typename F>
  Box<T, D> load(Team& team, const R* records, int64_t rows, const F& body) const {
    const int64_t chunks = ceil_div(rows, kChunkRecords);
    std::vector<Box<T, D>> boxes(static_cast<size_t>(chunks));
    team.run(chunks, [&](int32_t, int64_t chunk) {
      const int64_t end = std::min(rows, (chunk + 1) * kChunkRecords);
      for (int64_t i = chunk * kChunkRecords; i < end; i += kBlockRecords) {
        interrupts_.check();
        const int64_t size = std::min(kBlockRecords, end - i);
        body(i, i + size);
        if (rows > kLeafPoints) boxes[chunk].include(records + i, size);
      }
    });
    for (int64_t chunk = 1; chunk < chunks; ++chunk) boxes[0].include(boxes[chunk]);
    return boxes[0];
  }

  int64_t rows(const Tree& tree, const Node& node) const {
    return tree.level == kMain ? node.points : layout_.rows(node, tree.level);
  }

  void build(Team& team, int32_t worker, const Tree& tree, const Subtree& root) {
    if (team.size() == 1) return build_subtree(worker, tree, root);
    std::vector<Subtree> subtrees;
    divide(team, tree, root, std::max(rows(tree, root.node) / (8 * team.size()), kTaskPoints / 2), &subtrees);
    team.run(static_cast<int64_t>(subtrees.size()),
             [&](int32_t on, int64_t i) { build_subtree(on, tree, subtrees[static_cast<size_t>(i)]); });
  }

  // Splits a tree into subtrees of at most `limit` rows, or balls.
  void divide(Team& team, const Tree& tree, const Subtree& subtree, int64_t limit, std::vector<Subtree>* subtrees) {
    if (rows(tree, subtree.node) <= limit || is_ball(tree, subtree.node)) return subtrees->push_back(subtree);
    const Halves halves = split(team, tree, subtree);
    divide(team, tree, halves.left, limit, subtrees);
    divide(team, tree, halves.right, limit, subtrees);
  }

  void build_subtree(int32_t worker, const Tree& tree, const Subtree& subtree) {
    interrupts_.check();
    const int64_t n = rows(tree, subtree.node);
    if (is_ball(tree, subtree.node)) {
      int64_t* const out = tree.perm + subtree.node.slot / layout_.span[tree.level];
      for (int64_t i = 0; i < n; ++i) out[i] = subtree.in[i].index;
      return;
    }
    if constexpr (D > 0) {
      if (n <= kLeafPoints) {
        Leaves<T, D>& leaves = *leaves_[static_cast<size_t>(worker)];
        leaves.load(subtree.in, n);
        return tree.level == kMain ? leaves.main_tree(subtree.node, tree.perm, tree.mask)
                                   : leaves.rotated_tree(tree.level, subtree.node, tree.perm);
      }
    } else if (n == 1) {
      for (int64_t i = subtree.node.slot; i < subtree.node.slot + subtree.node.slots; ++i) {
        tree.perm[i] = subtree.in[0].index;
        if (tree.mask != nullptr) tree.mask[i] = i == subtree.node.slot;
      }
      return;
    }
    Team alone(interrupts_);
    const Halves halves = split(alone, tree, subtree);
    build_subtree(worker, tree, halves.left);
    build_subtree(worker, tree, halves.right);
  }

  bool is_ball(const Tree& tree, const Node& node) const {
    return tree.level != kMain && layout_.within_ball(node, tree.level);
  }

  Halves split(Team& team, const Tree& tree, const Subtree& subtree) const {
    const Children children = layout_.split(subtree.node);
    const int64_t left = rows(tree, children.left);
    const Boxes<T, D> boxes =
        split_records(team, subtree.in, subtree.out, rows(tree, subtree.node), left, dim_, subtree.box);
    return {{children.left, subtree.out, subtree.in, boxes.left},
            {children.right, subtree.out + left, subtree.in + left, boxes.right}};
  }

  const Layout& layout_;
  const T* pos_;
  const int64_t* ptr_;
  int64_t clouds_;
  int32_t dim_;
  const T* rotation_;
  int32_t pooled_;
  std::vector<int64_t> first_;
  Space workspace_;
  int64_t* perm_;
  uint8_t* mask_;
  int64_t* const* perm_rot_;
  Interrupts& interrupts_;
  std::vector<std::unique_ptr<Leaves<T, std::max(D, 1)>>> leaves_;  // one per worker, unless D is 0
};

// Calls f with the dimension as a constant if it is compiled in, otherwise with 0.
template <typename F>
auto with_dim(int64_t dim, const F& f) {
  switch (dim) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    default: return f(std::integral_constant<int, 0>{});
  }
}

// Writes the rows of each ball of `level` below `node`, in order.
int64_t* write_balls(const Layout& layout, int32_t level, const Node& node, int64_t* out) {
  if (layout.within_ball(node, level)) {
    *out = layout.rows(node, level);
    return out + 1;
  }
  const Children children = layout.split(node);
  out = write_balls(layout, level, children.left, out);
  return write_balls(layout, level, children.right, out);
}

int64_t count_balls(const Layout& layout, int32_t level, const Node& node) {
  if (layout.within_ball(node, level)) return 1;
  const Children children = layout.split(node);
  return count_balls(layout, level, children.left) + count_balls(layout, level, children.right);
}

}  // namespace
}  // namespace erwin

using erwin::Layout;
using erwin::Node;

int32_t erwin_tree_sizes(const erwin_layout* config, const int64_t* ptr, int64_t clouds, int64_t* rows,
                         int64_t* total) {
  Layout layout;
  if (!erwin::make_layout(config, &layout) || !erwin::valid_ptr(ptr, clouds)) return ERWIN_INVALID_ARGUMENT;
  if (!erwin::is_given(rows, clouds) || total == nullptr) return ERWIN_INVALID_ARGUMENT;
  int64_t* const balls = total + layout.levels;
  std::fill_n(total, 2 * layout.levels, 0);
  for (int64_t g = 0; g < clouds; ++g) {
    const Node root = layout.root(ptr[g + 1] - ptr[g]);
    for (int32_t l = 0; l < layout.levels; ++l) {
      const int64_t count = layout.rows(root, l);
      rows[g * layout.levels + l] = count;
      total[l] += count;
      if (root.points > 0) balls[l] += erwin::count_balls(layout, l, root);
    }
  }
  return ERWIN_OK;
}

int32_t erwin_tree_tables(const erwin_layout* config, const int64_t* ptr, int64_t clouds, int64_t* const* ball_len,
                          int64_t* const* group_len) {
  Layout layout;
  if (!erwin::make_layout(config, &layout) || !erwin::valid_ptr(ptr, clouds)) return ERWIN_INVALID_ARGUMENT;
  if (ball_len == nullptr || !erwin::is_given(group_len, layout.levels - 1)) return ERWIN_INVALID_ARGUMENT;
  for (int32_t l = 0; l < layout.levels; ++l)
    if (!erwin::is_given(ball_len[l], ptr[clouds])) return ERWIN_INVALID_ARGUMENT;
  for (int32_t l = 0; l < layout.levels; ++l) {
    int64_t* balls = ball_len[l];
    int64_t* groups = l + 1 < layout.levels ? group_len[l] : nullptr;
    for (int64_t g = 0; g < clouds; ++g) {
      const Node root = layout.root(ptr[g + 1] - ptr[g]);
      if (root.points == 0) continue;
      balls = erwin::write_balls(layout, l, root, balls);
      if (groups == nullptr) continue;
      const int64_t stride = layout.span[l + 1] / layout.span[l], children = layout.rows(root, l);
      groups = std::fill_n(groups, children / stride, stride);
      if (children % stride != 0) *groups++ = children % stride;
    }
  }
  return ERWIN_OK;
}

int32_t erwin_tree_workspace(const erwin_layout* config, int32_t dtype, const int64_t* ptr, int64_t clouds,
                             int64_t dim, int64_t* bytes) {
  Layout layout;
  if (!erwin::make_layout(config, &layout) || !erwin::valid_ptr(ptr, clouds)) return ERWIN_INVALID_ARGUMENT;
  if (!erwin::valid_scalar(dtype) || !erwin::valid_dim(dim) || bytes == nullptr) return ERWIN_INVALID_ARGUMENT;
  const int32_t pooled = layout.first_pooled_level();
  return erwin::guarded([&]() -> int32_t {
    int64_t rows = 0, pooled_rows = 0;
    for (int64_t g = 0; g < clouds; ++g) {
      const Node root = layout.root(ptr[g + 1] - ptr[g]);
      rows = erwin::checked_sum(rows, root.slots);
      if (pooled < layout.levels) pooled_rows = erwin::checked_sum(pooled_rows, layout.rows(root, pooled));
    }
    const int64_t needed = erwin::with_dim(dim, [=](auto d) {
      return erwin::with_scalar(dtype, [=](auto scalar) {
        return erwin::Workspace<decltype(scalar), d>::bytes(rows, pooled_rows, dim);
      });
    });
    if (needed == erwin::kTooLarge) return ERWIN_INVALID_ARGUMENT;
    *bytes = needed;
    return ERWIN_OK;
  });
}

int32_t erwin_tree_build(const erwin_context* context, const erwin_layout* config, int32_t dtype, const void* pos,
                         const int64_t* ptr, int64_t clouds, int64_t dim, const void* rotation, void* workspace,
                         int64_t workspace_bytes, int64_t* perm, uint8_t* mask, int64_t* const* perm_rot) {
  int64_t bytes = 0;
  const int32_t status = erwin_tree_workspace(config, dtype, ptr, clouds, dim, &bytes);
  if (status != ERWIN_OK) return status;
  const int32_t host = erwin::check_host(context);
  if (host != ERWIN_OK) return host;
  if (workspace_bytes < bytes) return ERWIN_WORKSPACE_TOO_SMALL;
  const int64_t points = ptr[clouds];
  if (!erwin::is_given(pos, points) || !erwin::is_given(perm, points) || !erwin::is_given(workspace, bytes)) {
    return ERWIN_INVALID_ARGUMENT;
  }
  if (rotation != nullptr && perm_rot == nullptr) return ERWIN_INVALID_ARGUMENT;
  Layout layout;
  erwin::make_layout(config, &layout);
  for (int32_t level = 0; rotation != nullptr && level < layout.levels; ++level) {
    if (!erwin::is_given(perm_rot[level], points)) return ERWIN_INVALID_ARGUMENT;
  }
  erwin::use_large_pages(static_cast<char*>(workspace), bytes);
  for (int32_t level = 0; level < layout.levels; ++level) {
    int64_t rows = 0;
    for (int64_t g = 0; g < clouds; ++g) rows += layout.rows(layout.root(ptr[g + 1] - ptr[g]), level);
    if (level == 0) erwin::use_large_pages(perm, rows);
    if (rotation != nullptr) erwin::use_large_pages(perm_rot[level], rows);
  }
  return erwin::guarded([&] {
    erwin::Interrupts interrupts(*context);
    erwin::with_dim(dim, [&](auto d) {
      erwin::with_scalar(dtype, [&](auto scalar) {
        erwin::Builder<decltype(scalar), d>(layout, pos, ptr, clouds, dim, rotation, workspace, perm, mask, perm_rot,
                                            interrupts)
            .run(context->num_threads);
      });
    });
  });
}
