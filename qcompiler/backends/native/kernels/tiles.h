/* Output positions in tiles of equally many, each reading x at a constant distance from the one before.

   Three modes, whichever needs the fewest tiles:
   - whole: pixels of operands and result lie without gaps (pointwise, linear): all positions are one run;
   - flat: a run is an image (or a slice of a volume); it also has the positions between the end of a row and the start of the next,
     whose results go to a place that nobody reads;
   - rows: a run is a row of the result.
   The last tile of a run reaches back where it is longer than what is left; only a run that is shorter than a tile has but a short one. */
#ifndef QC_TILES_H
#define QC_TILES_H

#include "blocks.h"

#define QC_LONGEST_RUN (1 << 20) /* positions are divided in float32: exact up to twice that */

typedef struct qc_runs {
  int64_t runs, length, flat, per_run, tiles; /* flat: positions from one row of the result to the next */
  int64_t step;                               /* bytes of x between positions */
  int32_t rows, last;                         /* positions of a tile, and of the last one of a run */
  int32_t by_rows;
} qc_runs;

/* x, y and r at the tile's first position. straight: all of its positions lie in one row of the result. */
typedef struct qc_tile {
  const uint8_t *x;
  uint8_t *y;
  const uint8_t *r;
  int32_t rows, column, straight; /* column: of the first position in its row of `flat` positions */
} qc_tile;

/* Whether the pixels of t lie in memory one behind the other. */
static int qc_without_gaps(const qc_tensor *t) {
  return (t->h == 1 || t->sh == t->w * t->sw) && (t->d == 1 || t->sd == t->h * t->w * t->sw) &&
         (t->n == 1 || t->sn == (int64_t)t->d * t->h * t->w * t->sw);
}

static int qc_is_pointwise(const qc_window *k) {
  for (int i = 0; i < 3; i++)
    if (k->kernel[i] != 1 || k->stride[i] != 1 || k->pad[i] != 0) return 0;
  return 1;
}

/* `rows`: the largest tile; a run that is shorter gets tiles of its length. */
static qc_runs qc_find_runs(const qc_conv *a, int32_t rows) {
  const qc_tensor *x = &a->x, *y = &a->y;
  qc_runs t = {.step = a->k.stride[2] * x->sw, .rows = rows};
  int64_t down = a->k.stride[1] * x->sh, images = (int64_t)y->n * y->d, all = images * y->h * y->w;
  int whole = qc_is_pointwise(&a->k) && x->d == y->d && x->h == y->h && x->w == y->w && qc_without_gaps(x) && qc_without_gaps(y) && (!a->r.p || qc_without_gaps(&a->r));
  int64_t flat = down / t.step, length = (y->h - 1) * flat + y->w;
  int can_flat = down % t.step == 0 && flat >= y->w && length < QC_LONGEST_RUN;
  if (whole && all < QC_LONGEST_RUN) {
    t.runs = 1, t.length = t.flat = all;
  } else if (can_flat && qc_ceil(length, rows) <= y->h * qc_ceil(y->w, rows)) {
    t.runs = images, t.length = length, t.flat = flat;
  } else {
    t.runs = images * y->h, t.length = t.flat = y->w, t.by_rows = 1;
  }
  t.per_run = qc_ceil(t.length, rows);
  t.tiles = t.runs * t.per_run;
  if (t.length < rows) t.rows = (int32_t)t.length;
  t.last = t.rows;
  return t;
}

/* Positions of a row of a run that are results. */
QC_INLINE int64_t qc_width(const qc_conv *a, const qc_runs *t) { return t->length == t->flat ? t->length : a->y.w; }

QC_INLINE qc_tile qc_find_tile(const qc_conv *a, const qc_runs *t, int64_t index) {
  int64_t run = index / t->per_run, plane = t->by_rows ? run / a->y.h : run, h = t->by_rows ? run % a->y.h : 0;
  int64_t n = plane / a->y.d, d = plane % a->y.d;
  int64_t number = index - run * t->per_run, rows = number + 1 < t->per_run ? t->rows : t->last;
  int64_t start = qc_min(number * t->rows, t->length - rows), row = start / t->flat, column = start - row * t->flat;
  qc_tile tile = {.rows = (int32_t)rows, .column = (int32_t)column, .straight = column + rows <= qc_width(a, t)};
  tile.x = a->x.p + n * a->x.sn + d * a->k.stride[0] * a->x.sd + h * a->k.stride[1] * a->x.sh + start * t->step;
  tile.y = a->y.p + n * a->y.sn + d * a->y.sd + (h + row) * a->y.sh + column * a->y.sw;
  tile.r = a->r.p ? a->r.p + n * a->r.sn + d * a->r.sd + (h + row) * a->r.sh + column * a->r.sw : NULL;
  return tile;
}

/* tiles, blocks: how many of them a piece has. Pieces are (blocks of tiles) x (pairs of channel blocks). Channels outside: the weights of a pair stay near while the positions
   pass, for the price of reading x once a pair; worth it where that is less than reading all weights once a block of tiles. */
typedef struct qc_grid {
  int64_t blocks, pairs;
  int channels_outside;
} qc_grid;

#define QC_NEAR 24576 /* bytes of weights that stay in the first cache beside the activations */

static qc_grid qc_find_grid(const qc_conv *a, const qc_spans *s, const qc_runs *t, int tiles, int blocks) {
  qc_grid g = {qc_ceil(t->tiles, tiles), qc_ceil(a->y.c, 16 * blocks), 0};
  int64_t weights = blocks * g.pairs * qc_block_bytes(s), input = (int64_t)a->x.n * a->x.d * a->x.h * a->x.w * s->in;
  if (a->groups == 1 && weights > QC_NEAR) g.channels_outside = weights + input * g.pairs < input + weights * g.blocks;
  if (a->groups > 1) g.channels_outside = g.blocks > 4;
  return g;
}

/* Where a range of pieces has come to. */
typedef struct qc_place {
  int64_t block, pair;
  int new_block, new_pair; /* whether they differ from those of the piece before */
} qc_place;

QC_INLINE qc_place qc_grid_at(const qc_grid *g, int64_t piece) {
  if (g->channels_outside) return (qc_place){piece % g->blocks, piece / g->blocks, 1, 1};
  return (qc_place){piece / g->pairs, piece % g->pairs, 1, 1};
}

QC_INLINE void qc_grid_next(const qc_grid *g, qc_place *p) {
  int64_t *inner = g->channels_outside ? &p->block : &p->pair, *outer = g->channels_outside ? &p->pair : &p->block;
  int turn = ++*inner == (g->channels_outside ? g->blocks : g->pairs);
  if (turn) *inner = 0, ++*outer;
  p->new_block = g->channels_outside || turn;
  p->new_pair = !g->channels_outside || turn;
}

#endif
