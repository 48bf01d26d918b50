// Ball attention for the instructions that every machine of the target has.
#include "attention_kernel.h"

const erwin::AttentionKernel erwin::kAttentionBaseline = erwin::kAttentionKernel;
