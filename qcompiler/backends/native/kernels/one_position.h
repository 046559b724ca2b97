/* A convolution's sums at one position, in portable C. */
#ifndef QC_ONE_POSITION_H
#define QC_ONE_POSITION_H

#include "blocks.h"

#include <stdlib.h>

/* Memory for what passes between the steps of a convolution; NULL where there is none left. */
#ifndef QC_ROOM
#define QC_ROOM(bytes) aligned_alloc(64, (size_t)(bytes) / 64 * 64 + 64)
#endif

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

/* The codes of positions whose sums there is no memory for, one by one; blocks: of 16 channels, one or two. */
static inline void qc_without_room(const qc_conv *a, const qc_spans *s, const qc_spots *spots, int64_t rows, const qc_pair *p, int blocks) {
  for (int64_t i = 0; i < rows; i++)
    for (int b = 0; b < blocks; b++) {
      int32_t acc[16] = {0};
      qc_dot16(s, spots->x[i] + p->x[b], p->w[b], acc);
      qc_store16(a, acc, p->c + 16 * b, qc_min(16, p->count - 16 * b), spots->y[i], spots->r[i]);
    }
}

#endif
