/* The ends of a network that takes and hands out codes instead of floats: copies in the place of quantize and dequantize. */
#ifndef QC_CODES_H
#define QC_CODES_H

#include "qc.h"

static int64_t qc_codes_rows(const qc_tensor *t) { return (int64_t)t->n * t->d * t->h; }

/* A row of t, and the offset of the same row in an array with strides s (order n, d, h, w, c). */
static uint8_t *qc_codes_row(const qc_tensor *t, const int64_t *s, int64_t row, int64_t *offset) {
  int64_t h = row % t->h, plane = row / t->h, d = plane % t->d, n = plane / t->d;
  *offset = n * s[0] + d * s[1] + h * s[2];
  return t->p + n * t->sn + d * t->sd + h * t->sh;
}

static int64_t qc_codes_in_units(const qc_quantize *a) { return qc_codes_rows(&a->y); }

static void qc_codes_in(const qc_quantize *a, int64_t lo, int64_t hi) {
  for (int64_t row = lo; row < hi; row++) {
    int64_t offset;
    uint8_t *y = qc_codes_row(&a->y, a->xs, row, &offset);
    const uint8_t *x = (const uint8_t *)a->x + offset;
    for (int64_t i = 0; i < a->y.w; i++)
      for (int64_t c = 0; c < a->y.c; c++) y[i * a->y.sw + c] = x[i * a->xs[3] + c * a->xs[4]];
  }
}

static int64_t qc_codes_out_units(const qc_dequantize *a) { return qc_codes_rows(&a->x); }

static void qc_codes_out(const qc_dequantize *a, int64_t lo, int64_t hi) {
  for (int64_t row = lo; row < hi; row++) {
    int64_t offset;
    const uint8_t *x = qc_codes_row(&a->x, a->ys, row, &offset);
    uint8_t *y = (uint8_t *)a->y + offset;
    for (int64_t i = 0; i < a->x.w; i++)
      for (int64_t c = 0; c < a->x.c; c++) y[i * a->ys[3] + c * a->ys[4]] = x[i * a->x.sw + c];
  }
}

#endif
