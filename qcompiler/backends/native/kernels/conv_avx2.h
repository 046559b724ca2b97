/* Convolution with AVX2, which has no exact product of unsigned and signed bytes: 16-bit numbers, two products a lane (vpmaddwd).

   The codes of up to QC_WIDE_ROWS positions, all their spans one behind the other, become 16-bit numbers once, in the panel, and meet
   the weights of all channels. Panel: [position][even bytes, odd bytes][K / 4] lanes of two codes: codes 4 i and 4 i + 2 are lane i of
   the even plane, 4 i + 1 and 4 i + 3 of the odd one, and weights, four bytes a lane, fall apart in the same way.
   A piece is a tile of positions times 16 channels. Sums that are longer than the panel are made in parts. */
#ifndef QC_CONV_AVX2_H
#define QC_CONV_AVX2_H

#include "finish_256.h"

#define QC_WIDE_ROWS 6
#define QC_WIDE_SIZES(F) F(6) F(5) F(4) F(3) F(2) F(1)
#define QC_PANEL 65536 /* bytes */

/* length: codes of one part of the sums; plane, pitch: bytes from even to odd lanes, and from one position to the next. */
typedef struct qc_panel {
  int64_t length, plane, pitch;
} qc_panel;

static qc_panel qc_find_panel(const qc_spans *s, int64_t rows) {
  int64_t all = (int64_t)s->count * s->padded, most = (QC_PANEL / rows - 128) / 2 / 32 * 32;
  qc_panel p = {.length = qc_min(all, most)};
  p.plane = p.length + 32;
  p.pitch = 2 * p.plane + 64 - 2 * p.plane % 64;
  return p;
}

/* Codes from..to of one position, counted over all spans. Reads up to 31 bytes behind them. */
QC_INLINE void qc_widen(const qc_spans *s, const uint8_t *x, int64_t from, int64_t to, uint8_t *even, uint8_t *odd) {
  for (int64_t t = from / s->padded, k = from - t * s->padded; from < to; t++, k = 0) {
    const uint8_t *p = x + s->off[t];
    for (; k < s->padded && from < to; k += 32) {
      int64_t count = qc_min(32, qc_min(s->padded - k, to - from));
      qv v = qv_load(p + k);
      qv_store(even, _mm256_and_si256(v, _mm256_set1_epi16(255)));
      qv_store(odd, _mm256_srli_epi16(v, 8));
      from += count, even += count, odd += count;
    }
  }
}

static void qc_fill_panel(const qc_spans *s, const qc_panel *p, const qc_spots *spots, int64_t group, int64_t rows, int64_t from, uint8_t *panel) {
  int64_t to = qc_min(from + p->length, (int64_t)s->count * s->padded);
  for (int64_t i = 0; i < rows; i++, panel += p->pitch) qc_widen(s, spots->x[i] + group, from, to, panel, panel + p->plane);
}

/* Two codes of one position, broadcast, times the weights of 16 channels: acc0 += x * a, acc1 += x * b. In assembly, since gcc 12 adds
   in an order of its own and spills the sums. */
QC_INLINE void qc_wide_step(qv *acc0, qv *acc1, const uint8_t *x, qv a, qv b) {
  qv low, high;
  __asm__("vpbroadcastd %4, %3\n\tvpmaddwd %5, %3, %2\n\tvpmaddwd %6, %3, %3\n\tvpaddd %2, %0, %0\n\tvpaddd %3, %1, %1"
          : "+x"(*acc0), "+x"(*acc1), "=&x"(low), "=&x"(high)
          : "m"(*(const uint8_t(*)[4])x), "x"(a), "x"(b));
}

/* sums [rows][16] = (or, where `more`, +=) the products of `length` codes of each position with the weights of 16 channels. */
QC_INLINE void qc_wide_tile(const qc_panel *p, const uint8_t *panel, const int8_t *w, int64_t length, int32_t *sums, int more, int rows) {
  qv acc[QC_WIDE_ROWS][2];
  int64_t pitch = p->pitch;
  const uint8_t *even = panel, *odd = panel + p->plane, *end = panel + length;
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++) acc[i][v] = more ? qv_load(sums + 16 * i + 8 * v) : qv_zero();
  for (; even < end; even += 4, odd += 4, w += 64) {
    const int8_t *again = w;
    qv a = _mm256_srai_epi16(_mm256_slli_epi16(qv_load(w), 8), 8), b = _mm256_srai_epi16(_mm256_slli_epi16(qv_load(w + 32), 8), 8);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) qc_wide_step(&acc[i][0], &acc[i][1], even + i * pitch, a, b);
    __asm__("" : "+r"(again)); /* loaded twice: there are 16 registers, and 12 of them hold sums */
    a = _mm256_srai_epi16(qv_load(again), 8), b = _mm256_srai_epi16(qv_load(again + 32), 8);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) qc_wide_step(&acc[i][0], &acc[i][1], odd + i * pitch, a, b);
  }
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++) qv_store(sums + 16 * i + 8 * v, acc[i][v]);
}

typedef void qc_wide_function(const qc_panel *, const uint8_t *, const int8_t *, int64_t, int32_t *, int);
#define QC_WIDE_TILE(R) \
  static void qc_wide_tile_##R(const qc_panel *p, const uint8_t *panel, const int8_t *w, int64_t length, int32_t *sums, int more) { \
    qc_wide_tile(p, panel, w, length, sums, more, R); \
  }
QC_WIDE_SIZES(QC_WIDE_TILE)
#undef QC_WIDE_TILE

/* tiles of `rows` positions, which may lie in several rows of the result; the last one reaches back. */
typedef struct qc_wide_plan {
  int64_t positions, tiles, pairs;
  int rows;
  qc_panel panel;
  qc_wide_function *tile;
} qc_wide_plan;

/* The tile's size: the fewest instructions; taking the weights apart counts as three quarters of a position. */
static qc_wide_plan qc_wide_choose(const qc_conv *a, const qc_spans *s) {
  qc_wide_plan plan = {.positions = qc_rows(&a->y) * a->y.w, .pairs = qc_ceil(a->y.c, 16)};
  int64_t best = INT64_MAX;
#define QC_WIDE_TRY(R) \
  { \
    int64_t tiles = qc_ceil(plan.positions, R), cost = tiles * (4 * R + 3); \
    if (R <= plan.positions && cost < best) best = cost, plan.tiles = tiles, plan.rows = R, plan.tile = qc_wide_tile_##R; \
  }
  QC_WIDE_SIZES(QC_WIDE_TRY)
#undef QC_WIDE_TRY
  plan.panel = qc_find_panel(s, qc_max(plan.rows, 1));
  return plan;
}

static void qc_find_spots(const qc_conv *a, const qc_wide_plan *plan, int64_t tile, qc_spots *s) {
  const int32_t *stride = a->k.stride;
  int64_t first = qc_min(tile * plan->rows, plan->positions - plan->rows), row = first / a->y.w, w = first - row * a->y.w;
  int64_t plane = row / a->y.h, h = row - plane * a->y.h, n = plane / a->y.d, d = plane - n * a->y.d;
  for (int i = 0; i < plan->rows; i++) {
    s->x[i] = a->x.p + n * a->x.sn + d * stride[0] * a->x.sd + h * stride[1] * a->x.sh + w * stride[2] * a->x.sw;
    s->y[i] = a->y.p + n * a->y.sn + d * a->y.sd + h * a->y.sh + w * a->y.sw;
    if (a->r.p) s->r[i] = a->r.p + n * a->r.sn + d * a->r.sd + h * a->r.sh + w * a->r.sw;
    if (++w < a->y.w) continue;
    w = 0;
    if (++h < a->y.h) continue;
    h = 0;
    if (++d == a->y.d) d = 0, n++;
  }
}

static int64_t qc_conv_avx2_units(const qc_conv *a) {
  qc_spans s;
  qc_find_spans(a, &s);
  qc_wide_plan plan = qc_wide_choose(a, &s);
  return plan.tiles * plan.pairs;
}

/* Sums that do not fit into the panel. */
static void qc_wide_parts(const qc_spans *s, const qc_wide_plan *plan, const qc_spots *spots, const qc_pair *p, uint8_t *panel, int32_t *sums) {
  int64_t all = (int64_t)s->count * s->padded, length = plan->panel.length;
  for (int64_t from = 0; from < all; from += length) {
    qc_fill_panel(s, &plan->panel, spots, p->x[0], plan->rows, from, panel);
    plan->tile(&plan->panel, panel, p->w[0] + 16 * from, qc_min(length, all - from), sums, from > 0);
  }
}

/* The blocks lo..hi-1 of channels at one tile of positions. The panel is filled once, or once a group: weights come from any cache as
   fast as they are used. */
QC_INLINE void qc_wide_row(const qc_conv *a, const qc_spans *s, const qc_wide_plan *plan, const qc_spots *spots, int64_t lo, int64_t hi,
                           uint8_t *panel, int kind) {
  QC_ALIGNED int32_t sums[16 * (QC_WIDE_ROWS + 1)];
  int64_t all = (int64_t)s->count * s->padded, group = -1;
  int whole = plan->panel.length == all;
  qc_finish256 f = qc_begin256(&a->e);
  qc_pair p = qc_find_pair(a, s, lo, 1);
  for (int64_t i = 16 * (plan->rows / 2 * 2); i < 16 * (QC_WIDE_ROWS + 1); i++) sums[i] = 0;
  for (int64_t i = lo; i < hi; i++) {
    if (whole && p.x[0] != group) qc_fill_panel(s, &plan->panel, spots, p.x[0], plan->rows, 0, panel);
    group = p.x[0];
    if (whole)
      plan->tile(&plan->panel, panel, p.w[0], all, sums, 0);
    else
      qc_wide_parts(s, plan, spots, &p, panel, sums);
    qc_finish_spots(a, &f, spots, plan->rows, &p, sums, kind);
    if (a->groups > 1)
      p = qc_find_pair(a, s, qc_min(i + 1, hi - 1), 1);
    else
      p.c += 16, p.count = (int32_t)qc_min(16, a->y.c - p.c), p.w[0] += qc_block_bytes(s);
  }
}

QC_INLINE void qc_wide_pieces(const qc_conv *a, const qc_spans *s, const qc_wide_plan *plan, int64_t lo, int64_t hi, int kind) {
  QC_ALIGNED uint8_t panel[QC_PANEL + 64];
  qc_spots spots;
  while (lo < hi) {
    int64_t tile = lo / plan->pairs, first = tile * plan->pairs, end = qc_min(hi, first + plan->pairs);
    qc_find_spots(a, plan, tile, &spots);
    qc_wide_row(a, s, plan, &spots, lo - first, end - first, panel, kind);
    lo = end;
  }
}

static void qc_conv_avx2(const qc_conv *a, int64_t lo, int64_t hi) {
  qc_spans s;
  qc_find_spans(a, &s);
  qc_wide_plan plan = qc_wide_choose(a, &s);
  int kind = qc_kind(&a->e, &a->r, a->floats);
  if (kind == QC_PLAIN)
    qc_wide_pieces(a, &s, &plan, lo, hi, QC_PLAIN);
  else if (kind == QC_FULL)
    qc_wide_pieces(a, &s, &plan, lo, hi, QC_FULL);
  else
    qc_wide_pieces(a, &s, &plan, lo, hi, QC_FLOATS);
}

#endif
