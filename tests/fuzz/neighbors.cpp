// Compares neighbours with brute force, on several numbers of threads and on the emulated device. Checks that searches
// refuse bad arguments.
#include <limits>

#include "cases.h"
#include "clouds.h"

namespace fuzz {
namespace {

constexpr int64_t kTargets = 256;  // at most so many targets are checked by brute force; in most cases these are all

// The arguments of the searches.
struct Search {
  erwin_context context = host(1);
  const erwin_context* context_at = &context;
  erwin_layout layout = {};
  const erwin_layout* layout_at = &layout;
  int32_t dtype = ERWIN_FLOAT32;
  const void *pos = nullptr, *box = nullptr;
  int64_t *ptr = nullptr, *perm = nullptr;
  int64_t clouds = 0, dim = 0, k = 1, cap = -1;
  erwin_layout other_layout = {};
  erwin_queries others = {};                // points whose neighbours are searched, or
  const erwin_queries* queries = nullptr;  // NULL: the points themselves
  double radius = 0;
  int32_t loop = 0;
  void* workspace = nullptr;
  int64_t workspace_bytes = 0;
  int64_t *bytes = nullptr, *degree = nullptr, *source = nullptr, *target = nullptr;

  int32_t size() const { return erwin_neighbors_workspace(context_at, layout_at, dtype, ptr, clouds, dim, queries, bytes); }
  int32_t knn() const {
    return erwin_knn(context_at, layout_at, dtype, pos, ptr, clouds, dim, perm, queries, box, k, loop, workspace,
                     workspace_bytes, source, target);
  }
  int32_t count(erwin_found** found) const {
    return erwin_radius_count(context_at, layout_at, dtype, pos, ptr, clouds, dim, perm, queries, box, radius, cap,
                              loop, workspace, workspace_bytes, degree, found);
  }
  int32_t fill(const erwin_found* found) const {
    return erwin_radius_fill(context_at, layout_at, dtype, pos, ptr, clouds, dim, perm, queries, box, radius, cap,
                             loop, workspace, workspace_bytes, degree, found, source, target);
  }
  const int64_t* query_ptr() const { return queries == nullptr ? ptr : queries->ptr; }
  const void* query_pos() const { return queries == nullptr ? pos : queries->pos; }
  bool has_self() const { return queries != nullptr || loop != 0; }  // whether no candidate is left out
};

// The result of the first pass of a radius search.
struct Found {
  erwin_found* at = nullptr;
  ~Found() { erwin_found_free(at); }
};

Guarded<int64_t> build_perm(const Search& search, const erwin_layout& layout, const void* pos, const int64_t* ptr) {
  Guarded<int64_t> perm(ptr[search.clouds]);
  int64_t bytes = 0;
  const erwin_context context = host(1);
  expect_ok("tree", erwin_tree_workspace(&layout, search.dtype, ptr, search.clouds, search.dim, &bytes));
  Guarded<char> workspace(bytes);
  expect_ok("tree", erwin_tree_build(&context, &layout, search.dtype, pos, ptr, search.clouds, search.dim, nullptr,
                                     workspace.data(), bytes, perm.data(), nullptr, nullptr));
  return perm;
}

// Sizes of as many clouds as there are in `ptr`, some of them empty.
Guarded<int64_t> make_query_ptr(Choices& choices, const Guarded<int64_t>& ptr) {
  Guarded<int64_t> query_ptr(ptr.size());
  query_ptr[0] = 0;
  for (int64_t g = 1; g < ptr.size(); ++g) {
    const int64_t size = choices.of<int64_t>({0, 1, 2, 15, 16, 17, 33, 100, 300});
    query_ptr[g] = query_ptr[g - 1] + (ptr.size() > 20 ? size % 7 : size);
  }
  return query_ptr;
}

template <typename T>
T squared_distance(const T* x, const T* y, int64_t dim) {
  T sum = 0;
  for (int64_t a = 0; a < dim; ++a) {
    const T difference = x[a] - y[a];
    sum += difference * difference;
  }
  return sum;
}

// The rows of a cloud except one, sorted by distance from a query, then by index.
template <typename T>
std::vector<std::pair<T, int64_t>> nearest(const T* query, const T* pos, int64_t dim, int64_t first, int64_t last,
                                           int64_t excluded) {
  std::vector<std::pair<T, int64_t>> found;
  for (int64_t i = first; i < last; ++i) {
    if (i != excluded) found.emplace_back(squared_distance(query, pos + i * dim, dim), i);
  }
  std::sort(found.begin(), found.end());
  return found;
}

// Compares edges with brute force. `wanted(target, found)` returns how many neighbours a target must have.
template <typename T, typename Wanted>
void expect_edges(const Search& s, const Guarded<int64_t>& source, const Guarded<int64_t>& target,
                  const std::vector<int64_t>& first_edge, const Wanted& wanted) {
  const int64_t* const query_ptr = s.query_ptr();
  const int64_t queries = query_ptr[s.clouds], step = 1 + queries / kTargets;
  const T *const pos = static_cast<const T*>(s.pos), *const query_pos = static_cast<const T*>(s.query_pos());
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t begin = first_edge[static_cast<size_t>(i)], end = first_edge[static_cast<size_t>(i) + 1];
    for (int64_t e = begin; e < end; ++e) FUZZ_EXPECT(target[e] == i, "target of edge %td", e);
    if (i % step != 0) continue;
    const int64_t g = std::upper_bound(query_ptr, query_ptr + s.clouds + 1, i) - query_ptr - 1;
    const auto found = nearest(query_pos + i * s.dim, pos, s.dim, s.ptr[g], s.ptr[g + 1], s.has_self() ? -1 : i);
    const int64_t degree = wanted(found);
    FUZZ_EXPECT(end - begin == degree, "%td neighbours of row %td, not %td", end - begin, i, degree);
    for (int64_t e = begin; e < end; ++e) {
      FUZZ_EXPECT(source[e] == found[static_cast<size_t>(e - begin)].second, "neighbour %td of row %td", e - begin, i);
    }
  }
}

template <typename T>
Guarded<int64_t> check_knn(Search s) {
  std::vector<int64_t> first_edge = {0};
  for (int64_t g = 0; g < s.clouds; ++g) {
    const int64_t others = s.ptr[g + 1] - s.ptr[g] - (s.has_self() ? 0 : 1);
    const int64_t queries = s.query_ptr()[g + 1] - s.query_ptr()[g];
    for (int64_t i = 0; i < queries; ++i)
      first_edge.push_back(first_edge.back() + std::max<int64_t>(0, std::min(s.k, others)));
  }
  Guarded<int64_t> source(first_edge.back()), target(source.size());
  s.source = source.data(), s.target = target.data();
  expect_ok("knn", s.knn());
  expect_edges<T>(s, source, target, first_edge, [&](const auto& found) {
    return std::min(s.k, static_cast<int64_t>(found.size()));
  });
  return source;
}

template <typename T>
Guarded<int64_t> check_radius(Search s) {
  const int64_t points = s.ptr[s.clouds], queries = s.query_ptr()[s.clouds];
  Guarded<int64_t> degree(queries);
  s.degree = degree.data();
  Found found;
  expect_ok("count", s.count(&found.at));
  FUZZ_EXPECT((found.at == nullptr) == (s.context.device != ERWIN_HOST), "what was found is left by the host alone");
  std::vector<int64_t> first_edge = {0};
  for (int64_t i = 0; i < queries; ++i) {
    FUZZ_EXPECT(degree[i] >= 0 && degree[i] <= points, "degree of row %td", i);
    first_edge.push_back(first_edge.back() + degree[i]);
  }
  Guarded<int64_t> source(first_edge.back()), target(source.size());
  s.source = source.data(), s.target = target.data();
  expect_ok("fill", s.fill(found.at));
  const T limit = static_cast<T>(s.radius) * static_cast<T>(s.radius);
  expect_edges<T>(s, source, target, first_edge, [&](const auto& others) {
    const auto within = std::upper_bound(others.begin(), others.end(), std::make_pair(limit, INT64_MAX));
    return s.cap < 0 ? within - others.begin() : std::min<int64_t>(s.cap, within - others.begin());
  });
  return source;
}

template <typename T>
void check_neighbors(Choices& choices) {
  Search s;
  s.layout = make_layout(choices, false);
  s.dtype = sizeof(T) == 8;
  s.dim = choices.of<int64_t>({3, 2, 1, 3, 4, 5, 6, 7, 8, 11});
  const int64_t limit = std::min<int64_t>(make_limit(choices), 5000);
  const Guarded<int64_t> ptr = make_ptr(choices, choices.of<int64_t>({16, 32, 64, 200}), limit);
  s.ptr = ptr.data(), s.clouds = ptr.size() - 1;
  const int64_t points = ptr[s.clouds];
  const Guarded<T> pos = make_pos<T>(choices, points, s.dim, true);
  s.pos = pos.data();
  const Guarded<int64_t> perm = build_perm(s, s.layout, s.pos, s.ptr);
  s.perm = perm.data();
  // Queries are other points in one half of all cases; some lie at the same place as a point.
  const bool cross = choices.one_in(2);
  const Guarded<int64_t> query_ptr = cross ? make_query_ptr(choices, ptr) : Guarded<int64_t>(ptr.size());
  const int64_t queries = cross ? query_ptr[s.clouds] : 0;
  const Guarded<T> query_pos = make_pos<T>(choices, queries, s.dim, true);
  Guarded<int64_t> query_perm;
  if (cross) {
    Random mixed = choices.random();
    for (int64_t i = 0; i < queries && points > 0; ++i) {
      if (mixed.below(3) == 0) std::copy_n(&pos[mixed.below(points) * s.dim], s.dim, &query_pos[i * s.dim]);
    }
    s.other_layout = make_layout(choices, false);
    s.others = {&s.other_layout, query_pos.data(), query_ptr.data(), nullptr};
    query_perm = build_perm(s, s.other_layout, s.others.pos, s.others.ptr);
    s.others.perm = query_perm.data();
    s.queries = &s.others;
  }
  s.k = choices.of<int64_t>({1, 2, 3, 8, 16, 31, 64, 200, limit + 1, INT64_MAX});
  s.loop = choices.of({0, 1, 7});
  s.cap = choices.of<int64_t>({-1, -1, 0, 1, 5, 32, 1000, INT64_MIN, INT64_MAX});
  // Radii: exact distances, zero, or larger than everything; with many points only radii with few neighbours.
  Random random = choices.random();
  const int64_t radius = choices.below(4);
  const auto a = points > 0 ? random.below(points) : 0, b = points > 0 ? random.below(points) : 0;
  const T apart = points > 0 ? squared_distance(&pos[a * s.dim], &pos[b * s.dim], s.dim) : T{1};
  s.radius = radius == 0 ? 0 : __builtin_sqrt(static_cast<double>(apart));
  if (radius == 2 && limit <= 700) s.radius = std::numeric_limits<T>::infinity();
  if (limit > 700) {
    s.radius /= radius == 3 ? 40 : 400;
    s.k = std::min<int64_t>(s.k, 64);
    s.cap = apart > 0 ? std::min<int64_t>(s.cap, 64) : 7;
  }

  // Run on the host with two numbers of threads, and sometimes on the device.
  const bool on_device = s.dim <= ERWIN_DEVICE_MAX_DIM && limit <= 700 && choices.one_in(8);
  std::vector<erwin_context> contexts = {host(kHostThreads[choices.below(4)]), host(kHostThreads[choices.below(4)])};
  if (on_device) contexts.push_back(emulated());
  for (const erwin_context& context : contexts) {
    if (context.device != ERWIN_HOST) stage("neighbours on a device");
    s.context = context;
    int64_t bytes = 0;
    s.bytes = &bytes;
    expect_ok("workspace", s.size());
    Guarded<char> workspace(bytes);
    s.workspace = workspace.data(), s.workspace_bytes = bytes;
    const Guarded<int64_t> edges = check_knn<T>(s), within = check_radius<T>(s);
    if (&context != &contexts[0]) continue;
    digest(edges.data(), edges.bytes());
    digest(within.data(), within.bytes());
  }
}

const Fault<Search> kShared[] = {
    {"context NULL", [](Search& s) { s.context_at = nullptr; }},
    {"num_threads 0", [](Search& s) { s.context.num_threads = 0; }},
    {"device -7", [](Search& s) { s.context.device = -7; }}, {"device -2", [](Search& s) { s.context.device = -2; }},
    {"layout NULL", [](Search& s) { s.layout_at = nullptr; }}, {"levels 0", [](Search& s) { s.layout.levels = 0; }},
    {"perfect layout", [](Search& s) { s.layout.kind = ERWIN_PERFECT; }},
    {"ball size 0", [](Search& s) { s.layout.ball_sizes[0] = 0; }},
    {"dtype 2", [](Search& s) { s.dtype = ERWIN_BFLOAT16; }}, {"ptr NULL", [](Search& s) { s.ptr = nullptr; }},
    {"ptr from 1", [](Search& s) { s.ptr[0] = 1; }}, {"ptr descends", [](Search& s) { s.ptr[1] = s.ptr[2] + 1; }},
    {"ptr ends far away", [](Search& s) { s.ptr[2] = INT64_MAX; }}, {"clouds -1", [](Search& s) { s.clouds = -1; }},
    {"dim 0", [](Search& s) { s.dim = 0; }}, {"dim -1", [](Search& s) { s.dim = -1; }},
    {"dim 2^60", [](Search& s) { s.dim = int64_t{1} << 60; }},
};
const Fault<Search> kOthers[] = {
    {"queries' layout NULL", [](Search& s) { s.others.layout = nullptr; }},
    {"queries' perfect layout", [](Search& s) { s.other_layout.kind = ERWIN_PERFECT; }},
    {"queries' ptr NULL", [](Search& s) { s.others.ptr = nullptr; }},
    {"queries' ptr descends", [](Search& s) { const_cast<int64_t*>(s.others.ptr)[1] = s.others.ptr[2] + 1; }},
};
const Fault<Search> kBytes[] = {{"bytes NULL", [](Search& s) { s.bytes = nullptr; }}};
const Fault<Search> kMemory[] = {
    {"pos NULL", [](Search& s) { s.pos = nullptr; }}, {"perm NULL", [](Search& s) { s.perm = nullptr; }},
    {"box", [](Search& s) { s.box = s.pos; }},
    {"workspace NULL", [](Search& s) { s.workspace = nullptr; }},
    {"workspace small", [](Search& s) { s.workspace_bytes -= 1; }},
};
const Fault<Search> kWorkspace[] = {
    {"workspace NULL", [](Search& s) { s.workspace = nullptr; }},
    {"workspace small", [](Search& s) { s.workspace_bytes -= 1; }},
    {"workspace -1", [](Search& s) { s.workspace_bytes = -1; }},
};
const Fault<Search> kPerm[] = {
    {"perm -1", [](Search& s) { s.perm[1] = -1; }}, {"perm in another cloud", [](Search& s) { s.perm[1] = s.ptr[1]; }},
    {"perm far away", [](Search& s) { s.perm[1] = INT64_MAX; }},
    {"perm twice", [](Search& s) { s.perm[1] = s.perm[0]; }},
};
const Fault<Search> kKnn[] = {
    {"k 0", [](Search& s) { s.k = 0; }}, {"k -1", [](Search& s) { s.k = -1; }},
    {"source NULL", [](Search& s) { s.source = nullptr; }}, {"target NULL", [](Search& s) { s.target = nullptr; }},
};
const Fault<Search> kRadius[] = {
    {"radius -1", [](Search& s) { s.radius = -1; }},
    {"radius NaN", [](Search& s) { s.radius = std::numeric_limits<double>::quiet_NaN(); }},
    {"degree NULL", [](Search& s) { s.degree = nullptr; }},
};
const Fault<Search> kDegree[] = {
    {"degree -1", [](Search& s) { s.degree[0] = -1; }},
    {"degree -2^62", [](Search& s) { s.degree[1] = -(int64_t{1} << 62); }},
    {"degree above the count", [](Search& s) { s.degree[s.ptr[2] - 1] += 1; }},
    {"degree far above the count", [](Search& s) { s.degree[s.ptr[2] - 1] = INT64_MAX / 2; }},
};

}  // namespace

void neighbors_case(Choices& choices) {
  stage("neighbours");
  choices.one_in(2) ? check_neighbors<double>(choices) : check_neighbors<float>(choices);
}

void bad_neighbors_case(Choices& choices) {
  stage("bad neighbours", "preparation");
  const int64_t points = 5 + choices.below(60);
  Search s;
  const bool on_device = choices.one_in(4);
  if (on_device) s.context = emulated();
  s.layout.kind = ERWIN_BALANCED, s.layout.levels = 1, s.layout.ball_sizes[0] = 16;
  s.clouds = 2, s.dim = 1 + choices.below(4), s.k = 3, s.radius = 0.5;
  const Guarded<int64_t> ptr(std::vector<int64_t>{0, 3, points}), degree(points), bytes(1);
  const Guarded<float> pos = make_pos<float>(choices, points, s.dim, true);
  s.ptr = ptr.data(), s.pos = pos.data(), s.bytes = bytes.data(), s.degree = degree.data();
  const Guarded<int64_t> perm = build_perm(s, s.layout, s.pos, s.ptr);
  s.perm = perm.data();
  // In one half of all cases the queries are other points: copies of them.
  const Guarded<int64_t> other_ptr(std::vector<int64_t>{0, 3, points}), other_perm = build_perm(s, s.layout, s.pos, s.ptr);
  s.other_layout = s.layout;
  s.others = {&s.other_layout, pos.data(), other_ptr.data(), other_perm.data()};
  if (choices.one_in(2)) s.queries = &s.others;
  expect_ok("workspace", s.size());
  Guarded<char> workspace(bytes[0]);
  s.workspace = workspace.data(), s.workspace_bytes = bytes[0];
  const int64_t entry = choices.below(4);  // size, knn, count, fill
  Found found;
  if (entry == 3) expect_ok("count", s.count(&found.at));
  int64_t edges = 0;
  for (const int64_t count : degree) edges += entry == 3 ? count : 3;
  const Guarded<int64_t> source(edges + 1), target(edges + 1);
  s.source = source.data(), s.target = target.data();

  const int64_t part = choices.below(4);
  const bool finds_out_later = part >= 2 && (on_device && entry > 0);  // a device sees these only while it runs
  const char* name = part == 0 && s.queries != nullptr && choices.one_in(3) ? spoil(choices, kOthers, s)
                     : part == 0               ? spoil(choices, kShared, s)
                     : entry == 0              ? spoil(choices, kBytes, s)
                     : part == 1 && entry == 3 ? spoil(choices, kWorkspace, s)
                     : part == 1               ? spoil(choices, kMemory, s)
                     : entry == 3 && part == 2 ? spoil(choices, kDegree, s)
                     : entry != 3 && part == 2 ? spoil(choices, kPerm, s)
                     : entry == 1              ? spoil(choices, kKnn, s)
                                               : spoil(choices, kRadius, s);
  stage(on_device ? "bad device neighbours" : "bad neighbours", name);
  erwin_found* const anything = reinterpret_cast<erwin_found*>(&s);
  if (entry == 2) found.at = anything;
  const int32_t status = entry == 0   ? s.size()
                         : entry == 1 ? s.knn()
                         : entry == 2 ? s.count(&found.at)
                                      : s.fill(found.at);
  if (entry == 2) FUZZ_EXPECT(found.at == nullptr, "a search that was refused left what it found");
  if (!finds_out_later || status != ERWIN_OK) return expect_refusal(status);
  int32_t fault = 0;
  std::memcpy(&fault, workspace.data(), sizeof(fault));
  FUZZ_EXPECT(fault == 1, "a device has not marked its workspace");
}

}  // namespace fuzz
