/* Vectors of QC_F floats, and functions of them: the same bits on every instruction set.

   Only +, -, *, /, square roots and comparisons are used, which IEEE 754 rounds in one way; nothing is fused (-ffp-contract=off). The
   vectors are those of the compiler (gcc, clang), so that one text is the code of every instruction set.

   A sum over a row, everywhere: lane i of 16 adds the elements i, 16 + i, 32 + i, ... in order, those that are missing at the end being
   zeros; then lane i adds lane i + 8, then i + 4, i + 2, i + 1.

   Largest errors, relative where nothing else is said: exp, sigmoid 2e-7, tanh 2e-7, erf 1e-7, log 1e-7 (near 1: of log(x) itself). */
#ifndef QC_FLOAT_H
#define QC_FLOAT_H

#include "round.h"

#if QC_IS_512
#define QC_F 16
#elif QC_IS_256
#define QC_F 8
#else
#define QC_F 4
#endif
#define QC_LANES 16 /* of sums */

typedef float qf __attribute__((vector_size(4 * QC_F)));
typedef int32_t qf_bits __attribute__((vector_size(4 * QC_F)));

QC_INLINE qf qf_load(const float *p) {
  qf v;
  memcpy(&v, p, sizeof v);
  return v;
}
QC_INLINE void qf_store(float *p, qf v) { memcpy(p, &v, sizeof v); }
QC_INLINE qf qf_all(float v) { return v - (qf){0}; }
/* where the mask's bits are set a, else b */
QC_INLINE qf qf_choose(qf_bits mask, qf a, qf b) { return (qf)((mask & (qf_bits)a) | (~mask & (qf_bits)b)); }
/* a > b ? a : b and a < b ? a : b, which x86 has: b where one of them is NaN */
QC_INLINE qf qf_larger(qf a, qf b) {
#if QC_IS_512
  return (qf)_mm512_max_ps((__m512)a, (__m512)b);
#elif QC_IS_256
  return (qf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return qf_choose(a > b, a, b);
#endif
}
QC_INLINE qf qf_smaller(qf a, qf b) {
#if QC_IS_512
  return (qf)_mm512_min_ps((__m512)a, (__m512)b);
#elif QC_IS_256
  return (qf)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return qf_choose(a < b, a, b);
#endif
}
QC_INLINE qf qf_raise(qf v, float least) { return qf_larger(qf_all(least), v); } /* NaN stays NaN */
QC_INLINE qf qf_lower(qf v, float most) { return qf_smaller(qf_all(most), v); }
QC_INLINE qf qf_abs(qf v) { return (qf)((qf_bits)v & 0x7fffffff); }
QC_INLINE qf qf_sign_of(qf v, qf sign) { return (qf)((qf_bits)v | ((qf_bits)sign & (qf_bits)qf_all(-0.0f))); }

QC_INLINE qf qf_sqrt(qf v) {
#if QC_IS_512
  return (qf)_mm512_sqrt_ps((__m512)v);
#elif QC_IS_256
  return (qf)_mm256_sqrt_ps((__m256)v);
#elif QC_ISA == QC_NEON
  return (qf)vsqrtq_f32((float32x4_t)v);
#else
  for (int i = 0; i < QC_F; i++) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

/* 2^n * v, rounded once: results below the smallest normal number come out right. n: a whole number within -252..252, which `shifted` is
   more than by 1.5 * 2^23. */
QC_INLINE qf qf_scale(qf v, qf n, qf shifted) {
#if QC_IS_512
  return (void)shifted, (qf)_mm512_scalef_ps((__m512)v, (__m512)n);
#else
  qf_bits whole = (qf_bits)shifted - 0x4B400000, half = whole >> 1;
  return (void)n, v * (qf)((half + 127) << 23) * (qf)((whole - half + 127) << 23);
#endif
}

/* x = n * ln 2 + r, |r| <= ln 2 / 2; exp(r) = 1 + r + r^2 * P(r). Beyond the ends it is 0 or infinity. */
QC_INLINE qf qf_exp(qf x) {
  x = qf_lower(qf_raise(x, -105.0f), 89.0f);
  qf shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f; /* adding 1.5 * 2^23 rounds to an integer */
  qf r = x - n * 0.693359375f;                                          /* exact: the constant has ten bits */
  r = r - n * -2.12194440e-4f;
  qf p = r * 0.0013950602151453495f + 0.008368953131139278f;
  p = p * r + 0.04166620597243309f;
  p = p * r + 0.166665181517601f;
  p = p * r + 0.5f;
  return qf_scale(p * (r * r) + r + 1.0f, n, shifted);
}

/* x = 2^n * m, sqrt(1/2) <= m < sqrt(2), f = m - 1; log(m) = f - f^2 / 2 + f^3 * P(f). 0 gives -infinity, below it NaN.
   The sign is cut off, so that no difference leaves 32 bits. */
QC_INLINE qf qf_log(qf x) {
  qf_bits small = x < qf_all(1.17549435e-38f);
  qf scaled = qf_choose(small, x * 8388608.0f, x);
  qf_bits bits = ((qf_bits)scaled & 0x7fffffff) - 0x3f3504f3, n = (bits >> 23) - (small & 23);
  qf f = (qf)((bits & 0x7fffff) + 0x3f3504f3) - 1.0f, e = __builtin_convertvector(n, qf);
  qf p = f * -0.1178983524441719f + 0.06915424764156342f * (f * f);
  p = p + 0.11872965842485428f;
  p = p * f + -0.12384343147277832f;
  p = p * f + 0.14218658208847046f;
  p = p * f + -0.16669251024723053f;
  p = p * f + 0.20002226531505585f;
  p = p * f + -0.24999986588954926f;
  p = p * f + 0.3333331048488617f;
  qf z = f * f, y = p * f * z + e * -2.12194440e-4f;
  y = (y - 0.5f * z) + f + e * 0.693359375f;
  y = qf_choose(x < qf_all(0.0f), x - x + qf_all(__builtin_nanf("")), y);
  y = qf_choose(x == qf_all(0.0f), qf_all(-__builtin_inff()), y);
  return qf_choose((x == qf_all(__builtin_inff())) | (x != x), x, y);
}

/* |x| < 0.625: x + x^3 * P(x^2); else 1 - 2 / (exp(2 x) + 1). */
QC_INLINE qf qf_tanh(qf x) {
  qf t = qf_abs(x), z = x * x;
  qf p = z * -0.005717044696211815f + 0.020650586113333702f;
  p = p * z + -0.05374349653720856f;
  p = p * z + 0.13331490755081177f;
  p = p * z + -0.3333328366279602f;
  qf far = 1.0f - 2.0f / (qf_exp(t + t) + 1.0f);
  return qf_choose(t < qf_all(0.625f), p * z * x + x, qf_sign_of(far, x));
}

/* |x| < 1: x + x * P(x^2); else 1 - exp(-t * (t + Q(t))), t = |x|. */
QC_INLINE qf qf_erf(qf x) {
  qf t = qf_lower(qf_abs(x), 4.0f), z = x * x;
  qf p = z * 7.889122935011983e-05f + -0.0008020842215046287f;
  p = p * z + 0.005189535673707724f;
  p = p * z + -0.026854444295167923f;
  p = p * z + 0.11283600330352783f;
  p = p * z + -0.3761262595653534f;
  p = p * z + 0.12837916612625122f;
  qf q = t * 3.5570476484281244e-06f + -2.8435881176847033e-05f;
  q = q * t + -0.0001387470110785216f;
  q = q * t + 0.0031820081640034914f;
  q = q * t + -0.023091629147529602f;
  q = q * t + 0.1056690514087677f;
  q = q * t + -0.3645898699760437f;
  q = q * t + 1.1285995244979858f;
  qf far = 1.0f - qf_exp(-t * (t + q));
  return qf_choose(t < qf_all(1.0f), p * x + x, qf_sign_of(far, x));
}

QC_INLINE qf qf_sigmoid(qf x) { return 1.0f / (1.0f + qf_exp(-x)); }

/* The 16 lanes of a sum, or of a largest value. */
typedef struct qf_lanes {
  qf v[QC_LANES / QC_F];
} qf_lanes;

QC_INLINE qf_lanes qf_lanes_of(float v) {
  qf_lanes made;
  for (int i = 0; i < QC_LANES / QC_F; i++) made.v[i] = qf_all(v);
  return made;
}

QC_INLINE float qf_total(const qf_lanes *lanes) {
#if QC_IS_X86
#if QC_IS_512
  __m512 all = (__m512)lanes->v[0];
  __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(all), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
#else
  __m256 eight = _mm256_add_ps((__m256)lanes->v[0], (__m256)lanes->v[1]);
#endif
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#else
  float s[QC_LANES];
  memcpy(s, lanes, sizeof s);
  for (int half = QC_LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) s[i] = s[i] + s[i + half];
  return s[0];
#endif
}

/* The largest lane; any number where one is NaN. */
QC_INLINE float qf_top(const qf_lanes *lanes) {
#if QC_IS_X86
#if QC_IS_512
  __m512 all = (__m512)lanes->v[0];
  __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(all), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
#else
  __m256 eight = _mm256_max_ps((__m256)lanes->v[0], (__m256)lanes->v[1]);
#endif
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
#else
  float s[QC_LANES];
  memcpy(s, lanes, sizeof s);
  for (int half = QC_LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) s[i] = s[i] > s[i + half] ? s[i] : s[i + half];
  return s[0];
#endif
}

QC_INLINE float qf_largest(const qf_lanes *lanes) {
  float s[QC_LANES], most;
  memcpy(s, lanes, sizeof s);
  most = s[0];
  for (int i = 1; i < QC_LANES; i++) most = s[i] > most || s[i] != s[i] ? s[i] : most;
  return most;
}

/* Up to QC_F floats, zeros behind them; and the first `count` of a vector. */
QC_INLINE qf qf_load_part(const float *p, int64_t count) {
  qf v = {0};
  memcpy(&v, p, (size_t)(4 * count));
  return v;
}
QC_INLINE void qf_store_part(float *p, qf v, int64_t count) { memcpy(p, &v, (size_t)(4 * count)); }

#endif
