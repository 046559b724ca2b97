/* Floats to codes and back at the ends of a network; halos; copies with any strides. */
#ifndef QC_BOUNDARY_H
#define QC_BOUNDARY_H

#include "round.h"

#define QC_STRETCH 256 /* pixels whose codes are made at once, one channel after the other, before they are interleaved */

static int64_t qc_quantize_rows_units(const qc_quantize *s) { return qc_rows(&s->y); }

static void qc_quantize_rows(const qc_quantize *s, int64_t lo, int64_t hi) {
  float inverse = s->inverse;
  int32_t zero = s->zero, low = s->lo, high = s->hi;
  uint8_t codes[QC_STRETCH];
  for (int64_t row = lo; row < hi; row++) {
    int64_t h = row % s->y.h, plane = row / s->y.h, d = plane % s->y.d, n = plane / s->y.d;
    const float *x = s->x + n * s->xs[0] + d * s->xs[1] + h * s->xs[2];
    uint8_t *y = qc_row(&s->y, row, s->y.d, s->y.h);
    if (s->xs[4] == 1 && s->y.c > 8) { /* channels lie innermost on both sides */
      for (int64_t i = 0; i < s->y.w; i++)
        for (int64_t c = 0; c < s->y.c; c++) y[i * s->y.sw + c] = (uint8_t)qc_code(x[i * s->xs[3] + c] * inverse, zero, low, high);
      continue;
    }
    for (int64_t from = 0; from < s->y.w; from += QC_STRETCH)
      for (int64_t c = 0; c < s->y.c; c++) {
        int64_t count = qc_min(QC_STRETCH, s->y.w - from);
        const float *v = x + from * s->xs[3] + c * s->xs[4];
        if (s->xs[3] == 1)
          for (int64_t i = 0; i < count; i++) codes[i] = (uint8_t)qc_code(v[i] * inverse, zero, low, high);
        else
          for (int64_t i = 0; i < count; i++) codes[i] = (uint8_t)qc_code(v[i * s->xs[3]] * inverse, zero, low, high);
        for (int64_t i = 0; i < count; i++) y[(from + i) * s->y.sw + c] = codes[i];
      }
  }
}

static int64_t qc_dequantize_rows_units(const qc_dequantize *s) { return qc_rows(&s->x); }

static void qc_dequantize_rows(const qc_dequantize *s, int64_t lo, int64_t hi) {
  for (int64_t row = lo; row < hi; row++) {
    int64_t h = row % s->x.h, plane = row / s->x.h, d = plane % s->x.d, n = plane / s->x.d;
    const uint8_t *x = qc_row(&s->x, row, s->x.d, s->x.h);
    float *y = s->y + n * s->ys[0] + d * s->ys[1] + h * s->ys[2];
    for (int64_t i = 0; i < s->x.w; i++)
      for (int64_t c = 0; c < s->x.c; c++) y[i * s->ys[3] + c * s->ys[4]] = (float)(x[i * s->x.sw + c] - s->zero) * s->scale;
  }
}

/* A piece is one row of the padded value. */
static int64_t qc_halo_rows_units(const qc_halo *s) {
  return (int64_t)s->t.n * (s->t.d + s->before[0] + s->after[0]) * (s->t.h + s->before[1] + s->after[1]);
}

static void qc_halo_rows(const qc_halo *s, int64_t lo, int64_t hi) {
  const qc_tensor *t = &s->t;
  int64_t height = t->h + s->before[1] + s->after[1], depth = t->d + s->before[0] + s->after[0];
  size_t left = (size_t)(s->before[2] * t->sw), inner = (size_t)(t->w * t->sw), right = (size_t)(s->after[2] * t->sw);
  for (int64_t row = lo; row < hi; row++) {
    int64_t h = row % height - s->before[1], plane = row / height, d = plane % depth - s->before[0], n = plane / depth;
    uint8_t *p = t->p + n * t->sn + d * t->sd + h * t->sh;
    if (h < 0 || h >= t->h || d < 0 || d >= t->d) {
      memset(p - left, s->value, left + inner + right);
    } else {
      memset(p - left, s->value, left);
      memset(p + inner, s->value, right);
    }
  }
}

QC_INLINE void qc_move(const uint8_t *x, uint8_t *y, int64_t count, int64_t xs, int64_t ys, size_t size) {
  for (int64_t i = 0; i < count; i++) memcpy(y + i * ys, x + i * xs, size);
}

static void qc_copy_run(const qc_copy *s, const uint8_t *x, uint8_t *y) {
  int64_t count = s->length[5], xs = s->xs[5], ys = s->ys[5];
  if (xs == s->size && ys == s->size)
    memcpy(y, x, (size_t)(count * s->size));
  else if (s->size == 1)
    qc_move(x, y, count, xs, ys, 1);
  else if (s->size == 2)
    qc_move(x, y, count, xs, ys, 2);
  else if (s->size == 4)
    qc_move(x, y, count, xs, ys, 4);
  else
    qc_move(x, y, count, xs, ys, 8);
}

static int64_t qc_copy_rows_units(const qc_copy *s) { return s->length[0] * s->length[1] * s->length[2] * s->length[3]; }

static void qc_copy_rows(const qc_copy *s, int64_t lo, int64_t hi) {
  for (int64_t piece = lo; piece < hi; piece++) {
    const uint8_t *x = s->x;
    uint8_t *y = s->y;
    int64_t rest = piece;
    for (int i = 3; i >= 0; i--) {
      x += rest % s->length[i] * s->xs[i];
      y += rest % s->length[i] * s->ys[i];
      rest /= s->length[i];
    }
    for (int64_t i = 0; i < s->length[4]; i++) qc_copy_run(s, x + i * s->xs[4], y + i * s->ys[4]);
  }
}

#endif
