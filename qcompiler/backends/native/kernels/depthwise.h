/* Depthwise convolution in vectors: four rows of the window in one product.

   A vector holds `width` channels (64, 32 or 16, the vector's bytes at most) of one position, or of several neighbouring ones. For a
   row of results the input rows are interleaved bytewise, four at a time, into `mixed`: then 4 bytes are a channel's column of four
   rows, and one dp per kernel column adds them. Byte j * 16 ... of a lane of 16 bytes holds 4 channels, j = 0..3, as unpacking
   leaves them; packing the results brings them back into order.
   mixed: [row quads][j][column modulo stride][column / stride][width], so that neighbouring results read neighbouring vectors.
   AVX2 multiplies 16-bit numbers: there mixed holds them, for each j first rows 0 and 2 of a quad, then rows 1 and 3.
   A piece is (block of channels, row of the result). */
#ifndef QC_DEPTHWISE_H
#define QC_DEPTHWISE_H

#include "depthwise_scalar.h"
#include "blocks.h"
#include "curve.h"

#define QC_MAX_DOTS 96 /* row quads x kernel columns */
#define QC_AT_ONCE (QC_ISA == QC_AVX_VNNI ? 2 : 4)
#define QC_PARTS (QC_ISA == QC_AVX2 ? 8 : 4) /* vectors that four rows of a column become */
#define QC_MIXED (8192 * QC_PARTS)

typedef struct qc_dots {
  int32_t quads, columns, count; /* count = quads * columns */
  int32_t width, positions;      /* channels of a vector, positions of a vector */
  int32_t strip, pitch;          /* results a strip; bytes of mixed from one column phase to the next */
  int64_t c;                     /* first channel */
  int64_t at[QC_MAX_DOTS];       /* where in mixed the vectors of dot i are, for j = 0 and position 0 */
  qv w[2][QC_MAX_DOTS][QC_PARTS]; /* of a row of results, and of the row below from the same input rows */
  qv m[4], b[4], start[4], slope[4], gain[4], offset[4];
  qc_curved curved;
} qc_dots;

/* Vector j of a result's sums as whole numbers, with what a function does to them before. */
QC_INLINE qv qc_dots_whole(const qc_epilogue *e, const qc_dots *s, qv acc, int j, int plain) {
  qv v = qv_affine(acc, s->m[j], s->b[j]);
  if (!plain && e->gain) v = qv_bend(v, s->slope[j], s->gain[j], s->offset[j], e->top);
  return qv_whole(v, !plain);
}

#include "depthwise_avx2.h"

/* Widths of the blocks of channels: as wide as the vector, and one narrower for what is left. */
static int64_t qc_depthwise_blocks(int64_t c) { return qc_ceil(c, QC_VB); }

static int32_t qc_depthwise_width(int64_t left) {
  int32_t width = QC_VB;
  while (width > 16 && left <= width / 2) width /= 2;
  return width;
}

/* 16 bytes of each 16 channels of the block, repeated for each position. */
QC_INLINE qv qc_spread(const void *base, int64_t distance, int32_t width) {
  const char *p = base;
  int64_t mask = width / 16 - 1;
  return qv_lanes(p, p + (1 & mask) * distance, p + (2 & mask) * distance, p + (3 & mask) * distance);
}

/* Whether mixed and the lists above have room for it. */
static int qc_depthwise_fits(const qc_depthwise *a) {
  const qc_window *k = &a->k;
  int64_t quads = k->kernel[0] * qc_ceil(k->kernel[1], 4), reach = (int64_t)(k->kernel[2] - 1) * k->dilation[2] / k->stride[2];
  return quads * k->kernel[2] <= QC_MAX_DOTS && quads * QC_PARTS * k->stride[2] * (reach + 24) * QC_VB <= QC_MIXED;
}

static void qc_find_dots(const qc_depthwise *a, int64_t block, qc_dots *s) {
  const qc_window *k = &a->k;
  s->c = block * QC_VB;
  s->curved = qc_find_curve(&a->e);
  s->width = qc_depthwise_width(a->y.c - s->c);
  s->positions = QC_VB / s->width;
  s->columns = k->kernel[2];
  s->quads = k->kernel[0] * (int32_t)qc_ceil(k->kernel[1], 4);
  s->count = s->quads * s->columns;
  int64_t reach = (int64_t)(k->kernel[2] - 1) * k->dilation[2] / k->stride[2] + 1;
  int64_t group = QC_AT_ONCE * s->positions, room = QC_MIXED / ((int64_t)s->quads * QC_PARTS * k->stride[2] * s->width);
  int64_t most = room - reach - s->positions;
  s->strip = (int32_t)(qc_min(most / group, qc_ceil(a->y.w, group)) * group);
  /* Whole vectors are written: the last one must not reach into the first of the next plane. */
  s->pitch = (int32_t)(qc_ceil(s->strip + reach, s->positions) * s->positions * s->width);
  int64_t bytes = (int64_t)s->count * 64; /* of 16 channels */
  const int8_t *w = a->w + s->c / 16 * bytes;
  for (int i = 0; i < s->count; i++) {
    int64_t column = (int64_t)(i % s->columns) * k->dilation[2];
    s->at[i] = (i / s->columns * QC_PARTS * k->stride[2] + column % k->stride[2]) * s->pitch + column / k->stride[2] * s->width;
    for (int j = 0; j < 4; j++) s->w[0][i][j] = qc_spread(w + 64 * i + 16 * j, bytes, s->width);
  }
  for (int i = 0; i < s->count; i++)
    for (int j = 0; j < 4; j++) s->w[1][i][j] = qv_shift(s->w[0][i][j], i < s->columns ? qv_zero() : s->w[0][i - s->columns][j]);
  for (int j = 0; j < 4; j++) {
    s->m[j] = qc_spread(a->e.m + s->c + 4 * j, 64, s->width);
    s->b[j] = qc_spread(a->e.b + s->c + 4 * j, 64, s->width);
    if (a->e.gain) {
      s->slope[j] = qc_spread(a->e.slope + s->c + 4 * j, 64, s->width);
      s->gain[j] = qc_spread(a->e.gain + s->c + 4 * j, 64, s->width);
      s->offset[j] = qc_spread(a->e.offset + s->c + 4 * j, 64, s->width);
    }
    s->start[j] = QC_ISA == QC_NEON ? qc_spread(a->wsum + s->c + 4 * j, 64, s->width) : qv_zero();
  }
#if QC_ISA == QC_NEON
  for (int j = 0; j < 4; j++) s->start[j] = vshlq_n_s32(s->start[j], 7);
#elif QC_ISA == QC_AVX2
  for (int below = 0; below < 2; below++)
    for (int i = 0; i < s->count; i++) qc_widen_weights(s->w[below][i]);
#endif
}

/* The same channels of `positions` columns: the first at x, the others at the given distances from it. */
QC_INLINE qv qc_gather(const uint8_t *x, const int64_t distance[4], int32_t width) {
  if (width == QC_VB) return qv_load(x);
  if (width == 32) return qv_lanes(x, x + 16, x + distance[1], x + distance[1] + 16);
  return qv_lanes(x, x + distance[1], x + distance[2], x + distance[3]);
}

#if QC_ISA != QC_AVX2
QC_INLINE void qc_mix(const qv r[4], uint8_t *mixed, int64_t plane) {
  qv low0 = qv_low8(r[0], r[1]), high0 = qv_high8(r[0], r[1]), low1 = qv_low8(r[2], r[3]), high1 = qv_high8(r[2], r[3]);
  qv_store(mixed, qv_low16(low0, low1));
  qv_store(mixed + plane, qv_high16(low0, low1));
  qv_store(mixed + 2 * plane, qv_low16(high0, high1));
  qv_store(mixed + 3 * plane, qv_high16(high0, high1));
}
#endif

/* One quad of rows for `count` results: x is the first row at the strip's first column; `rows` of them count. What a vector would
   take from behind the last column is the last column once more: it does not count, and nothing behind the slack is read. */
QC_INLINE void qc_mix_rows(const qc_depthwise *a, const qc_dots *s, const uint8_t *x, int rows, uint8_t *mixed, int64_t count, int32_t width) {
  int64_t down = a->k.dilation[1] * a->x.sh, stride = a->k.stride[2], plane = stride * s->pitch, right = stride * a->x.sw;
  int64_t columns = (count - 1) * stride + (int64_t)(a->k.kernel[2] - 1) * a->k.dilation[2] + 1, step = QC_VB / width;
  for (int64_t phase = 0; phase < qc_min(stride, columns); phase++) {
    int64_t last = (columns - 1 - phase) / stride;
    for (int64_t i = 0; i <= last; i += step) {
      const uint8_t *p = x + i * right + phase * a->x.sw;
      int64_t distance[4];
      qv r[4];
      for (int v = 0; v < 4; v++) distance[v] = qc_min(v, last - i) * right;
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) r[j] = j < rows ? qc_gather(p + j * down, distance, width) : qv_zero();
      qc_mix(r, mixed + phase * s->pitch + i * width, plane);
    }
  }
}

/* All rows that `count` results need, and, for two rows of them, one more. */
QC_INLINE void qc_mix_strip(const qc_depthwise *a, const qc_dots *s, const uint8_t *x, int64_t count, uint8_t *mixed, int32_t width, int two) {
  const qc_window *k = &a->k;
  for (int32_t q = 0; q < s->quads; q++) {
    int32_t a_slice = (int32_t)qc_ceil(k->kernel[1], 4), i = q / a_slice, j = q % a_slice * 4;
    const uint8_t *p = x + qc_tap(k, &a->x, i, j, 0);
    uint8_t *to = mixed + (int64_t)q * QC_PARTS * k->stride[2] * s->pitch;
    int32_t rows = (int32_t)qc_min(4, k->kernel[1] + two - j);
    if (rows == 4)
      qc_mix_rows(a, s, p, 4, to, count, width);
    else if (rows == 3)
      qc_mix_rows(a, s, p, 3, to, count, width);
    else if (rows == 2)
      qc_mix_rows(a, s, p, 2, to, count, width);
    else
      qc_mix_rows(a, s, p, 1, to, count, width);
  }
}

QC_INLINE void qc_store_bytes(const qc_depthwise *a, const qc_dots *s, qv q, uint8_t *y, int64_t count) {
  int64_t channels = qc_min(s->width, a->y.c - s->c);
  if (s->positions == 1) {
    if (channels == QC_VB)
      qv_store(y, q);
    else
      qv_store_part(y, q, channels);
    return;
  }
  QC_ALIGNED uint8_t bytes[QC_VB];
  qv_store(bytes, q);
  for (int64_t i = 0; i < qc_min(s->positions, count); i++) {
    if (channels == 32)
      memcpy(y + i * a->y.sw, bytes + i * s->width, 32);
    else if (channels == 16)
      memcpy(y + i * a->y.sw, bytes + i * s->width, 16);
    else
      memcpy(y + i * a->y.sw, bytes + i * s->width, (size_t)channels);
  }
}

#if QC_ISA == QC_AVX2
/* QC_AT_ONCE vectors of results from mixed on; count: the positions that are wanted; plain: codes 0..255, without table or cut. */
QC_INLINE void qc_dot_vectors(const qc_depthwise *a, const qc_dots *s, qv (*w)[QC_PARTS], const uint8_t *mixed, uint8_t *y, int64_t count,
                              int plain, int slide) {
  (void)slide; /* weights of 16 bits leave no room for it */
  int64_t plane = a->k.stride[2] * (int64_t)s->pitch;
  qv shorts[2][QC_AT_ONCE], zero = _mm256_set1_epi16((short)a->e.zero);
  qv lo = _mm256_set1_epi8((char)a->e.lo), hi = _mm256_set1_epi8((char)a->e.hi);
  for (int half = 0; half < 2; half++) qc_dot_half(&a->e, s, w, mixed, plane, half, shorts[half]);
#pragma GCC unroll 4
  for (int p = 0; p < QC_AT_ONCE; p++) {
    if (p * s->positions >= count) break;
    if (!plain && qc_is_curved(&a->e)) {
      qv curved = qv_within(qv_curve(shorts[0][p], shorts[1][p], &s->curved), a->e.lo, a->e.hi);
      qc_store_bytes(a, s, curved, y + p * s->positions * a->y.sw, count - p * s->positions);
      continue;
    }
    qv q = _mm256_packus_epi16(_mm256_adds_epi16(shorts[0][p], zero), _mm256_adds_epi16(shorts[1][p], zero));
    if (!plain) q = _mm256_min_epu8(_mm256_max_epu8(q, lo), hi);
    if (!plain && a->e.table) q = qv_lookup(a->e.table, q);
    qc_store_bytes(a, s, q, y + p * s->positions * a->y.sw, count - p * s->positions);
  }
}
#else
/* Where vectors of a plane are loaded from: one register and constant distances, which compilers would else spread over sixteen. */
QC_INLINE const uint8_t *qc_base(const uint8_t *p) {
  __asm__ volatile("" : "+r"(p));
  return p;
}

/* The sums of QC_AT_ONCE vectors of results, dot by dot. */
QC_INLINE void qc_dot_each(const qc_dots *s, qv (*w)[QC_PARTS], const uint8_t *mixed, int64_t plane, qv acc[QC_AT_ONCE][4]) {
  for (int i = 0; i < s->count; i++) {
    const uint8_t *x = mixed + s->at[i];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++, x += plane) {
      qv_w weights = qv_weights(w[i][j]);
      x = qc_base(x);
#pragma GCC unroll 4
      for (int p = 0; p < QC_AT_ONCE; p++) acc[p][j] = qv_dp(acc[p][j], qv_codes(qv_load(x + p * QC_VB)), weights);
    }
  }
}

/* The same where a result's columns are its neighbours' too: each vector of mixed is loaded once for all of them. Loads are what
   bounds the other way. */
QC_INLINE void qc_dot_slide(const qc_dots *s, qv (*w)[QC_PARTS], const uint8_t *mixed, int64_t plane, qv acc[QC_AT_ONCE][4], int columns) {
  for (int i = 0; i < s->count; i += columns, w += columns) {
    const uint8_t *x = mixed + s->at[i];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++, x += plane) {
      x = qc_base(x);
#pragma GCC unroll 8
      for (int c = 0; c < QC_AT_ONCE + columns - 1; c++) {
        qv_x codes = qv_codes(qv_load(x + c * QC_VB));
#pragma GCC unroll 4
        for (int p = 0; p < QC_AT_ONCE; p++)
          if (c >= p && c - p < columns) acc[p][j] = qv_dp(acc[p][j], codes, qv_weights(w[c - p][j]));
      }
    }
  }
}

/* QC_AT_ONCE vectors of results from mixed on; count: the positions that are wanted; plain: codes 0..255, without table or cut; slide:
   the columns of the window where neighbouring results share them, else 0. */
QC_INLINE void qc_dot_vectors(const qc_depthwise *a, const qc_dots *s, qv (*w)[QC_PARTS], const uint8_t *mixed, uint8_t *y, int64_t count,
                              int plain, int slide) {
  qv acc[QC_AT_ONCE][4];
  int64_t plane = a->k.stride[2] * (int64_t)s->pitch;
#pragma GCC unroll 4
  for (int p = 0; p < QC_AT_ONCE; p++)
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) acc[p][j] = s->start[j];
  if (slide == 3)
    qc_dot_slide(s, w, mixed, plane, acc, 3);
  else if (slide == 5)
    qc_dot_slide(s, w, mixed, plane, acc, 5);
  else
    qc_dot_each(s, w, mixed, plane, acc);
#pragma GCC unroll 4
  for (int p = 0; p < QC_AT_ONCE; p++) {
    if (p * s->positions >= count) break;
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) acc[p][j] = qc_dots_whole(&a->e, s, acc[p][j], j, plain);
    qv q;
    if (plain)
      q = qv_bytes(acc[p], a->e.zero, 0, 255);
    else if (qc_is_curved(&a->e))
      q = qv_within(qv_curve_sums(acc[p], &s->curved), a->e.lo, a->e.hi);
    else
      q = qv_bytes(acc[p], a->e.zero, a->e.lo, a->e.hi);
    if (!plain && a->e.table) q = qv_lookup(a->e.table, q);
    qc_store_bytes(a, s, q, y + p * s->positions * a->y.sw, count - p * s->positions);
  }
}
#endif

/* Results of a row, each kind in a function of its own: in one they take each other's registers. */
#define QC_DOT_RUN(NAME, PLAIN, SLIDE) \
  QC_APART void qc_dots_##NAME(const qc_depthwise *a, const qc_dots *s, qv(*w)[QC_PARTS], const uint8_t *mixed, uint8_t *y, int64_t count) { \
    int64_t step = QC_AT_ONCE * s->positions; \
    for (int64_t i = 0; i < count; i += step) \
      qc_dot_vectors(a, s, w, mixed + i * s->width, y + i * a->y.sw, count - i, PLAIN, SLIDE); \
  }
QC_DOT_RUN(plain, 1, 0)
QC_DOT_RUN(full, 0, 0)
#if QC_ISA != QC_AVX2
QC_DOT_RUN(plain_3, 1, 3)
QC_DOT_RUN(full_3, 0, 3)
QC_DOT_RUN(plain_5, 1, 5)
QC_DOT_RUN(full_5, 0, 5)
#endif
#undef QC_DOT_RUN

typedef void qc_dot_row_function(const qc_depthwise *, const qc_dots *, qv (*)[QC_PARTS], const uint8_t *, uint8_t *, int64_t);

static qc_dot_row_function *qc_find_dot_row(const qc_depthwise *a, const qc_dots *s) {
  int plain = qc_kind(&a->e, 0, 0) == QC_PLAIN;
#if QC_ISA != QC_AVX2
  int shared = s->positions == 1 && a->k.stride[2] == 1 && a->k.dilation[2] == 1;
  if (shared && s->columns == 3) return plain ? qc_dots_plain_3 : qc_dots_full_3;
  if (shared && s->columns == 5) return plain ? qc_dots_plain_5 : qc_dots_full_5;
#else
  (void)s;
#endif
  return plain ? qc_dots_plain : qc_dots_full;
}

/* two: also the row of results below, which reads one more row of x. */
static void qc_depthwise_strip(const qc_depthwise *a, qc_dots *s, const uint8_t *x, uint8_t *y, int64_t count, int two) {
  QC_ALIGNED uint8_t mixed[QC_MIXED + 4 * QC_VB * 8];
  if (s->width == QC_VB)
    qc_mix_strip(a, s, x, count, mixed, QC_VB, two);
  else if (s->width == 32)
    qc_mix_strip(a, s, x, count, mixed, QC_VB < 32 ? QC_VB : 32, two);
  else
    qc_mix_strip(a, s, x, count, mixed, 16, two);
  qc_dot_row_function *row = qc_find_dot_row(a, s);
  for (int below = 0; below <= two; below++) row(a, s, s->w[below], mixed, y + below * a->y.sh, count);
}

static int64_t qc_depthwise_dots_units(const qc_depthwise *a) {
  return qc_depthwise_fits(a) ? qc_depthwise_blocks(a->y.c) * qc_rows(&a->y) : qc_depthwise_rows_units(a);
}

static void qc_depthwise_row(const qc_depthwise *a, qc_dots *s, int64_t row, int two) {
  int64_t h = row % a->y.h, plane = row / a->y.h, d = plane % a->y.d, n = plane / a->y.d;
  const uint8_t *x = a->x.p + n * a->x.sn + d * a->k.stride[0] * a->x.sd + h * a->k.stride[1] * a->x.sh + s->c;
  uint8_t *y = a->y.p + n * a->y.sn + d * a->y.sd + h * a->y.sh + s->c;
  for (int64_t i = 0; i < a->y.w; i += s->strip)
    qc_depthwise_strip(a, s, x + i * a->k.stride[2] * a->x.sw, y + i * a->y.sw, qc_min(s->strip, a->y.w - i), two);
}

/* Whether two rows of results fit into the same quads of input rows. */
static int qc_in_pairs(const qc_depthwise *a) {
  const qc_window *k = &a->k;
  return k->kernel[0] == 1 && k->stride[1] == 1 && k->dilation[1] == 1 && k->kernel[1] % 4 != 0;
}

static void qc_depthwise_dots(const qc_depthwise *a, int64_t lo, int64_t hi) {
  int64_t rows = qc_rows(&a->y);
  if (!qc_depthwise_fits(a)) {
    qc_depthwise_rows(a, lo, hi);
    return;
  }
  while (lo < hi) {
    qc_dots s;
    int64_t first = lo / rows * rows, end = qc_min(hi, first + rows);
    qc_find_dots(a, first / rows, &s);
    while (lo < end) {
      int64_t row = lo - first;
      int two = qc_in_pairs(a) && lo + 1 < end && (row + 1) % a->y.h != 0;
      qc_depthwise_row(a, &s, row, two);
      lo += 1 + two;
    }
  }
}

#endif
