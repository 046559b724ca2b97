/* Resizing: the nearest pixel, or linear between neighbours along width, height and depth. A piece is one row of the result.

   Where an output index lies in x, in float32, as torch computes it: nearest: floor(i * scale), exact: floor((i + 0.5) * scale); linear:
   max((i + 0.5) * scale - 0.5, 0), with aligned corners i * scale. Along an axis v = near * (1 - part) + far * part, first along
   width, then height, then depth, each product and sum rounded to float32. */
#ifndef QC_RESIZE_H
#define QC_RESIZE_H

#include "round.h"

#define QC_RESIZED 128 /* channels at once */

/* Two neighbours along an axis, and how far the result lies towards the second. */
typedef struct qc_between {
  int64_t near, far;
  float part;
} qc_between;

static qc_between qc_find_between(const qc_resize *s, int axis, int64_t index, int64_t size) {
  float scale = s->scale[axis], i = (float)index, at;
  if (s->mode == QC_NEAREST || s->mode == QC_NEAREST_EXACT) {
    at = s->mode == QC_NEAREST ? i * scale : (i + 0.5f) * scale;
    int64_t nearest = qc_min((int64_t)at, size - 1);
    return (qc_between){nearest, nearest, 0.0f};
  }
  at = s->mode == QC_LINEAR_ALIGNED ? i * scale : (i + 0.5f) * scale - 0.5f;
  at = at > 0.0f ? at : 0.0f;
  int64_t near = qc_min((int64_t)at, size - 1);
  float part = at - (float)near;
  part = part < 1.0f ? part : 1.0f;
  return (qc_between){near, qc_min(near + 1, size - 1), part};
}

/* v = the values at p, between `near` and `far` along the width. */
QC_INLINE void qc_along_width(const uint8_t *near, const uint8_t *far, float part, float *v, int64_t c) {
  float rest = 1.0f - part;
  for (int64_t i = 0; i < c; i++) v[i] = (float)near[i] * rest + (float)far[i] * part;
}

QC_INLINE void qc_between_values(float *v, const float *far, float part, int64_t c) {
  float rest = 1.0f - part;
  for (int64_t i = 0; i < c; i++) v[i] = v[i] * rest + far[i] * part;
}

/* Up to QC_RESIZED channels of one result; e: depth, height, width. */
static void qc_resize_linear(const qc_resize *s, const uint8_t *x, const qc_between *e, uint8_t *y, int64_t c) {
  float v[4][QC_RESIZED];
  int64_t left = e[2].near * s->x.sw, right = e[2].far * s->x.sw;
  for (int i = 0; i < (e[0].part > 0.0f ? 4 : 2); i++) {
    const uint8_t *row = x + (i & 2 ? e[0].far : e[0].near) * s->x.sd + (i & 1 ? e[1].far : e[1].near) * s->x.sh;
    qc_along_width(row + left, row + right, e[2].part, v[i], c);
  }
  qc_between_values(v[0], v[1], e[1].part, c);
  if (e[0].part > 0.0f) { /* else the second half would change nothing */
    qc_between_values(v[2], v[3], e[1].part, c);
    qc_between_values(v[0], v[2], e[0].part, c);
  }
  for (int64_t i = 0; i < c; i++) y[i] = (uint8_t)qc_code(v[0][i] * s->m + s->b, s->zero, s->lo, s->hi);
}

static int64_t qc_resize_rows_units(const qc_resize *s) { return qc_rows(&s->y); }

static void qc_resize_rows(const qc_resize *s, int64_t lo, int64_t hi) {
  int nearest = s->mode == QC_NEAREST || s->mode == QC_NEAREST_EXACT;
  for (int64_t row = lo; row < hi; row++) {
    int64_t h = row % s->y.h, plane = row / s->y.h, d = plane % s->y.d, n = plane / s->y.d;
    const uint8_t *x = s->x.p + n * s->x.sn;
    uint8_t *y = qc_row(&s->y, row, s->y.d, s->y.h);
    qc_between e[3] = {qc_find_between(s, 0, d, s->x.d), qc_find_between(s, 1, h, s->x.h), {0, 0, 0.0f}};
    for (int64_t i = 0; i < s->y.w; i++, y += s->y.sw) {
      e[2] = qc_find_between(s, 2, i, s->x.w);
      if (nearest)
        memcpy(y, x + e[0].near * s->x.sd + e[1].near * s->x.sh + e[2].near * s->x.sw, (size_t)s->y.c);
      else
        for (int64_t c = 0; c < s->y.c; c += QC_RESIZED) qc_resize_linear(s, x + c, e, y + c, qc_min(QC_RESIZED, s->y.c - c));
    }
  }
}

#endif
