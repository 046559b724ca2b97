/* Images read at places that a value says: between four pixels, or at the nearest. A piece is a pixel of the result.

   A place in -1..1 is (place + 1) * (size / 2) - 0.5 pixels from the first, with aligned corners (place + 1) * ((size - 1) / 2); NaN is -1.
   QC_REFLECTION turns it around at the ends of the image (of its outermost pixels, with aligned corners); that and QC_BORDER cut it at the
   outermost pixels. With y, x the whole numbers below the place v = ((a * fa + b * fb) + c * fc) + d * fd of the pixels (y, x), (y, x + 1),
   (y + 1, x), (y + 1, x + 1); those outside of the image are left out. */
#ifndef QC_WARP_H
#define QC_WARP_H

#include "norm.h"

/* A number of pixels, which is not negative, without the whole turns of `span` in it. */
QC_INLINE float qc_less_turns(float at, float span) {
  float turns = at / span;
  return at - (turns < 8388608.0f ? (float)(int32_t)turns : turns) * span;
}

/* Where a place lies among `size` pixels, no farther outside of them than tells that it is outside. */
static float qc_warp_at(const qc_warp *s, float place, int32_t size) {
  float n = (float)size, last = n - 1.0f, from = place != place ? 0.0f : place + 1.0f;
  float at = s->aligned ? from * (last / 2.0f) : from * (n / 2.0f) - 0.5f;
  if (s->padding == QC_REFLECTION && s->aligned) {
    float extra = size > 1 ? qc_less_turns(at < 0.0f ? -at : at, 2.0f * last) : 0.0f;
    at = extra < 2.0f * last - extra ? extra : 2.0f * last - extra;
  } else if (s->padding == QC_REFLECTION) {
    float extra = qc_less_turns(at + 0.5f < 0.0f ? -(at + 0.5f) : at + 0.5f, 2.0f * n);
    at = (extra < 2.0f * n - extra ? extra : 2.0f * n - extra) - 0.5f;
  }
  float low = s->padding == QC_ZEROS ? -2.0f : 0.0f, high = s->padding == QC_ZEROS ? n + 1.0f : last;
  return at > low ? at < high ? at : high : low;
}

/* Two neighbours along an axis with their factors; of the nearest pixel alone both are the same, and the second factor is 0. */
typedef struct qc_warp_two {
  int64_t at[2];
  float factor[2];
} qc_warp_two;

static qc_warp_two qc_warp_pair(const qc_warp *s, float place, int32_t size) {
  float at = qc_warp_at(s, place, size);
  int64_t below = (int64_t)at - (at < (float)(int64_t)at);
  float part = at - (float)below;
  if (!s->nearest) return (qc_warp_two){{below, below + 1}, {1.0f - part, part}};
  below += part > 0.5f || (part == 0.5f && (below & 1));
  return (qc_warp_two){{below, below}, {1.0f, 0.0f}};
}

static int64_t qc_warp_pixels_units(const qc_warp *s) { return qc_pixels_of(&s->y.t); }

/* v = the sum of up to four products; `first`: of none before this one. */
QC_APART void qc_warp_add(float *v, const float *x, float factor, int64_t count, int first) {
  for (int64_t i = 0; i < count; i++) {
    float product = x[i] * factor;
    v[i] = first ? product : v[i] + product;
  }
}

static void qc_warp_pixel(const qc_warp *s, const uint8_t *x, const qc_warp_two *across, const qc_warp_two *down, uint8_t *y) {
  int64_t wide = qc_width_of(&s->y);
  QC_EACH_RUN(s->y.t.c) {
    float space[QC_RUN], room[QC_RUN], *to = qc_place_for(&s->y, y + at * wide, room);
    int first = 1;
    for (int j = 0; j < (s->nearest ? 1 : 4); j++) {
      int64_t h = down->at[j >> 1], w = across->at[j & 1];
      if (h < 0 || h >= s->x.t.h || w < 0 || w >= s->x.t.w) continue;
      const float *from = qc_floats(&s->x, x + h * s->x.t.sh + w * s->x.t.sw + at * s->x.step, count, space);
      qc_warp_add(to, from, down->factor[j >> 1] * across->factor[j & 1], count, first);
      first = 0;
    }
    for (int64_t i = 0; first && i < count; i++) to[i] = 0.0f;
    qc_put(&s->y, y + at * wide, to, count);
  }
}

static void qc_warp_pixels(const qc_warp *s, int64_t lo, int64_t hi) {
  int64_t plane = (int64_t)s->y.t.d * s->y.t.h * s->y.t.w;
  for (int64_t i = lo; i < hi; i++) {
    float two[2];
    const float *place = qc_floats(&s->places, qc_pixel(&s->places.t, i, &s->y.t), 2, two);
    qc_warp_two across = qc_warp_pair(s, place[0], s->x.t.w), down = qc_warp_pair(s, place[1], s->x.t.h);
    qc_warp_pixel(s, s->x.t.p + i / plane * s->x.t.sn, &across, &down, qc_pixel(&s->y.t, i, &s->y.t));
  }
}

#endif
