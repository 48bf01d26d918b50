// Ball attention for AVX-512F.
#if defined(ERWIN_WITH_AVX512)
#include "attention_kernel.h"

const erwin::AttentionKernel erwin::kAttentionAvx512 = erwin::kAttentionKernel;
#endif
