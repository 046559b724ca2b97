/* The parts of a depthwise convolution that are different with AVX2: its products are of 16-bit numbers. Part of depthwise.h. */
#ifndef QC_DEPTHWISE_AVX2_H
#define QC_DEPTHWISE_AVX2_H
#if QC_ISA == QC_AVX2

/* Four vectors of four rows each become eight, of rows 0 and 2 and of rows 1 and 3. */
QC_INLINE void qc_widen_weights(qv w[8]) {
  for (int j = 3; j >= 0; j--) {
    qv four = w[j];
    w[2 * j] = _mm256_srai_epi16(_mm256_slli_epi16(four, 8), 8);
    w[2 * j + 1] = _mm256_srai_epi16(four, 8);
  }
}

/* r: four rows of 32 channels. */
QC_INLINE void qc_mix(const qv r[4], uint8_t *mixed, int64_t plane) {
  qv none = qv_zero();
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++, mixed += plane) {
    qv low = qv_low8(r[i], r[i + 2]), high = qv_high8(r[i], r[i + 2]);
    qv_store(mixed, qv_low8(low, none));
    qv_store(mixed + 2 * plane, qv_high8(low, none));
    qv_store(mixed + 4 * plane, qv_low8(high, none));
    qv_store(mixed + 6 * plane, qv_high8(high, none));
  }
}

/* acc += x * w, in assembly, since gcc 12 adds in an order of its own and spills the sums. */
QC_INLINE void qc_dot_add(qv *acc, const uint8_t *x, qv w) {
  qv product;
  __asm__("vpmaddwd %2, %3, %1\n\tvpaddd %1, %0, %0" : "+x"(*acc), "=&x"(product) : "m"(*(const uint8_t(*)[32])x), "x"(w));
}

/* The sums for j = 2 * half (first four positions) and 2 * half + 1, as numbers of 16 bits, without zero point. A function of its own:
   inlined into all the rest, gcc 12 keeps none of its addresses in registers. */
static __attribute__((noinline)) void qc_dot_half(const qc_epilogue *e, const qc_dots *s, const qv (*w)[QC_PARTS], const uint8_t *mixed, int64_t plane,
                                                  int half, qv acc[4]) {
  qv a[4], b[4];
  int64_t count = s->count;
#pragma GCC unroll 4
  for (int p = 0; p < 4; p++) a[p] = b[p] = qv_zero();
  mixed += 4 * half * plane;
  for (int64_t i = 0; i < count; i++) {
    const uint8_t *x = mixed + s->at[i], *next = x + plane, *third = next + plane, *last = third + plane;
    const qv *v = w[i] + 4 * half;
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) qc_dot_add(&a[p], x + p * QC_VB, v[0]);
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) qc_dot_add(&b[p], third + p * QC_VB, v[2]);
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) qc_dot_add(&a[p], next + p * QC_VB, v[1]);
#pragma GCC unroll 4
    for (int p = 0; p < 4; p++) qc_dot_add(&b[p], last + p * QC_VB, v[3]);
  }
  if (e->gain) {
    for (int p = 0; p < 4; p++)
      acc[p] = _mm256_packs_epi32(qc_dots_whole(e, s, a[p], 2 * half, 0), qc_dots_whole(e, s, b[p], 2 * half + 1, 0));
    return;
  }
  qv m0 = s->m[2 * half], m1 = s->m[2 * half + 1], b0 = s->b[2 * half], b1 = s->b[2 * half + 1];
#pragma GCC unroll 4
  for (int p = 0; p < 4; p++) acc[p] = _mm256_packs_epi32(qv_round(a[p], m0, b0, 1), qv_round(b[p], m1, b1, 1));
}

#endif
#endif
