/* Sums of products of 16-bit numbers, what AVX2 multiplies exactly: vpmaddwd, two products a lane. */
#ifndef QC_WIDE_SUMS_H
#define QC_WIDE_SUMS_H

#include "finish_256.h"
#include "one_position.h"

#define QC_WIDE_ROWS 6

/* Two numbers of one row, broadcast, times the weights of 16 channels: acc0 += x * a, acc1 += x * b. In assembly, since gcc 12 adds in
   an order of its own and spills the sums. */
QC_INLINE void qc_wide_step(qv *acc0, qv *acc1, const uint8_t *x, qv a, qv b, int narrow) {
  qv low, high;
  if (narrow) {
    *acc0 = _mm256_add_epi32(*acc0, _mm256_madd_epi16(qv_four(x), a));
    return;
  }
  __asm__("vpbroadcastd %4, %3\n\tvpmaddwd %5, %3, %2\n\tvpmaddwd %6, %3, %3\n\tvpaddd %2, %0, %0\n\tvpaddd %3, %1, %1"
          : "+x"(*acc0), "+x"(*acc1), "=&x"(low), "=&x"(high)
          : "m"(*(const uint8_t(*)[4])x), "x"(a), "x"(b));
}

/* Weights of four numbers of x and eight channels: of the first pair of them, or of the second. raw: w are bytes, 32 of them, and the
   pairs are numbers 0 and 2, and 1 and 3; else 16-bit numbers, one pair 64 bytes behind the other. */
QC_INLINE qv qc_wide_weights(const uint8_t *w, int second, int half, int raw) {
  if (!raw) return qv_load(w + 64 * second + 32 * half);
  qv bytes = qv_load(w + 32 * half);
  return _mm256_srai_epi16(second ? bytes : _mm256_slli_epi16(bytes, 8), 8);
}

/* sums [rows][16] = (or, where `more`, +=) the products of 4 * fours numbers of each row, `pitch` bytes from one to the next, with the
   weights of 16 channels; narrow: of the first eight alone. */
QC_INLINE void qc_wide_sums(const uint8_t *x, int64_t pitch, const uint8_t *w, int64_t fours, int32_t *sums, int more, int rows, int narrow,
                            int raw) {
  qv acc[QC_WIDE_ROWS][2];
  int vectors = narrow ? 1 : 2;
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) acc[i][v] = more ? qv_load(sums + 16 * i + 8 * v) : qv_zero();
  for (const uint8_t *end = x + 8 * fours; x < end; x += 8, w += raw ? 64 : 128) {
    const uint8_t *again = w;
    qv a = qc_wide_weights(w, 0, 0, raw), b = narrow ? a : qc_wide_weights(w, 0, 1, raw);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) qc_wide_step(&acc[i][0], &acc[i][1], x + i * pitch, a, b, narrow);
    __asm__("" : "+r"(again)); /* loaded when they are needed: there are 16 registers, and 12 of them hold sums */
    a = qc_wide_weights(again, 1, 0, raw), b = narrow ? a : qc_wide_weights(again, 1, 1, raw);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) qc_wide_step(&acc[i][0], &acc[i][1], x + i * pitch + 4, a, b, narrow);
  }
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) qv_store(sums + 16 * i + 8 * v, acc[i][v]);
}

typedef void qc_wide_function(const uint8_t *x, int64_t pitch, const uint8_t *w, int64_t fours, int32_t *sums, int more);
#define QC_WIDE_SIZES(F, KIND, NARROW, RAW) \
  F(1, KIND, NARROW, RAW) F(2, KIND, NARROW, RAW) F(3, KIND, NARROW, RAW) \
  F(4, KIND, NARROW, RAW) F(5, KIND, NARROW, RAW) F(6, KIND, NARROW, RAW)
#define QC_WIDE_KINDS(F) \
  QC_WIDE_SIZES(F, whole, 0, 0) QC_WIDE_SIZES(F, narrow, 1, 0) QC_WIDE_SIZES(F, raw, 0, 1) QC_WIDE_SIZES(F, raw_narrow, 1, 1)
#define QC_WIDE_TILE(R, KIND, NARROW, RAW) \
  static void qc_wide_##KIND##_##R(const uint8_t *x, int64_t pitch, const uint8_t *w, int64_t fours, int32_t *sums, int more) { \
    qc_wide_sums(x, pitch, w, fours, sums, more, R, NARROW, RAW); \
  }
QC_WIDE_KINDS(QC_WIDE_TILE)
#undef QC_WIDE_TILE

/* [raw][narrow][rows - 1] */
#define QC_WIDE_NAME(R, KIND, NARROW, RAW) [RAW][NARROW][R - 1] = qc_wide_##KIND##_##R,
static qc_wide_function *const qc_wide_functions[2][2][QC_WIDE_ROWS] = {QC_WIDE_KINDS(QC_WIDE_NAME)};
#undef QC_WIDE_NAME

/* The sums of many rows, in parts as even as registers allow. */
QC_INLINE void qc_wide_many(const uint8_t *x, int64_t pitch, const uint8_t *w, int64_t fours, int32_t *sums, int more, int64_t rows,
                            int narrow, int raw) {
  int64_t parts = qc_ceil(rows, QC_WIDE_ROWS);
  for (int64_t i = 0; i < parts; i++) {
    int64_t from = rows * i / parts, to = rows * (i + 1) / parts;
    qc_wide_functions[raw][narrow][to - from - 1](x + from * pitch, pitch, w, fours, sums + 16 * from, more);
  }
}

#endif
