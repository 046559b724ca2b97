/* Convolution with AVX2, which has no exact product of unsigned and signed bytes: 16-bit numbers.

   A piece is a block of positions times 16 channels. The codes of the positions, all their spans one behind the other, become 16-bit
   numbers once, in the panel, and meet the weights of all channels; the weights of a piece become 16-bit numbers for all its positions,
   or, where these are few, as they are used. Of each four codes the panel holds 0, 2, 1, 3, since bytes fall apart in this way most
   cheaply. */
#ifndef QC_CONV_AVX2_H
#define QC_CONV_AVX2_H

#include "wide_sums.h"
#include "winograd.h"

#define QC_PANEL 131072       /* bytes: it shares the second cache with weights and sums */
#define QC_PANEL_WEIGHTS 1024 /* codes whose weights are made wide at a time: 32 KB */
#define QC_FEW 8              /* positions for which that does not pay */

/* rows: positions of a block, which may lie in several rows of the result; the last one is short. pitch: bytes from position to position
   in the panel. */
typedef struct qc_wide_plan {
  int64_t positions, rows, blocks, pairs, all, pitch;
} qc_wide_plan;

static qc_wide_plan qc_wide_choose(const qc_conv *a, const qc_spans *s) {
  qc_wide_plan p = {.positions = qc_rows(&a->y) * a->y.w, .pairs = qc_ceil(a->y.c, 16), .all = (int64_t)s->count * s->padded};
  int64_t pitch = 2 * p.all + 32, most = qc_max(QC_WIDE_ROWS, qc_min(QC_SPOTS, QC_PANEL / pitch) / QC_WIDE_ROWS * QC_WIDE_ROWS);
  p.blocks = qc_ceil(p.positions, most);
  p.rows = qc_min(p.positions, qc_ceil(qc_ceil(p.positions, qc_max(p.blocks, 1)), QC_WIDE_ROWS) * QC_WIDE_ROWS);
  p.blocks = qc_ceil(p.positions, qc_max(p.rows, 1));
  p.pitch = qc_ceil(pitch, 64) * 64 + 64 * (qc_ceil(pitch, 64) % 2 == 0);
  return p;
}

/* `count` codes of one span. Reads and writes up to 15 codes behind them. */
QC_INLINE void qc_widen(const uint8_t *x, int64_t count, uint8_t *y) {
  const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  for (int64_t k = 0; k < count; k += 16) {
    __m128i codes = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(const void *)(x + k)), order);
    qv_store(y + 2 * k, _mm256_cvtepu8_epi16(codes));
  }
}

/* group: offset of the group's first channel. */
static void qc_fill_panel(const qc_spans *s, const qc_wide_plan *p, const qc_spots *spots, int64_t group, int64_t rows, uint8_t *panel) {
  for (int64_t i = 0; i < rows; i++, panel += p->pitch)
    for (int t = 0; t < s->count; t++) qc_widen(spots->x[i] + group + s->off[t], s->padded, panel + 2 * (int64_t)t * s->padded);
}

static void qc_widen_block(const int8_t *w, int64_t fours, uint8_t *wide) {
  const uint8_t *bytes = (const uint8_t *)w;
  for (int64_t k = 0; k < fours; k++, bytes += 64, wide += 128)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) qv_store(wide + 32 * i, qc_wide_weights(bytes, i / 2, i % 2, 1));
}

/* The positions of a block. */
static void qc_find_spots(const qc_conv *a, int64_t first, int64_t rows, qc_spots *s) {
  const int32_t *stride = a->k.stride;
  int64_t row = first / a->y.w, plane = row / a->y.h, w = first - row * a->y.w, h = row - plane * a->y.h, n = plane / a->y.d;
  int64_t d = plane - n * a->y.d, right = stride[2] * a->x.sw;
  for (int64_t i = 0; i < rows; w = 0) {
    const uint8_t *x = a->x.p + n * a->x.sn + d * stride[0] * a->x.sd + h * stride[1] * a->x.sh + w * right;
    const uint8_t *r = a->r.p ? a->r.p + n * a->r.sn + d * a->r.sd + h * a->r.sh + w * a->r.sw : NULL;
    uint8_t *y = a->y.p + n * a->y.sn + d * a->y.sd + h * a->y.sh + w * a->y.sw;
    int64_t end = qc_min(rows, i + a->y.w - w), across = r ? a->r.sw : 0;
    for (; i < end; i++, x += right, y += a->y.sw, r += across) s->x[i] = x, s->y[i] = y, s->r[i] = r;
    if (++h < a->y.h) continue;
    h = 0;
    if (++d == a->y.d) d = 0, n++;
  }
}

/* Block i of channels, without divisions where there are no groups. */
QC_INLINE qc_pair qc_wide_block(const qc_conv *a, const qc_spans *s, int64_t i) {
  if (a->groups > 1) return qc_find_pair(a, s, i, 1);
  return (qc_pair){.w = {a->w + i * qc_block_bytes(s)}, .c = 16 * i, .count = (int32_t)qc_min(16, a->y.c - 16 * i)};
}

/* The sums of one block of channels at `rows` positions. wide: room for weights. */
static void qc_wide_products(const qc_wide_plan *p, const uint8_t *panel, const qc_pair *pair, uint8_t *wide, int64_t rows, int32_t *sums) {
  int narrow = pair->count <= 8;
  const int8_t *w = pair->w[0];
  if (rows < QC_FEW) {
    qc_wide_many(panel, p->pitch, (const uint8_t *)w, p->all / 4, sums, 0, rows, narrow, 1);
    return;
  }
  for (int64_t from = 0; from < p->all; from += QC_PANEL_WEIGHTS) {
    int64_t count = qc_min(QC_PANEL_WEIGHTS, p->all - from);
    qc_widen_block(w + 16 * from, count / 4, wide);
    qc_wide_many(panel + 2 * from, p->pitch, wide, count / 4, sums, from > 0, rows, narrow, 0);
  }
}

/* The blocks lo..hi-1 of channels at the positions from `first` on. The panel is filled once, or once a group. */
QC_INLINE void qc_wide_row(const qc_conv *a, const qc_spans *s, const qc_wide_plan *p, int64_t first, int64_t lo, int64_t hi, uint8_t *room,
                           int kind) {
  qc_spots spots;
  int64_t rows = qc_min(p->rows, p->positions - first), group = -1;
  qc_find_spots(a, first, rows, &spots);
  for (int64_t i = lo; i < hi; i++) {
    qc_pair pair = qc_wide_block(a, s, i);
    if (!room) {
      qc_without_room(a, s, &spots, rows, &pair, 1);
      continue;
    }
    uint8_t *sums = room + p->rows * p->pitch, *wide = sums + 64 * p->rows + 64;
    if (pair.x[0] != group) qc_fill_panel(s, p, &spots, pair.x[0], rows, room);
    group = pair.x[0];
    qc_wide_products(p, room, &pair, wide, rows, (int32_t *)(void *)sums);
    qc_finish_spots(&a->e, &spots, (int)rows, &pair, (const int32_t *)(const void *)sums, kind);
  }
}

QC_INLINE void qc_wide_pieces(const qc_conv *a, int64_t lo, int64_t hi, int kind) {
  qc_spans s;
  qc_find_spans(a, &s);
  qc_wide_plan p = qc_wide_choose(a, &s);
  int64_t weights = p.rows < QC_FEW ? 0 : 32 * qc_min(p.all, QC_PANEL_WEIGHTS);
  uint8_t *room = QC_ROOM(p.rows * p.pitch + 64 * p.rows + 64 + weights);
  while (lo < hi) {
    int64_t block = lo / p.pairs, begin = block * p.pairs, end = qc_min(hi, begin + p.pairs);
    qc_wide_row(a, &s, &p, block * p.rows, lo - begin, end - begin, room, kind);
    lo = end;
  }
  free(room);
}

QC_INLINE void qc_conv_of_kind(const qc_conv *a, int64_t lo, int64_t hi, int kind) {
  if (qc_wino_pays(a))
    qc_wino_pieces(a, lo, hi, kind);
  else
    qc_wide_pieces(a, lo, hi, kind);
}

static int64_t qc_conv_avx2_units(const qc_conv *a) {
  qc_spans s;
  if (qc_wino_pays(a)) return qc_wino_units(a);
  qc_find_spans(a, &s);
  qc_wide_plan plan = qc_wide_choose(a, &s);
  return plan.blocks * plan.pairs;
}

static void qc_conv_avx2(const qc_conv *a, int64_t lo, int64_t hi) {
  int kind = qc_kind(&a->e, a->r.p != NULL, a->floats);
  if (kind == QC_PLAIN)
    qc_conv_of_kind(a, lo, hi, QC_PLAIN);
  else if (kind == QC_ADDED)
    qc_conv_of_kind(a, lo, hi, QC_ADDED);
  else if (kind == QC_FULL)
    qc_conv_of_kind(a, lo, hi, QC_FULL);
  else
    qc_conv_of_kind(a, lo, hi, QC_FLOATS);
}

#endif
