// Neighbour search for AVX2.
#if defined(ERWIN_WITH_AVX2)
#include "search_kernels.h"

const erwin::KernelTable erwin::kSearchAvx2 = erwin::make_table();
#endif
