// The table of the instruction sets.
#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "../erwin.h"

namespace erwin {
namespace {

// Indexed by erwin_cpu_isa_kind. A build with AVX-512 also has AVX2.
constexpr IsaKernels kTable[] = {
    {&kAttentionBaseline, &kMessageBaseline, &kSearchBaseline, nullptr},
#if defined(ERWIN_WITH_AVX2)
    {&kAttentionAvx2, &kMessageAvx2, &kSearchAvx2, nullptr},
#endif
#if defined(ERWIN_WITH_AVX512)
    {&kAttentionAvx512, &kMessageAvx512, &kSearchAvx512, &kQuadsAvx512},
#endif
};

int32_t geometry_isa() {
  const char* const variable = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string_view level = variable == nullptr ? "" : variable;
  if (level == "default") return ERWIN_CPU_BASELINE;
  return level == "avx2" ? std::min<int32_t>(ERWIN_CPU_AVX2, erwin_cpu_isa()) : erwin_cpu_isa();
}

}  // namespace

const IsaKernels& kernels_of(int32_t isa) { return kTable[isa < 0 ? erwin_cpu_isa() : isa]; }

const IsaKernels& geometry_kernels() {
  static const IsaKernels& kernels = kernels_of(geometry_isa());
  return kernels;
}

}  // namespace erwin

int32_t erwin_cpu_isa(void) {
#if defined(ERWIN_WITH_AVX512)
  if (__builtin_cpu_supports("avx512f")) return ERWIN_CPU_AVX512;
#endif
#if defined(ERWIN_WITH_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return ERWIN_CPU_AVX2;
#endif
  return ERWIN_CPU_BASELINE;
}
