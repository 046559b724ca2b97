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

/* `count` codes of one span. Reads and writes up to 31 bytes behind them. */
QC_INLINE void qc_widen(const uint8_t *x, int64_t count, uint8_t *even, uint8_t *odd) {
  for (int64_t k = 0; k < count; k += 32) {
    qv v = qv_load(x + k);
    qv_store(even + k, _mm256_and_si256(v, _mm256_set1_epi16(255)));
    qv_store(odd + k, _mm256_srli_epi16(v, 8));
  }
}

/* Codes from.. of each position, counted over all spans, as far as they fit. group: offset of the group's first channel. */
static void qc_fill_panel(const qc_spans *s, const qc_panel *p, const qc_spots *spots, int64_t group, int64_t rows, int64_t from,
                          uint8_t *panel) {
  int64_t to = qc_min(from + p->length, (int64_t)s->count * s->padded), first = from / s->padded;
  for (int64_t t = first, at = 0; from < to; t++) {
    int64_t skip = from - t * s->padded, count = qc_min(s->padded - skip, to - from);
    for (int64_t i = 0; i < rows; i++) {
      uint8_t *even = panel + i * p->pitch + at;
      qc_widen(spots->x[i] + group + s->off[t] + skip, count, even, even + p->plane);
    }
    from += count, at += count;
  }
}

/* Two codes of one position, broadcast, times the weights of 16 channels: acc0 += x * a, acc1 += x * b. In assembly, since gcc 12 adds
   in an order of its own and spills the sums. */
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

/* sums [rows][16] = (or, where `more`, +=) the products of `length` codes of each position with the weights of 16 channels, or of the
   first eight of them, if the others do not count. */
QC_INLINE void qc_wide_tile(const qc_panel *p, const uint8_t *panel, const int8_t *w, int64_t length, int32_t *sums, int more, int rows,
                            int narrow) {
  qv acc[QC_WIDE_ROWS][2];
  int64_t pitch = p->pitch;
  int vectors = narrow ? 1 : 2;
  const uint8_t *even = panel, *odd = panel + p->plane, *end = panel + length;
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) acc[i][v] = more ? qv_load(sums + 16 * i + 8 * v) : qv_zero();
  for (; even < end; even += 4, odd += 4, w += 64) {
    const int8_t *again = w;
    qv a = _mm256_srai_epi16(_mm256_slli_epi16(qv_load(w), 8), 8), b = _mm256_srai_epi16(_mm256_slli_epi16(qv_load(w + 32), 8), 8);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) qc_wide_step(&acc[i][0], &acc[i][1], even + i * pitch, a, b, narrow);
    __asm__("" : "+r"(again)); /* loaded twice: there are 16 registers, and 12 of them hold sums */
    a = _mm256_srai_epi16(qv_load(again), 8), b = _mm256_srai_epi16(qv_load(again + 32), 8);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) qc_wide_step(&acc[i][0], &acc[i][1], odd + i * pitch, a, b, narrow);
  }
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
    for (int v = 0; v < vectors; v++) qv_store(sums + 16 * i + 8 * v, acc[i][v]);
}

typedef void qc_wide_function(const qc_panel *, const uint8_t *, const int8_t *, int64_t, int32_t *, int more, int narrow);
#define QC_WIDE_TILE(R) \
  static void qc_wide_tile_##R(const qc_panel *p, const uint8_t *panel, const int8_t *w, int64_t length, int32_t *sums, int more, \
                               int narrow) { \
    if (narrow) \
      qc_wide_tile(p, panel, w, length, sums, more, R, 1); \
    else \
      qc_wide_tile(p, panel, w, length, sums, more, R, 0); \
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

/* The positions of a tile; the one behind them is kept, since tiles follow each other. */
static void qc_find_spots(const qc_conv *a, const qc_wide_plan *plan, int64_t tile, qc_spots *s) {
  const int32_t *stride = a->k.stride;
  int64_t first = qc_min(tile * plan->rows, plan->positions - plan->rows), w = s->w, h = s->h, d = s->d, n = s->n;
  if (first != s->next) {
    int64_t row = first / a->y.w, plane = row / a->y.h;
    w = first - row * a->y.w, h = row - plane * a->y.h, n = plane / a->y.d, d = plane - n * a->y.d;
  }
  int64_t right = stride[2] * a->x.sw;
  for (int i = 0; i < plan->rows;) {
    const uint8_t *x = a->x.p + n * a->x.sn + d * stride[0] * a->x.sd + h * stride[1] * a->x.sh + w * right;
    const uint8_t *r = a->r.p ? a->r.p + n * a->r.sn + d * a->r.sd + h * a->r.sh + w * a->r.sw : NULL;
    uint8_t *y = a->y.p + n * a->y.sn + d * a->y.sd + h * a->y.sh + w * a->y.sw;
    int64_t end = qc_min(plan->rows, i + a->y.w - w);
    w += end - i;
    for (; i < end; i++, x += right, y += a->y.sw, r = r ? r + a->r.sw : r) s->x[i] = x, s->y[i] = y, s->r[i] = r;
    if (w < a->y.w) break;
    w = 0;
    if (++h < a->y.h) continue;
    h = 0;
    if (++d == a->y.d) d = 0, n++;
  }
  s->next = first + plan->rows, s->w = w, s->h = h, s->d = d, s->n = n;
}

static int64_t qc_conv_avx2_units(const qc_conv *a) {
  qc_spans s;
  qc_find_spans(a, &s);
  qc_wide_plan plan = qc_wide_choose(a, &s);
  return plan.tiles * plan.pairs;
}

/* sums: one position more, since positions are finished in pairs. */
typedef struct qc_wide_room {
  QC_ALIGNED uint8_t panel[QC_PANEL + 64];
  QC_ALIGNED int32_t sums[16 * (QC_WIDE_ROWS + 1)];
} qc_wide_room;

/* Sums that do not fit into the panel. */
static void qc_wide_parts(const qc_spans *s, const qc_wide_plan *plan, const qc_spots *spots, const qc_pair *p, qc_wide_room *room) {
  int64_t all = (int64_t)s->count * s->padded, length = plan->panel.length;
  for (int64_t from = 0; from < all; from += length) {
    qc_fill_panel(s, &plan->panel, spots, p->x[0], plan->rows, from, room->panel);
    plan->tile(&plan->panel, room->panel, p->w[0] + 16 * from, qc_min(length, all - from), room->sums, from > 0, p->count <= 8);
  }
}

/* Block i of channels, without divisions where there are no groups. */
QC_INLINE qc_pair qc_wide_block(const qc_conv *a, const qc_spans *s, int64_t i) {
  if (a->groups > 1) return qc_find_pair(a, s, i, 1);
  return (qc_pair){.w = {a->w + i * qc_block_bytes(s)}, .c = 16 * i, .count = (int32_t)qc_min(16, a->y.c - 16 * i)};
}

/* The blocks lo..hi-1 of channels at one tile of positions. The panel is filled once, or once a group: weights come from any cache as
   fast as they are used. */
QC_INLINE void qc_wide_row(const qc_conv *a, const qc_spans *s, const qc_wide_plan *plan, const qc_spots *spots, int64_t lo, int64_t hi,
                           qc_wide_room *room, int kind) {
  int64_t all = (int64_t)s->count * s->padded, group = -1;
  int whole = plan->panel.length == all;
  qc_pair p = qc_wide_block(a, s, lo);
  for (int64_t i = lo; i < hi; i++) {
    if (whole && p.x[0] != group) qc_fill_panel(s, &plan->panel, spots, p.x[0], plan->rows, 0, room->panel);
    group = p.x[0];
    if (whole)
      plan->tile(&plan->panel, room->panel, p.w[0], all, room->sums, 0, p.count <= 8);
    else
      qc_wide_parts(s, plan, spots, &p, room);
    qc_finish_spots(&a->e, spots, plan->rows, &p, room->sums, kind);
    if (i + 1 < hi) p = qc_wide_block(a, s, i + 1);
  }
}

QC_INLINE void qc_wide_pieces(const qc_conv *a, const qc_spans *s, const qc_wide_plan *plan, int64_t lo, int64_t hi, int kind) {
  qc_wide_room room;
  qc_spots spots = {.next = -1};
  memset(room.sums, 0, sizeof room.sums);
  while (lo < hi) {
    int64_t tile = lo / plan->pairs, first = tile * plan->pairs, end = qc_min(hi, first + plan->pairs);
    qc_find_spots(a, plan, tile, &spots);
    qc_wide_row(a, s, plan, &spots, lo - first, end - first, &room, kind);
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
