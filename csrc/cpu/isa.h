// The instruction sets that host kernels are compiled for, and the choice among them on the machine that runs.
#ifndef ERWIN_CPU_ISA_H_
#define ERWIN_CPU_ISA_H_

#include <cstdint>

#include "attention.h"
#include "message.h"
#include "quads.h"
#include "search.h"

namespace erwin {

// What is compiled for one instruction set.
struct IsaKernels {
  const AttentionKernel* attention;
  const MessageKernel* message;
  const KernelTable* search;
  const QuadPasses* quads;  // NULL: loops do as well
};

// Those of an instruction set, at most erwin_cpu_isa(); negative: of the widest.
const IsaKernels& kernels_of(int32_t isa);

// Those of trees and searches, whose bits no instruction set changes: of the widest, unless ATEN_CPU_CAPABILITY, which
// limits PyTorch's kernels, names a narrower one.
const IsaKernels& geometry_kernels();

}  // namespace erwin

#endif  // ERWIN_CPU_ISA_H_
