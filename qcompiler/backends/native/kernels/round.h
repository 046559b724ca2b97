/* The normative arithmetic behind the sums, one value at a time; compilers turn the loops over it into vectors. */
#ifndef QC_ROUND_H
#define QC_ROUND_H

#include "isa.h"
#include "qc.h"

#include <string.h>

/* |v| <= 2^22. Adding 1.5 * 2^23 leaves no bits behind the point: the addition itself rounds halves to even. */
QC_INLINE int32_t qc_round(float v) {
  float shifted = v + 12582912.0f;
  int32_t bits;
  memcpy(&bits, &shifted, 4);
  return bits - 0x4B400000;
}

/* clamp(rne(v) + zero, lo, hi), cut before rounding: the ends are integers, so it is the same and nothing overflows. NaN gives lo. */
QC_INLINE int32_t qc_code(float v, int32_t zero, int32_t lo, int32_t hi) {
  float low = (float)(lo - zero), high = (float)(hi - zero);
  v = v > low ? v : low;
  v = v < high ? v : high;
  return qc_round(v) + zero;
}

/* What a function does to a sum before it is rounded; see qc_epilogue. */
QC_INLINE float qc_bend(const qc_epilogue *e, float v, int64_t c) {
  if (e->bend == QC_HARD_SWISH) {
    float part = v + 3.0f > 0.0f ? v + 3.0f : 0.0f;
    v = v * (part < 6.0f ? part : 6.0f);
  } else {
    float above = v > 0.0f ? v : 0.0f, below = v < 0.0f ? v : 0.0f;
    v = (above < e->top ? above : e->top) + below * e->slope[c];
  }
  return v * e->gain[c] + e->offset[c];
}

/* The epilogue of one sum in channel c; r is the residual's code, or NULL. */
QC_INLINE uint8_t qc_finish(const qc_epilogue *e, int32_t acc, int64_t c, const uint8_t *r) {
  float v = (float)acc * e->m[c] + e->b[c];
  int32_t q = qc_code(e->gain ? qc_bend(e, v, c) : v, e->zero, e->lo, e->hi);
  if (r) q = qc_code((float)q * e->k + ((float)*r * e->kr + e->kc), e->zero2, e->lo2, e->hi2);
  return e->table ? e->table[q] : (uint8_t)q;
}

/* Row i of the n * d * h rows of a result with d and h as given; operands that are spread have strides of 0. */
QC_INLINE uint8_t *qc_row(const qc_tensor *t, int64_t i, int64_t d, int64_t h) {
  int64_t plane = i / h, image = plane / d;
  return t->p + image * t->sn + (plane - image * d) * t->sd + (i - plane * h) * t->sh;
}

QC_INLINE int64_t qc_rows(const qc_tensor *t) { return (int64_t)t->n * t->d * t->h; }

#endif
