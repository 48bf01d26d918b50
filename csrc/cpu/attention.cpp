// Ball attention: checks of the arguments, the choice of the instruction set, and the tasks of the threads.
#include "attention.h"

#include <algorithm>

#include "isa.h"
#include "pages.h"
#include "parallel.h"

namespace erwin {
namespace {

constexpr int64_t kLine = 64;                 // bytes
constexpr int64_t kSerialProducts = 1 << 20;  // calls of fewer products of channels are not worth a second thread
constexpr int64_t kTasksPerThread = 4;        // fewer balls than that are split by heads
constexpr int64_t kLongestDimension = 1 << 24;

constexpr Variants<AttentionKernel> kVariants = {&kAttentionBaseline, ERWIN_AVX2(kAttentionAvx2), ERWIN_AVX512(kAttentionAvx512)};

// How a call is divided, and where its parts lie in the workspace.
struct Plan {
  int64_t longest = 0;
  int64_t head_groups = 1;
  int32_t threads = 1;
  int64_t starts, seen, partial, scratch;  // offsets into the workspace
  int64_t scratch_bytes;                   // of one thread
  int64_t bytes;
};

int64_t aligned(int64_t bytes) { return ceil_div(bytes, kLine) * kLine; }

int32_t check(const erwin_context* context, const erwin_attention* a) {
  if (context == nullptr || a == nullptr || context->num_threads < 1) return ERWIN_INVALID_ARGUMENT;
  if (context->device >= 0) return ERWIN_UNSUPPORTED;
  if (a->isa > erwin_cpu_isa()) return ERWIN_UNSUPPORTED;
  if (a->dtype != ERWIN_FLOAT32 && a->dtype != ERWIN_BFLOAT16) return ERWIN_INVALID_ARGUMENT;
  if (a->pos_dtype != ERWIN_FLOAT32 && a->pos_dtype != ERWIN_FLOAT64) return ERWIN_INVALID_ARGUMENT;
  if (a->rows < 0 || a->balls < 0) return ERWIN_INVALID_ARGUMENT;
  for (const int64_t size : {a->heads, a->channels, a->dim}) {
    if (size < 0 || size > kLongestDimension) return ERWIN_INVALID_ARGUMENT;
  }
  int64_t rows = 0;
  for (int64_t i = 0; i < a->balls; ++i) {
    if (a->ball_len[i] < 0 || a->ball_len[i] > a->rows - rows) return ERWIN_INVALID_ARGUMENT;
    rows += a->ball_len[i];
  }
  return rows == a->rows ? ERWIN_OK : ERWIN_INVALID_ARGUMENT;
}

Plan plan_of(const erwin_context& context, const erwin_attention& a, int32_t backward) {
  Plan p;
  double products = 0;
  for (int64_t i = 0; i < a.balls; ++i) {
    p.longest = std::max(p.longest, a.ball_len[i]);
    products += static_cast<double>(a.ball_len[i]) * static_cast<double>(a.ball_len[i]);
  }
  if (products * static_cast<double>(a.heads * (a.channels + 1)) >= kSerialProducts) p.threads = context.num_threads;
  // A gradient of positions sums over all heads of a ball.
  if (p.threads > 1 && backward < 2 && a.balls > 0) {
    const int64_t wanted = ceil_div(kTasksPerThread * p.threads, a.balls);
    p.head_groups = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(a.heads, 1));
  }
  p.threads = static_cast<int32_t>(std::max<int64_t>(1, std::min<int64_t>(p.threads, a.balls * p.head_groups)));
  const AttentionKernel& kernel = kVariants.choose(a.isa);
  const auto size = static_cast<int64_t>(sizeof(int64_t));
  p.starts = 0;
  p.seen = aligned((a.balls + 1) * size);
  p.partial = p.seen + aligned(a.perm != nullptr ? a.rows : 0);
  p.scratch = p.partial + aligned(backward ? a.balls * a.heads * static_cast<int64_t>(sizeof(float)) : 0);
  p.scratch_bytes =
      aligned(backward ? kernel.backward_scratch(a, p.longest, backward == 2) : kernel.forward_scratch(a, p.longest));
  p.bytes = p.scratch + p.threads * p.scratch_bytes + kLine;  // the workspace may start anywhere
  return p;
}

// Outputs are mostly fresh memory, whose first writes may take half as long as the kernel.
void expect_writes(const erwin_attention& a, const erwin_heads& x) {
  if (a.rows == 0 || a.heads == 0) return;
  const int64_t items = (a.rows - 1) * x.row_stride + (a.heads - 1) * x.head_stride + a.channels;
  use_large_pages(static_cast<char*>(x.data), items * (a.dtype == ERWIN_FLOAT32 ? 4 : 2));
}

bool is_permutation(const int64_t* perm, int64_t rows, char* seen) {
  std::fill(seen, seen + rows, 0);
  for (int64_t i = 0; i < rows; ++i) {
    if (perm[i] < 0 || perm[i] >= rows || seen[perm[i]]) return false;
    seen[perm[i]] = 1;
  }
  return true;
}

// A call whose arguments are checked, with its workspace.
struct Call {
  const erwin_attention* attention;
  Plan plan;
  char* base;

  int64_t* starts() const { return reinterpret_cast<int64_t*>(base + plan.starts); }
  // What every ball adds to the gradient of sigma, [balls, heads].
  float* partial() const { return reinterpret_cast<float*>(base + plan.partial); }

  int32_t open(const erwin_context* context, int32_t backward, void* workspace, int64_t workspace_bytes) {
    const int32_t status = check(context, attention);
    if (status != ERWIN_OK) return status;
    plan = plan_of(*context, *attention, backward);
    if (workspace_bytes < plan.bytes) return ERWIN_WORKSPACE_TOO_SMALL;
    base = static_cast<char*>(workspace) + (-reinterpret_cast<intptr_t>(workspace) & (kLine - 1));
    if (attention->perm != nullptr && !is_permutation(attention->perm, attention->rows, base + plan.seen)) {
      return ERWIN_INVALID_ARGUMENT;
    }
    starts()[0] = 0;
    for (int64_t i = 0; i < attention->balls; ++i) starts()[i + 1] = starts()[i] + attention->ball_len[i];
    return ERWIN_OK;
  }

  // Calls run(kernel, task, scratch) for all balls and heads.
  template <typename F>
  void for_tasks(const F& run) const {
    const AttentionKernel& kernel = kVariants.choose(attention->isa);
    const int64_t groups = plan.head_groups, heads = attention->heads;
    parallel_for(plan.threads, attention->balls * groups, 1, [&](int32_t worker, int64_t i) {
      const int64_t ball = i / groups, group = i % groups;
      const AttentionTask task = {ball, starts()[ball], attention->ball_len[ball], group * heads / groups,
                                  (group + 1) * heads / groups};
      if (task.length > 0) run(kernel, task, base + plan.scratch + worker * plan.scratch_bytes);
    });
  }
};

}  // namespace
}  // namespace erwin

int32_t erwin_attention_workspace(const erwin_context* context, const erwin_attention* attention, int32_t backward,
                                  int64_t* bytes) {
  const int32_t status = erwin::check(context, attention);
  if (status != ERWIN_OK) return status;
  if (backward < 0 || backward > 2) return ERWIN_INVALID_ARGUMENT;
  *bytes = erwin::plan_of(*context, *attention, backward).bytes;
  return ERWIN_OK;
}

int32_t erwin_attention_forward(const erwin_context* context, const erwin_attention* attention, void* workspace,
                                int64_t workspace_bytes, const erwin_heads* out, float* lse) {
  using namespace erwin;
  Call call{attention, {}, nullptr};
  const int32_t status = call.open(context, 0, workspace, workspace_bytes);
  if (status != ERWIN_OK) return status;
  expect_writes(*attention, *out);
  call.for_tasks([&](const AttentionKernel& kernel, const AttentionTask& task, char* scratch) {
    kernel.forward(*attention, task, *out, lse, scratch);
  });
  return ERWIN_OK;
}

int32_t erwin_attention_backward(const erwin_context* context, const erwin_attention* attention, void* workspace,
                                 int64_t workspace_bytes, const erwin_heads* out, const float* lse,
                                 const erwin_heads* grad_out, const erwin_heads* grad_q, const erwin_heads* grad_k,
                                 const erwin_heads* grad_v, float* grad_sigma, float* grad_pos) {
  using namespace erwin;
  Call call{attention, {}, nullptr};
  const int32_t status = call.open(context, grad_pos != nullptr ? 2 : 1, workspace, workspace_bytes);
  if (status != ERWIN_OK) return status;
  const AttentionGradients gradients = {*out, *grad_out, *grad_q, *grad_k, *grad_v, call.partial(), grad_pos};
  for (const erwin_heads* x : {grad_q, grad_k, grad_v}) expect_writes(*attention, *x);
  call.for_tasks([&](const AttentionKernel& kernel, const AttentionTask& task, char* scratch) {
    kernel.backward(*attention, task, gradients, lse, scratch);
  });
  for (int64_t head = 0; head < attention->heads; ++head) {
    double sum = 0;
    for (int64_t ball = 0; ball < attention->balls; ++ball) {
      // An empty ball has no task and adds nothing.
      if (attention->ball_len[ball] > 0) sum += call.partial()[ball * attention->heads + head];
    }
    grad_sigma[head] = static_cast<float>(sum);
  }
  return ERWIN_OK;
}
