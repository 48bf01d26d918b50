// Functions with which a case reports what it does and what it found.
#ifndef ERWIN_FUZZ_CHECK_H_
#define ERWIN_FUZZ_CHECK_H_

#include <cstddef>
#include <cstdint>

namespace fuzz {

// Reports what is called next, so that the report of a crash names it. Cases are counted by `kind`.
void stage(const char* kind, const char* detail = "");

// Ends the process with a message.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Adds results to the digest (hash) of the run. They must be the same for every build and on every machine.
void digest(const void* data, size_t bytes);

// Ends the process unless a call has succeeded.
void expect_ok(const char* call, int32_t status);

// Ends the process unless a call has refused its arguments.
void expect_refusal(int32_t status);

}  // namespace fuzz

#define FUZZ_EXPECT(condition, ...) \
  do {                              \
    if (!(condition)) fuzz::fail(__VA_ARGS__); \
  } while (false)

#endif  // ERWIN_FUZZ_CHECK_H_
