/* Convolution with AMX: blocks of two tiles of 16 positions times two tiles of 16 channels, straight from the activations.

   Tiles 0..3 hold the sums, 4 and 5 the activations (a row a position), 6 and 7 the weights. The epilogue of a block runs behind the
   products of the next, so that the vector units work while the tile unit does; its sums lie in one of two halves of `sums`. */
#ifndef QC_CONV_AMX_H
#define QC_CONV_AMX_H

#include "finish_512.h"

#if QC_ISA == QC_AMX

#define QC_TILE_LOAD(T, base, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #T : : "r"(base), "r"((int64_t)(stride)) : "memory")
#define QC_TILE_STORE(T, base, stride) \
  __asm__ volatile("tilestored %%tmm" #T ", (%0,%1,1)" : : "r"(base), "r"((int64_t)(stride)) : "memory")
#define QC_TILE_ZERO(T) __asm__ volatile("tilezero %%tmm" #T : :)
#define QC_TILE_DOT(C, A, B) __asm__ volatile("tdpbusd %%tmm" #B ", %%tmm" #A ", %%tmm" #C : :)

static void qc_configure_tiles(int32_t rows, int32_t chunk) {
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } QC_ALIGNED c = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    c.bytes[i] = (uint16_t)(i == 4 || i == 5 ? chunk : 64);
    c.rows[i] = (uint8_t)(i < 6 ? rows : chunk / 4);
  }
  __asm__ volatile("ldtilecfg %0" : : "m"(c));
}

static void qc_amx_end(void) { __asm__ volatile("tilerelease" : :); }

/* One piece: what its epilogue needs to know. Pointers, since copies of what was just written would stall. */
typedef struct qc_amx_block {
  const qc_tile *tile[2];
  const qc_pair *pair;
  int32_t *sums; /* [tile][16 positions][32 channels] */
} qc_amx_block;

/* both: the second block of channels is wanted, too. */
QC_INLINE void qc_amx_products(const qc_spans *s, const qc_amx_block *b, int64_t step, int both) {
  const uint8_t *x0 = b->tile[0]->x + b->pair->x[0], *x1 = b->tile[1]->x + b->pair->x[0];
  const int8_t *w0 = b->pair->w[0], *w1 = b->pair->w[1];
  int64_t bytes = 16 * (int64_t)s->chunk;
  QC_TILE_ZERO(0);
  QC_TILE_ZERO(1);
  QC_TILE_ZERO(2);
  QC_TILE_ZERO(3);
  for (int t = 0; t < s->count; t++) {
    int64_t at = s->off[t];
    for (int i = 0; i < s->chunks; i++, at += s->chunk, w0 += bytes, w1 += bytes) {
      QC_TILE_LOAD(4, x0 + at, step);
      QC_TILE_LOAD(6, w0, 64);
      QC_TILE_DOT(0, 4, 6);
      QC_TILE_LOAD(5, x1 + at, step);
      QC_TILE_DOT(2, 5, 6);
      if (!both) continue;
      QC_TILE_LOAD(7, w1, 64);
      QC_TILE_DOT(1, 4, 7);
      QC_TILE_DOT(3, 5, 7);
    }
  }
}

/* The two blocks of channels belong to two groups: each has activations of its own. */
QC_INLINE void qc_amx_group_products(const qc_spans *s, const qc_amx_block *b, int64_t step) {
  const uint8_t *x0 = b->tile[0]->x, *x1 = b->tile[1]->x;
  const int8_t *w0 = b->pair->w[0], *w1 = b->pair->w[1];
  int64_t bytes = 16 * (int64_t)s->chunk;
  QC_TILE_ZERO(0);
  QC_TILE_ZERO(1);
  QC_TILE_ZERO(2);
  QC_TILE_ZERO(3);
  for (int t = 0; t < s->count; t++) {
    int64_t at = s->off[t] + b->pair->x[0], other = s->off[t] + b->pair->x[1];
    for (int i = 0; i < s->chunks; i++, at += s->chunk, other += s->chunk, w0 += bytes, w1 += bytes) {
      QC_TILE_LOAD(6, w0, 64);
      QC_TILE_LOAD(4, x0 + at, step);
      QC_TILE_DOT(0, 4, 6);
      QC_TILE_LOAD(5, x1 + at, step);
      QC_TILE_DOT(2, 5, 6);
      QC_TILE_LOAD(7, w1, 64);
      QC_TILE_LOAD(4, x0 + other, step);
      QC_TILE_DOT(1, 4, 7);
      QC_TILE_LOAD(5, x1 + other, step);
      QC_TILE_DOT(3, 5, 7);
    }
  }
}

QC_INLINE void qc_amx_store_sums(const qc_amx_block *b) {
  QC_TILE_STORE(0, b->sums, 128);
  QC_TILE_STORE(2, b->sums + 512, 128);
  if (b->pair->count <= 16) return;
  QC_TILE_STORE(1, b->sums + 16, 128);
  QC_TILE_STORE(3, b->sums + 528, 128);
}

QC_INLINE void qc_amx_finish(const qc_conv *a, const qc_runs *t, const qc_amx_block *b, int kind) {
  for (int j = 0; j < 2; j++) qc_finish_tile(a, t, b->tile[j], b->pair, b->sums + 512 * j, kind);
}

QC_INLINE void qc_amx_blocks(const qc_conv *a, const qc_spans *s, int64_t lo, int64_t hi, int kind) {
  QC_ALIGNED int32_t sums[2][1024];
  qc_runs t = qc_find_runs(a, 16);
  qc_grid g = qc_find_grid(a, s, &t, 2, 2);
  qc_tile tiles[2][2]; /* of this piece and the one before, as pairs */
  qc_pair pairs[2];
  int tile_slot = 0, pair_slot = 0;
  qc_amx_block now = {.sums = NULL}, before = now;
  qc_place at = qc_grid_at(&g, lo);
  qc_configure_tiles(t.rows, s->chunk);
  for (int64_t piece = lo; piece < hi; piece++, before = now, qc_grid_next(&g, &at)) {
    if (at.new_block) {
      tile_slot ^= 1;
      qc_tile *slot = tiles[tile_slot];
      slot[0] = qc_find_tile(a, &t, 2 * at.block);
      slot[1] = qc_find_tile(a, &t, qc_min(2 * at.block + 1, t.tiles - 1));
      now.tile[0] = slot, now.tile[1] = slot + 1;
    }
    if (at.new_pair) {
      pair_slot ^= 1;
      pairs[pair_slot] = qc_find_pair(a, s, at.pair, 2);
      now.pair = &pairs[pair_slot];
    }
    now.sums = sums[piece & 1];
    if (now.pair->count <= 16)
      qc_amx_products(s, &now, t.step, 0);
    else if (now.pair->x[0] == now.pair->x[1])
      qc_amx_products(s, &now, t.step, 1);
    else
      qc_amx_group_products(s, &now, t.step);
    if (piece > lo) qc_amx_finish(a, &t, &before, kind);
    qc_amx_store_sums(&now);
  }
  if (hi > lo) qc_amx_finish(a, &t, &before, kind);
}

/* Short sums: the time from a product to its store would show. So a piece is one tile of positions times two of channels, two pairs
   of tiles take turns with the sums, stores run one piece behind the products and epilogues two. */
#define QC_SHORT 4

QC_INLINE int qc_amx_is_short(const qc_conv *a, const qc_spans *s) { return a->groups == 1 && s->count * s->chunks <= QC_SHORT; }

#define QC_AMX_TURN(NAME, C0, C1, A) \
  QC_INLINE void qc_amx_products_##NAME(const qc_spans *s, const qc_amx_block *b, int64_t step) { \
    const int8_t *w0 = b->pair->w[0], *w1 = b->pair->w[1]; \
    int64_t bytes = 16 * (int64_t)s->chunk; \
    QC_TILE_ZERO(C0); \
    QC_TILE_ZERO(C1); \
    for (int t = 0; t < s->count; t++) { \
      const uint8_t *x = b->tile[0]->x + s->off[t]; \
      for (int i = 0; i < s->chunks; i++, x += s->chunk, w0 += bytes, w1 += bytes) { \
        QC_TILE_LOAD(A, x, step); \
        QC_TILE_LOAD(6, w0, 64); \
        QC_TILE_DOT(C0, A, 6); \
        if (b->pair->count <= 16) continue; \
        QC_TILE_LOAD(7, w1, 64); \
        QC_TILE_DOT(C1, A, 7); \
      } \
    } \
  } \
  QC_INLINE void qc_amx_store_##NAME(const qc_amx_block *b) { \
    QC_TILE_STORE(C0, b->sums, 128); \
    if (b->pair->count > 16) QC_TILE_STORE(C1, b->sums + 16, 128); \
  }
QC_AMX_TURN(even, 0, 1, 4)
QC_AMX_TURN(odd, 2, 3, 5)
#undef QC_AMX_TURN

QC_INLINE void qc_amx_store_turn(const qc_amx_block *b, int64_t turn) {
  if (turn & 1)
    qc_amx_store_odd(b);
  else
    qc_amx_store_even(b);
}

QC_INLINE void qc_amx_turns(const qc_conv *a, const qc_spans *s, int64_t lo, int64_t hi, int kind) {
  QC_ALIGNED int32_t sums[2][512];
  qc_runs t = qc_find_runs(a, 16);
  qc_grid g = qc_find_grid(a, s, &t, 1, 2);
  qc_tile tiles[4]; /* three pieces are under way: a slot that is written is none of theirs */
  qc_pair pairs[4];
  int tile_slot = 0, pair_slot = 0;
  qc_amx_block ring[4] = {{.sums = NULL}};
  qc_place at = qc_grid_at(&g, lo);
  int64_t count = hi - lo;
  qc_configure_tiles(t.rows, s->chunk);
  for (int64_t i = 0; i < count + 2; i++) {
    qc_amx_block *now = &ring[i & 3];
    if (i < count) {
      *now = ring[(i - 1) & 3];
      if (at.new_block) {
        tile_slot = (tile_slot + 1) & 3;
        tiles[tile_slot] = qc_find_tile(a, &t, at.block);
        now->tile[0] = &tiles[tile_slot];
      }
      if (at.new_pair) {
        pair_slot = (pair_slot + 1) & 3;
        pairs[pair_slot] = qc_find_pair(a, s, at.pair, 2);
        now->pair = &pairs[pair_slot];
      }
      qc_grid_next(&g, &at);
      now->sums = sums[i & 1];
      if (i & 1)
        qc_amx_products_odd(s, now, t.step);
      else
        qc_amx_products_even(s, now, t.step);
    }
    const qc_amx_block *done = &ring[(i - 2) & 3];
    if (i >= 1 && i <= count) qc_amx_store_turn(&ring[(i - 1) & 3], i - 1);
    if (i >= 2) qc_finish_tile(a, &t, done->tile[0], done->pair, done->sums, kind);
  }
}

static int64_t qc_conv_amx_units(const qc_conv *a) {
  qc_spans s;
  qc_find_spans(a, &s);
  qc_runs t = qc_find_runs(a, 16);
  qc_grid g = qc_find_grid(a, &s, &t, qc_amx_is_short(a, &s) ? 1 : 2, 2);
  return g.blocks * g.pairs;
}

QC_INLINE void qc_amx_pieces(const qc_conv *a, const qc_spans *s, int64_t lo, int64_t hi, int kind) {
  if (qc_amx_is_short(a, s))
    qc_amx_turns(a, s, lo, hi, kind);
  else
    qc_amx_blocks(a, s, lo, hi, kind);
}

static void qc_conv_amx(const qc_conv *a, int64_t lo, int64_t hi) {
  qc_spans s;
  qc_find_spans(a, &s);
  int kind = qc_kind(&a->e, a->r.p != NULL, a->floats);
  if (kind == QC_PLAIN)
    qc_amx_pieces(a, &s, lo, hi, QC_PLAIN);
  else if (kind == QC_ADDED)
    qc_amx_pieces(a, &s, lo, hi, QC_ADDED);
  else if (kind == QC_FULL)
    qc_amx_pieces(a, &s, lo, hi, QC_FULL);
  else
    qc_amx_pieces(a, &s, lo, hi, QC_FLOATS);
}

#endif
#endif
