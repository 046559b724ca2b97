/* Resizing: the nearest pixel, or linear between neighbours along width, height and depth, or a cubic curve through four of them along
   width and height. A piece is one row of the result.

   Where an output index lies in x, in float32, as torch computes it: nearest: floor(i * scale), exact: floor((i + 0.5) * scale); linear:
   max((i + 0.5) * scale - 0.5, 0), with aligned corners i * scale. Along an axis v = near * (1 - part) + far * part, first along
   width, then height, then depth, each product and sum rounded to float32. Cubic: the same place without the limit of 0, t its part behind
   the point, ((p0 * c0 + p1 * c1) + p2 * c2) + p3 * c3 with the factors of qc_find_four. */
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

/* Elements of x as floats. */
QC_INLINE float qc_resized(const uint8_t *p, int64_t i, int floats) {
  float v;
  if (!floats) return (float)p[i];
  memcpy(&v, p + 4 * i, 4);
  return v;
}

/* v = the values at p, between `near` and `far` along the width. */
QC_INLINE void qc_along_width(const uint8_t *near, const uint8_t *far, float part, float *v, int64_t c, int floats) {
  float rest = 1.0f - part;
  for (int64_t i = 0; i < c; i++) v[i] = qc_resized(near, i, floats) * rest + qc_resized(far, i, floats) * part;
}

QC_INLINE void qc_between_values(float *v, const float *far, float part, int64_t c) {
  float rest = 1.0f - part;
  for (int64_t i = 0; i < c; i++) v[i] = v[i] * rest + far[i] * part;
}

/* Up to QC_RESIZED values become codes, or floats, of y. */
QC_INLINE void qc_resize_put(const qc_resize *s, const float *v, uint8_t *y, int64_t c) {
  if (s->y_floats)
    for (int64_t i = 0; i < c; i++) {
      float made = v[i] * s->m + s->b;
      memcpy(y + 4 * i, &made, 4);
    }
  else
    for (int64_t i = 0; i < c; i++) y[i] = (uint8_t)qc_code(v[i] * s->m + s->b, s->zero, s->lo, s->hi);
}

/* Up to QC_RESIZED channels of one result; e: depth, height, width. */
QC_INLINE void qc_resize_linear(const qc_resize *s, const uint8_t *x, const qc_between *e, uint8_t *y, int64_t c, int floats) {
  float v[4][QC_RESIZED];
  int64_t left = e[2].near * s->x.sw, right = e[2].far * s->x.sw;
  for (int i = 0; i < (e[0].part > 0.0f ? 4 : 2); i++) {
    const uint8_t *row = x + (i & 2 ? e[0].far : e[0].near) * s->x.sd + (i & 1 ? e[1].far : e[1].near) * s->x.sh;
    qc_along_width(row + left, row + right, e[2].part, v[i], c, floats);
  }
  qc_between_values(v[0], v[1], e[1].part, c);
  if (e[0].part > 0.0f) { /* else the second half would change nothing */
    qc_between_values(v[2], v[3], e[1].part, c);
    qc_between_values(v[0], v[2], e[0].part, c);
  }
  qc_resize_put(s, v[0], y, c);
}
static void qc_resize_linear_codes(const qc_resize *s, const uint8_t *x, const qc_between *e, uint8_t *y, int64_t c) {
  qc_resize_linear(s, x, e, y, c, 0);
}
static void qc_resize_linear_floats(const qc_resize *s, const uint8_t *x, const qc_between *e, uint8_t *y, int64_t c) {
  qc_resize_linear(s, x, e, y, c, 1);
}

/* Four neighbours along an axis and their factors. */
typedef struct qc_four {
  int64_t at[4];
  float factor[4];
} qc_four;

QC_INLINE float qc_cubic_near(float t) { return (1.25f * t - 2.25f) * t * t + 1.0f; }
QC_INLINE float qc_cubic_far(float t) { return ((-0.75f * t + 3.75f) * t - 6.0f) * t + 3.0f; }

static qc_four qc_find_four(const qc_resize *s, int axis, int64_t index, int64_t size) {
  float scale = s->scale[axis], i = (float)index, at = s->mode == QC_CUBIC_ALIGNED ? i * scale : (i + 0.5f) * scale - 0.5f;
  int64_t first = (int64_t)at - (at < (float)(int64_t)at);
  float t = at - (float)first;
  qc_four made = {{0}, {qc_cubic_far(t + 1.0f), qc_cubic_near(t), qc_cubic_near(1.0f - t), qc_cubic_far((1.0f - t) + 1.0f)}};
  for (int j = 0; j < 4; j++) made.at[j] = qc_max(0, qc_min(first - 1 + j, size - 1));
  return made;
}

/* v = the sum of four products, or its own first one and more of them. */
QC_APART void qc_more_cubic(float *v, const uint8_t *x, float factor, int64_t c, int floats, int first) {
  for (int64_t i = 0; i < c; i++) {
    float product = qc_resized(x, i, floats) * factor;
    v[i] = first ? product : v[i] + product;
  }
}

/* Up to QC_RESIZED channels of one result. */
static void qc_resize_cubic(const qc_resize *s, const uint8_t *x, const qc_four *h, const qc_four *w, uint8_t *y, int64_t c) {
  float row[QC_RESIZED], v[QC_RESIZED];
  for (int i = 0; i < 4; i++) {
    const uint8_t *from = x + h->at[i] * s->x.sh;
    for (int j = 0; j < 4; j++) qc_more_cubic(row, from + w->at[j] * s->x.sw, w->factor[j], c, s->x_floats, j == 0);
    qc_more_cubic(v, (const uint8_t *)(const void *)row, h->factor[i], c, 1, i == 0);
  }
  qc_resize_put(s, v, y, c);
}

static void qc_resize_cubic_row(const qc_resize *s, const uint8_t *x, int64_t h, uint8_t *y) {
  qc_four down = qc_find_four(s, 1, h, s->x.h);
  int64_t from = s->x_floats ? 4 : 1, to = s->y_floats ? 4 : 1;
  for (int64_t i = 0; i < s->y.w; i++, y += s->y.sw) {
    qc_four along = qc_find_four(s, 2, i, s->x.w);
    for (int64_t c = 0; c < s->y.c; c += QC_RESIZED)
      qc_resize_cubic(s, x + c * from, &down, &along, y + c * to, qc_min(QC_RESIZED, s->y.c - c));
  }
}

static int64_t qc_resize_rows_units(const qc_resize *s) { return qc_rows(&s->y); }

static void qc_resize_rows(const qc_resize *s, int64_t lo, int64_t hi) {
  int nearest = s->mode == QC_NEAREST || s->mode == QC_NEAREST_EXACT;
  int64_t from = s->x_floats ? 4 : 1, to = s->y_floats ? 4 : 1;
  for (int64_t row = lo; row < hi; row++) {
    int64_t h = row % s->y.h, plane = row / s->y.h, d = plane % s->y.d, n = plane / s->y.d;
    const uint8_t *x = s->x.p + n * s->x.sn;
    uint8_t *y = qc_row(&s->y, row, s->y.d, s->y.h);
    if (s->mode == QC_CUBIC || s->mode == QC_CUBIC_ALIGNED) {
      qc_resize_cubic_row(s, x, h, y);
      continue;
    }
    qc_between e[3] = {qc_find_between(s, 0, d, s->x.d), qc_find_between(s, 1, h, s->x.h), {0, 0, 0.0f}};
    for (int64_t i = 0; i < s->y.w; i++, y += s->y.sw) {
      e[2] = qc_find_between(s, 2, i, s->x.w);
      if (nearest)
        memcpy(y, x + e[0].near * s->x.sd + e[1].near * s->x.sh + e[2].near * s->x.sw, (size_t)(s->y.c * to));
      else
        for (int64_t c = 0; c < s->y.c; c += QC_RESIZED) (s->x_floats ? qc_resize_linear_floats : qc_resize_linear_codes)(s, x + c * from, e, y + c * to, qc_min(QC_RESIZED, s->y.c - c));
    }
  }
}

#endif
