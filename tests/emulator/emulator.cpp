// sigsetjmp and siglongjmp jump between stacks here. The checked variant in glibc would report that as an error.
#undef _FORTIFY_SOURCE
#define _XOPEN_SOURCE 700  // ucontext.h on macOS

#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <memory>
#include <vector>

thread_local erwin::emulator::Index threadIdx, blockIdx, blockDim, gridDim;

namespace erwin::emulator {
namespace {

constexpr size_t kStackBytes = size_t{1} << 16;

struct Fiber {
  ucontext_t context;
  sigjmp_buf resume;
  std::unique_ptr<char[]> stack;
  bool started = false, finished = false;
  uint32_t barriers = 0;   // how many barriers it has reached
  uint32_t exchanges = 0;  // how many exchanges of its warp it has reached
};

struct Warp {
  uint64_t values[2][32];
  uint32_t arrived = 0;  // number of arrivals at exchanges, over all lanes
};

// The block that runs on this thread of the host.
struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::unique_ptr<char[]> shared;
  uint32_t arrived = 0;  // number of arrivals at barriers, over all threads
  uint32_t running = 0;
  unsigned current = 0;
  sigjmp_buf scheduler;
  void (*kernel)(void*) = nullptr;
  void* argument = nullptr;
};

thread_local Block block;

uint32_t random_bits(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return state >> 8;
}

void shuffle(std::vector<unsigned>& order, uint32_t& state) {
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_bits(state) % i]);
}

void main_of_fiber() {
  block.kernel(block.argument);
  block.fibers[block.current].finished = true;
  --block.running;
  siglongjmp(block.scheduler, 1);
}

void enter(Fiber& fiber) {
  if (fiber.started) siglongjmp(fiber.resume, 1);
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, main_of_fiber, 0);
  setcontext(&fiber.context);
}

// Has no local variables, because they could be changed when control jumps back.
void resume(unsigned thread) {
  block.current = thread;
  threadIdx.x = thread;
  if (sigsetjmp(block.scheduler, 0) == 0) enter(block.fibers[block.current]);
}

void run_block(unsigned index, std::vector<unsigned>& order, uint32_t& state) {
  blockIdx.x = index;
  block.arrived = 0;
  block.running = static_cast<uint32_t>(block.fibers.size());
  for (Warp& warp : block.warps) warp.arrived = 0;
  for (Fiber& fiber : block.fibers) fiber.started = fiber.finished = false, fiber.barriers = fiber.exchanges = 0;
  while (block.running > 0) {
    shuffle(order, state);
    for (const unsigned thread : order)
      if (!block.fibers[thread].finished) resume(thread);
  }
}

}  // namespace

void yield() {
  if (sigsetjmp(block.fibers[block.current].resume, 0) == 0) siglongjmp(block.scheduler, 1);
}

char* shared_memory() { return block.shared.get(); }

const uint64_t* exchange(uint64_t value) {
  const unsigned thread = block.current;
  Fiber& fiber = block.fibers[thread];
  Warp& warp = block.warps[thread / 32];
  uint64_t* const values = warp.values[fiber.exchanges % 2];
  values[thread % 32] = value;
  ++warp.arrived;
  const uint32_t complete = 32 * ++fiber.exchanges;
  while (warp.arrived < complete) yield();
  return values;
}

void run(unsigned blocks, unsigned threads, size_t shared_bytes, void (*kernel)(void*), void* argument) {
  block.kernel = kernel;
  block.argument = argument;
  block.shared.reset(new char[shared_bytes + 1]);
  block.fibers = std::vector<Fiber>(threads);
  block.warps = std::vector<Warp>(threads / 32);
  for (Fiber& fiber : block.fibers) fiber.stack.reset(new char[kStackBytes]);
  blockDim.x = threads;
  gridDim.x = blocks;

  uint32_t state = blocks * 31 + threads;
  std::vector<unsigned> order(threads), sequence(blocks);
  for (unsigned i = 0; i < threads; ++i) order[i] = i;
  for (unsigned i = 0; i < blocks; ++i) sequence[i] = i;
  shuffle(sequence, state);
  for (const unsigned index : sequence) run_block(index, order, state);
  block.fibers.clear();
}

}  // namespace erwin::emulator

void __syncthreads() {
  namespace emulator = erwin::emulator;
  emulator::Block& block = emulator::block;
  ++block.arrived;
  const uint32_t complete = static_cast<uint32_t>(block.fibers.size()) * ++block.fibers[block.current].barriers;
  while (block.arrived < complete) emulator::yield();
}
