/* Copies by lists of places: pads, rolls, flips, repeats, picks. A piece is one row of the result. */
#ifndef QC_PICK_H
#define QC_PICK_H

#include "round.h"

QC_INLINE void qc_pick_fill(const qc_pick *s, uint8_t *y, int64_t count) {
  if (s->size == 1)
    memset(y, s->fill[0], (size_t)count);
  else
    for (int64_t i = 0; i < count; i++) memcpy(y + i * s->size, s->fill, (size_t)s->size);
}

/* How many elements from index i on lie `step` bytes apart, or are all outside (place -1); `at` has `count` entries. */
QC_INLINE int64_t qc_pick_stretch(const int64_t *at, int64_t i, int64_t count, int64_t step) {
  int64_t end = i + 1;
  while (end < count && at[end] == (at[i] < 0 ? -1 : at[end - 1] + step)) end++;
  return end - i;
}

/* The channels of `pixels` neighbouring pixels, of which the first is at x. */
QC_INLINE void qc_pick_pixel(const qc_pick *s, const uint8_t *x, uint8_t *y) {
  const int64_t *at = s->at[4];
  int64_t c = s->y.c, size = s->size;
  for (int64_t i = 0; i < c;) {
    int64_t count = qc_pick_stretch(at, i, c, size);
    if (at[i] < 0)
      qc_pick_fill(s, y + i * size, count);
    else if (count == 1 && size == 1)
      y[i] = x[at[i]];
    else
      memcpy(y + i * size, x + at[i], (size_t)(count * size));
    i += count;
  }
}

static void qc_pick_row(const qc_pick *s, const uint8_t *x, uint8_t *y) {
  int64_t pixel = (int64_t)s->y.c * s->size, w = s->y.w;
  const int64_t *at = s->at[3];
  int straight = s->at[4][0] >= 0 && qc_pick_stretch(s->at[4], 0, s->y.c, s->size) == s->y.c;
  for (int64_t i = 0; i < w;) {
    int64_t count = straight && s->y.sw == pixel ? qc_pick_stretch(at, i, w, pixel) : 1;
    if (at[i] < 0)
      qc_pick_fill(s, y + i * s->y.sw, count * s->y.c);
    else if (straight)
      memcpy(y + i * s->y.sw, x + at[i] + s->at[4][0], (size_t)(count * pixel));
    else
      qc_pick_pixel(s, x + at[i], y + i * s->y.sw);
    i += count;
  }
}

static int64_t qc_pick_rows_units(const qc_pick *s) { return s->y.w && s->y.c ? qc_rows(&s->y) : 0; }

static void qc_pick_rows(const qc_pick *s, int64_t lo, int64_t hi) {
  for (int64_t row = lo; row < hi; row++) {
    int64_t h = row % s->y.h, plane = row / s->y.h, d = plane % s->y.d, n = plane / s->y.d;
    int64_t a = s->at[0][n], b = s->at[1][d], c = s->at[2][h];
    uint8_t *y = qc_row(&s->y, row, s->y.d, s->y.h);
    if (a >= 0 && b >= 0 && c >= 0)
      qc_pick_row(s, s->x + a + b + c, y);
    else
      for (int64_t i = 0; i < s->y.w; i++) qc_pick_fill(s, y + i * s->y.sw, s->y.c);
  }
}

#endif
