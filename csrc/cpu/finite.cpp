// Tells whether values are finite.
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../arguments.h"

namespace erwin {
namespace {

// NaN and infinity are the values whose exponent has every bit set: for them alone adding the exponent's lowest bit to
// the exponent carries into the sign's place, and that needs no instruction that the baseline's vectors lack.
template <typename Bits>
bool is_finite(const char* values, int64_t count, int32_t mantissa) {
  constexpr int64_t kBlock = 4096;  // values between two looks at the result
  const Bits lowest = Bits{1} << mantissa, sign = Bits{1} << (8 * sizeof(Bits) - 1), exponent = sign - lowest;
  Bits carry = 0;
  for (int64_t begin = 0; begin < count && (carry & sign) == 0; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, count);
    // A few bytes of code, which may take twice as long where they cross a line of the cache: fewer turns.
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
