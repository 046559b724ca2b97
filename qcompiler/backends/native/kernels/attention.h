/* Scaled dot product attention: a tile of queries passes over the keys in blocks, and keeps for each query the largest score so far,
   the sum of the exponentials and the weighted sum of the values, both relative to it.

   For each block of QC_KEYS keys: s = (q k^T) * scale + mask, m' = max(m, max(s)), p = exp(s - m'), f = exp(m - m');
   l = l * f + sum(p) in 16 lanes, acc = acc * f, then + p v key by key. At the end y = acc / l. */
#ifndef QC_ATTENTION_H
#define QC_ATTENTION_H

#include "matmul.h"
#include "norm.h"

#define QC_KEYS 256    /* a multiple of the columns of a panel */
#define QC_WIDEST 256  /* of a value */

typedef struct qc_queries {
  float scores[QC_TALL * QC_KEYS]; /* [row][key] */
  float acc[QC_TALL * QC_WIDEST];  /* [panel][row][16] */
  float most[QC_TALL], sum[QC_TALL];
} qc_queries;

/* A piece is a tile of queries. */
static int64_t qc_attention_tiles_units(const qc_attention *s) { return qc_matrices(&s->y.t) * qc_ceil(s->y.t.w, QC_TALL); }

/* The scores of `count` keys from `first` on. */
static void qc_scores(const qc_attention *s, qc_queries *t, const float *q, const float *k, int64_t first, int64_t count, int64_t rows) {
  int64_t width = s->q.c, down = s->q.sw / 4;
  QC_ALIGNED float sums[QC_TALL * QC_COLUMNS];
  for (int64_t key = 0; key < count; key += QC_COLUMNS) {
    memset(sums, 0, sizeof sums);
    qc_rows_product(q, down, k + (first + key) * width, width, sums, rows);
    for (int64_t r = 0; r < rows; r++)
      for (int i = 0; i < QC_COLUMNS; i++) t->scores[r * QC_KEYS + key + i] = sums[r * QC_COLUMNS + i] * s->scale;
  }
}

/* Scores of row `row` of the tile, which is query `query`: mask added, keys that it does not see at minus infinity. */
static void qc_masked(const qc_attention *s, float *scores, const uint8_t *mask, int64_t query, int64_t first, int64_t count) {
  float space[QC_RUN];
  if (mask) {
    const float *more = qc_floats(&s->mask, mask + query * s->mask.t.sw + first * s->mask.step, count, space);
    for (int64_t i = 0; i < count; i++) scores[i] = scores[i] + more[i];
  }
  if (s->causal)
    for (int64_t i = qc_max(0, query + 1 - first); i < count; i++) scores[i] = -__builtin_inff();
}

/* Scores to weights; the sums so far are brought to the new largest score. */
static void qc_weights(qc_queries *t, int64_t r, int64_t count, int64_t panels) {
  float *scores = t->scores + r * QC_KEYS;
  qc_operand plain = {.step = 4};
  float most = qc_row_largest(&plain, (const uint8_t *)scores, count, 1.0f);
  most = most > t->most[r] || most != most ? most : t->most[r];
  float level = most == -__builtin_inff() ? 0.0f : most;
  qf factor = qf_exp(qf_all(t->most[r] - level));
  qf_lanes sums = qf_lanes_of(0.0f);
  QC_OVER_LANES(qf e = qf_exp(qc_some(scores + i, room) - level); qc_set(scores + i, e, room); sums.v[j] += qc_inside(e, room, 0.0f);)
  t->sum[r] = t->sum[r] * factor[0] + qf_total(&sums);
  t->most[r] = most;
  for (int64_t panel = 0; panel < panels; panel++) {
    float *acc = t->acc + (panel * QC_TALL + r) * QC_COLUMNS;
    for (int i = 0; i < QC_COLUMNS; i++) acc[i] = acc[i] * factor[0];
  }
}

static void qc_hand_out(const qc_attention *s, const qc_queries *t, uint8_t *y, int64_t rows) {
  int64_t wide = qc_width_of(&s->y), panels = qc_ceil(s->y.t.c, QC_COLUMNS);
  for (int64_t r = 0; r < rows; r++) {
    float sum = t->sum[r];
    for (int64_t panel = 0; panel < panels; panel++) {
      float made[QC_COLUMNS];
      const float *acc = t->acc + (panel * QC_TALL + r) * QC_COLUMNS;
      int64_t count = qc_min(QC_COLUMNS, s->y.t.c - panel * QC_COLUMNS);
      for (int i = 0; i < QC_COLUMNS; i++) made[i] = sum == 0.0f ? 0.0f : acc[i] / sum;
      uint8_t *place = y + r * s->y.t.sw + panel * QC_COLUMNS * wide;
      if (!s->y.codes) memcpy(place, made, (size_t)(4 * count));
      qc_put(&s->y, place, made, count);
    }
  }
}

static void qc_attention_tile(const qc_attention *s, qc_queries *t, int64_t matrix, int64_t query, int64_t rows) {
  const qc_tensor *y = &s->y.t;
  int64_t keys = s->keys, panels = qc_ceil(y->c, QC_COLUMNS), padded = qc_ceil(keys, QC_COLUMNS) * QC_COLUMNS;
  const float *q = (const float *)(const void *)(qc_matrix(&s->q, matrix, y) + query * s->q.sw);
  const float *k = s->k + qc_matrix_of(s->k_of, matrix, y) * padded * s->q.c;
  const float *v = s->v + qc_matrix_of(s->v_of, matrix, y) * panels * keys * QC_COLUMNS;
  const uint8_t *mask = s->mask.t.p ? qc_matrix(&s->mask.t, matrix, y) : NULL;
  memset(t->acc, 0, (size_t)(4 * panels * QC_TALL * QC_COLUMNS));
  for (int64_t r = 0; r < rows; r++) t->most[r] = -__builtin_inff(), t->sum[r] = 0.0f;
  int64_t seen = s->causal ? qc_min(keys, query + rows) : keys;
  for (int64_t first = 0; first < seen; first += QC_KEYS) {
    int64_t count = qc_min(QC_KEYS, keys - first);
    qc_scores(s, t, q, k, first, count, rows);
    for (int64_t r = 0; r < rows; r++) {
      qc_masked(s, t->scores + r * QC_KEYS, mask, query + r, first, count);
      qc_weights(t, r, count, panels);
    }
    for (int64_t panel = 0; panel < panels; panel++)
      qc_rows_product(t->scores, QC_KEYS, v + (panel * keys + first) * QC_COLUMNS, count, t->acc + panel * QC_TALL * QC_COLUMNS, rows);
  }
  qc_hand_out(s, t, qc_matrix(y, matrix, y) + query * y->sw, rows);
}

static void qc_attention_tiles(const qc_attention *s, int64_t lo, int64_t hi) {
  QC_ALIGNED qc_queries t;
  int64_t tiles = qc_ceil(s->y.t.w, QC_TALL);
  for (int64_t piece = lo; piece < hi; piece++) {
    int64_t query = piece % tiles * QC_TALL;
    qc_attention_tile(s, &t, piece / tiles, query, qc_min(QC_TALL, s->y.t.w - query));
  }
}

#endif
