// The instruction sets that host kernels are compiled for, and the choice among them on the machine that runs.
#ifndef ERWIN_CPU_ISA_H_
#define ERWIN_CPU_ISA_H_

#include <cstdint>

#include "attention.h"
#include "message.h"
#include "quads.h"
#include "search.h"

namespace erwin {

// The kernels that are compiled for one instruction set.
struct IsaKernels {
  const AttentionKernel* attention;
  const MessageKernel* message;
  const KernelTable* search;
  const QuadPasses* quads;  // NULL: plain loops are used instead
};

// Returns the kernels of an instruction set, which is at most erwin_cpu_isa(). A negative `isa` means the widest one.
const IsaKernels& kernels_of(int32_t isa);

// Returns the kernels for trees and searches, whose results are the same bits for every instruction set: those of the
// widest one, unless the environment variable ATEN_CPU_CAPABILITY, which limits PyTorch's kernels, names a narrower
// one.
const IsaKernels& geometry_kernels();

}  // namespace erwin

#endif  // ERWIN_CPU_ISA_H_
