/* Functions of single floats and sums, products, quotients of two. A piece is a pixel of the result. */
#ifndef QC_FLOAT_MAP_H
#define QC_FLOAT_MAP_H

#include "float_rows.h"
#include "sine.h"

QC_INLINE qf qc_elu(qf x, float alpha, float scale) { return qf_choose(x > qf_all(0.0f), x, (qf_exp(x) - 1.0f) * alpha) * scale; }
QC_INLINE qf qc_hardsigmoid(qf x) { return qf_lower(qf_raise(x + 3.0f, 0.0f), 6.0f) / 6.0f; }
QC_INLINE qf qc_gelu_tanh(qf x) { return 0.5f * x * (1.0f + qf_tanh((x * x * x * 0.044715f + x) * 0.7978845608f)); }
/* log(1 + e^(x * beta)) / beta, and x itself where x * beta is above a threshold */
QC_INLINE qf qc_softplus(qf x, float beta, float threshold) {
  qf scaled = x * beta, t = qf_exp(-qf_abs(scaled)), u = 1.0f + t, lost = t - (u - 1.0f);
  qf tail = qf_log(u) + lost / u, made = (qf_raise(scaled, 0.0f) + tail) / beta;
  return qf_choose(scaled > qf_all(threshold), x, made);
}

/* Whole numbers towards 0, with the sign of x; beyond 2^23 every float is one. */
QC_INLINE qf qc_trunc(qf x) {
  qf_bits small = qf_abs(x) < qf_all(8388608.0f);
  qf whole = __builtin_convertvector(__builtin_convertvector(qf_choose(small, x, qf_all(0.0f)), qf_bits), qf);
  return qf_choose(small, qf_sign_of(whole, x), x);
}
QC_INLINE qf qc_floor(qf x) {
  qf t = qc_trunc(x);
  return t - qf_choose(t > x, qf_all(1.0f), qf_all(0.0f));
}
QC_INLINE qf qc_nearest(qf x) {
  return qf_choose(qf_abs(x) < qf_all(8388608.0f), qf_sign_of((qf_abs(x) + 8388608.0f) - 8388608.0f, x), x);
}
/* e^x - 1 and log(1 + x): what rounding u to a float took from it is made up for by the quotient of two terms that lost as much. */
QC_INLINE qf qc_expm1(qf x) {
  qf u = qf_exp(x), near = (u - 1.0f) * x / qf_log(u);
  return qf_choose(u == qf_all(1.0f), x, qf_choose((x < qf_all(-80.0f)) | (x > qf_all(80.0f)), u - 1.0f, near));
}
QC_INLINE qf qc_log1p(qf x) {
  qf u = x + 1.0f;
  return qf_choose(u == qf_all(1.0f), x, qf_choose(x > qf_all(1e30f), qf_log(u), qf_log(u) * x / (u - 1.0f)));
}
/* x^n for whole n, by squaring. */
QC_INLINE qf qc_power(qf x, int n) {
  qf made = qf_all(1.0f), square = x;
  for (int left = n < 0 ? -n : n; left; left >>= 1, square = square * square)
    if (left & 1) made = made * square;
  return n < 0 ? 1.0f / made : made;
}

QC_INLINE qf qc_truth(qf_bits mask) { return qf_choose(mask, qf_all(1.0f), qf_all(0.0f)); }
QC_INLINE qf_bits qc_set_bits(qf v) { return v != qf_all(0.0f); }

#define QC_FUNCTIONS(F) \
  F(QC_COPY, x) \
  F(QC_CLAMP, qf_lower(qf_raise(x, p[0]), p[1])) \
  F(QC_EXP, qf_exp(x)) \
  F(QC_LOG, qf_log(x)) \
  F(QC_TANH, qf_tanh(x)) \
  F(QC_ERF, qf_erf(x)) \
  F(QC_SIGMOID, qf_sigmoid(x)) \
  F(QC_SILU, x / (1.0f + qf_exp(-x))) \
  F(QC_GELU, x * 0.5f * (1.0f + qf_erf(x * 0.70710678f))) \
  F(QC_GELU_TANH, qc_gelu_tanh(x)) \
  F(QC_SQRT, qf_sqrt(x)) \
  F(QC_RSQRT, 1.0f / qf_sqrt(x)) \
  F(QC_RECIPROCAL, 1.0f / x) \
  F(QC_SQUARE, x * x) \
  F(QC_NEG, -x) \
  F(QC_ABS, qf_abs(x)) \
  F(QC_HARDSIGMOID, qc_hardsigmoid(x)) \
  F(QC_HARDSWISH, x * qc_hardsigmoid(x)) \
  F(QC_LEAKY_RELU, qf_choose(x > qf_all(0.0f), x, x * p[0])) \
  F(QC_ELU, qc_elu(x, p[0], p[1])) \
  F(QC_SOFTPLUS, qc_softplus(x, p[0], p[1])) \
  F(QC_MISH, x * qf_tanh(qc_softplus(x, 1.0f, 20.0f))) \
  F(QC_NOT, qc_truth(x == qf_all(0.0f))) \
  F(QC_SIN, qc_sines(x, 0)) \
  F(QC_COS, qc_sines(x, 1)) \
  F(QC_FLOOR, qc_floor(x)) \
  F(QC_CEIL, -qc_floor(-x)) \
  F(QC_TRUNC, qc_trunc(x)) \
  F(QC_ROUND, qc_nearest(x)) \
  F(QC_FRAC, x - qc_trunc(x)) \
  F(QC_SIGN, qc_truth(x > qf_all(0.0f)) - qc_truth(x < qf_all(0.0f))) \
  F(QC_EXPM1, qc_expm1(x)) \
  F(QC_LOG1P, qc_log1p(x)) \
  F(QC_LOG_TO, qf_log(x) * p[0]) \
  F(QC_POWER, qc_power(x, (int)p[0])) \
  F(QC_SOFTSIGN, x / (qf_abs(x) + 1.0f)) \
  F(QC_LOGSIGMOID, -qc_softplus(-x, 1.0f, 1e30f))

#define QC_FUNCTION_RUN(NAME, VALUE) \
  static void qc_run_##NAME(const float *from, float *to, int64_t count, const float *p) { \
    int64_t i = 0; \
    (void)p; \
    for (; i + QC_F <= count; i += QC_F) { \
      qf x = qf_load(from + i); \
      qf_store(to + i, VALUE); \
    } \
    if (i < count) { \
      qf x = qf_load_part(from + i, count - i); \
      qf_store_part(to + i, VALUE, count - i); \
    } \
  }
QC_FUNCTIONS(QC_FUNCTION_RUN)
#undef QC_FUNCTION_RUN

typedef void qc_function(const float *, float *, int64_t, const float *);
#define QC_FUNCTION_NAME(NAME, VALUE) qc_run_##NAME,
static qc_function *const qc_functions[] = {QC_FUNCTIONS(QC_FUNCTION_NAME)};
#undef QC_FUNCTION_NAME

static int64_t qc_float_map_pixels_units(const qc_float_map *s) { return qc_pixels_of(&s->y.t); }

static void qc_float_map_run(const qc_float_map *s, const uint8_t *x, uint8_t *y, int64_t count) {
  float from[QC_RUN], room[QC_RUN], *to = qc_place_for(&s->y, y, room);
  if (s->table)
    for (int64_t i = 0; i < count; i++) to[i] = s->table[x[i * s->x.step]];
  else
    qc_functions[s->function](qc_floats(&s->x, x, count, from), to, count, s->p);
  qc_put(&s->y, y, to, count);
}

static void qc_float_map_pixels(const qc_float_map *s, int64_t lo, int64_t hi) {
  int64_t c = s->y.t.c, wide = qc_width_of(&s->y), w = s->y.t.w;
  int flat = s->y.t.sw == c * wide && s->x.t.sw == c * s->x.step;
  for (int64_t i = lo; i < hi;) {
    int64_t pixels = flat ? qc_min(hi - i, w - i % w) : 1, count = pixels * c;
    const uint8_t *x = qc_pixel(&s->x.t, i, &s->y.t);
    uint8_t *y = qc_pixel(&s->y.t, i, &s->y.t);
    for (int64_t j = 0; j < count; j += QC_RUN) qc_float_map_run(s, x + j * s->x.step, y + j * wide, qc_min(QC_RUN, count - j));
    i += pixels;
  }
}

#define QC_PAIRS(F) \
  F(QC_ADD, a + b * times) \
  F(QC_SUB, a - b * times) \
  F(QC_MUL, a *b) \
  F(QC_DIV, a / b) \
  F(QC_MAXIMUM, qf_choose((a > b) | (a != a), a, b)) \
  F(QC_MINIMUM, qf_choose((a < b) | (a != a), a, b)) \
  F(QC_EQ, qc_truth(a == b)) \
  F(QC_NE, qc_truth(a != b)) \
  F(QC_LT, qc_truth(a < b)) \
  F(QC_LE, qc_truth(a <= b)) \
  F(QC_GT, qc_truth(a > b)) \
  F(QC_GE, qc_truth(a >= b)) \
  F(QC_AND, qc_truth(qc_set_bits(a) & qc_set_bits(b))) \
  F(QC_OR, qc_truth(qc_set_bits(a) | qc_set_bits(b))) \
  F(QC_XOR, qc_truth(qc_set_bits(a) ^ qc_set_bits(b)))

#define QC_PAIR_RUN(NAME, VALUE) \
  static void qc_pair_##NAME(const qc_float_pair *s, const float *left, const float *right, float *to, int64_t count) { \
    float times = s->times, least = s->lo, most = s->hi; \
    int64_t i = 0; \
    (void)times; \
    for (; i + QC_F <= count; i += QC_F) { \
      qf a = qf_load(left + i), b = qf_load(right + i); \
      qf_store(to + i, qf_lower(qf_raise(VALUE, least), most)); \
    } \
    if (i < count) { \
      qf a = qf_load_part(left + i, count - i), b = qf_load_part(right + i, count - i); \
      qf_store_part(to + i, qf_lower(qf_raise(VALUE, least), most), count - i); \
    } \
  }
QC_PAIRS(QC_PAIR_RUN)
#undef QC_PAIR_RUN

typedef void qc_pair_function(const qc_float_pair *, const float *, const float *, float *, int64_t);
#define QC_PAIR_NAME(NAME, VALUE) qc_pair_##NAME,
static qc_pair_function *const qc_pair_functions[] = {QC_PAIRS(QC_PAIR_NAME)};
#undef QC_PAIR_NAME

static int64_t qc_float_pair_pixels_units(const qc_float_pair *s) { return qc_pixels_of(&s->y.t); }

static void qc_float_pair_run(const qc_float_pair *s, const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t count) {
  float left[QC_RUN], right[QC_RUN], room[QC_RUN], *to = qc_place_for(&s->y, y, room);
  qc_pair_functions[s->op](s, qc_floats(&s->a, a, count, left), qc_floats(&s->b, b, count, right), to, count);
  qc_put(&s->y, y, to, count);
}

static void qc_float_pair_pixels(const qc_float_pair *s, int64_t lo, int64_t hi) {
  int64_t c = s->y.t.c, wide = qc_width_of(&s->y), w = s->y.t.w, as = s->a.step, bs = s->b.step;
  int flat = s->y.t.sw == c * wide && s->a.t.sw == c * as && s->b.t.sw == c * bs;
  for (int64_t i = lo; i < hi;) {
    int64_t pixels = flat ? qc_min(hi - i, w - i % w) : 1, count = pixels * c;
    const uint8_t *a = qc_pixel(&s->a.t, i, &s->y.t), *b = qc_pixel(&s->b.t, i, &s->y.t);
    uint8_t *y = qc_pixel(&s->y.t, i, &s->y.t);
    for (int64_t j = 0; j < count; j += QC_RUN)
      qc_float_pair_run(s, a + j * as, b + j * bs, y + j * wide, qc_min(QC_RUN, count - j));
    i += pixels;
  }
}

static int64_t qc_where_pixels_units(const qc_where *s) { return qc_pixels_of(&s->y.t); }

/* Up to QC_RUN elements. */
static void qc_where_run(const qc_where *s, const uint8_t *condition, const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t count) {
  float first[QC_RUN], second[QC_RUN], third[QC_RUN], room[QC_RUN], *to = qc_place_for(&s->y, y, room);
  const float *when = qc_floats(&s->condition, condition, count, first);
  const float *left = qc_floats(&s->a, a, count, second), *right = qc_floats(&s->b, b, count, third);
  for (int64_t i = 0; i < count; i++) to[i] = when[i] != 0.0f ? left[i] : right[i];
  qc_put(&s->y, y, to, count);
}

static void qc_where_pixels(const qc_where *s, int64_t lo, int64_t hi) {
  const qc_tensor *t = &s->y.t;
  int64_t c = t->c, wide = qc_width_of(&s->y), cs = s->condition.step, as = s->a.step, bs = s->b.step;
  for (int64_t i = lo; i < hi; i++) {
    const uint8_t *condition = qc_pixel(&s->condition.t, i, t), *a = qc_pixel(&s->a.t, i, t), *b = qc_pixel(&s->b.t, i, t);
    uint8_t *y = qc_pixel(t, i, t);
    for (int64_t j = 0; j < c; j += QC_RUN) qc_where_run(s, condition + j * cs, a + j * as, b + j * bs, y + j * wide, qc_min(QC_RUN, c - j));
  }
}

#endif
