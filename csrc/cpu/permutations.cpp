// Checks that tables read from data are permutations.
#include "permutations.h"

#include <cstdint>

#include "../arguments.h"

int32_t erwin_permutations(const int64_t* perm, int64_t rows, const int64_t* lengths, int64_t runs, uint8_t* seen,
                           int64_t* wrong) {
  if (!erwin::is_count(rows) || !erwin::is_count(runs) || wrong == nullptr) return ERWIN_INVALID_ARGUMENT;
  if (!erwin::is_given(perm, rows) || !erwin::is_given(seen, rows) || !erwin::is_given(lengths, runs)) {
    return ERWIN_INVALID_ARGUMENT;
  }
  int64_t first = 0;
  for (int64_t run = 0; run < runs; ++run) {
    if (lengths[run] < 0 || lengths[run] > rows - first) return ERWIN_INVALID_ARGUMENT;
    first += lengths[run];
  }
  if (first != rows) return ERWIN_INVALID_ARGUMENT;
  first = 0;
  for (int64_t run = 0; run < runs; ++run) {
    const int64_t length = lengths[run];
    *wrong = run;
    if (!erwin::is_permutation(perm + first, length, seen)) return ERWIN_OK;
    first += length;
  }
  *wrong = -1;
  return ERWIN_OK;
}
