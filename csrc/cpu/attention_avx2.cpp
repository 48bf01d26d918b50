// Ball attention for AVX2 and FMA.
#if defined(ERWIN_WITH_AVX2)
#include "attention_kernel.h"

const erwin::AttentionKernel erwin::kAttentionAvx2 = erwin::kAttentionKernel;
#endif
