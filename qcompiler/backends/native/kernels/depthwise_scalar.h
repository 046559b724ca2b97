/* Depthwise convolution in portable C: a piece is one row of the result. */
#ifndef QC_DEPTHWISE_SCALAR_H
#define QC_DEPTHWISE_SCALAR_H

#include "spans.h"

/* The weight of tap (i, j, l) in channel c; see qc_depthwise. */
QC_INLINE int64_t qc_depthwise_at(const qc_window *k, int64_t c, int i, int j, int l) {
  int64_t quads = qc_ceil(k->kernel[1], 4);
  return ((((c / 16 * k->kernel[0] + i) * quads + j / 4) * k->kernel[2] + l) * 16 + c % 16) * 4 + j % 4;
}

static void qc_depthwise_pixel(const qc_depthwise *a, const uint8_t *x, uint8_t *y) {
  const qc_window *k = &a->k;
  for (int64_t c = 0; c < a->y.c; c++) {
    int32_t acc = 0;
    for (int i = 0; i < k->kernel[0]; i++)
      for (int j = 0; j < k->kernel[1]; j++)
        for (int l = 0; l < k->kernel[2]; l++) acc += x[qc_tap(k, &a->x, i, j, l) + c] * a->w[qc_depthwise_at(k, c, i, j, l)];
    y[c] = qc_finish(&a->e, acc, c, NULL);
  }
}

static int64_t qc_depthwise_rows_units(const qc_depthwise *a) { return qc_rows(&a->y); }

static void qc_depthwise_rows(const qc_depthwise *a, int64_t lo, int64_t hi) {
  for (int64_t row = lo; row < hi; row++) {
    int64_t h = row % a->y.h, plane = row / a->y.h, d = plane % a->y.d, n = plane / a->y.d;
    const uint8_t *x = a->x.p + n * a->x.sn + d * a->k.stride[0] * a->x.sd + h * a->k.stride[1] * a->x.sh;
    uint8_t *y = qc_row(&a->y, row, a->y.d, a->y.h);
    for (int64_t i = 0; i < a->y.w; i++) qc_depthwise_pixel(a, x + i * a->k.stride[2] * a->x.sw, y + i * a->y.sw);
  }
}

#endif
