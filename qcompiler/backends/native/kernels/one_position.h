/* A convolution's sums at one position, in portable C. */
#ifndef QC_ONE_POSITION_H
#define QC_ONE_POSITION_H

#include "spans.h"

/* acc[16] += the sums over all spans at one position. */
static void qc_dot16(const qc_spans *s, const uint8_t *x, const int8_t *w, int32_t *acc) {
  for (int t = 0; t < s->count; t++)
    for (int k = 0; k < s->padded; k += 4, w += 64) {
      const uint8_t *v = x + s->off[t] + k;
      for (int c = 0; c < 16; c++)
        acc[c] += v[0] * w[4 * c] + v[1] * w[4 * c + 1] + v[2] * w[4 * c + 2] + v[3] * w[4 * c + 3];
    }
}

/* Finishes `count` channels from c on and stores them at y, the position's first channel. */
static void qc_store16(const qc_conv *a, const int32_t *acc, int64_t c, int64_t count, uint8_t *y, const uint8_t *r) {
  for (int64_t i = 0; i < count; i++) {
    if (a->floats)
      ((float *)(void *)y)[c + i] = (float)acc[i] * a->e.m[c + i] + a->e.b[c + i];
    else
      y[c + i] = qc_finish(&a->e, acc[i], c + i, r ? r + c + i : NULL);
  }
}

#endif
