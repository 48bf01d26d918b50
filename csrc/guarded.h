// The error boundary of the entry points: exceptions become status codes.
#ifndef ERWIN_GUARDED_H_
#define ERWIN_GUARDED_H_

#include <cstdint>
#include <new>
#include <stdexcept>
#include <type_traits>

#include "erwin.h"
#include "sizes.h"

namespace erwin {

// Thrown to end a call because its caller asked it to stop.
struct Interrupted {};

// Runs a kernel, which may return a status, and turns exceptions into a status: no exception leaves the library.
template <typename F>
int32_t guarded(F&& kernel) {
  try {
    if constexpr (std::is_void_v<decltype(kernel())>) {
      kernel();
      return ERWIN_OK;
    } else {
      return kernel();
    }
  } catch (const TooLarge&) {
    return ERWIN_INVALID_ARGUMENT;
  } catch (const Interrupted&) {
    return ERWIN_INTERRUPTED;
  } catch (const std::bad_alloc&) {
    return ERWIN_OUT_OF_MEMORY;
  } catch (const std::length_error&) {  // more elements than a std::vector can hold
    return ERWIN_OUT_OF_MEMORY;
  } catch (...) {
    return ERWIN_INTERNAL_ERROR;
  }
}

}  // namespace erwin

#endif  // ERWIN_GUARDED_H_
