/* The epilogue for 16 channels of one position at a time, in loops that the compiler turns into vectors. */
#ifndef QC_FINISH_16_H
#define QC_FINISH_16_H

#include "tiles.h"
#include "curve.h"

QC_INLINE void qc_codes16(const qc_epilogue *e, const int32_t *acc, int64_t c, const uint8_t *r, uint8_t *y) {
  int32_t q[16], zero = e->zero, lo = e->lo, hi = e->hi;
  const float *m = e->m + c, *b = e->b + c;
  if (qc_is_curved(e)) {
    for (int i = 0; i < 16; i++) y[i] = (uint8_t)qc_curve(e, (float)acc[i] * m[i] + b[i]);
    return;
  }
  if (e->gain)
    for (int i = 0; i < 16; i++) q[i] = qc_code(qc_bend(e, (float)acc[i] * m[i] + b[i], c + i), zero, lo, hi);
  else
    for (int i = 0; i < 16; i++) q[i] = qc_code((float)acc[i] * m[i] + b[i], zero, lo, hi);
  if (r) {
    qc_sum sum = e->sum;
    if (sum.whole)
      for (int i = 0; i < 16; i++) q[i] = qc_sum_code(&sum, q[i], r[i]);
    else
      for (int i = 0; i < 16; i++) q[i] = qc_sum_code(&sum, q[i], r[i]);
  }
  if (e->table)
    for (int i = 0; i < 16; i++) y[i] = e->table[q[i]];
  else
    for (int i = 0; i < 16; i++) y[i] = (uint8_t)q[i];
}

#if QC_ISA != QC_SCALAR
/* Without residual, table and gain. */
QC_INLINE void qc_plain16(const qc_epilogue *e, const int32_t *acc, int64_t c, uint8_t *y) {
  qv v[4];
  qc_curved curved = qc_find_curve(e);
  int is_curved = qc_is_curved(e);
#if QC_VB == 16
  for (int i = 0; i < 4; i++) v[i] = qv_round(qv_load(acc + 4 * i), qv_load(e->m + c + 4 * i), qv_load(e->b + c + 4 * i), 1);
  qv_store(y, is_curved ? qv_within(qv_curve_sums(v, &curved), e->lo, e->hi) : qv_bytes(v, e->zero, e->lo, e->hi));
#elif QC_VB == 32
  for (int i = 0; i < 2; i++) v[i] = qv_round(qv_load(acc + 8 * i), qv_load(e->m + c + 8 * i), qv_load(e->b + c + 8 * i), 1);
  v[2] = v[3] = v[1];
  __m256i q = is_curved ? qv_within(qv_curve_sums(v, &curved), e->lo, e->hi) : qv_bytes(v, e->zero, e->lo, e->hi);
  q = _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0));
  _mm_storeu_si128((__m128i *)(void *)y, _mm256_castsi256_si128(q));
#else
  (void)v, (void)curved, (void)is_curved;
  qc_codes16(e, acc, c, NULL, y);
#endif
}
#endif

QC_INLINE void qc_floats16(const qc_epilogue *e, const int32_t *acc, int64_t c, int64_t count, uint8_t *y) {
  float v[16];
  for (int i = 0; i < 16; i++) v[i] = (float)acc[i] * e->m[c + i] + e->b[c + i];
  memcpy(y, v, (size_t)(4 * count));
}

/* One position: y and r at the first of `count` channels from c on. */
QC_INLINE void qc_position16(const qc_conv *a, const int32_t *acc, const qc_pair *p, uint8_t *y, const uint8_t *r, int kind) {
  uint8_t codes[16], residual[16];
  if (kind == QC_FLOATS) {
    qc_floats16(&a->e, acc, p->c, p->count, y);
    return;
  }
  uint8_t *to = p->count == 16 ? y : codes;
  if (kind == QC_PLAIN || (!r && !a->e.table && !a->e.gain)) {
    qc_plain16(&a->e, acc, p->c, to);
  } else {
    if (r && p->count < 16) r = memcpy(residual, r, (size_t)p->count);
    qc_codes16(&a->e, acc, p->c, r, to);
  }
  if (to == codes) memcpy(y, codes, (size_t)p->count);
}

/* sums: [positions][16 channels]. */
QC_INLINE void qc_finish_tile16(const qc_conv *a, const qc_runs *t, const qc_tile *tile, const qc_pair *p, const int32_t *sums, int kind) {
  int64_t column = tile->column, width = qc_width(a, t);
  uint8_t *y = tile->y + (a->floats ? 4 * p->c : p->c);
  const uint8_t *r = tile->r ? tile->r + p->c : NULL;
  for (int i = 0; i < tile->rows; i++, sums += 16) {
    if (column < width) qc_position16(a, sums, p, y, r, kind);
    y += a->y.sw;
    r = r ? r + a->r.sw : NULL;
    if (++column < t->flat) continue;
    column = 0;
    y += a->y.sh - t->flat * a->y.sw;
    r = r ? r + a->r.sh - t->flat * a->r.sw : NULL;
  }
}

#endif
