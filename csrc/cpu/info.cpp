// Tells what this build of the library supports, and what the last error on a device was.
#include "../erwin.h"
#include "../error.h"

namespace {

thread_local const char* last_error = "";

}  // namespace

void erwin::set_last_error(const char* text) { last_error = text; }

const char* erwin_last_error(void) { return last_error; }

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
