// Neighbour search for the instructions that every processor of the target architecture has.
#include "search_kernels.h"

const erwin::KernelTable erwin::kSearchBaseline = erwin::make_table();
