// The passes of a split over records of four lanes (float32 points in 2-D and 3-D), with AVX-512 instructions.
//
// Their results are the same bits as those of the loops in select.h, in a third of the time.
#ifndef ERWIN_CPU_QUADS_H_
#define ERWIN_CPU_QUADS_H_

#include <cstdint>

namespace erwin {

// Which lane holds the coordinate that a split compares, and which holds the index.
struct QuadLanes {
  int32_t axis, index;
};

// The lowest and highest number in every lane.
struct QuadRange {
  float low[4], high[4];
};

struct QuadPasses {
  // Writes the coordinate's bits and the index of all records whose coordinate is between first and last. Returns their
  // number; `below` becomes the number of records with a smaller coordinate.
  int64_t (*collect)(const float* records, int64_t n, QuadLanes lanes, float first, float last, uint32_t* ranks,
                     int64_t* below);
  // Appends the records before the pivot to `left`, the others to `right`. Writes the ranges of both sides to ranges[0]
  // and ranges[1].
  void (*partition)(const float* records, int64_t n, QuadLanes lanes, float pivot, int32_t pivot_index, float* left,
                    float* right, QuadRange* ranges);
};

extern const QuadPasses kQuadsAvx512;

}  // namespace erwin

#endif  // ERWIN_CPU_QUADS_H_
