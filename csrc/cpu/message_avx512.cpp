// Message passing for AVX-512F.
#if defined(ERWIN_WITH_AVX512)
#include "message_kernel.h"

const erwin::MessageKernel erwin::kMessageAvx512 = erwin::kMessageKernel;
#endif
