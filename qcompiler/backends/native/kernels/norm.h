/* Rows: normalized, softmax, and reduced to one number. A piece is a row; see float.h for the order of sums. */
#ifndef QC_NORM_H
#define QC_NORM_H

#include "float_rows.h"

/* Runs of a row: multiples of the lanes, so that lanes go on where they were. */
#define QC_EACH_RUN(COUNT) for (int64_t at = 0, count; (count = qc_min(QC_RUN, (COUNT)-at)) > 0; at += count)

/* Does what follows for each vector i of a run, j being the vector of the lanes; room: elements of it that are inside. */
#define QC_OVER_LANES(...) \
  { \
    int64_t base = 0; \
    for (; base + QC_LANES <= count; base += QC_LANES) { \
      _Pragma("GCC unroll 4") for (int j = 0; j < QC_LANES / QC_F; j++) { \
        const int64_t i = base + j * QC_F, room = QC_F; \
        __VA_ARGS__ \
      } \
    } \
    _Pragma("GCC unroll 4") for (int j = 0; j < QC_LANES / QC_F; j++) { \
      const int64_t i = base + j * QC_F, room = qc_min(count - i, QC_F); \
      if (room > 0) { \
        __VA_ARGS__ \
      } \
    } \
  }

QC_INLINE qf qc_some(const float *p, int64_t room) { return room == QC_F ? qf_load(p) : qf_load_part(p, room); }
QC_INLINE void qc_set(float *p, qf v, int64_t room) {
  if (room == QC_F)
    qf_store(p, v);
  else
    qf_store_part(p, v, room);
}
/* v with `other` behind the end of the row. */
QC_INLINE qf qc_inside(qf v, int64_t room, float other) {
  if (room == QC_F) return v;
  for (int j = 0; j < QC_F; j++) v[j] = j < room ? v[j] : other;
  return v;
}

QC_APART float qc_row_sum(const qc_operand *o, const uint8_t *x, int64_t length) {
  float space[QC_RUN];
  qf_lanes s = qf_lanes_of(0.0f);
  QC_EACH_RUN(length) {
    const float *from = qc_floats(o, x + at * o->step, count, space);
    QC_OVER_LANES(s.v[j] += qc_some(from + i, room);)
  }
  return qf_total(&s);
}

/* The sum of (x - mean)^2. */
QC_APART float qc_row_squares(const qc_operand *o, const uint8_t *x, int64_t length, float mean) {
  float space[QC_RUN];
  qf_lanes s = qf_lanes_of(0.0f);
  QC_EACH_RUN(length) {
    const float *from = qc_floats(o, x + at * o->step, count, space);
    QC_OVER_LANES(qf d = qc_inside(qc_some(from + i, room) - mean, room, 0.0f); s.v[j] += d * d;)
  }
  return qf_total(&s);
}

/* The largest element, or with sign = -1 the smallest; NaN where there is one. */
QC_APART float qc_row_largest(const qc_operand *o, const uint8_t *x, int64_t length, float sign) {
  float space[QC_RUN];
  qf_lanes s = qf_lanes_of(-__builtin_inff());
  QC_EACH_RUN(length) {
    const float *from = qc_floats(o, x + at * o->step, count, space);
    QC_OVER_LANES(qf v = qc_inside(qc_some(from + i, room) * sign, room, -__builtin_inff());
                  s.v[j] = qf_choose((v > s.v[j]) | (v != v), v, s.v[j]);)
  }
  return qf_largest(&s) * sign;
}

static int64_t qc_norm_rows_units(const qc_norm *s) { return qc_pixels_of(&s->y.t); }

/* v * w + b where each of w and b is for one element, from number `first` on. */
QC_APART void qc_affine(const qc_norm *s, float *v, int64_t first, int64_t count) {
  const float *w = s->w ? s->w + first : NULL, *b = s->b ? s->b + first : NULL;
  if (w) QC_OVER_LANES(qc_set(v + i, qc_some(v + i, room) * qc_some(w + i, room), room);)
  if (b) QC_OVER_LANES(qc_set(v + i, qc_some(v + i, room) + qc_some(b + i, room), room);)
}

/* The same where `each` elements share one, and the run begins at element `first`. */
static void qc_affine_shared(const qc_norm *s, float *v, int64_t first, int64_t count) {
  for (int64_t i = 0; i < count;) {
    int64_t number = (first + i) / s->each, end = qc_min(count, (number + 1) * s->each - first);
    float w = s->w ? s->w[number] : 1.0f, b = s->b ? s->b[number] : -0.0f;
    for (; i < end; i++) v[i] = v[i] * w + b;
  }
}

static void qc_norm_row(const qc_norm *s, const uint8_t *x, uint8_t *y, int64_t first) {
  float from[QC_RUN], made[QC_RUN];
  int64_t c = s->y.t.c, wide = qc_width_of(&s->y);
  float mean = s->rms ? 0.0f : qc_row_sum(&s->x, x, c) / (float)c;
  qf deviation = qf_sqrt(qf_all(qc_row_squares(&s->x, x, c, mean) / (float)c + s->eps));
  float factor = 1.0f / deviation[0];
  QC_EACH_RUN(c) {
    const float *values = qc_floats(&s->x, x + at * s->x.step, count, from);
    float *to = qc_place_for(&s->y, y + at * wide, made);
    QC_OVER_LANES(qc_set(to + i, (qc_some(values + i, room) - mean) * factor, room);)
    if (s->each == 1)
      qc_affine(s, to, first + at, count);
    else
      qc_affine_shared(s, to, first + at, count);
    qc_put(&s->y, y + at * wide, to, count);
  }
}

static void qc_norm_rows(const qc_norm *s, int64_t lo, int64_t hi) {
  for (int64_t row = lo; row < hi; row++)
    qc_norm_row(s, qc_pixel(&s->x.t, row, &s->y.t), qc_pixel(&s->y.t, row, &s->y.t), row % s->cycle * s->y.t.c);
}

static int64_t qc_softmax_rows_units(const qc_softmax *s) { return qc_pixels_of(&s->y.t); }

/* The sum of exp(x - level). */
QC_APART float qc_row_exponentials(const qc_operand *o, const uint8_t *x, int64_t length, float level) {
  float space[QC_RUN];
  qf_lanes s = qf_lanes_of(0.0f);
  QC_EACH_RUN(length) {
    const float *from = qc_floats(o, x + at * o->step, count, space);
    QC_OVER_LANES(s.v[j] += qc_inside(qf_exp(qc_some(from + i, room) - level), room, 0.0f);)
  }
  return qf_total(&s);
}

static void qc_softmax_long(const qc_softmax *s, const uint8_t *x, uint8_t *y) {
  float from[QC_RUN], made[QC_RUN];
  int64_t c = s->y.t.c, wide = qc_width_of(&s->y);
  float most = qc_row_largest(&s->x, x, c, 1.0f), level = most == -__builtin_inff() ? 0.0f : most;
  float sum = qc_row_exponentials(&s->x, x, c, level), factor = 1.0f / sum;
  qf less = qf_log(qf_all(sum));
  QC_EACH_RUN(c) {
    const float *values = qc_floats(&s->x, x + at * s->x.step, count, from);
    float *to = qc_place_for(&s->y, y + at * wide, made);
    if (s->log)
      QC_OVER_LANES(qc_set(to + i, (qc_some(values + i, room) - level) - less, room);)
    else
      QC_OVER_LANES(qc_set(to + i, qf_exp(qc_some(values + i, room) - level) * factor, room);)
    qc_put(&s->y, y + at * wide, to, count);
  }
}

/* The same bits for a row of one run, whose floats and exponentials are made once. */
static void qc_softmax_short(const qc_softmax *s, const uint8_t *x, uint8_t *y) {
  float from[QC_RUN], made[QC_RUN];
  const qc_operand plain = {.step = 4};
  int64_t count = s->y.t.c;
  const float *values = qc_floats(&s->x, x, count, from);
  float most = qc_row_largest(&plain, (const uint8_t *)values, count, 1.0f), level = most == -__builtin_inff() ? 0.0f : most;
  qf_lanes sums = qf_lanes_of(0.0f);
  QC_OVER_LANES(qf e = qf_exp(qc_some(values + i, room) - level); qc_set(made + i, e, room); sums.v[j] += qc_inside(e, room, 0.0f);)
  float sum = qf_total(&sums), factor = 1.0f / sum, *to = qc_place_for(&s->y, y, made);
  if (s->log) {
    qf less = qf_log(qf_all(sum));
    QC_OVER_LANES(qc_set(to + i, (qc_some(values + i, room) - level) - less, room);)
  } else {
    QC_OVER_LANES(qc_set(to + i, qc_some(made + i, room) * factor, room);)
  }
  qc_put(&s->y, y, to, count);
}

static void qc_softmax_rows(const qc_softmax *s, int64_t lo, int64_t hi) {
  for (int64_t row = lo; row < hi; row++) {
    const uint8_t *x = qc_pixel(&s->x.t, row, &s->y.t);
    uint8_t *y = qc_pixel(&s->y.t, row, &s->y.t);
    if (s->y.t.c <= QC_RUN)
      qc_softmax_short(s, x, y);
    else
      qc_softmax_long(s, x, y);
  }
}

static int64_t qc_cumsum_rows_units(const qc_cumsum *s) { return qc_pixels_of(&s->y.t); }

static void qc_cumsum_rows(const qc_cumsum *s, int64_t lo, int64_t hi) {
  float from[QC_RUN], made[QC_RUN];
  int64_t c = s->y.t.c, wide = qc_width_of(&s->y);
  for (int64_t row = lo; row < hi; row++) {
    const uint8_t *x = qc_pixel(&s->x.t, row, &s->y.t);
    uint8_t *y = qc_pixel(&s->y.t, row, &s->y.t);
    double sum = 0;
    QC_EACH_RUN(c) {
      const float *values = qc_floats(&s->x, x + at * s->x.step, count, from);
      float *to = qc_place_for(&s->y, y + at * wide, made);
      for (int64_t i = 0; i < count; i++) to[i] = (float)(sum += values[i]);
      qc_put(&s->y, y + at * wide, to, count);
    }
  }
}

static int64_t qc_reduce_rows_units(const qc_reduce *s) { return qc_pixels_of(&s->y.t); }

#define QC_TOGETHER 64     /* rows that are reduced at once */
#define QC_MOST_CODES (1 << 23) /* in a row, whose sum has 32 bits */

QC_APART int32_t qc_codes_of_row(const uint8_t *x, int64_t length, int64_t step, int32_t op) {
  int32_t sum = 0;
  uint8_t most = op == QC_SMALLEST ? 255 : 0;
  if (op == QC_SUM) {
    if (step == 1)
      for (int64_t i = 0; i < length; i++) sum += x[i];
    else
      for (int64_t i = 0; i < length; i++) sum += x[i * step];
    return sum;
  }
  if (op == QC_LARGEST)
    for (int64_t i = 0; i < length; i++) most = x[i * step] > most ? x[i * step] : most;
  else
    for (int64_t i = 0; i < length; i++) most = x[i * step] < most ? x[i * step] : most;
  return most;
}

/* The largest or smallest of `rows` rows side by side. */
QC_APART void qc_most_codes(const uint8_t *x, int64_t length, int64_t step, int32_t op, int64_t rows, int32_t *made) {
  uint8_t most[QC_TOGETHER];
  memset(most, op == QC_SMALLEST ? 255 : 0, sizeof most);
  for (int64_t i = 0; i < length; i++, x += step) {
    if (op == QC_LARGEST)
      for (int64_t r = 0; r < rows; r++) most[r] = x[r] > most[r] ? x[r] : most[r];
    else
      for (int64_t r = 0; r < rows; r++) most[r] = x[r] < most[r] ? x[r] : most[r];
  }
  for (int64_t r = 0; r < rows; r++) made[r] = most[r];
}

/* Sums of `rows` rows side by side: 257 codes fit into 16 bits. */
QC_APART void qc_sums_of_codes(const uint8_t *x, int64_t length, int64_t step, int64_t rows, int32_t *made) {
  memset(made, 0, QC_TOGETHER * sizeof *made);
  for (int64_t first = 0; first < length; first += 256) {
    uint16_t sums[QC_TOGETHER] = {0};
    for (int64_t i = first; i < qc_min(length, first + 256); i++, x += step)
      for (int64_t r = 0; r < rows; r++) sums[r] = (uint16_t)(sums[r] + x[r]);
    for (int64_t r = 0; r < rows; r++) made[r] += sums[r];
  }
}

/* Of codes: integers up to the end, and of `rows` rows `apart` bytes from each other at once. */
static void qc_reduce_codes(const qc_reduce *s, const uint8_t *x, int64_t rows, int64_t apart, float *v) {
  int32_t made[QC_TOGETHER];
  int64_t c = s->x.t.c, step = s->x.step;
  if (step == 1 || apart != 1)
    for (int64_t r = 0; r < rows; r++) made[r] = qc_codes_of_row(x + r * apart, c, step, s->op);
  else if (s->op == QC_SUM)
    qc_sums_of_codes(x, c, step, rows, made);
  else
    qc_most_codes(x, c, step, s->op, rows, made);
  int32_t zero = s->op == QC_SUM ? (int32_t)c * s->x.zero : s->x.zero;
  float scale = s->x.scale, factor = s->op == QC_SUM ? s->factor : 1.0f;
  for (int64_t r = 0; r < rows; r++) v[r] = (float)(made[r] - zero) * scale * factor;
}

static void qc_reduce_floats(const qc_reduce *s, const uint8_t *x, int64_t rows, int64_t apart, float *v) {
  for (int64_t r = 0; r < rows; r++, x += apart)
    v[r] = s->op == QC_SUM ? qc_row_sum(&s->x, x, s->x.t.c) * s->factor
                           : qc_row_largest(&s->x, x, s->x.t.c, s->op == QC_LARGEST ? 1.0f : -1.0f);
}

static void qc_reduce_rows(const qc_reduce *s, int64_t lo, int64_t hi) {
  float v[QC_TOGETHER];
  int64_t rows = 0, apart = s->y.t.sw;
  for (int64_t row = lo; row < hi; row += rows) {
    rows = qc_min(qc_min(hi - row, QC_TOGETHER), s->y.t.w - row % s->y.t.w);
    const uint8_t *x = qc_pixel(&s->x.t, row, &s->y.t);
    uint8_t *y = qc_pixel(&s->y.t, row, &s->y.t);
    if (s->x.codes && s->x.t.c < QC_MOST_CODES)
      qc_reduce_codes(s, x, rows, s->x.t.sw, v);
    else
      qc_reduce_floats(s, x, rows, s->x.t.sw, v);
    if (s->y.codes && apart == 1) {
      qc_put(&s->y, y, v, rows);
      continue;
    }
    for (int64_t r = 0; r < rows; r++, y += apart) {
      float *to = qc_place_for(&s->y, y, v + r);
      *to = v[r];
      qc_put(&s->y, y, to, 1);
    }
  }
}

#endif
