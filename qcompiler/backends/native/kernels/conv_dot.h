/* Convolution in vectors, with dot products of four bytes: AVX-512 VNNI, AVX-VNNI, NEON.

   A piece is a tile of up to QC_DOT_ROWS positions times QC_DOT_VECTORS vectors of sums, 32 channels with AVX-512, else 16: as many
   as registers hold. Each four bytes of an activation are broadcast and meet the weights of these channels. */
#ifndef QC_CONV_DOT_H
#define QC_CONV_DOT_H

#include "dot_sums.h"
#if QC_IS_512
#include "winograd.h"
#endif

QC_INLINE void qc_dot_tile(const qc_conv *a, const qc_spans *s, const qc_pair *p, const uint8_t *x, int64_t step, int32_t *sums, int rows, int split) {
  qv acc[14][QC_DOT_VECTORS];
  qc_dot_sums(a, s, p, x, step, acc, rows, QC_DOT_VECTORS, split);
#pragma GCC unroll 14
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int v = 0; v < QC_DOT_VECTORS; v++) qv_store(sums + i * QC_DOT_CHANNELS + v * (QC_VB / 4), acc[i][v]);
}

typedef void qc_dot_function(const qc_conv *, const qc_spans *, const qc_pair *, const uint8_t *, int64_t, int32_t *);

#define QC_DOT_TILE(R) \
  static void qc_dot_tile_##R(const qc_conv *a, const qc_spans *s, const qc_pair *p, const uint8_t *x, int64_t step, int32_t *sums) { \
    if (QC_DOT_BLOCKS == 2 && p->x[0] != p->x[1]) \
      qc_dot_tile(a, s, p, x, step, sums, R, QC_DOT_BLOCKS == 2); \
    else \
      qc_dot_tile(a, s, p, x, step, sums, R, 0); \
  }
QC_DOT_SIZES(QC_DOT_TILE)
#undef QC_DOT_TILE

#if QC_IS_512

/* Results from registers: a tile whose positions lie in one row of the result, of one group, a residual with QC_ADDED alone. Sums that go
   to memory and back cost as much as sixteen products. */
QC_INLINE void qc_dot_direct(const qc_conv *a, const qc_spans *s, const qc_pair *p, const qc_tile *tile, int64_t step, int rows, int vectors,
                             int kind) {
  qv acc[14][QC_DOT_VECTORS];
  qc_dot_sums(a, s, p, tile->x, step, acc, rows, vectors, 0);
  qc_finish512 f = qc_begin512(&a->e, p->c, kind == QC_ADDED);
  if (vectors == 1) f.m[1] = f.m[0], f.b[1] = f.b[0], f.c[1] = f.c[0];
  int64_t down = a->y.sw;
  __mmask32 mask = (__mmask32)(p->count == 32 ? 0xffffffffu : (1u << p->count) - 1);
  if (kind == QC_FLOATS) {
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
      float *to = (float *)(void *)(tile->y + i * down) + p->c;
#pragma GCC unroll 2
      for (int v = 0; v < 2; v++) _mm512_mask_storeu_ps(to + 16 * v, (__mmask16)(mask >> 16 * v), qc_affine512(acc[i][v], f.m[v], f.b[v]));
    }
    return;
  }
  uint8_t *y = tile->y + p->c;
  int each = vectors == 2 ? 2 : 4, last = rows - 1;
#pragma GCC unroll 14
  for (int i = 0; i < rows; i += each) {
    __m512i four[4];
    const uint8_t *r[2];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      int row = i + j / vectors < last ? i + j / vectors : last;
      four[j] = acc[row][j % vectors];
      if (kind == QC_ADDED && j % 2 == 0) r[j / 2] = tile->r + p->c + row * a->r.sw;
    }
    __m512i q = qc_codes512(&f, four, kind == QC_ADDED ? r : NULL, mask, kind);
    qc_store_direct(q, y + i * down, down, mask, rows - i < each ? rows - i : each, vectors == 1);
  }
}

typedef void qc_dot_direct_function(const qc_conv *, const qc_spans *, const qc_pair *, const qc_tile *, int64_t);

#define QC_DOT_DIRECT(R) \
  static void qc_dot_plain_##R(const qc_conv *a, const qc_spans *s, const qc_pair *p, const qc_tile *tile, int64_t step) { \
    if (p->count <= 16) \
      qc_dot_direct(a, s, p, tile, step, R, 1, QC_PLAIN); \
    else \
      qc_dot_direct(a, s, p, tile, step, R, 2, QC_PLAIN); \
  } \
  static void qc_dot_added_##R(const qc_conv *a, const qc_spans *s, const qc_pair *p, const qc_tile *tile, int64_t step) { \
    qc_dot_direct(a, s, p, tile, step, R, 2, QC_ADDED); \
  } \
  static void qc_dot_full_##R(const qc_conv *a, const qc_spans *s, const qc_pair *p, const qc_tile *tile, int64_t step) { \
    if (p->count <= 16) \
      qc_dot_direct(a, s, p, tile, step, R, 1, QC_FULL); \
    else \
      qc_dot_direct(a, s, p, tile, step, R, 2, QC_FULL); \
  } \
  static void qc_dot_floats_##R(const qc_conv *a, const qc_spans *s, const qc_pair *p, const qc_tile *tile, int64_t step) { \
    qc_dot_direct(a, s, p, tile, step, R, 2, QC_FLOATS); \
  }
QC_DOT_SIZES(QC_DOT_DIRECT)
#undef QC_DOT_DIRECT

#endif

typedef struct qc_dot_size {
  int32_t rows;
  qc_dot_function *tile;
#if QC_IS_512
  qc_dot_direct_function *direct[4]; /* of each kind */
#endif
} qc_dot_size;

#if QC_IS_512
#define QC_DOT_OF(R) {R, qc_dot_tile_##R, {qc_dot_plain_##R, qc_dot_added_##R, qc_dot_full_##R, qc_dot_floats_##R}},
#else
#define QC_DOT_OF(R) {R, qc_dot_tile_##R},
#endif
static const qc_dot_size qc_dot_sizes[] = {QC_DOT_SIZES(QC_DOT_OF)}; /* the largest first */
#undef QC_DOT_OF

typedef struct qc_dot_plan {
  qc_runs runs;
  qc_grid grid;
  const qc_dot_size *size, *last; /* of a tile, and of the last one of a run */
} qc_dot_plan;

/* The smallest size for so many rows. */
static const qc_dot_size *qc_dot_size_for(int64_t rows) {
  const qc_dot_size *found = qc_dot_sizes;
  for (size_t i = 1; i < sizeof qc_dot_sizes / sizeof *qc_dot_sizes && qc_dot_sizes[i].rows >= rows; i++) found = qc_dot_sizes + i;
  return found;
}

/* The tile's size: the fewest products, a load of the weights counted as one and a half rows. */
static void qc_dot_choose(const qc_conv *a, const qc_spans *s, qc_dot_plan *plan) {
  int64_t best = INT64_MAX;
  for (size_t i = 0; i < sizeof qc_dot_sizes / sizeof *qc_dot_sizes; i++) {
    const qc_dot_size *size = qc_dot_sizes + i;
    qc_runs runs = qc_find_runs(a, size->rows);
    if (runs.rows != size->rows) continue;
    const qc_dot_size *last = qc_dot_size_for(runs.length - (runs.per_run - 1) * size->rows);
    int64_t cost = runs.runs * ((runs.per_run - 1) * (2 * size->rows + 3) + 2 * last->rows + 3);
    if (cost < best) best = cost, plan->runs = runs, plan->size = size, plan->last = last;
  }
  plan->runs.last = plan->last->rows;
  plan->grid = qc_find_grid(a, s, &plan->runs, 1, QC_DOT_BLOCKS);
}

static int64_t qc_conv_dot_units(const qc_conv *a) {
  qc_spans s;
  qc_dot_plan plan;
#if QC_IS_512
  if (qc_wino_pays(a)) return qc_wino_units(a);
#endif
  qc_find_spans(a, &s);
  qc_dot_choose(a, &s, &plan);
  return plan.grid.blocks * plan.grid.pairs;
}

QC_INLINE void qc_dot_pieces(const qc_conv *a, const qc_spans *s, const qc_dot_plan *plan, int64_t lo, int64_t hi, int kind) {
  QC_ALIGNED int32_t sums[16 * QC_DOT_CHANNELS];
  qc_place at = qc_grid_at(&plan->grid, lo);
  qc_tile tile = {.x = NULL};
  qc_pair p = {.c = 0};
  for (int64_t piece = lo; piece < hi; piece++, qc_grid_next(&plan->grid, &at)) {
    if (at.new_block) tile = qc_find_tile(a, &plan->runs, at.block);
    if (at.new_pair) p = qc_find_pair(a, s, at.pair, QC_DOT_BLOCKS);
    const qc_dot_size *size = tile.rows == plan->size->rows ? plan->size : plan->last;
#if QC_IS_512
    if (tile.straight && p.x[0] == p.x[1] && (kind == QC_ADDED ? p.count > 16 : !tile.r)) {
      size->direct[kind](a, s, &p, &tile, plan->runs.step);
      continue;
    }
#endif
    size->tile(a, s, &p, tile.x, plan->runs.step, sums);
#if QC_IS_512
    qc_finish_tile(a, &plan->runs, &tile, &p, sums, kind);
#else
    qc_finish_tile16(a, &plan->runs, &tile, &p, sums, kind);
#endif
  }
}

QC_INLINE void qc_dot_of_kind(const qc_conv *a, int64_t lo, int64_t hi, int kind) {
  qc_spans s;
  qc_dot_plan plan;
#if QC_IS_512
  if (qc_wino_pays(a)) {
    qc_wino_pieces(a, lo, hi, kind);
    return;
  }
#endif
  qc_find_spans(a, &s);
  qc_dot_choose(a, &s, &plan);
  qc_dot_pieces(a, &s, &plan, lo, hi, kind);
}

static void qc_conv_dot(const qc_conv *a, int64_t lo, int64_t hi) {
  int kind = qc_kind(&a->e, a->r.p != NULL, a->floats);
  if (kind == QC_PLAIN)
    qc_dot_of_kind(a, lo, hi, QC_PLAIN);
  else if (kind == QC_ADDED)
    qc_dot_of_kind(a, lo, hi, QC_ADDED);
  else if (kind == QC_FULL)
    qc_dot_of_kind(a, lo, hi, QC_FULL);
  else
    qc_dot_of_kind(a, lo, hi, QC_FLOATS);
}

#endif
