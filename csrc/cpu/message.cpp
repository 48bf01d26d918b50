// Message passing: checks of the arguments, the choice of the instruction set, and the tasks of the threads.
#include "message.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "../arena.h"
#include "../arguments.h"
#include "isa.h"
#include "parallel.h"

namespace erwin {
namespace {

constexpr int64_t kTaskNodes = 128;  // nodes per task; gradients of weights are summed per task, then over all tasks
constexpr int64_t kSerialChannels = 1 << 16;  // edges x channels below which a second thread does not pay off

int32_t check_sizes(const erwin_message* m) {
  if (m == nullptr) return ERWIN_INVALID_ARGUMENT;
  if (!valid_scalar(m->pos_dtype)) return ERWIN_INVALID_ARGUMENT;
  if (!is_count(m->nodes) || !is_count(m->edges)) return ERWIN_INVALID_ARGUMENT;
  for (const int64_t size : {m->channels, m->dim}) {
    if (size < 1 || size > ERWIN_MAX_DIM) return ERWIN_INVALID_ARGUMENT;
  }
  return ERWIN_OK;
}

// Whether a table can be a result of erwin_group. Its items are checked later, when they are read.
bool is_table(const erwin_message& m, const int64_t* ptr, const int64_t* order) {
  return ptr != nullptr && is_given(order, m.edges) && ptr[0] == 0 && ptr[m.nodes] == m.edges;
}

int32_t check(const erwin_context* context, const erwin_message* message) {
  int32_t status = check_sizes(message);
  if (status == ERWIN_OK) status = check_host(context);
  if (status == ERWIN_OK) status = check_isa(message->isa);
  if (status != ERWIN_OK) return status;
  const erwin_message& m = *message;
  const bool edges = is_given(m.source, m.edges) && is_given(m.target, m.edges);
  const bool nodes = is_given(m.source_rows, m.nodes) && is_given(m.target_rows, m.nodes) &&
                     is_given(m.pos, m.nodes);
  const bool weights = m.weight != nullptr && m.norm_weight != nullptr && m.norm_bias != nullptr;
  return edges && nodes && weights && is_table(m, m.target_ptr, m.target_order) ? ERWIN_OK : ERWIN_INVALID_ARGUMENT;
}

// One call: its kernel, its threads and their scratch.
class Run {
 public:
  Run(const erwin_context& context, const erwin_message& message)
      : kernel_(*kernels_of(message.isa).message),
        nodes_(message.nodes),
        threads_(static_cast<int32_t>(std::min<int64_t>(wanted(context, message), ceil_div(nodes_, kTaskNodes)))),
        stride_(ceil_div(kernel_.scratch(message), 16) * 16),
        scratch_(static_cast<size_t>(stride_ * threads_)) {}

  // Calls task(kernel, chunk, first node, last node, scratch), which returns whether all indices were in range.
  template <typename F>
  int32_t for_chunks(const F& task) {
    std::atomic<bool> valid{true};
    parallel_for(threads_, ceil_div(nodes_, kTaskNodes), 1, [&](int32_t worker, int64_t chunk) {
      const int64_t first = chunk * kTaskNodes, last = std::min(first + kTaskNodes, nodes_);
      if (!task(kernel_, chunk, first, last, scratch_.data() + worker * stride_)) valid = false;
    });
    return valid ? ERWIN_OK : ERWIN_INVALID_ARGUMENT;
  }

 private:
  static int32_t wanted(const erwin_context& context, const erwin_message& message) {
    return message.edges < ceil_div(kSerialChannels, message.channels) ? 1 : context.num_threads;
  }

  const MessageKernel& kernel_;
  const int64_t nodes_;
  const int32_t threads_;
  const int64_t stride_;
  std::vector<float> scratch_;
};

// The parts of a backward call's workspace; rows are padded.
struct Workspace {
  float* scaled;       // [nodes]
  EdgeGradient* edge;  // [edges]
  float* partial;      // [chunks, dim + 2]
};

int64_t width_of(const erwin_message& m) { return ceil_div(m.channels, ERWIN_ROW) * ERWIN_ROW; }

Workspace lay_out(const erwin_message& m, Arena& arena) {
  return {arena.take<float>(m.nodes, width_of(m)), arena.take<EdgeGradient>(m.edges),
          arena.take<float>(ceil_div(m.nodes, kTaskNodes), (m.dim + 2) * width_of(m))};
}

int64_t workspace_bytes_of(const erwin_message& m) {
  Arena arena{nullptr};
  lay_out(m, arena);
  return arena.bytes_anywhere();
}

}  // namespace
}  // namespace erwin

int32_t erwin_group(const int64_t* key, int64_t count, int64_t groups, int64_t* ptr, int64_t* order) {
  using namespace erwin;
  if (!is_count(count) || !is_count(groups) || ptr == nullptr) return ERWIN_INVALID_ARGUMENT;
  if (!is_given(key, count) || !is_given(order, count)) return ERWIN_INVALID_ARGUMENT;
  std::fill(ptr, ptr + groups + 1, 0);
  for (int64_t i = 0; i < count; ++i) {
    if (key[i] < 0 || key[i] >= groups) return ERWIN_INVALID_ARGUMENT;
    ++ptr[key[i] + 1];
  }
  for (int64_t g = 0; g < groups; ++g) ptr[g + 1] += ptr[g];
  for (int64_t i = 0; i < count; ++i) order[ptr[key[i]]++] = i;
  // Now every offset points to the end of its group: shift them by one.
  for (int64_t g = groups; g > 0; --g) ptr[g] = ptr[g - 1];
  ptr[0] = 0;
  return ERWIN_OK;
}

int32_t erwin_message_forward(const erwin_context* context, const erwin_message* message, float* mean) {
  using namespace erwin;
  const int32_t status = check(context, message);
  if (status != ERWIN_OK) return status;
  if (!is_given(mean, message->nodes)) return ERWIN_INVALID_ARGUMENT;
  return guarded([&] {
    return Run(*context, *message).for_chunks([&](const MessageKernel& kernel, int64_t, int64_t first, int64_t last,
                                                  float* scratch) {
      return kernel.forward(*message, first, last, scratch, mean);
    });
  });
}

int32_t erwin_message_workspace(const erwin_message* message, int64_t* bytes) {
  using namespace erwin;
  const int32_t status = check_sizes(message);
  if (status != ERWIN_OK) return status;
  const int64_t needed = workspace_bytes_of(*message);
  if (bytes == nullptr || needed == kTooLarge) return ERWIN_INVALID_ARGUMENT;
  *bytes = needed;
  return ERWIN_OK;
}

int32_t erwin_message_backward(const erwin_context* context, const erwin_message* message, const float* grad_mean,
                               void* workspace, int64_t workspace_bytes, float* grad_source, float* grad_target,
                               float* grad_weights) {
  using namespace erwin;
  const int32_t valid = check(context, message);
  if (valid != ERWIN_OK) return valid;
  const erwin_message& m = *message;
  if (!is_table(m, m.source_ptr, m.source_order) || !is_given(grad_mean, m.nodes) ||
      !is_given(grad_source, m.nodes) || !is_given(grad_target, m.nodes) || grad_weights == nullptr) {
    return ERWIN_INVALID_ARGUMENT;
  }
  const int64_t needed = workspace_bytes_of(m);
  if (workspace == nullptr || needed == kTooLarge) return ERWIN_INVALID_ARGUMENT;
  if (workspace_bytes < needed) return ERWIN_WORKSPACE_TOO_SMALL;
  Arena arena{Arena::aligned(workspace)};
  const Workspace parts = lay_out(m, arena);
  const int64_t length = (m.dim + 2) * width_of(m);
  const MessageGradients gradients = {grad_mean, parts.scaled, parts.edge, grad_source, grad_target};
  return guarded([&]() -> int32_t {
    Run run(*context, m);
    int32_t status = run.for_chunks([&](const MessageKernel& kernel, int64_t chunk, int64_t first, int64_t last,
                                float* scratch) {
      return kernel.backward_target(m, first, last, gradients, scratch, parts.partial + chunk * length);
    });
    if (status != ERWIN_OK) return status;
    status = run.for_chunks([&](const MessageKernel& kernel, int64_t, int64_t first, int64_t last, float* scratch) {
      return kernel.backward_source(m, first, last, gradients, scratch);
    });
    if (status != ERWIN_OK) return status;
    std::fill(grad_weights, grad_weights + length, 0.0f);
    for (int64_t chunk = 0; chunk < ceil_div(m.nodes, kTaskNodes); ++chunk) {
      for (int64_t c = 0; c < length; ++c) grad_weights[c] += parts.partial[chunk * length + c];
    }
    return ERWIN_OK;
  });
}
