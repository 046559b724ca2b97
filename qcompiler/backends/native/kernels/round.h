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
  float above = v > 0.0f ? v : 0.0f, below = v < 0.0f ? v : 0.0f;
  v = (above < e->top ? above : e->top) + below * e->slope[c];
  return v * e->gain[c] + e->offset[c];
}

QC_INLINE int32_t qc_within(int32_t v, int32_t lo, int32_t hi) { return v < lo ? lo : v > hi ? hi : v; }

/* Whether the codes are a function of sums as 16-bit numbers; see qc_epilogue. */
QC_INLINE int qc_is_curved(const qc_epilogue *e) { return e->curve || e->knee; }

QC_INLINE int32_t qc_curve(const qc_epilogue *e, float v) {
  const int16_t *curve = e->curve;
  int32_t x = qc_code(v, 0, -32768, 32767);
  if (!curve) {
    int32_t above = qc_within(x, 0, e->knee), from_half = qc_within(x - e->half, -32768, 32767);
    return qc_within(((above * from_half + 16384) >> 15) + e->zero, e->lo, e->hi);
  }
  int32_t piece = (uint16_t)x >> 11, t = (int16_t)((uint32_t)x << 5 ^ 0x8000);
  int32_t slope = curve[32 + piece] + ((curve[64 + piece] * t + 16384) >> 15);
  int32_t y = qc_within(curve[piece] + ((slope * t + 16384) >> 15), -32768, 32767);
  return qc_within((y >> 6) + 128, e->lo, e->hi);
}

/* The code of a sum of two codes; see qc_sum. */
QC_INLINE int32_t qc_sum_code(const qc_sum *s, int32_t a, int32_t b) {
  if (!s->whole) return qc_code((float)a * s->ka + ((float)b * s->kb + s->kc), s->zero, s->lo, s->hi);
  int32_t y = qc_within((((a - 128) * s->whole_a + 64) >> 7) + (((b - 128) * s->whole_b + 64) >> 7), -32768, 32767);
  return qc_within(qc_within(y + s->whole_c, -32768, 32767) >> 6, s->lo, s->hi);
}

/* The epilogue of one sum in channel c; r is the residual's code, or NULL. */
QC_INLINE uint8_t qc_finish(const qc_epilogue *e, int32_t acc, int64_t c, const uint8_t *r) {
  float v = (float)acc * e->m[c] + e->b[c];
  if (qc_is_curved(e)) return (uint8_t)qc_curve(e, v);
  int32_t q = qc_code(e->gain ? qc_bend(e, v, c) : v, e->zero, e->lo, e->hi);
  if (r) q = qc_sum_code(&e->sum, q, *r);
  return e->table ? e->table[q] : (uint8_t)q;
}

/* Row i of the n * d * h rows of a result with d and h as given; operands that are spread have strides of 0. */
QC_INLINE uint8_t *qc_row(const qc_tensor *t, int64_t i, int64_t d, int64_t h) {
  int64_t plane = i / h, image = plane / d;
  return t->p + image * t->sn + (plane - image * d) * t->sd + (i - plane * h) * t->sh;
}

QC_INLINE int64_t qc_rows(const qc_tensor *t) { return (int64_t)t->n * t->d * t->h; }

#endif
