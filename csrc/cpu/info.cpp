// What this build of the library can do.
#include "../erwin.h"

int32_t erwin_abi_version(void) { return ERWIN_ABI_VERSION; }

int32_t erwin_has_openmp(void) {
#if defined(_OPENMP)
  return 1;
#else
  return 0;
#endif
}

int32_t erwin_has_cuda(void) {
#if defined(ERWIN_WITH_CUDA)
  return 1;
#else
  return 0;
#endif
}
