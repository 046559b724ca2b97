/* Scaled dot product attention: a tile of queries passes over the keys in blocks, and keeps for each query the largest score so far,
   the sum of the exponentials and the weighted sum of the values, both relative to it.

   For each block of QC_KEYS keys: s = (q k^T) * scale + mask, m' = max(m, max(s)), p = exp(s - m'), f = exp(m - m');
   l = l * f + sum(p) in 16 lanes, acc = acc * f, then + p v key by key. At the end y = acc / l. */
#ifndef QC_ATTENTION_H
#define QC_ATTENTION_H

#include "matmul.h"

#define QC_KEYS 256    /* a multiple of the columns of a panel */
#define QC_WIDEST 256  /* of a value */

#define QC_SOME ((QC_TALL + QC_LANES - 1) / QC_LANES * QC_LANES) /* rows of a tile, in whole vectors */

typedef struct qc_queries {
  float scores[QC_TALL * QC_KEYS]; /* [row][key] */
  float acc[QC_TALL * QC_WIDEST];  /* [row][panels of 16] */
  float most[QC_SOME], level[QC_SOME], factor[QC_SOME], sum[QC_SOME];
} qc_queries;

/* A piece is a tile of queries. */
static int64_t qc_attention_tiles_units(const qc_attention *s) { return qc_matrices(&s->y.t) * qc_ceil(s->y.t.w, QC_TALL); }

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

/* The largest score so far of each row, and by what the sums so far are multiplied. `padded`: of minus infinity behind the last key. A
   score that is NaN makes the sum NaN, whatever the largest is. */
static void qc_levels(qc_queries *t, int64_t padded, int64_t rows) {
  for (int64_t r = 0; r < rows; r++) {
    const float *scores = t->scores + r * QC_KEYS;
    qf_lanes most = qf_lanes_of(-__builtin_inff());
    for (int64_t i = 0; i < padded; i += QC_LANES)
#pragma GCC unroll 4
      for (int j = 0; j < QC_LANES / QC_F; j++) most.v[j] = qf_larger(most.v[j], qf_load(scores + i + j * QC_F));
    float top = qf_top(&most);
    t->level[r] = t->most[r];
    t->most[r] = top > t->most[r] ? top : t->most[r];
  }
  for (int64_t r = 0; r < rows; r += QC_F) {
    qf most = qf_load(t->most + r), level = qf_choose(most == qf_all(-__builtin_inff()), (qf){0}, most);
    qf_store(t->factor + r, qf_exp(qf_load(t->level + r) - level));
    qf_store(t->level + r, level);
  }
}

/* Scores to weights, and their sums. */
static void qc_weights(qc_queries *t, int64_t padded, int64_t rows) {
  for (int64_t r = 0; r < rows; r++) {
    float *scores = t->scores + r * QC_KEYS;
    qf level = qf_all(t->level[r]);
    qf_lanes sums = qf_lanes_of(0.0f);
    for (int64_t i = 0; i < padded; i += QC_LANES)
#pragma GCC unroll 4
      for (int j = 0; j < QC_LANES / QC_F; j++) {
        qf e = qf_exp(qf_load(scores + i + j * QC_F) - level);
        qf_store(scores + i + j * QC_F, e);
        sums.v[j] += e;
      }
    t->sum[r] = t->sum[r] * t->factor[r] + qf_total(&sums);
  }
}

static void qc_hand_out(const qc_attention *s, const qc_queries *t, uint8_t *y, int64_t rows) {
  int64_t c = s->y.t.c, wide = qc_ceil(c, QC_COLUMNS) * QC_COLUMNS;
  float made[QC_WIDEST];
  for (int64_t r = 0; r < rows; r++, y += s->y.t.sw) {
    float sum = t->sum[r];
    if (sum == 0.0f)
      memset(made, 0, (size_t)(4 * c));
    else
      for (int64_t i = 0; i < wide; i += QC_F) qf_store(made + i, qf_load(t->acc + r * QC_WIDEST + i) / sum);
    if (!s->y.codes) memcpy(y, made, (size_t)(4 * c));
    qc_put(&s->y, y, made, c);
  }
}

static void qc_attention_tile(const qc_attention *s, qc_queries *t, int64_t matrix, int64_t query, int64_t rows) {
  const qc_tensor *y = &s->y.t;
  int64_t keys = s->keys, width = s->q.c, panels = qc_ceil(y->c, QC_COLUMNS), all = qc_ceil(keys, QC_COLUMNS) * QC_COLUMNS;
  const float *q = (const float *)(const void *)(qc_matrix(&s->q, matrix, y) + query * s->q.sw);
  const float *k = s->k + qc_matrix_of(s->k_of, matrix, y) * all * width;
  const float *v = s->v + qc_matrix_of(s->v_of, matrix, y) * panels * keys * QC_COLUMNS;
  const uint8_t *mask = s->mask.t.p ? qc_matrix(&s->mask.t, matrix, y) : NULL;
  for (int64_t r = 0; r < QC_SOME; r++) t->most[r] = -__builtin_inff(), t->sum[r] = 0.0f, t->level[r] = 0.0f;
  int64_t seen = s->causal ? qc_min(keys, query + rows) : keys;
  for (int64_t first = 0; first < seen; first += QC_KEYS) {
    int64_t count = qc_min(QC_KEYS, keys - first), padded = qc_ceil(count, QC_COLUMNS) * QC_COLUMNS;
    qc_product scores = {q, k + first * width, s->q.sw / 4, width * QC_COLUMNS, width, t->scores, QC_KEYS, 0, s->scale};
    qc_product_rows(&scores, rows, padded / QC_COLUMNS);
    for (int64_t r = 0; r < rows; r++) {
      qc_masked(s, t->scores + r * QC_KEYS, mask, query + r, first, count);
      for (int64_t i = count; i < padded; i++) t->scores[r * QC_KEYS + i] = -__builtin_inff();
    }
    qc_levels(t, padded, rows);
    qc_weights(t, padded, rows);
    for (int64_t r = 0; first && r < rows; r++)
      for (int64_t i = 0; i < panels * QC_COLUMNS; i += QC_F) {
        float *acc = t->acc + r * QC_WIDEST + i;
        qf_store(acc, qf_load(acc) * t->factor[r]);
      }
    qc_product values = {t->scores, v + first * QC_COLUMNS, QC_KEYS, keys * QC_COLUMNS, count, t->acc, QC_WIDEST, first > 0, 1.0f};
    qc_product_rows(&values, rows, panels);
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
