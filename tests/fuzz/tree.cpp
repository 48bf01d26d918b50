// Compares trees with their definition, on several numbers of threads and on the emulated device. Checks that builds
// refuse bad arguments.
#include <numeric>

#include "cases.h"
#include "clouds.h"

namespace fuzz {
namespace {

// The arrays to which a tree is written.
struct Tree {
  Guarded<int64_t> perm;
  Guarded<uint8_t> mask;
  std::vector<Guarded<int64_t>> perm_rot;
  std::vector<int64_t*> levels;  // addresses in perm_rot

  Tree(const std::vector<int64_t>& rows, bool masked) : perm(rows[0]), mask(masked ? rows[0] : 0) {
    for (const int64_t count : rows) perm_rot.emplace_back(count);
    for (const auto& level : perm_rot) levels.push_back(level.data());
  }
};

std::vector<Guarded<int64_t>> arrays(const std::vector<std::vector<int64_t>>& values) {
  std::vector<Guarded<int64_t>> out;
  for (const auto& level : values) out.emplace_back(static_cast<int64_t>(level.size()));
  return out;
}

std::vector<int64_t*> addresses(const std::vector<Guarded<int64_t>>& levels) {
  std::vector<int64_t*> out;
  for (const auto& level : levels) out.push_back(level.data());
  return out;
}

template <typename X, typename Values>
void expect_equal(const char* name, const Guarded<X>& found, const Values& expected) {
  FUZZ_EXPECT(found.size() >= static_cast<int64_t>(expected.size()), "%s is too short", name);
  for (size_t i = 0; i < expected.size(); ++i) {
    FUZZ_EXPECT(found[static_cast<int64_t>(i)] == expected[i], "%s is wrong at %zu of %zu", name, i, expected.size());
  }
  // Entries beyond the clouds' rows must be 0.
  FUZZ_EXPECT(std::all_of(found.begin() + expected.size(), found.end(), [](X x) { return x == 0; }), "%s's room", name);
}

template <typename T>
void expect_tree(const Tree& tree, const Oracle<T>& oracle, bool rotated) {
  expect_equal("perm", tree.perm, oracle.perm);
  if (tree.mask.size() > 0) expect_equal("mask", tree.mask, oracle.mask);
  if (!rotated) return;
  for (size_t l = 0; l < tree.perm_rot.size(); ++l) expect_equal("perm_rot", tree.perm_rot[l], oracle.perm_rot[l]);
}

// A matrix that rotates by the angle of a 3-4-5 triangle in several planes, or an arbitrary matrix.
template <typename T>
Guarded<T> make_rotation(Choices& choices, int64_t dim) {
  Guarded<T> rotation(dim * dim);
  Random random = choices.random();
  const bool mix = choices.one_in(4);
  for (int64_t i = 0; i < dim * dim; ++i) rotation[i] = mix ? static_cast<T>(random.unit()) : i % (dim + 1) == 0;
  for (int64_t a = 0; !mix && a + 1 < dim; ++a) {
    for (int64_t row = 0; row < dim; ++row) {
      const T x = rotation[row * dim + a], y = rotation[row * dim + a + 1];
      rotation[row * dim + a] = static_cast<T>(0.8) * x - static_cast<T>(0.6) * y;
      rotation[row * dim + a + 1] = static_cast<T>(0.6) * x + static_cast<T>(0.8) * y;
    }
  }
  return rotation;
}

template <typename T>
void check_tables(const erwin_layout& layout, const Guarded<int64_t>& ptr, const Oracle<T>& oracle,
                  std::vector<int64_t>* level_rows) {
  const int64_t clouds = ptr.size() - 1, levels = layout.levels;
  Guarded<int64_t> rows(clouds * levels), total(2 * levels);
  expect_ok("sizes", erwin_tree_sizes(&layout, ptr.data(), clouds, rows.data(), total.data()));
  level_rows->assign(static_cast<size_t>(levels), 0);
  for (int64_t i = 0; i < clouds * levels; ++i) (*level_rows)[static_cast<size_t>(i % levels)] += rows[i];
  for (int64_t l = 0; l < levels; ++l) {
    const auto at = static_cast<size_t>(l);
    FUZZ_EXPECT(total[l] == (*level_rows)[at], "rows of all clouds on level %zu", at);
    FUZZ_EXPECT(total[l] == static_cast<int64_t>(l == 0 ? oracle.perm.size() : oracle.group_len[at - 1].size()),
                "number of rows of level %zu", at);
    FUZZ_EXPECT(total[levels + l] == static_cast<int64_t>(oracle.ball_len[at].size()), "number of balls of level %zu",
                at);
  }
  const auto ball_len = arrays(oracle.ball_len), group_len = arrays(oracle.group_len);
  expect_ok("tables", erwin_tree_tables(&layout, ptr.data(), clouds, addresses(ball_len).data(),
                                        addresses(group_len).data()));
  for (size_t l = 0; l < ball_len.size(); ++l) {
    expect_equal("ball_len", ball_len[l], oracle.ball_len[l]);
    digest(ball_len[l].data(), ball_len[l].bytes());
    for (const int64_t length : oracle.ball_len[l]) FUZZ_EXPECT(length <= layout.ball_sizes[l], "a ball is overfull");
  }
  for (size_t l = 0; l < group_len.size(); ++l) {
    expect_equal("group_len", group_len[l], oracle.group_len[l]);
    digest(group_len[l].data(), group_len[l].bytes());
  }
}

template <typename T>
void build_on_device(Choices& choices, const erwin_layout& layout, const Guarded<T>& pos, const Guarded<int64_t>& ptr,
                     int64_t dim, const T* rotation, const std::vector<int64_t>& rows, const Oracle<T>& oracle) {
  stage("tree on a device");
  const erwin_context context = emulated();
  erwin_tree_bounds bounds = {};
  bounds.clouds = ptr.size() - 1;
  bounds.points = pos.size() / dim;
  for (int64_t g = 0; g < bounds.clouds; ++g) bounds.largest = std::max(bounds.largest, ptr[g + 1] - ptr[g]);
  bounds.largest = std::min(bounds.points, bounds.largest + choices.below(3));
  std::vector<int64_t> room;
  for (const int64_t count : rows) {
    room.push_back(count + choices.of<int64_t>({0, 0, 1, 40}));
    bounds.rows[room.size() - 1] = room.back();
  }
  int64_t bytes = 0;
  expect_ok("workspace", erwin_tree_device_workspace(&context, &layout, sizeof(T) == 8, dim, &bounds,
                                                     rotation != nullptr, &bytes));
  Guarded<char> workspace(bytes);
  Tree tree(room, layout.kind == ERWIN_PERFECT);
  const int32_t status = erwin_tree_build_device(
      &context, &layout, sizeof(T) == 8, pos.data(), ptr.data(), dim, &bounds, rotation, workspace.data(), bytes,
      tree.perm.data(), tree.mask.size() > 0 ? tree.mask.data() : nullptr, tree.levels.data());
  FUZZ_EXPECT(status == ERWIN_OK, "status %d", status);
  expect_tree(tree, oracle, rotation != nullptr);
}

template <typename T>
void check_tree(Choices& choices) {
  const erwin_layout layout = make_layout(choices, choices.one_in(3));
  const int64_t dim = choices.of<int64_t>({3, 2, 1, 3, 4, 5, 6, 7, 8, 11}), limit = make_limit(choices);
  const Guarded<int64_t> ptr = make_ptr(choices, layout.ball_sizes[0], limit);
  const int64_t clouds = ptr.size() - 1, points = ptr[clouds];
  const Guarded<T> pos = make_pos<T>(choices, points, dim, false);
  const Guarded<T> turn = make_rotation<T>(choices, dim);
  const T* const rotation = choices.one_in(2) ? turn.data() : nullptr;
  Oracle<T> oracle;
  oracle.add(layout, pos.data(), 0, dim, rotation);
  for (int64_t g = 0; g < clouds; ++g) {
    oracle.add(layout, pos.data() + ptr[g] * dim, ptr[g + 1] - ptr[g], dim, rotation);
  }
  std::vector<int64_t> rows;
  check_tables(layout, ptr, oracle, &rows);

  int64_t bytes = 0;
  expect_ok("workspace", erwin_tree_workspace(&layout, sizeof(T) == 8, ptr.data(), clouds, dim, &bytes));
  const bool masked = layout.kind == ERWIN_PERFECT && !choices.one_in(8);
  for (const int32_t threads : {kHostThreads[choices.below(4)], kHostThreads[choices.below(4)]}) {
    const erwin_context context = host(threads);
    const int64_t shift = choices.of<int64_t>({0, 0, 8, 16});  // the header may ask for an alignment
    if (shift != 0) stage("tree", "workspace shifted");
    Guarded<char> workspace(bytes + choices.below(3), shift);
    Tree tree(rows, masked);
    const int32_t status = erwin_tree_build(&context, &layout, sizeof(T) == 8, pos.data(), ptr.data(), clouds, dim,
                                            rotation, workspace.data(), static_cast<int64_t>(workspace.bytes()),
                                            tree.perm.data(), masked ? tree.mask.data() : nullptr, tree.levels.data());
    if (shift != 0 && status == ERWIN_INVALID_ARGUMENT) continue;
    FUZZ_EXPECT(status == ERWIN_OK, "status %d", status);
    expect_tree(tree, oracle, rotation != nullptr);
  }
  digest(oracle.perm.data(), oracle.perm.size() * sizeof(int64_t));
  for (const auto& level : oracle.perm_rot) digest(level.data(), level.size() * sizeof(int64_t));
  if (dim <= ERWIN_DEVICE_MAX_DIM && limit <= 700 && choices.one_in(8)) {
    build_on_device(choices, layout, pos, ptr, dim, rotation, rows, oracle);
  }
}

// The arguments of a build of one small cloud.
struct Build {
  erwin_context context = host(1);
  const erwin_context* context_at = &context;
  erwin_layout layout = {};
  const erwin_layout* layout_at = &layout;
  int32_t dtype = ERWIN_FLOAT32;
  const void *pos = nullptr, *rotation = nullptr;
  int64_t* ptr = nullptr;
  int64_t clouds = 2, dim = 3;
  erwin_tree_bounds bounds = {};
  const erwin_tree_bounds* bounds_at = &bounds;
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
  int64_t *perm = nullptr, *rows = nullptr, *total = nullptr, *bytes = nullptr;
  uint8_t* mask = nullptr;
  int64_t *const *perm_rot = nullptr, *const *ball_len = nullptr, *const *group_len = nullptr;

  int32_t sizes() const { return erwin_tree_sizes(layout_at, ptr, clouds, rows, total); }
  int32_t tables() const { return erwin_tree_tables(layout_at, ptr, clouds, ball_len, group_len); }
  int32_t size() const { return erwin_tree_workspace(layout_at, dtype, ptr, clouds, dim, bytes); }
  int32_t build() const {
    return erwin_tree_build(context_at, layout_at, dtype, pos, ptr, clouds, dim, rotation, workspace, workspace_bytes,
                            perm, mask, perm_rot);
  }
  int32_t device_size() const {
    return erwin_tree_device_workspace(context_at, layout_at, dtype, dim, bounds_at, rotation != nullptr, bytes);
  }
  int32_t device_build() const {
    return erwin_tree_build_device(context_at, layout_at, dtype, pos, ptr, dim, bounds_at, rotation, workspace,
                                   workspace_bytes, perm, mask, perm_rot);
  }
};

const Fault<Build> kShape[] = {
    {"layout NULL", [](Build& b) { b.layout_at = nullptr; }}, {"levels 0", [](Build& b) { b.layout.levels = 0; }},
    {"levels 17", [](Build& b) { b.layout.levels = 17; }}, {"levels -1", [](Build& b) { b.layout.levels = -1; }},
    {"kind 2", [](Build& b) { b.layout.kind = 2; }}, {"ball size 0", [](Build& b) { b.layout.ball_sizes[0] = 0; }},
    {"ball size -1", [](Build& b) { b.layout.ball_sizes[1] = -1; }},
    {"ball size 2^62", [](Build& b) { b.layout.ball_sizes[1] = int64_t{1} << 62; }},
    {"stride 0", [](Build& b) { b.layout.strides[0] = 0; }},
    {"stride 2^63 - 1", [](Build& b) { b.layout.strides[0] = INT64_MAX; }},
    {"perfect balls of 12", [](Build& b) { b.layout.kind = ERWIN_PERFECT, b.layout.ball_sizes[1] = 12; }},
    {"perfect stride 3", [](Build& b) { b.layout.kind = ERWIN_PERFECT, b.layout.strides[0] = 3; }},
};
const Fault<Build> kClouds[] = {
    {"ptr NULL", [](Build& b) { b.ptr = nullptr; }}, {"ptr from 1", [](Build& b) { b.ptr[0] = 1; }},
    {"ptr from -1", [](Build& b) { b.ptr[0] = -1; }}, {"ptr descends", [](Build& b) { b.ptr[1] = b.ptr[2] + 1; }},
    {"ptr ends far away", [](Build& b) { b.ptr[2] = INT64_MAX; }}, {"clouds -1", [](Build& b) { b.clouds = -1; }},
};
const Fault<Build> kNumbers[] = {
    {"dtype 2", [](Build& b) { b.dtype = ERWIN_BFLOAT16; }}, {"dtype -1", [](Build& b) { b.dtype = -1; }},
    {"dim 0", [](Build& b) { b.dim = 0; }}, {"dim -1", [](Build& b) { b.dim = -1; }},
    {"dim 2^60", [](Build& b) { b.dim = int64_t{1} << 60; }}, {"dim 2^63 - 1", [](Build& b) { b.dim = INT64_MAX; }},
};
const Fault<Build> kSizesOutputs[] = {
    {"rows NULL", [](Build& b) { b.rows = nullptr; }}, {"total NULL", [](Build& b) { b.total = nullptr; }},
};
const Fault<Build> kTablesOutputs[] = {
    {"ball_len NULL", [](Build& b) { b.ball_len = nullptr; }},
    {"group_len NULL", [](Build& b) { b.group_len = nullptr; }},
};
const Fault<Build> kBytes[] = {{"bytes NULL", [](Build& b) { b.bytes = nullptr; }}};
const Fault<Build> kMemory[] = {
    {"context NULL", [](Build& b) { b.context_at = nullptr; }},
    {"num_threads 0", [](Build& b) { b.context.num_threads = 0; }},
    {"num_threads -1", [](Build& b) { b.context.num_threads = -1; }},
    {"device -7", [](Build& b) { b.context.device = -7; }}, {"device -2", [](Build& b) { b.context.device = -2; }},
    {"pos NULL", [](Build& b) { b.pos = nullptr; }}, {"workspace NULL", [](Build& b) { b.workspace = nullptr; }},
    {"workspace small", [](Build& b) { b.workspace_bytes -= 1; }},
    {"workspace -1", [](Build& b) { b.workspace_bytes = -1; }}, {"perm NULL", [](Build& b) { b.perm = nullptr; }},
    {"perm_rot NULL", [](Build& b) { b.perm_rot = nullptr; }},
};
const Fault<Build> kBounds[] = {
    {"bounds NULL", [](Build& b) { b.bounds_at = nullptr; }},
    {"bounds clouds -1", [](Build& b) { b.bounds.clouds = -1; }},
    {"bounds points -1", [](Build& b) { b.bounds.points = -1; }},
    {"bounds points 2^62", [](Build& b) { b.bounds.points = int64_t{1} << 62; }},
    {"bounds largest -1", [](Build& b) { b.bounds.largest = -1; }},
    {"bounds largest above points", [](Build& b) { b.bounds.largest = b.bounds.points + 1; }},
    {"bounds rows -1", [](Build& b) { b.bounds.rows[1] = -1; }},
    {"bounds rows 2^62", [](Build& b) { b.bounds.rows[0] = int64_t{1} << 62; }}, {"dim 9", [](Build& b) { b.dim = 9; }},
};

}  // namespace

void tree_case(Choices& choices) {
  stage("tree");
  choices.one_in(2) ? check_tree<double>(choices) : check_tree<float>(choices);
}

void bad_tree_case(Choices& choices) {
  stage("bad tree", "preparation");
  const int64_t levels = 2, points = 5 + choices.below(40);
  const bool on_device = choices.one_in(3);
  Build b;
  if (on_device) b.context = emulated();
  b.layout.kind = ERWIN_BALANCED, b.layout.levels = levels;
  b.layout.ball_sizes[0] = b.layout.ball_sizes[1] = 8, b.layout.strides[0] = 2;
  const Guarded<int64_t> ptr(std::vector<int64_t>{0, 3, points});
  const Guarded<float> pos = make_pos<float>(choices, points, b.dim, false), rotation(9);
  std::fill(rotation.begin(), rotation.end(), 0.5f);
  Guarded<int64_t> rows(2 * levels), total(2 * levels), bytes(1);
  b.ptr = ptr.data(), b.pos = pos.data(), b.rotation = rotation.data();
  b.rows = rows.data(), b.total = total.data(), b.bytes = bytes.data();
  b.bounds.clouds = 2, b.bounds.points = points, b.bounds.largest = points;
  expect_ok("sizes", b.sizes());
  std::vector<std::vector<int64_t>> lengths, groups;
  for (int64_t l = 0; l < levels; ++l) {
    b.bounds.rows[l] = total[l];
    lengths.emplace_back(static_cast<size_t>(total[levels + l]));
  }
  groups.emplace_back(static_cast<size_t>(total[1]));
  const auto ball_len = arrays(lengths), group_len = arrays(groups);
  const auto ball_len_at = addresses(ball_len), group_len_at = addresses(group_len);
  b.ball_len = ball_len_at.data(), b.group_len = group_len_at.data();
  expect_ok("workspace", on_device ? b.device_size() : b.size());
  Guarded<char> workspace(bytes[0]);
  Tree tree({b.bounds.rows[0], b.bounds.rows[1]}, false);
  b.workspace = workspace.data(), b.workspace_bytes = bytes[0];
  b.perm = tree.perm.data(), b.perm_rot = tree.levels.data();

  const int64_t part = choices.below(4);  // of the faults that a call must see
  const int64_t entry = choices.below(4);
  const char* name = part == 0   ? spoil(choices, kShape, b)
                     : part == 1 ? (on_device ? spoil(choices, kBounds, b) : spoil(choices, kClouds, b))
                     : entry == 0 && !on_device ? spoil(choices, kSizesOutputs, b)
                     : entry == 1 && !on_device ? spoil(choices, kTablesOutputs, b)
                     : part == 2 ? spoil(choices, kNumbers, b)
                     : entry <= 2 ? spoil(choices, kBytes, b)
                                  : spoil(choices, kMemory, b);
  stage(on_device ? "bad device tree" : "bad tree", name);
  if (on_device) return expect_refusal(entry <= 2 ? b.device_size() : b.device_build());
  expect_refusal(entry == 0 ? b.sizes() : entry == 1 ? b.tables() : entry == 2 ? b.size() : b.build());
}

}  // namespace fuzz
