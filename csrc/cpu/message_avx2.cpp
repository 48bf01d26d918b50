// Message passing for AVX2 and FMA.
#if defined(ERWIN_WITH_AVX2)
#include "message_kernel.h"

const erwin::MessageKernel erwin::kMessageAvx2 = erwin::kMessageKernel;
#endif
