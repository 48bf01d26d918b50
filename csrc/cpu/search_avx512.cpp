// Neighbour search for AVX-512F.
#if defined(ERWIN_WITH_AVX512)
#include "search_kernels.h"

const erwin::KernelTable erwin::kSearchAvx512 = erwin::make_table();
#endif
