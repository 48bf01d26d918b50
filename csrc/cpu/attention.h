// The interface between the entry points of ball attention and its kernels. There is one kernel per instruction set.
//
// Only declarations and plain structs: a function defined here could be compiled for one machine's instructions and
// then be called on another.
#ifndef ERWIN_CPU_ATTENTION_H_
#define ERWIN_CPU_ATTENTION_H_

#include <cstdint>

#include "../erwin.h"

namespace erwin {

// The arguments of a backward call that are not in `erwin_attention`.
struct AttentionGradients {
  erwin_heads out, grad_out, grad_q, grad_k, grad_v;
  float* grad_sigma;  // [balls, heads]: what each ball adds
  float* grad_pos;    // [rows, dim] or NULL
};

// One ball and some of its heads.
struct AttentionTask {
  int64_t ball;
  int64_t start, length;  // its places
  int64_t first_head, last_head;
};

// The memory of one thread, aligned to 64 bytes and laid out for balls of up to `longest` rows.
struct AttentionScratch {
  char* memory;
  int64_t longest;
};

struct AttentionKernel {
  // Bytes of the scratch; kTooLarge if they do not fit an int64.
  int64_t (*forward_scratch)(const erwin_attention& attention, int64_t longest);
  int64_t (*backward_scratch)(const erwin_attention& attention, int64_t longest, bool grad_pos);
  void (*forward)(const erwin_attention& attention, const AttentionTask& task, const erwin_heads& out, float* lse,
                  const AttentionScratch& scratch);
  void (*backward)(const erwin_attention& attention, const AttentionTask& task, const AttentionGradients& gradients,
                   const float* lse, const AttentionScratch& scratch);
};

extern const AttentionKernel kAttentionBaseline;
extern const AttentionKernel kAttentionAvx2;
extern const AttentionKernel kAttentionAvx512;

}  // namespace erwin

#endif  // ERWIN_CPU_ATTENTION_H_
