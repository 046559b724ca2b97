/* Sums of dot products in registers: of some positions, each at a constant distance from the one before, and some vectors of channels.
   Each four bytes of a position are broadcast and meet the weights of these channels. */
#ifndef QC_DOT_SUMS_H
#define QC_DOT_SUMS_H

#include "finish_512.h"
#include "finish_16.h"

#if QC_IS_512
#define QC_DOT_BLOCKS 2
#define QC_DOT_VECTORS 2
#define QC_DOT_SIZES(F) F(14) F(12) F(10) F(8) F(7) F(4) F(2) F(1)
#elif QC_ISA == QC_AVX_VNNI
#define QC_DOT_BLOCKS 1
#define QC_DOT_VECTORS 2
#define QC_DOT_SIZES(F) F(6) F(4) F(3) F(2) F(1)
#else
#define QC_DOT_BLOCKS 1
#define QC_DOT_VECTORS 4
#define QC_DOT_SIZES(F) F(6) F(5) F(4) F(3) F(2) F(1)
#endif
#define QC_DOT_CHANNELS (16 * QC_DOT_BLOCKS)
#define QC_DOT_AHEAD 4096 /* bytes of weights that are asked for before they are needed: of a whole network they lie in the third cache */

/* The weights of four bytes of x: vector v of the piece's channels. */
QC_INLINE qv_w qc_dot_weights(const int8_t *w0, const int8_t *w1, int v) {
#if QC_DOT_BLOCKS == 2
  return qv_weights(qv_load(v ? w1 : w0));
#else
  (void)w1;
  return qv_weights(qv_load(w0 + v * QC_VB));
#endif
}

QC_INLINE void qc_dot_start(const qc_conv *a, const qc_pair *p, qv acc[QC_DOT_VECTORS]) {
  for (int v = 0; v < QC_DOT_VECTORS; v++) {
#if QC_ISA == QC_NEON
    acc[v] = vshlq_n_s32(qv_load(a->wsum + p->c + 4 * v), 7);
#else
    (void)a, (void)p;
    acc[v] = qv_zero();
#endif
  }
}

/* Where the rows of a tile begin, in as few registers as addresses of one base and one multiple can be made of: fourteen distances would
   not leave any, and those that lie in vector registers meanwhile take the products' time. */
typedef struct qc_dot_rows {
  const uint8_t *low, *high; /* rows 0 and 7 */
  int64_t one, three, five;  /* rows */
} qc_dot_rows;

QC_INLINE qc_dot_rows qc_dot_rows_at(const uint8_t *x, int64_t step) {
  qc_dot_rows r = {x, x + 7 * step, step, 3 * step, 5 * step};
  __asm__("" : "+r"(r.high), "+r"(r.one), "+r"(r.three), "+r"(r.five));
  return r;
}

QC_INLINE const uint8_t *qc_dot_row_of(const qc_dot_rows *r, int i) {
  const uint8_t *base = i < 7 ? r->low : r->high;
  int64_t far[7] = {0, r->one, 2 * r->one, r->three, 4 * r->one, r->five, 2 * r->three};
  return base + far[i % 7];
}

QC_INLINE qv qc_dot_product(qv acc, qv_x x, qv_w w, int wide) {
#if QC_IS_X86
  if (wide) return qv_dp16(acc, x, w);
#endif
  (void)wide;
  return qv_dp(acc, x, w);
}

/* acc += products of `bytes` bytes of each row, rows `step` apart from x on, with the weights at *w0 and *w1, which move on. split: the
   second block of channels reads `other` bytes further on. wide: x and the weights are 16-bit numbers, two in four bytes. */
QC_INLINE void qc_dot_span(qv acc[14][QC_DOT_VECTORS], const uint8_t *x, int64_t step, int64_t bytes, const int8_t **w0, const int8_t **w1,
                           int64_t other, int rows, int vectors, int split, int wide) {
  qc_dot_rows from = qc_dot_rows_at(x, step);
  const uint8_t *end = from.low + bytes;
  for (; from.low < end; from.low += 4, from.high += 4, *w0 += 64, *w1 += 64) {
    qv_w w[QC_DOT_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) w[v] = qc_dot_weights(*w0, *w1, v);
    if (QC_IS_512) __builtin_prefetch(*w0 + QC_DOT_AHEAD), __builtin_prefetch(*w1 + QC_DOT_AHEAD);
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
      qv_x codes = qv_codes(qv_four(qc_dot_row_of(&from, i)));
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) {
        if (split && v) codes = qv_codes(qv_four(qc_dot_row_of(&from, i) + other));
        acc[i][v] = qc_dot_product(acc[i][v], codes, w[v], wide);
      }
    }
  }
}

/* The sums of `rows` positions and `vectors` vectors of channels. split: the two blocks of channels belong to two groups and read two
   places of x. */
QC_INLINE void qc_dot_sums(const qc_conv *a, const qc_spans *s, const qc_pair *p, const uint8_t *x, int64_t step, qv acc[14][QC_DOT_VECTORS],
                           int rows, int vectors, int split) {
  qv start[QC_DOT_VECTORS];
  const int8_t *w0 = p->w[0], *w1 = p->w[1];
  int64_t other = p->x[1] - p->x[0];
  x += p->x[0];
  qc_dot_start(a, p, start);
#pragma GCC unroll 14
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) acc[i][v] = start[v];
  for (int t = 0; t < s->count; t++) qc_dot_span(acc, x + s->off[t], step, s->padded, &w0, &w1, other, rows, vectors, split, 0);
}

#if QC_IS_512

#define QC_DOT_ROWS 14

/* sums [rows][32] = (or, where `more`, +=) the products of `bytes` bytes of 16-bit numbers of each row with the weights w0 and w1 of 16
   channels each. */
QC_INLINE void qc_dot_wide(const uint8_t *x, int64_t step, int64_t bytes, const int8_t *w0, const int8_t *w1, int32_t *sums, int more, int rows) {
  qv acc[14][QC_DOT_VECTORS];
#pragma GCC unroll 14
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++) acc[i][v] = more ? qv_load(sums + 32 * i + 16 * v) : qv_zero();
  qc_dot_span(acc, x, step, bytes, &w0, &w1, 0, rows, 2, 0, 1);
#pragma GCC unroll 14
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++) qv_store(sums + 32 * i + 16 * v, acc[i][v]);
}

typedef void qc_dot_wide_function(const uint8_t *x, int64_t step, int64_t bytes, const int8_t *w0, const int8_t *w1, int32_t *sums, int more);
#define QC_DOT_WIDE_SIZES(F) F(1) F(2) F(3) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14)
#define QC_DOT_WIDE(R) \
  static void qc_dot_wide_##R(const uint8_t *x, int64_t step, int64_t bytes, const int8_t *w0, const int8_t *w1, int32_t *sums, int more) { \
    qc_dot_wide(x, step, bytes, w0, w1, sums, more, R); \
  }
QC_DOT_WIDE_SIZES(QC_DOT_WIDE)
#undef QC_DOT_WIDE
#define QC_DOT_WIDE_NAME(R) [R - 1] = qc_dot_wide_##R,
static qc_dot_wide_function *const qc_dot_wide_functions[QC_DOT_ROWS] = {QC_DOT_WIDE_SIZES(QC_DOT_WIDE_NAME)};
#undef QC_DOT_WIDE_NAME

/* The sums of many rows, in parts as even as registers allow. */
QC_INLINE void qc_dot_wide_many(const uint8_t *x, int64_t step, int64_t bytes, const int8_t *w0, const int8_t *w1, int32_t *sums, int more,
                                int64_t rows) {
  int64_t parts = qc_ceil(rows, QC_DOT_ROWS);
  for (int64_t i = 0; i < parts; i++) {
    int64_t from = rows * i / parts, to = rows * (i + 1) / parts;
    qc_dot_wide_functions[to - from - 1](x + from * step, step, bytes, w0, w1, sums + 32 * from, more);
  }
}

#endif

#endif
