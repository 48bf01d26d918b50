// Ball attention: checks of the arguments, the choice of the instruction set, and the tasks of the threads.
#include "attention.h"

#include <algorithm>
#include <initializer_list>

#include "../arena.h"
#include "../arguments.h"
#include "isa.h"
#include "pages.h"
#include "parallel.h"
#include "permutations.h"

namespace erwin {
namespace {

constexpr int64_t kSerialProducts = 1 << 20;  // multiply-adds below which a second thread does not pay off
constexpr int64_t kTasksPerThread = 4;        // with fewer balls than this, a ball's heads become several tasks

int32_t check(const erwin_context* context, const erwin_attention* a) {
  if (a == nullptr) return ERWIN_INVALID_ARGUMENT;
  for (const int32_t status : {check_host(context), check_isa(a->isa)}) {
    if (status != ERWIN_OK) return status;
  }
  if (a->dtype != ERWIN_FLOAT32 && a->dtype != ERWIN_BFLOAT16) return ERWIN_INVALID_ARGUMENT;
  if (!valid_scalar(a->pos_dtype)) return ERWIN_INVALID_ARGUMENT;
  if (!is_count(a->rows) || !is_count(a->balls)) return ERWIN_INVALID_ARGUMENT;
  for (const int64_t size : {a->heads, a->channels, a->dim}) {
    if (size < 0 || size > ERWIN_MAX_DIM) return ERWIN_INVALID_ARGUMENT;
  }
  if (!is_given(a->ball_len, a->balls)) return ERWIN_INVALID_ARGUMENT;
  int64_t rows = 0;
  for (int64_t i = 0; i < a->balls; ++i) {
    if (a->ball_len[i] < 0 || a->ball_len[i] > a->rows - rows) return ERWIN_INVALID_ARGUMENT;
    rows += a->ball_len[i];
  }
  return rows == a->rows ? ERWIN_OK : ERWIN_INVALID_ARGUMENT;
}

// The number of elements from the first to the last one, gaps included; -1 if `x` is invalid.
int64_t extent(const erwin_attention& a, const erwin_heads* x) {
  if (x == nullptr) return -1;
  if (a.rows == 0 || a.heads == 0 || a.channels == 0) return 0;
  if (x->data == nullptr || x->row_stride < 0 || x->head_stride < 0) return -1;
  int64_t rows, heads, all;
  if (__builtin_mul_overflow(a.rows - 1, x->row_stride, &rows) ||
      __builtin_mul_overflow(a.heads - 1, x->head_stride, &heads) || __builtin_add_overflow(rows, heads, &all) ||
      !is_count(all)) {
    return -1;
  }
  return all + a.channels;
}

bool are_tensors(const erwin_attention& a, std::initializer_list<const erwin_heads*> tensors) {
  return std::all_of(tensors.begin(), tensors.end(), [&](const erwin_heads* x) { return extent(a, x) >= 0; });
}

bool has_inputs(const erwin_attention& a) {
  return is_given(a.pos, a.rows, a.dim) && is_given(a.sigma, 1, a.heads) && are_tensors(a, {&a.q, &a.k, &a.v});
}

// How a call is divided.
struct Plan {
  int64_t longest = 0;
  int64_t head_groups = 1;
  int32_t threads = 1;
  int64_t scratch_bytes;  // of one thread
  int64_t bytes;          // of the workspace
};

// The parts of a call's workspace.
struct Workspace {
  int64_t* starts;  // [balls + 1]
  uint8_t* seen;    // a bit for every row if there is a permutation
  float* partial;   // [balls, heads], backward calls only: what every ball adds to the gradient of sigma
  char* scratch;    // [threads, scratch bytes]
};

Workspace lay_out(const erwin_attention& a, const Plan& plan, int32_t backward, Arena& arena) {
  return {arena.take<int64_t>(a.balls + 1), arena.take<uint8_t>(a.perm != nullptr ? ceil_div(a.rows, 8) : 0),
          arena.take<float>(backward ? a.balls : 0, a.heads), arena.take<char>(plan.threads, plan.scratch_bytes)};
}

Plan plan_of(const erwin_context& context, const erwin_attention& a, int32_t backward) {
  Plan p;
  double products = 0;
  for (int64_t i = 0; i < a.balls; ++i) {
    p.longest = std::max(p.longest, a.ball_len[i]);
    products += static_cast<double>(a.ball_len[i]) * static_cast<double>(a.ball_len[i]);
  }
  if (products * static_cast<double>(a.heads * (a.channels + 1)) >= kSerialProducts) p.threads = context.num_threads;
  // With a gradient of positions (backward == 2), one task must sum over all heads of a ball.
  if (p.threads > 1 && backward < 2 && a.balls > 0) {
    const int64_t wanted = ceil_div(kTasksPerThread * p.threads, a.balls);
    p.head_groups = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(a.heads, 1));
  }
  p.threads = static_cast<int32_t>(std::max<int64_t>(1, std::min<int64_t>(p.threads, a.balls * p.head_groups)));
  const AttentionKernel& kernel = *kernels_of(a.isa).attention;
  p.scratch_bytes =
      backward ? kernel.backward_scratch(a, p.longest, backward == 2) : kernel.forward_scratch(a, p.longest);
  Arena arena{nullptr};
  lay_out(a, p, backward, arena);
  p.bytes = arena.bytes_anywhere();
  return p;
}

// Outputs are usually newly allocated, and the first writes to them can take half as long as the kernel itself. Large
// pages make these writes faster.
void expect_writes(const erwin_attention& a, const erwin_heads& x) {
  use_large_pages(static_cast<char*>(x.data), extent(a, &x) * (a.dtype == ERWIN_FLOAT32 ? 4 : 2));
}

// A call whose arguments are checked, with its workspace.
struct Call {
  const erwin_attention& attention;
  Plan plan{};
  Workspace workspace{};

  int32_t open(const erwin_context& context, int32_t backward, void* memory, int64_t bytes) {
    plan = plan_of(context, attention, backward);
    if (memory == nullptr || plan.bytes == kTooLarge) return ERWIN_INVALID_ARGUMENT;
    if (bytes < plan.bytes) return ERWIN_WORKSPACE_TOO_SMALL;
    Arena arena{Arena::aligned(memory)};
    workspace = lay_out(attention, plan, backward, arena);
    if (attention.perm != nullptr && !is_permutation(attention.perm, attention.rows, workspace.seen)) {
      return ERWIN_INVALID_ARGUMENT;
    }
    workspace.starts[0] = 0;
    for (int64_t i = 0; i < attention.balls; ++i) {
      workspace.starts[i + 1] = workspace.starts[i] + attention.ball_len[i];
    }
    return ERWIN_OK;
  }

  // Calls run(kernel, task, scratch) for all balls and heads.
  template <typename F>
  void for_tasks(const F& run) const {
    const AttentionKernel& kernel = *kernels_of(attention.isa).attention;
    const int64_t groups = plan.head_groups, heads = attention.heads;
    parallel_for(plan.threads, attention.balls * groups, 1, [&](int32_t worker, int64_t i) {
      const int64_t ball = i / groups, group = i % groups;
      const AttentionTask task = {ball, workspace.starts[ball], attention.ball_len[ball], group * heads / groups,
                                  (group + 1) * heads / groups};
      const AttentionScratch scratch = {workspace.scratch + worker * plan.scratch_bytes, plan.longest};
      if (task.length > 0) run(kernel, task, scratch);
    });
  }
};

}  // namespace
}  // namespace erwin

int32_t erwin_attention_workspace(const erwin_context* context, const erwin_attention* attention, int32_t backward,
                                  int64_t* bytes) {
  using namespace erwin;
  const int32_t status = check(context, attention);
  if (status != ERWIN_OK) return status;
  if (backward < 0 || backward > 2 || bytes == nullptr) return ERWIN_INVALID_ARGUMENT;
  const Plan plan = plan_of(*context, *attention, backward);
  if (plan.bytes == kTooLarge) return ERWIN_INVALID_ARGUMENT;
  *bytes = plan.bytes;
  return ERWIN_OK;
}

int32_t erwin_attention_forward(const erwin_context* context, const erwin_attention* attention, void* workspace,
                                int64_t workspace_bytes, const erwin_heads* out, float* lse) {
  using namespace erwin;
  int32_t status = check(context, attention);
  if (status != ERWIN_OK) return status;
  const erwin_attention& a = *attention;
  if (!has_inputs(a) || !are_tensors(a, {out}) || !is_given(lse, a.rows, a.heads)) return ERWIN_INVALID_ARGUMENT;
  Call call{a};
  status = call.open(*context, 0, workspace, workspace_bytes);
  if (status != ERWIN_OK) return status;
  expect_writes(a, *out);
  return guarded([&] {
    call.for_tasks([&](const AttentionKernel& kernel, const AttentionTask& task, const AttentionScratch& scratch) {
      kernel.forward(a, task, *out, lse, scratch);
    });
  });
}

int32_t erwin_attention_backward(const erwin_context* context, const erwin_attention* attention, void* workspace,
                                 int64_t workspace_bytes, const erwin_heads* out, const float* lse,
                                 const erwin_heads* grad_out, const erwin_heads* grad_q, const erwin_heads* grad_k,
                                 const erwin_heads* grad_v, float* grad_sigma, float* grad_pos) {
  using namespace erwin;
  int32_t status = check(context, attention);
  if (status != ERWIN_OK) return status;
  const erwin_attention& a = *attention;
  if (!has_inputs(a) || !are_tensors(a, {out, grad_out, grad_q, grad_k, grad_v}) || !is_given(lse, a.rows, a.heads) ||
      !is_given(grad_sigma, 1, a.heads)) {
    return ERWIN_INVALID_ARGUMENT;
  }
  Call call{a};
  status = call.open(*context, grad_pos != nullptr ? 2 : 1, workspace, workspace_bytes);
  if (status != ERWIN_OK) return status;
  const float* const partial = call.workspace.partial;
  const AttentionGradients gradients = {*out, *grad_out, *grad_q, *grad_k, *grad_v, call.workspace.partial, grad_pos};
  for (const erwin_heads* x : {grad_q, grad_k, grad_v}) expect_writes(a, *x);
  status = guarded([&] {
    call.for_tasks([&](const AttentionKernel& kernel, const AttentionTask& task, const AttentionScratch& scratch) {
      kernel.backward(a, task, gradients, lse, scratch);
    });
  });
  if (status != ERWIN_OK) return status;
  for (int64_t head = 0; head < a.heads; ++head) {
    double sum = 0;
    for (int64_t ball = 0; ball < a.balls; ++ball) {
      // An empty ball has no task and adds nothing.
      if (a.ball_len[ball] > 0) sum += partial[ball * a.heads + head];
    }
    grad_sigma[head] = static_cast<float>(sum);
  }
  return ERWIN_OK;
}
