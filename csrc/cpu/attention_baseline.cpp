// Ball attention for the instructions that every processor of the target architecture has.
#include "attention_kernel.h"

const erwin::AttentionKernel erwin::kAttentionBaseline = erwin::kAttentionKernel;
