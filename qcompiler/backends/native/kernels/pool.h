/* Pools. A piece is one row of the result; sums and maxima run over the channels of a pixel, which are adjacent. */
#ifndef QC_POOL_H
#define QC_POOL_H

#include "vec.h"

#define QC_POOLED 256 /* channels whose sums are kept at once */

/* One axis of a window: taps first, first + step, ... , `count` of them, all inside of x. */
typedef struct qc_extent {
  int64_t first, step, count;
} qc_extent;

/* Output index o of axis i; in, out: the sizes of the axis. */
static qc_extent qc_extent_of(const qc_window *k, int adaptive, int i, int64_t o, int64_t in, int64_t out) {
  if (adaptive) {
    int64_t first = o * in / out;
    return (qc_extent){first, 1, qc_ceil((o + 1) * in, out) - first};
  }
  int64_t step = k->dilation[i], start = o * k->stride[i] - k->pad[i];
  int64_t skip = start < 0 ? -start : 0, left = qc_max(in - start, 0);
  if (step > 1) skip = qc_ceil(skip, step), left = qc_ceil(left, step);
  int64_t end = qc_min(k->kernel[i], left);
  return (qc_extent){start + skip * step, step, qc_max(end - skip, 0)};
}

/* How many taps of the axis lie in x or in its padding (the far padding is as wide as the near one). */
static int64_t qc_padded_count(const qc_window *k, int i, int64_t o, int64_t in) {
  int64_t start = o * k->stride[i] - k->pad[i];
  return qc_min(k->kernel[i], qc_max(in + k->pad[i] - start, 0));
}

/* y[0..count-1] = the largest code of each channel at the window's taps; `room`: bytes from y on that this row has yet to write. What
   vectors write behind a pixel's channels are places of its right neighbours, whose turn comes later. */
static void qc_max_pixel(const qc_max_pool *s, const uint8_t *x, const qc_extent *e, uint8_t *y, int64_t room) {
  int64_t c = s->y.c, q = 0;
#if QC_ISA != QC_SCALAR
  for (; q < c; q += QC_VB) {
    qv best = qv_zero();
    for (int64_t i = 0; i < e[0].count; i++)
      for (int64_t j = 0; j < e[1].count; j++) {
        const uint8_t *v = x + (e[0].first + i * e[0].step) * s->x.sd + (e[1].first + j * e[1].step) * s->x.sh + e[2].first * s->x.sw + q;
        for (int64_t l = 0; l < e[2].count; l++, v += e[2].step * s->x.sw) best = qv_max(best, qv_load(v));
      }
    if (c - q >= QC_VB || (s->y.sw == c && room - q >= QC_VB))
      qv_store(y + q, best);
    else
      qv_store_part(y + q, best, c - q);
  }
#else
  (void)room;
  memset(y, 0, (size_t)c);
  for (int64_t i = 0; i < e[0].count; i++)
    for (int64_t j = 0; j < e[1].count; j++)
      for (int64_t l = 0; l < e[2].count; l++) {
        const uint8_t *v = x + (e[0].first + i * e[0].step) * s->x.sd + (e[1].first + j * e[1].step) * s->x.sh +
                           (e[2].first + l * e[2].step) * s->x.sw;
        for (q = 0; q < c; q++) y[q] = y[q] > v[q] ? y[q] : v[q];
      }
#endif
}

static int64_t qc_max_pool_rows_units(const qc_max_pool *s) { return qc_rows(&s->y); }

static void qc_max_pool_rows(const qc_max_pool *s, int64_t lo, int64_t hi) {
  for (int64_t row = lo; row < hi; row++) {
    int64_t h = row % s->y.h, plane = row / s->y.h, d = plane % s->y.d, n = plane / s->y.d;
    uint8_t *y = qc_row(&s->y, row, s->y.d, s->y.h);
    qc_extent e[3];
    e[0] = qc_extent_of(&s->k, s->adaptive, 0, d, s->x.d, s->y.d);
    e[1] = qc_extent_of(&s->k, s->adaptive, 1, h, s->x.h, s->y.h);
    for (int64_t i = 0; i < s->y.w; i++) {
      e[2] = qc_extent_of(&s->k, s->adaptive, 2, i, s->x.w, s->y.w);
      qc_max_pixel(s, s->x.p + n * s->x.sn, e, y + i * s->y.sw, (s->y.w - i) * s->y.c);
    }
  }
}

/* Up to QC_POOLED channels at x: pad is what makes each sum one of as many codes as it is divided by. */
static void qc_avg_pixel(const qc_avg_pool *s, const uint8_t *x, const qc_extent *e, int32_t pad, float m, uint8_t *y, int64_t c) {
  int32_t acc[QC_POOLED];
  for (int64_t q = 0; q < c; q++) acc[q] = pad;
  for (int64_t i = 0; i < e[0].count; i++)
    for (int64_t j = 0; j < e[1].count; j++)
      for (int64_t l = 0; l < e[2].count; l++) {
        const uint8_t *v = x + (e[0].first + i * e[0].step) * s->x.sd + (e[1].first + j * e[1].step) * s->x.sh +
                           (e[2].first + l * e[2].step) * s->x.sw;
        for (int64_t q = 0; q < c; q++) acc[q] += v[q];
      }
  for (int64_t q = 0; q < c; q++) y[q] = (uint8_t)qc_code((float)acc[q] * m + s->b, s->zero, s->lo, s->hi);
}

static int64_t qc_avg_pool_rows_units(const qc_avg_pool *s) { return qc_rows(&s->y); }

static void qc_avg_pool_rows(const qc_avg_pool *s, int64_t lo, int64_t hi) {
  for (int64_t row = lo; row < hi; row++) {
    int64_t h = row % s->y.h, plane = row / s->y.h, d = plane % s->y.d, n = plane / s->y.d;
    uint8_t *y = qc_row(&s->y, row, s->y.d, s->y.h);
    qc_extent e[3];
    e[0] = qc_extent_of(&s->k, s->adaptive, 0, d, s->x.d, s->y.d);
    e[1] = qc_extent_of(&s->k, s->adaptive, 1, h, s->x.h, s->y.h);
    for (int64_t i = 0; i < s->y.w; i++) {
      e[2] = qc_extent_of(&s->k, s->adaptive, 2, i, s->x.w, s->y.w);
      int64_t inside = e[0].count * e[1].count * e[2].count, count = inside;
      if (s->include_pad)
        count = qc_padded_count(&s->k, 0, d, s->x.d) * qc_padded_count(&s->k, 1, h, s->x.h) * qc_padded_count(&s->k, 2, i, s->x.w);
      if (s->divisor) count = s->divisor;
      float m = (float)(s->ratio / (double)count);
      int32_t pad = (int32_t)(count - inside) * s->x_zero;
      for (int64_t c = 0; c < s->y.c; c += QC_POOLED)
        qc_avg_pixel(s, s->x.p + n * s->x.sn + c, e, pad, m, y + i * s->y.sw + c, qc_min(QC_POOLED, s->y.c - c));
    }
  }
}

#endif
