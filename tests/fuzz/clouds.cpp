#include "clouds.h"

#include <cmath>
#include <limits>

namespace fuzz {

erwin_layout make_layout(Choices& choices, bool perfect) {
  erwin_layout layout = {};
  layout.kind = perfect ? ERWIN_PERFECT : ERWIN_BALANCED;
  layout.levels = static_cast<int32_t>(choices.one_in(64) ? ERWIN_MAX_LEVELS : 1 + choices.below(4));
  constexpr int64_t kMost = int64_t{1} << 31;
  for (int32_t l = 0; l < layout.levels; ++l) {
    layout.ball_sizes[l] = perfect ? int64_t{1} << choices.below(9)
                                   : choices.of<int64_t>({16, 1, 2, 3, 7, 8, 12, 17, 32, 100, 128, 256, kMost});
    layout.strides[l] = perfect ? int64_t{1} << choices.below(3) : choices.of<int64_t>({2, 1, 3, 4, 5, 8});
    if (layout.levels == ERWIN_MAX_LEVELS) layout.strides[l] = 2;
  }
  return layout;
}

int64_t make_limit(Choices& choices) {
  if (choices.threaded()) return choices.of<int64_t>({5000, 40000});
  const int64_t dice = choices.below(256);
  return dice >= 253 ? 40000 : dice >= 248 ? 5000 : dice >= 192 ? 700 : 60;
}

Guarded<int64_t> make_ptr(Choices& choices, int64_t ball_size, int64_t limit) {
  std::vector<int64_t> ptr = {0};
  const int64_t ball = std::min(ball_size, limit / 3);
  for (int64_t clouds = choices.below(5); clouds > 0; --clouds) {
    const int64_t sizes[] = {choices.below(limit + 1), 0, 1, 2, ball - 1, ball, ball + 1, 2 * ball, 2 * ball + 1};
    const bool is_large = limit >= 5000 && ptr.size() == 1;
    const int64_t size = std::max<int64_t>(0, is_large ? limit - sizes[0] / 4 : sizes[choices.below(9)]);
    ptr.push_back(ptr.back() + std::min(size, limit - ptr.back()));
  }
  return Guarded<int64_t>(ptr);
}

template <typename T>
Guarded<T> make_pos(Choices& choices, int64_t points, int64_t dim, bool squares) {
  Guarded<T> pos(points * dim);
  const int64_t kind = choices.below(9);
  const bool is_float = sizeof(T) == 4;
  Random random = choices.random();
  const int64_t few = 1 + random.below(5);  // distinct values
  const int exponent = kind == 4   ? std::numeric_limits<T>::min_exponent - std::numeric_limits<T>::digits + 20
                       : kind == 5 ? (squares ? (is_float ? 58 : 500) : (is_float ? 100 : 1000))
                                   : 0;
  for (int64_t i = 0; i < points * dim; ++i) {
    const int64_t axis = i % dim, point = i / dim;
    double x = std::ldexp(random.unit(), exponent);
    if (kind == 2) x = static_cast<double>(random.below(few)) / 2;                // a grid
    if (kind == 3) x = axis == 0 ? static_cast<double>(point) : random.unit();    // sorted
    if (kind == 6) x = axis == 0 ? x : 0.25;                                      // a line
    if (kind == 7) x = random.below(2) ? 0.0 : -0.0;                              // all at the same place
    if (kind == 8) x = static_cast<double>(random.below(3)) * 1e6 + x;            // clusters
    pos[i] = static_cast<T>(x);
    if (kind == 1 && point > 0 && random.below(2)) pos[i] = pos[random.below(point) * dim + axis];  // coincidences
  }
  return pos;
}

template Guarded<float> make_pos<float>(Choices&, int64_t, int64_t, bool);
template Guarded<double> make_pos<double>(Choices&, int64_t, int64_t, bool);

namespace {

using Ids = std::vector<int64_t>;

struct Node {
  int64_t rows;
  std::vector<Node> children;  // none or two
};

// How many of k parts go left.
int64_t left_part(int64_t k) {
  if (k == 2) return 1;
  int64_t power = 1;
  while (power < k) power *= 2;
  return 4 * k >= 3 * power ? power / 2 : power / 4;
}

int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

// `span`: S_l of every level.
Node inside_ball(int64_t n, const Ids& span, size_t level) {
  if (n <= 1) return {n, {}};
  const int64_t parts = ceil_div(n, span[level]);
  if (parts == 1) return inside_ball(n, span, level - 1);
  const int64_t left = left_part(parts) * span[level];
  return {n, {inside_ball(left, span, level), inside_ball(n - left, span, level)}};
}

Node between_balls(int64_t n, int64_t blocks, int64_t balls, const Ids& span) {
  if (balls <= 1) return inside_ball(n, span, span.size() - 1);
  const int64_t k = left_part(balls), q = (blocks * k + balls / 2) / balls, left = span.back() * q;
  return {n, {between_balls(left, q, k, span), between_balls(n - left, blocks - q, balls - k, span)}};
}

Node halved(int64_t slots) {
  if (slots <= 1) return {slots, {}};
  return {slots, {halved(slots / 2), halved(slots / 2)}};
}

// Calls body(rows) for the largest subtrees that fit, from left to right.
template <typename Fits, typename Body>
void maximal(const Node& node, const Fits& fits, const Body& body) {
  if (node.rows == 0) return;
  if (fits(node.rows)) return body(node.rows);
  for (const Node& child : node.children) maximal(child, fits, body);
}

template <typename T>
Ids sorted(const T* pos, int64_t dim, Ids ids) {
  int64_t widest = 0;
  T most = -1;
  for (int64_t a = 0; a < dim; ++a) {
    T low = pos[ids[0] * dim + a], high = low;
    for (const int64_t i : ids) low = std::min(low, pos[i * dim + a]), high = std::max(high, pos[i * dim + a]);
    if (high - low > most) most = high - low, widest = a;
  }
  std::sort(ids.begin(), ids.end(), [&](int64_t i, int64_t j) {
    const T x = pos[i * dim + widest], y = pos[j * dim + widest];
    return x < y || (x == y && i < j);
  });
  return ids;
}

// Writes the rows below a node in order. Splits nodes until `is_leaf` is true.
template <typename T, typename Left, typename Leaf>
void arrange(const Node& node, const T* pos, int64_t dim, const Ids& ids, const Left& left, const Leaf& leaf) {
  if (leaf(node, ids)) return;
  const Ids all = sorted(pos, dim, ids);
  const auto middle = all.begin() + left(node, all);
  arrange(node.children[0], pos, dim, Ids(all.begin(), middle), left, leaf);
  arrange(node.children[1], pos, dim, Ids(middle, all.end()), left, leaf);
}

Ids numbers(int64_t n) {
  Ids ids(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) ids[static_cast<size_t>(i)] = i;
  return ids;
}

}  // namespace

template <typename T>
void Oracle<T>::add(const erwin_layout& layout, const T* pos, int64_t points, int64_t dim, const T* rotation) {
  const auto levels = static_cast<size_t>(layout.levels);
  ball_len.resize(levels), group_len.resize(levels - 1), perm_rot.resize(levels);
  if (points == 0) return;
  Ids span = {1};
  for (size_t l = 1; l < levels; ++l) span.push_back(span.back() * layout.strides[l - 1]);
  const bool balanced = layout.kind == ERWIN_BALANCED;
  int64_t slots = points;
  if (!balanced) for (slots = 1; slots < points;) slots *= 2;
  const int64_t blocks = ceil_div(points, span.back());
  const int64_t in_ball = std::max<int64_t>(1, layout.ball_sizes[0] / span.back());
  const Node root = balanced ? between_balls(points, blocks, ceil_div(blocks, in_ball), span) : halved(slots);

  const size_t start = perm.size();
  arrange(root, pos, dim, numbers(points),
          [&](const Node& node, const Ids& ids) {
            return balanced ? node.children[0].rows : static_cast<int64_t>(ids.size() / 2);
          },
          [&](const Node& node, const Ids& ids) {
            if (ids.size() > 1) return false;
            for (int64_t slot = 0; slot < node.rows; ++slot) perm.push_back(ids[0]), mask.push_back(slot == 0);
            return true;
          });
  for (size_t l = 0; l < levels; ++l) {
    maximal(root, [&](int64_t rows) { return ceil_div(rows, span[l]) <= layout.ball_sizes[l]; },
            [&](int64_t rows) { ball_len[l].push_back(ceil_div(rows, span[l])); });
  }
  std::vector<T> rows;  // positions of a level
  for (size_t i = start; i < perm.size(); ++i) rows.insert(rows.end(), pos + perm[i] * dim, pos + (perm[i] + 1) * dim);
  for (size_t l = 0; l < levels; ++l) {
    if (l > 0) {
      std::vector<T> coarse;
      const T* row = rows.data();
      maximal(root, [&](int64_t n) { return n <= span[l]; }, [&](int64_t n) {
        const int64_t children = ceil_div(n, span[l - 1]);
        group_len[l - 1].push_back(children);
        for (int64_t a = 0; a < dim; ++a) {
          T sum = row[a];
          for (int64_t child = 1; child < children; ++child) sum += row[child * dim + a];
          coarse.push_back(sum / static_cast<T>(children));
        }
        row += children * dim;
      });
      rows = coarse;
    }
    if (rotation == nullptr) continue;
    const int64_t count = static_cast<int64_t>(rows.size()) / dim;
    std::vector<T> turned(rows.size());
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t b = 0; b < dim; ++b) {
        T sum = rows[static_cast<size_t>(i * dim)] * rotation[b];
        for (int64_t a = 1; a < dim; ++a) sum += rows[static_cast<size_t>(i * dim + a)] * rotation[a * dim + b];
        turned[static_cast<size_t>(i * dim + b)] = sum;
      }
    }
    arrange(root, turned.data(), dim, numbers(count),
            [&](const Node& node, const Ids&) { return node.children[0].rows / span[l]; },
            [&](const Node& node, Ids ids) {
              if (ceil_div(node.rows, span[l]) > layout.ball_sizes[l]) return false;
              std::sort(ids.begin(), ids.end());
              perm_rot[l].insert(perm_rot[l].end(), ids.begin(), ids.end());
              return true;
            });
  }
}

template struct Oracle<float>;
template struct Oracle<double>;

}  // namespace fuzz
