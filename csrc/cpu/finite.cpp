// Tells whether values are finite.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../arguments.h"

namespace erwin {
namespace {

// NaN and infinity are the values whose exponent has all bits set. Only for them, adding the lowest bit of the exponent
// to the exponent carries into the bit of the sign. This needs only instructions that vectors of the baseline have.
template <typename Bits>
bool is_finite(const char* values, int64_t count, int32_t mantissa) {
  constexpr int64_t kBlock = 4096;  // values between two checks of the result
  const Bits lowest = Bits{1} << mantissa, sign = Bits{1} << (8 * sizeof(Bits) - 1), exponent = sign - lowest;
  Bits carry = 0;
  for (int64_t begin = 0; begin < count && (carry & sign) == 0; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, count);
    // The loop is only a few bytes of code. If it crosses a cache line, it can take twice as long; unrolling avoids
    // that.
#pragma GCC unroll 4
    for (int64_t i = begin; i < end; ++i) {
      Bits bits;
      std::memcpy(&bits, values + i * static_cast<int64_t>(sizeof(Bits)), sizeof(bits));
      carry |= (bits & exponent) + lowest;
    }
  }
  return (carry & sign) == 0;
}

}  // namespace
}  // namespace erwin

int32_t erwin_is_finite(int32_t dtype, const void* values, int64_t count, int32_t* finite) {
  if (!erwin::valid_scalar(dtype)) return ERWIN_INVALID_ARGUMENT;
  if (!erwin::is_count(count) || !erwin::is_given(values, count) || finite == nullptr) return ERWIN_INVALID_ARGUMENT;
  const auto* const bytes = static_cast<const char*>(values);
  *finite = dtype == ERWIN_FLOAT64 ? erwin::is_finite<uint64_t>(bytes, count, 52)
                                   : erwin::is_finite<uint32_t>(bytes, count, 23);
  return ERWIN_OK;
}
