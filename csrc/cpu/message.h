// The interface between the entry points of message passing and its kernels. There is one kernel per instruction set.
//
// Only declarations and plain structs: a function defined here could be compiled for one machine's instructions and
// then be called on another.
#ifndef ERWIN_CPU_MESSAGE_H_
#define ERWIN_CPU_MESSAGE_H_

#include <cstdint>

#include "../erwin.h"

namespace erwin {

// The gradient of GELU's value g at one edge, from the gradient u at the normalised value:
// inverse_std * u + slope * (g - mean) + shift.
struct EdgeGradient {
  float mean, inverse_std, slope, shift;
};

// The arrays that both backward passes use; rows have the same length as those of `erwin_message`.
struct MessageGradients {
  const float* grad_mean;  // [nodes]
  float* scaled;           // [nodes]: the gradient at the normalised value, the same for all edges into a node
  EdgeGradient* edge;      // [edges]
  float* grad_source;      // [nodes]
  float* grad_target;      // [nodes]
};

// The passes. Each handles the nodes first .. last - 1, gets `scratch` memory of `scratch(message)` floats, and returns
// false if an index is out of range.
struct MessageKernel {
  int64_t (*scratch)(const erwin_message& message);
  bool (*forward)(const erwin_message& message, int64_t first, int64_t last, float* scratch, float* mean);
  // Over the edges into the nodes: `scaled`, `edge`, `grad_target`, and `partial` [dim + 2], the nodes' part of the
  // gradients of `weight`, `norm_weight`, `norm_bias`.
  bool (*backward_target)(const erwin_message& message, int64_t first, int64_t last, const MessageGradients& gradients,
                          float* scratch, float* partial);
  // Over the edges out of the nodes, afterwards: `grad_source`.
  bool (*backward_source)(const erwin_message& message, int64_t first, int64_t last, const MessageGradients& gradients,
                          float* scratch);
};

extern const MessageKernel kMessageBaseline;
extern const MessageKernel kMessageAvx2;
extern const MessageKernel kMessageAvx512;

}  // namespace erwin

#endif  // ERWIN_CPU_MESSAGE_H_
