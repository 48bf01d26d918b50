// Multiply-adds of independent vectors in registers: what no kernel can exceed. Compilers unroll 16 steps fully; an array
// of more would live in memory.
#if defined(__AVX512F__)
enum { BYTES = 64, VECTORS = 16 };
#elif defined(__AVX__)
enum { BYTES = 32, VECTORS = 12 };
#else
enum { BYTES = 16, VECTORS = 12 };
#endif
enum { LANES = BYTES / sizeof(float) };
typedef float vector __attribute__((vector_size(BYTES)));

// Returns the number of floating-point operations.
double multiply_add(long rounds, float* out) {
  vector sum[VECTORS], factor, term;
  for (int lane = 0; lane < LANES; ++lane) {
    factor[lane] = out[0];
    term[lane] = out[1];
    for (int i = 0; i < VECTORS; ++i) sum[i][lane] = (float)(i + lane);
  }
  for (long round = 0; round < rounds; ++round)
    for (int i = 0; i < VECTORS; ++i) sum[i] = sum[i] * factor + term;
  for (int i = 0; i < VECTORS; ++i) out[0] += sum[i][0];
  return 2.0 * LANES * VECTORS * (double)rounds;
}
