// The passes that a split makes over records of four lanes, float32 points in 2-D and 3-D, by AVX-512.
//
// They give what the loops in select.h give, to the bit, in a third of the time.
#ifndef ERWIN_CPU_QUADS_H_
#define ERWIN_CPU_QUADS_H_

#include <cstdint>

namespace erwin {

// Lanes of the coordinate that a split looks at and of the index.
struct QuadLanes {
  int32_t axis, index;
};

// The lowest and highest number in every lane.
struct QuadRange {
  float low[4], high[4];
};

struct QuadPasses {
  // Writes the bits of the coordinate and the index of the records between first and last. Returns how many these are;
  // `below` becomes the number of records before them.
  int64_t (*collect)(const float* records, int64_t n, QuadLanes lanes, float first, float last, uint32_t* ranks,
                     int64_t* below);
  // Appends the records before the pivot to `left`, the others to `right`. ranges[0] and ranges[1] become those of the
  // two sides.
  void (*partition)(const float* records, int64_t n, QuadLanes lanes, float pivot, int32_t pivot_index, float* left,
                    float* right, QuadRange* ranges);
};

extern const QuadPasses kQuadsAvx512;

}  // namespace erwin

#endif  // ERWIN_CPU_QUADS_H_
