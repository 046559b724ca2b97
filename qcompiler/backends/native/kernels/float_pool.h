/* Pools of floats. A piece is one row of the result; each element of a pixel adds, or compares, its window in order. */
#ifndef QC_FLOAT_POOL_H
#define QC_FLOAT_POOL_H

#include "float_rows.h"
#include "pool.h"

QC_APART void qc_more_sum(float *acc, const float *v, int64_t count) {
  for (int64_t i = 0; i < count; i++) acc[i] = acc[i] + v[i];
}
QC_APART void qc_more_largest(float *acc, const float *v, int64_t count) {
  for (int64_t i = 0; i < count; i++) acc[i] = ((v[i] > acc[i]) | (v[i] != v[i])) ? v[i] : acc[i];
}

/* Up to QC_RUN elements of one result; x: of its image, the first of these elements in the first pixel. */
static void qc_float_window(const qc_float_pool *s, const uint8_t *x, const qc_extent *e, float over, uint8_t *y, int64_t count) {
  float space[QC_RUN], acc[QC_RUN];
  int largest = s->op == QC_LARGEST;
  const qc_tensor *t = &s->x.t;
  for (int64_t i = 0; i < count; i++) acc[i] = largest ? -__builtin_inff() : 0.0f;
  for (int64_t i = 0; i < e[0].count; i++)
    for (int64_t j = 0; j < e[1].count; j++)
      for (int64_t l = 0; l < e[2].count; l++) {
        const uint8_t *v = x + (e[0].first + i * e[0].step) * t->sd + (e[1].first + j * e[1].step) * t->sh + (e[2].first + l * e[2].step) * t->sw;
        (largest ? qc_more_largest : qc_more_sum)(acc, qc_floats(&s->x, v, count, space), count);
      }
  if (!largest)
    for (int64_t i = 0; i < count; i++) acc[i] = acc[i] / over;
  if (!s->y.codes) memcpy(y, acc, (size_t)(4 * count));
  qc_put(&s->y, y, acc, count);
}

static int64_t qc_float_pool_rows_units(const qc_float_pool *s) { return qc_rows(&s->y.t); }

static void qc_float_pool_rows(const qc_float_pool *s, int64_t lo, int64_t hi) {
  const qc_tensor *t = &s->x.t, *y = &s->y.t;
  int64_t wide = qc_width_of(&s->y);
  for (int64_t row = lo; row < hi; row++) {
    int64_t h = row % y->h, plane = row / y->h, d = plane % y->d, n = plane / y->d;
    uint8_t *to = qc_row(y, row, y->d, y->h);
    qc_extent e[3];
    e[0] = qc_extent_of(&s->k, s->adaptive, 0, d, t->d, y->d);
    e[1] = qc_extent_of(&s->k, s->adaptive, 1, h, t->h, y->h);
    for (int64_t i = 0; i < y->w; i++) {
      e[2] = qc_extent_of(&s->k, s->adaptive, 2, i, t->w, y->w);
      int64_t count = e[0].count * e[1].count * e[2].count;
      if (s->include_pad)
        count = qc_padded_count(&s->k, 0, d, t->d) * qc_padded_count(&s->k, 1, h, t->h) * qc_padded_count(&s->k, 2, i, t->w);
      float over = (float)(s->divisor ? s->divisor : count);
      for (int64_t c = 0; c < y->c; c += QC_RUN)
        qc_float_window(s, t->p + n * t->sn + c * s->x.step, e, over, to + i * y->sw + c * wide, qc_min(QC_RUN, y->c - c));
    }
  }
}

#endif
