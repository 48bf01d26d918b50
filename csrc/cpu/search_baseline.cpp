// Neighbour search for whatever the compiler takes for granted.
#include "search_kernels.h"

const erwin::KernelTable erwin::kSearchBaseline = erwin::make_table();
