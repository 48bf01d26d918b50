// Ball tree on the host: recursive selection along the widest axis of every node.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../layout.h"
#include "parallel.h"

namespace erwin {
namespace {

constexpr int64_t kTaskPoints = 8192;  // nodes below this are not worth a task

// A point on its way through the tree. D is the dimension, or 0 where it is known at run time only.
template <typename T, int D>
struct Record {
  T x[D];
  int32_t index;
  void load(const T* pos, int64_t i) {
    for (int a = 0; a < D; ++a) x[a] = pos[a];
    index = static_cast<int32_t>(i);
  }
  T at(int32_t axis) const { return x[axis]; }
};

template <typename T>
struct Record<T, 0> {
  const T* x;
  int32_t index;
  void load(const T* pos, int64_t i) {
    x = pos;
    index = static_cast<int32_t>(i);
  }
  T at(int32_t axis) const { return x[axis]; }
};

// The axis of largest extent; the lowest one wins ties.
template <typename R>
int32_t widest_axis(const R* records, int64_t n, int32_t dim) {
  using T = decltype(records->at(0));
  int32_t widest = 0;
  T best = -1;
  for (int32_t axis = 0; axis < dim; ++axis) {
    T low = records[0].at(axis), high = low;
    for (int64_t i = 1; i < n; ++i) {
      const T x = records[i].at(axis);
      low = x < low ? x : low;
      high = x > high ? x : high;
    }
    if (high - low > best) {
      best = high - low;
      widest = axis;
    }
  }
  return widest;
}

// Moves the `left` smallest records, by (coordinate, index), to the front. -0.0 and +0.0 compare equal.
template <typename R>
void select(R* records, int64_t n, int64_t left, int32_t axis) {
  std::nth_element(records, records + left, records + n, [axis](const R& a, const R& b) {
    return a.at(axis) < b.at(axis) || (a.at(axis) == b.at(axis) && a.index < b.index);
  });
}

struct Cloud {
  const Layout* layout;
  int32_t dim;
  bool tasks;  // whether the subtrees may become OpenMP tasks
};

// The main tree: down to single slots. `records` holds the node's points.
template <typename R>
void build_main(const Cloud& cloud, const Node& node, R* records, int64_t* perm, uint8_t* mask) {
  if (node.points == 1) {
    for (int64_t i = 0; i < node.slots; ++i) {  // a lone point fills its leaf pair
      perm[node.slot + i] = records[0].index;
      if (mask != nullptr) mask[node.slot + i] = i == 0;
    }
    return;
  }
  const Children children = cloud.layout->split(node);
  const Node left = children.left, right = children.right;
  select(records, node.points, left.points, widest_axis(records, node.points, cloud.dim));
  R* const rest = records + left.points;
  if (cloud.tasks && node.points > kTaskPoints) {
#pragma omp task
    build_main(cloud, left, records, perm, mask);
    build_main(cloud, right, rest, perm, mask);
#pragma omp taskwait
  } else {
    build_main(cloud, left, records, perm, mask);
    build_main(cloud, right, rest, perm, mask);
  }
}

// The rotated tree of a level: the main tree's counts, down to that level's balls, whose rows ascend.
template <typename R>
void build_rotated(const Cloud& cloud, int32_t level, const Node& node, R* records, int64_t* perm) {
  const Layout& layout = *cloud.layout;
  const int64_t rows = layout.rows(node, level);
  const int64_t first = node.slot / layout.span[level];
  if (layout.within_ball(node, level)) {
    for (int64_t i = 0; i < rows; ++i) perm[first + i] = records[i].index;
    std::sort(perm + first, perm + first + rows);
    return;
  }
  const Children children = layout.split(node);
  const Node left = children.left, right = children.right;
  const int64_t left_rows = layout.rows(left, level);
  select(records, rows, left_rows, widest_axis(records, rows, cloud.dim));
  R* const rest = records + left_rows;
  if (cloud.tasks && rows > kTaskPoints) {
#pragma omp task
    build_rotated(cloud, level, left, records, perm);
    build_rotated(cloud, level, right, rest, perm);
#pragma omp taskwait
  } else {
    build_rotated(cloud, level, left, records, perm);
    build_rotated(cloud, level, right, rest, perm);
  }
}

// x @ R with separate multiplies and adds, so that every device rounds alike. Sums that overflow both ways give NaN,
// which has no place in an order: it becomes 0.
template <typename T>
void rotate(const T* x, const T* rotation, int32_t dim, T* out) {
  for (int32_t column = 0; column < dim; ++column) {
    T sum = 0;
    for (int32_t row = 0; row < dim; ++row) sum += x[row] * rotation[row * dim + column];
    out[column] = sum == sum ? sum : T{0};
  }
}

// Centroids of consecutive groups of `stride` rows, in place: a group is read before its centroid is written.
template <typename T>
void pool_positions(T* pos, int64_t rows, int64_t stride, int32_t dim) {
  for (int64_t group = 0; group * stride < rows; ++group) {
    const int64_t first = group * stride, count = std::min(stride, rows - first);
    for (int32_t axis = 0; axis < dim; ++axis) {
      T sum = pos[first * dim + axis];
      for (int64_t i = 1; i < count; ++i) sum += pos[(first + i) * dim + axis];
      pos[group * dim + axis] = sum / static_cast<T>(count);
    }
  }
}

// Bytes of workspace for `rows` rows of level 0: a record, and with rotated trees a position and its rotated copy.
template <typename T, int D>
int64_t workspace_per_row(int64_t dim) {
  return static_cast<int64_t>(sizeof(Record<T, D>)) + 2 * dim * static_cast<int64_t>(sizeof(T));
}

template <typename T, int D>
struct Builder {
  const Layout& layout;
  const T* pos;
  const int64_t* ptr;
  int64_t clouds;
  int32_t dim;
  const T* rotation;
  char* workspace;
  int64_t* perm;
  uint8_t* mask;
  int64_t* const* perm_rot;

  void cloud(int64_t g, int64_t slot, const int64_t* level_first, bool tasks) const {
    using R = Record<T, D>;
    const int64_t points = ptr[g + 1] - ptr[g];
    if (points == 0) return;
    const Node root = layout.root(points);
    const Cloud context{&layout, dim, tasks};
    char* const base = workspace + slot * workspace_per_row<T, D>(dim);
    R* const records = reinterpret_cast<R*>(base);
    const T* const cloud_pos = pos + ptr[g] * dim;
    for (int64_t i = 0; i < points; ++i) records[i].load(cloud_pos + i * dim, i);
    build_main(context, root, records, perm + slot, mask == nullptr ? nullptr : mask + slot);
    if (rotation == nullptr) return;

    T* const level_pos = reinterpret_cast<T*>(base + root.slots * static_cast<int64_t>(sizeof(R)));
    T* const rotated = level_pos + root.slots * dim;
    for (int64_t i = 0; i < root.slots; ++i)
      std::copy_n(cloud_pos + perm[slot + i] * dim, dim, level_pos + i * dim);
    int64_t rows = root.slots;
    for (int32_t level = 0; level < layout.levels; ++level) {
      if (level > 0) {
        pool_positions(level_pos, rows, layout.span[level] / layout.span[level - 1], dim);
        rows = layout.rows(root, level);
      }
      for (int64_t i = 0; i < rows; ++i) {
        rotate(level_pos + i * dim, rotation, dim, rotated + i * dim);
        records[i].load(rotated + i * dim, i);
      }
      build_rotated(context, level, root, records, perm_rot[level] + level_first[level]);
    }
  }

  void run(int32_t num_threads) const {
    // First slot and first row of every level, cloud by cloud.
    const int64_t width = layout.levels;
    std::vector<int64_t> first(static_cast<size_t>((clouds + 1) * width), 0);
    for (int64_t g = 0; g < clouds; ++g) {
      const Node root = layout.root(ptr[g + 1] - ptr[g]);
      for (int32_t l = 0; l < width; ++l) first[(g + 1) * width + l] = first[g * width + l] + layout.rows(root, l);
    }
    if (num_threads <= 1 || ptr[clouds] < kSerialPoints) {
      for (int64_t g = 0; g < clouds; ++g) cloud(g, first[g * width], &first[g * width], false);
      return;
    }
#pragma omp parallel num_threads(num_threads)
#pragma omp single
    for (int64_t g = 0; g < clouds; ++g) {
#pragma omp task firstprivate(g)
      cloud(g, first[g * width], &first[g * width], true);
    }
  }
};

template <typename T, int D>
void build(const erwin_context& context, const Layout& layout, const void* pos, const int64_t* ptr, int64_t clouds,
           int64_t dim, const void* rotation, void* workspace, int64_t* perm, uint8_t* mask,
           int64_t* const* perm_rot) {
  Builder<T, D>{layout,
                static_cast<const T*>(pos),
                ptr,
                clouds,
                static_cast<int32_t>(dim),
                static_cast<const T*>(rotation),
                static_cast<char*>(workspace),
                perm,
                mask,
                perm_rot}
      .run(context.num_threads);
}

template <typename T>
int64_t bytes_per_row(int64_t dim) {
  switch (dim) {
    case 1: return workspace_per_row<T, 1>(dim);
    case 2: return workspace_per_row<T, 2>(dim);
    case 3: return workspace_per_row<T, 3>(dim);
    default: return workspace_per_row<T, 0>(dim);
  }
}

template <typename T, typename... Args>
void dispatch_dim(int64_t dim, Args&&... args) {
  switch (dim) {
    case 1: return build<T, 1>(args...);
    case 2: return build<T, 2>(args...);
    case 3: return build<T, 3>(args...);
    default: return build<T, 0>(args...);
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
                         int64_t* balls) {
  Layout layout;
  if (!erwin::make_layout(config, &layout) || !erwin::valid_ptr(ptr, clouds)) return ERWIN_INVALID_ARGUMENT;
  for (int64_t g = 0; g < clouds; ++g) {
    const Node root = layout.root(ptr[g + 1] - ptr[g]);
    for (int32_t l = 0; l < layout.levels; ++l) {
      rows[g * layout.levels + l] = layout.rows(root, l);
      balls[g * layout.levels + l] = root.points == 0 ? 0 : erwin::count_balls(layout, l, root);
    }
  }
  return ERWIN_OK;
}

int32_t erwin_tree_tables(const erwin_layout* config, const int64_t* ptr, int64_t clouds, int64_t* const* ball_len,
                          int64_t* const* group_len) {
  Layout layout;
  if (!erwin::make_layout(config, &layout) || !erwin::valid_ptr(ptr, clouds)) return ERWIN_INVALID_ARGUMENT;
  for (int32_t l = 0; l < layout.levels; ++l) {
    int64_t* balls = ball_len[l];
    int64_t* groups = l + 1 < layout.levels ? group_len[l] : nullptr;
    for (int64_t g = 0; g < clouds; ++g) {
      const Node root = layout.root(ptr[g + 1] - ptr[g]);
      if (root.points == 0) continue;
      balls = erwin::write_balls(layout, l, root, balls);
      if (groups == nullptr) continue;
      const int64_t stride = layout.span[l + 1] / layout.span[l];
      for (int64_t rest = layout.rows(root, l); rest > 0; rest -= stride) *groups++ = std::min(stride, rest);
    }
  }
  return ERWIN_OK;
}

int32_t erwin_tree_workspace(const erwin_layout* config, int32_t dtype, const int64_t* ptr, int64_t clouds,
                             int64_t dim, int64_t* bytes) {
  Layout layout;
  if (!erwin::make_layout(config, &layout) || !erwin::valid_ptr(ptr, clouds) || dim < 1) return ERWIN_INVALID_ARGUMENT;
  if (dtype != ERWIN_FLOAT32 && dtype != ERWIN_FLOAT64) return ERWIN_INVALID_ARGUMENT;
  int64_t slots = 0;
  for (int64_t g = 0; g < clouds; ++g) slots += layout.root(ptr[g + 1] - ptr[g]).slots;
  *bytes = slots * (dtype == ERWIN_FLOAT64 ? erwin::bytes_per_row<double>(dim) : erwin::bytes_per_row<float>(dim));
  return ERWIN_OK;
}

int32_t erwin_tree_build(const erwin_context* context, const erwin_layout* config, int32_t dtype, const void* pos,
                         const int64_t* ptr, int64_t clouds, int64_t dim, const void* rotation, void* workspace,
                         int64_t workspace_bytes, int64_t* perm, uint8_t* mask, int64_t* const* perm_rot) {
  int64_t bytes = 0;
  const int32_t status = erwin_tree_workspace(config, dtype, ptr, clouds, dim, &bytes);
  if (status != ERWIN_OK) return status;
  if (context->device >= 0) return ERWIN_UNSUPPORTED;
  if (workspace_bytes < bytes) return ERWIN_WORKSPACE_TOO_SMALL;
  Layout layout;
  erwin::make_layout(config, &layout);
  return erwin::guarded([&] {
    if (dtype == ERWIN_FLOAT64)
      erwin::dispatch_dim<double>(dim, *context, layout, pos, ptr, clouds, dim, rotation, workspace, perm, mask,
                                  perm_rot);
    else
      erwin::dispatch_dim<float>(dim, *context, layout, pos, ptr, clouds, dim, rotation, workspace, perm, mask,
                                 perm_rot);
  });
}
