/* Floats to codes and back at the ends of a network; halos; copies with any strides. */
#ifndef QC_BOUNDARY_H
#define QC_BOUNDARY_H

#include "round.h"

/* Few channels: the codes of so many pixels are made channel by channel and then interleaved. */
#define QC_STRETCH 256
#define QC_PLANES 4

static int64_t qc_quantize_rows_units(const qc_quantize *s) { return qc_rows(&s->y); }

/* `count` floats, `step` apart. */
QC_INLINE void qc_quantize_run(const qc_quantize *s, const float *x, int64_t step, uint8_t *codes, int64_t count) {
  float inverse = s->inverse;
  int32_t zero = s->zero, lo = s->lo, hi = s->hi;
  for (int64_t i = 0; i < count; i++) codes[i] = (uint8_t)qc_code(x[i * step] * inverse, zero, lo, hi);
}

/* Up to QC_STRETCH pixels of at most QC_PLANES channels. */
static void qc_quantize_pixels(const qc_quantize *s, const float *x, uint8_t *y, int64_t count) {
  uint8_t codes[QC_PLANES][QC_STRETCH];
  int64_t c = s->y.c, right = s->y.sw;
  for (int64_t i = 0; i < c; i++) {
    if (s->xs[3] == 1)
      qc_quantize_run(s, x + i * s->xs[4], 1, codes[i], count);
    else
      qc_quantize_run(s, x + i * s->xs[4], s->xs[3], codes[i], count);
  }
  if (c == 3 && right == 3) {
    const uint8_t *a = codes[0], *b = codes[1], *d = codes[2];
    for (int64_t i = 0; i < count; i++) y[3 * i] = a[i], y[3 * i + 1] = b[i], y[3 * i + 2] = d[i];
  } else {
    for (int64_t i = 0; i < count; i++)
      for (int64_t j = 0; j < c; j++) y[i * right + j] = codes[j][i];
  }
}

static void qc_quantize_rows(const qc_quantize *s, int64_t lo, int64_t hi) {
  for (int64_t row = lo; row < hi; row++) {
    int64_t h = row % s->y.h, plane = row / s->y.h, d = plane % s->y.d, n = plane / s->y.d;
    const float *x = s->x + n * s->xs[0] + d * s->xs[1] + h * s->xs[2];
    uint8_t *y = qc_row(&s->y, row, s->y.d, s->y.h);
    if (s->y.c <= QC_PLANES)
      for (int64_t i = 0; i < s->y.w; i += QC_STRETCH)
        qc_quantize_pixels(s, x + i * s->xs[3], y + i * s->y.sw, qc_min(QC_STRETCH, s->y.w - i));
    else if (s->xs[4] == 1)
      for (int64_t i = 0; i < s->y.w; i++) qc_quantize_run(s, x + i * s->xs[3], 1, y + i * s->y.sw, s->y.c);
    else
      for (int64_t i = 0; i < s->y.w; i++) qc_quantize_run(s, x + i * s->xs[3], s->xs[4], y + i * s->y.sw, s->y.c);
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

/* Whether the last two axes put two runs of bytes together like the teeth of a zip, as channel shuffles do. */
static int qc_is_zip(const qc_copy *s) {
  return s->size == 1 && s->length[4] == 2 && s->ys[4] == 1 && s->ys[5] == 2 && s->xs[5] == 1;
}

static void qc_zip(const uint8_t *restrict a, const uint8_t *restrict b, uint8_t *restrict y, int64_t count) {
  for (int64_t i = 0; i < count; i++) y[2 * i] = a[i], y[2 * i + 1] = b[i];
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
    if (qc_is_zip(s))
      qc_zip(x, x + s->xs[4], y, s->length[5]);
    else
      for (int64_t i = 0; i < s->length[4]; i++) qc_copy_run(s, x + i * s->xs[4], y + i * s->ys[4]);
  }
}

#endif
