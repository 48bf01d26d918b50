// The instruction sets that host kernels are compiled for, and the choice among them on the machine that runs.
#ifndef ERWIN_CPU_ISA_H_
#define ERWIN_CPU_ISA_H_

#include "../erwin.h"

namespace erwin {

// The same kernel for every instruction set; NULL where the build has none.
template <typename Kernel>
struct Variants {
  const Kernel* baseline;
  const Kernel* avx2;
  const Kernel* avx512;

  // `isa` is at most erwin_cpu_isa(); negative: the widest.
  const Kernel& choose(int32_t isa) const {
    switch (isa < 0 ? erwin_cpu_isa() : isa) {
      case ERWIN_CPU_AVX512: return *avx512;
      case ERWIN_CPU_AVX2: return *avx2;
      default: return *baseline;
    }
  }
};

#if defined(ERWIN_WITH_AVX512)
#define ERWIN_AVX512(kernel) (&(kernel))
#else
#define ERWIN_AVX512(kernel) nullptr
#endif
#if defined(ERWIN_WITH_AVX2)
#define ERWIN_AVX2(kernel) (&(kernel))
#else
#define ERWIN_AVX2(kernel) nullptr
#endif

}  // namespace erwin

#endif  // ERWIN_CPU_ISA_H_
