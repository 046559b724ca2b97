/* How the kernels of floats read and write: operands that are floats or codes, in runs of at most QC_RUN elements. */
#ifndef QC_FLOAT_ROWS_H
#define QC_FLOAT_ROWS_H

#include "float.h"

#define QC_RUN 256

/* `count` <= QC_RUN elements from p on, as floats side by side: where they lie, or in `room`. */
QC_APART const float *qc_floats(const qc_operand *o, const uint8_t *p, int64_t count, float *room) {
  if (!o->codes && o->step == 4) return (const float *)(const void *)p;
  int64_t step = o->step;
  if (o->codes) {
    int32_t zero = o->zero;
    float scale = o->scale;
    if (step == 1)
      for (int64_t i = 0; i < count; i++) room[i] = (float)(p[i] - zero) * scale;
    else
      for (int64_t i = 0; i < count; i++) room[i] = (float)(p[i * step] - zero) * scale;
  } else {
    for (int64_t i = 0; i < count; i++) memcpy(room + i, p + i * step, 4);
  }
  return room;
}

/* Where the results of a run may be computed: in their place, or in `room`, from where qc_put brings them to their place. */
QC_INLINE float *qc_place_for(const qc_result *r, uint8_t *p, float *room) { return r->codes ? room : (float *)(void *)p; }

QC_APART void qc_put(const qc_result *r, uint8_t *p, const float *made, int64_t count) {
  if (!r->codes) return;
  float inverse = r->inverse;
  int32_t zero = r->zero, lo = r->lo, hi = r->hi;
  for (int64_t i = 0; i < count; i++) p[i] = (uint8_t)qc_code(made[i] * inverse, zero, lo, hi);
}

QC_INLINE int64_t qc_width_of(const qc_result *r) { return r->codes ? 1 : 4; }

/* Pixel i of the n * d * h * w pixels of a result whose sizes are those of `of`. */
QC_INLINE uint8_t *qc_pixel(const qc_tensor *t, int64_t i, const qc_tensor *of) {
  int64_t row = i / of->w, plane = row / of->h, image = plane / of->d;
  return t->p + image * t->sn + (plane - image * of->d) * t->sd + (row - plane * of->h) * t->sh + (i - row * of->w) * t->sw;
}

QC_INLINE int64_t qc_pixels_of(const qc_tensor *t) { return (int64_t)t->n * t->d * t->h * t->w; }

#endif
