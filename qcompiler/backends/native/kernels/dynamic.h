/* What is quantized at run time: the range of a value, its codes, what an epilogue takes for them, and the cells of recurrent layers. */
#ifndef QC_DYNAMIC_H
#define QC_DYNAMIC_H

#include "norm.h"

static int64_t qc_range_once_units(const qc_range *s) {
  (void)s;
  return 1;
}

/* x rounded to the nearest integer, halves to even; |x| <= 2^51. */
QC_INLINE double qc_whole(double x) { return (x + 6755399441055744.0) - 6755399441055744.0; }
QC_INLINE double qc_size(double x) { return x < 0 ? -x : x; }

/* From the range low <= 0 <= high: as torch's dynamic kernels choose them, a step is no smaller than 6.1e-5, and the zero point is rounded
   from the end of the range that loses less. */
static void qc_find_step(double low, double high, double *ends) {
  const double least = (double)6.1e-5f;
  double step = (high - low) / 255.0;
  if (step == 0.0) step = 0.1;
  if (step < least) low = low * least / step, high = high * least / step, step = least;
  double from_low = 0.0 - low / step, from_high = 255.0 - high / step;
  double zero = qc_size(low / step) < 255.0 + qc_size(high / step) ? from_low : from_high;
  zero = zero > 0.0 ? zero : 0.0;
  zero = zero < 255.0 ? zero : 255.0;
  ends[0] = step;
  ends[1] = qc_whole(zero);
}

static void qc_range_once(const qc_range *s, int64_t lo, int64_t hi) {
  float low = 0.0f, high = 0.0f;
  const qc_tensor *t = &s->x.t;
  if (lo >= hi) return;
  for (int64_t i = 0; i < qc_pixels_of(t); i++) {
    const uint8_t *x = qc_pixel(t, i, t);
    float least = qc_row_largest(&s->x, x, t->c, -1.0f), most = qc_row_largest(&s->x, x, t->c, 1.0f);
    low = least < low ? least : low;
    high = most > high ? most : high;
  }
  qc_find_step((double)low, (double)high, s->y);
}

static int64_t qc_encode_pixels_units(const qc_encode *s) { return qc_pixels_of(&s->y); }

static void qc_encode_pixels(const qc_encode *s, int64_t lo, int64_t hi) {
  float space[QC_RUN];
  qc_result codes = {.inverse = (float)(1.0 / s->ends[0]), .zero = (int32_t)s->ends[1], .lo = 0, .hi = 255, .codes = 1};
  for (int64_t i = lo; i < hi; i++) {
    const uint8_t *x = qc_pixel(&s->x.t, i, &s->y);
    uint8_t *y = qc_pixel(&s->y, i, &s->y);
    QC_EACH_RUN(s->y.c) { qc_put(&codes, y + at, qc_floats(&s->x, x + at * s->x.step, count, space), count); }
  }
}

static int64_t qc_factors_all_units(const qc_factors *s) { return s->padded; }

static void qc_factors_all(const qc_factors *s, int64_t lo, int64_t hi) {
  for (int64_t c = lo; c < hi; c++) {
    int inside = c < s->channels;
    float m = inside ? (float)(s->ends[0] * s->scale[c]) : 0.0f;
    double bias = inside && s->bias ? s->bias[c] : 0.0;
    s->m[c] = m;
    s->m[s->padded + c] = inside ? (float)(bias - s->ends[1] * (double)s->wsum[c] * (double)m) : 0.0f;
  }
}

static int64_t qc_gates_rows_units(const qc_gates *s) { return s->rows; }

/* The new hidden state of `room` elements from i on; gate g of a row lies g * width behind. */
QC_INLINE qf qc_cell(const qc_gates *s, const float *ih, const float *hh, float *hidden, float *cell, int64_t i, int64_t room) {
  int64_t w = s->width;
  if (s->kind == QC_LSTM) {
    qf in = qc_some(ih + i, room) + qc_some(hh + i, room), forget = qc_some(ih + w + i, room) + qc_some(hh + w + i, room);
    qf g = qc_some(ih + 2 * w + i, room) + qc_some(hh + 2 * w + i, room), o = qc_some(ih + 3 * w + i, room) + qc_some(hh + 3 * w + i, room);
    qf made = qf_sigmoid(forget) * qc_some(cell + i, room) + qf_sigmoid(in) * qf_tanh(g);
    qc_set(cell + i, made, room);
    return qf_sigmoid(o) * qf_tanh(made);
  }
  if (s->kind == QC_GRU) {
    qf reset = qf_sigmoid(qc_some(ih + i, room) + qc_some(hh + i, room)), more = qf_sigmoid(qc_some(ih + w + i, room) + qc_some(hh + w + i, room));
    qf made = qf_tanh(qc_some(ih + 2 * w + i, room) + reset * qc_some(hh + 2 * w + i, room));
    return made + more * (qc_some(hidden + i, room) - made);
  }
  qf v = qc_some(ih + i, room) + qc_some(hh + i, room);
  return s->kind == QC_RNN_TANH ? qf_tanh(v) : qf_raise(v, 0.0f);
}

static void qc_gates_rows(const qc_gates *s, int64_t lo, int64_t hi) {
  int64_t w = s->width, gates = s->kind == QC_LSTM ? 4 : s->kind == QC_GRU ? 3 : 1;
  for (int64_t row = lo; row < hi; row++) {
    const float *ih = s->ih + row * gates * w, *hh = s->hh + row * gates * w;
    float *hidden = s->hidden + row * w, *cell = s->cell + row * w, *out = s->out + row * s->out_row;
    for (int64_t i = 0; i < w; i += QC_F) {
      int64_t room = qc_min(QC_F, w - i);
      qf made = qc_cell(s, ih, hh, hidden, cell, i, room);
      qc_set(hidden + i, made, room);
      qc_set(out + i, made, room);
    }
  }
}

static int64_t qc_embed_pixels_units(const qc_embed *s) { return qc_pixels_of(&s->y.t); }

/* Elements first, first + 1, ... of row x of the table; NaN where there is no such row. */
QC_APART void qc_embed_run(const qc_embed *s, float x, int64_t first, float *made, int64_t count) {
  int64_t c = s->y.t.c, row = x >= 0.0f && x < (float)s->rows ? (int64_t)x : -1;
  if (row < 0 || (float)row != x)
    for (int64_t i = 0; i < count; i++) made[i] = __builtin_nanf("");
  else if (s->codes)
    for (int64_t i = 0; i < count; i++) made[i] = (float)(((double)s->codes[row * c + first + i] - s->zero[row]) * s->scale[row]);
  else
    memcpy(made, s->table + row * c + first, (size_t)(4 * count));
}

static void qc_embed_pixels(const qc_embed *s, int64_t lo, int64_t hi) {
  int64_t wide = qc_width_of(&s->y);
  for (int64_t i = lo; i < hi; i++) {
    float number[1], space[QC_RUN];
    const float *x = qc_floats(&s->x, qc_pixel(&s->x.t, i, &s->y.t), 1, number);
    uint8_t *y = qc_pixel(&s->y.t, i, &s->y.t);
    QC_EACH_RUN(s->y.t.c) {
      float *to = qc_place_for(&s->y, y + at * wide, space);
      qc_embed_run(s, x[0], at, to, count);
      qc_put(&s->y, y + at * wide, to, count);
    }
  }
}

#endif
