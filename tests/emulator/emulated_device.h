// The device that launches kernels in the emulator.
#ifndef ERWIN_EMULATED_DEVICE_H_
#define ERWIN_EMULATED_DEVICE_H_

#include <cstddef>
#include <cstdint>

#include "emulator.h"
#include "erwin.h"

namespace erwin::emulator {

// Small blocks, so that clouds of some hundred points go through every kernel.
class Device {
 public:
  explicit Device(const erwin_context& context) : ok_(context.device == 0) {}

  static constexpr int64_t shared_bytes() { return int64_t{1} << 20; }
  static constexpr int64_t processors() { return 6; }
  static constexpr int tile_threads() { return 64; }
  static constexpr int block_threads() { return 128; }
  static constexpr int32_t search_warps() { return 1; }  // warps of a block; few, because every thread needs a stack
  static constexpr int32_t handed_rows() { return 100; }
  static constexpr int64_t few_rows() { return 4096; }
  bool ok() const { return ok_; }
  // Whether a kernel has marked the arguments as invalid. This is known here, because kernels run at once.
  static bool knows(const int32_t* fault) { return *fault != 0; }

  template <typename... P, typename... A>
  void launch(void (*kernel)(P...), int64_t blocks, int threads, int64_t shared_bytes, const A&... arguments) {
    if (!ok_) return;
    auto body = [&] { kernel(arguments...); };
    typedef decltype(body) Body;
    run(static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<size_t>(shared_bytes),
        [](void* self) { (*static_cast<Body*>(self))(); }, &body);
  }

 private:
  bool ok_;
};

}  // namespace erwin::emulator

#endif  // ERWIN_EMULATED_DEVICE_H_
