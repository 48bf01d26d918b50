// Message passing: checks of the arguments, the choice of the instruction set, and the tasks of the threads.
#include "message.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "isa.h"
#include "parallel.h"

namespace erwin {
namespace {

constexpr int64_t kChunk = 128;                // nodes of a task; gradients of weights are summed by chunk, in order
constexpr int64_t kSerialChannels = 1 << 16;   // calls with fewer channels of edges are not worth a second thread
constexpr int64_t kLongestDimension = 1 << 24;

constexpr Variants<MessageKernel> kVariants = {&kMessageBaseline, ERWIN_AVX2(kMessageAvx2),
                                              ERWIN_AVX512(kMessageAvx512)};

int32_t check(const erwin_context* context, const erwin_message* m) {
  if (context == nullptr || m == nullptr || context->num_threads < 1) return ERWIN_INVALID_ARGUMENT;
  if (context->device >= 0) return ERWIN_UNSUPPORTED;
  if (m->isa > erwin_cpu_isa()) return ERWIN_UNSUPPORTED;
  if (m->pos_dtype != ERWIN_FLOAT32 && m->pos_dtype != ERWIN_FLOAT64) return ERWIN_INVALID_ARGUMENT;
  if (m->nodes < 0 || m->edges < 0) return ERWIN_INVALID_ARGUMENT;
  for (const int64_t size : {m->channels, m->dim}) {
    if (size < 1 || size > kLongestDimension) return ERWIN_INVALID_ARGUMENT;
  }
  return ERWIN_OK;
}

// One call: its kernel, its threads and their scratch.
class Run {
 public:
  Run(const erwin_context& context, const erwin_message& message)
      : kernel_(kVariants.choose(message.isa)),
        nodes_(message.nodes),
        threads_(message.edges * message.channels < kSerialChannels ? 1 : context.num_threads),
        stride_(ceil_div(kernel_.scratch(message), 16) * 16),
        scratch_(static_cast<size_t>(stride_ * threads_)) {}

  // Calls task(kernel, chunk, first node, last node, scratch), which returns whether all indices were in range.
  template <typename F>
  int32_t for_chunks(const F& task) {
    std::atomic<bool> valid{true};
    parallel_for(threads_, ceil_div(nodes_, kChunk), 1, [&](int32_t worker, int64_t chunk) {
      const int64_t first = chunk * kChunk, last = std::min(first + kChunk, nodes_);
      if (!task(kernel_, chunk, first, last, scratch_.data() + worker * stride_)) valid = false;
    });
    return valid ? ERWIN_OK : ERWIN_INVALID_ARGUMENT;
  }

 private:
  const MessageKernel& kernel_;
  const int64_t nodes_;
  const int32_t threads_;
  const int64_t stride_;
  std::vector<float> scratch_;
};

// Floats of every part of the workspace of a backward call.
struct Sections {
  int64_t width, scaled, edge, partial;

  explicit Sections(const erwin_message& m)
      : width(ceil_div(m.channels, ERWIN_ROW) * ERWIN_ROW),
        scaled(m.nodes * width),
        edge(m.edges * static_cast<int64_t>(sizeof(EdgeGradient) / sizeof(float))),
        partial(ceil_div(m.nodes, kChunk) * (m.dim + 2) * width) {}

  int64_t bytes() const { return (scaled + edge + partial) * static_cast<int64_t>(sizeof(float)); }
};

}  // namespace
}  // namespace erwin

int32_t erwin_group(const int64_t* key, int64_t count, int64_t groups, int64_t* ptr, int64_t* order) {
  if (count < 0 || groups < 0) return ERWIN_INVALID_ARGUMENT;
  std::fill(ptr, ptr + groups + 1, 0);
  for (int64_t i = 0; i < count; ++i) {
    if (key[i] < 0 || key[i] >= groups) return ERWIN_INVALID_ARGUMENT;
    ++ptr[key[i] + 1];
  }
  for (int64_t g = 0; g < groups; ++g) ptr[g + 1] += ptr[g];
  for (int64_t i = 0; i < count; ++i) order[ptr[key[i]]++] = i;
  // Every offset has moved to the end of its group.
  for (int64_t g = groups; g > 0; --g) ptr[g] = ptr[g - 1];
  ptr[0] = 0;
  return ERWIN_OK;
}

int32_t erwin_message_forward(const erwin_context* context, const erwin_message* message, float* mean) {
  using namespace erwin;
  int32_t status = check(context, message);
  if (status != ERWIN_OK) return status;
  const int32_t thrown = guarded([&] {
    status = Run(*context, *message).for_chunks([&](const MessageKernel& kernel, int64_t, int64_t first, int64_t last,
                                                    float* scratch) {
      return kernel.forward(*message, first, last, scratch, mean);
    });
  });
  return thrown != ERWIN_OK ? thrown : status;
}

int32_t erwin_message_workspace(const erwin_message* message, int64_t* bytes) {
  *bytes = erwin::Sections(*message).bytes();
  return ERWIN_OK;
}

int32_t erwin_message_backward(const erwin_context* context, const erwin_message* message, const float* grad_mean,
                               void* workspace, int64_t workspace_bytes, float* grad_source, float* grad_target,
                               float* grad_weights) {
  using namespace erwin;
  int32_t status = check(context, message);
  if (status != ERWIN_OK) return status;
  const Sections sections(*message);
  if (workspace_bytes < sections.bytes()) return ERWIN_WORKSPACE_TOO_SMALL;
  float* const scaled = static_cast<float*>(workspace);
  float* const edge = scaled + sections.scaled;
  float* const partial = edge + sections.edge;
  const int64_t length = (message->dim + 2) * sections.width;
  const MessageGradients gradients = {grad_mean, scaled, reinterpret_cast<EdgeGradient*>(edge), grad_source,
                                      grad_target};
  const int32_t thrown = guarded([&] {
    Run run(*context, *message);
    status = run.for_chunks([&](const MessageKernel& kernel, int64_t chunk, int64_t first, int64_t last,
                                float* scratch) {
      return kernel.backward_target(*message, first, last, gradients, scratch, partial + chunk * length);
    });
    if (status != ERWIN_OK) return;
    status = run.for_chunks([&](const MessageKernel& kernel, int64_t, int64_t first, int64_t last, float* scratch) {
      return kernel.backward_source(*message, first, last, gradients, scratch);
    });
    if (status != ERWIN_OK) return;
    std::fill(grad_weights, grad_weights + length, 0.0f);
    for (int64_t chunk = 0; chunk < ceil_div(message->nodes, kChunk); ++chunk) {
      for (int64_t c = 0; c < length; ++c) grad_weights[c] += partial[chunk * length + c];
    }
  });
  return thrown != ERWIN_OK ? thrown : status;
}
