/* The epilogue for AVX2: 16 channels of two positions at once. */
#ifndef QC_FINISH_256_H
#define QC_FINISH_256_H

#include "blocks.h"
#include "curve.h"

/* Constants of 16 channels. zero, lo, hi: of the result, or of what a residual is added to. They are made here once, since a compiler must
   think that what is stored may change the epilogue. */
typedef struct qc_finish256 {
  __m256 m[2], b[2];
  __m256i zero, lo, hi;
  qv_sums sum;
  qc_curved curved;
  int64_t c; /* the first of its channels */
} qc_finish256;

QC_INLINE qc_finish256 qc_begin256(const qc_epilogue *e, int64_t c, int residual) {
  qc_finish256 f = {.c = c};
  for (int i = 0; i < 2; i++) {
    f.m[i] = _mm256_loadu_ps(e->m + c + 8 * i);
    f.b[i] = _mm256_loadu_ps(e->b + c + 8 * i);
  }
  f.curved = qc_find_curve(e);
  f.zero = qv_words((int16_t)e->zero), f.lo = qv_all((uint8_t)e->lo), f.hi = qv_all((uint8_t)e->hi);
  if (residual) f.sum = qv_find_sums(&e->sum);
  return f;
}

QC_INLINE __m256 qc_affine256(const int32_t *acc, __m256 m, __m256 b) {
  return _mm256_add_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(qv_load(acc)), m), b);
}

QC_INLINE __m256i qc_in_order256(__m256i q) { return _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)); }

/* 32 integers of two positions to bytes: position 0 in the low half. Saturating twice is the clamp to 0..255. */
QC_INLINE __m256i qc_pack256(const __m256i v[4], __m256i zero) {
  __m256i p0 = _mm256_adds_epi16(_mm256_packs_epi32(v[0], v[1]), zero), p1 = _mm256_adds_epi16(_mm256_packs_epi32(v[2], v[3]), zero);
  return qc_in_order256(_mm256_packus_epi16(p0, p1));
}

/* What a function does to sums of channels from c on. See qc_bend. */
QC_INLINE __m256 qc_bend256(const qc_epilogue *e, __m256 v, int64_t c) {
  __m256 none = _mm256_setzero_ps();
  __m256 above = _mm256_min_ps(_mm256_max_ps(v, none), _mm256_set1_ps(e->top));
  v = _mm256_add_ps(above, _mm256_mul_ps(_mm256_min_ps(v, none), _mm256_loadu_ps(e->slope + c)));
  return _mm256_add_ps(_mm256_mul_ps(v, _mm256_loadu_ps(e->gain + c)), _mm256_loadu_ps(e->offset + c));
}

/* sums: [2 positions][16]; r0, r1: the residual of each position, NULL without one. What is too large for an integer is cut before it
   becomes one; what is too small becomes the smallest of them. */
QC_INLINE __m256i qc_codes256(const qc_epilogue *e, qc_finish256 f, const int32_t *sums, const uint8_t *r0, const uint8_t *r1, int kind) {
  int residual = kind == QC_ADDED || (kind == QC_FULL && r0);
  __m256i v[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    __m256 value = qc_affine256(sums + 8 * i, f.m[i & 1], f.b[i & 1]);
    if (kind == QC_FULL && e->gain) value = qc_bend256(e, value, f.c + 8 * (i & 1));
    if (kind == QC_FULL) value = _mm256_min_ps(value, _mm256_set1_ps(1e6f));
    v[i] = _mm256_cvtps_epi32(value);
  }
  int curved = kind == QC_FULL && qc_is_curved(e);
  __m256i q = curved ? qc_in_order256(qv_curve_sums(v, &f.curved)) : qc_pack256(v, f.zero);
  if (kind == QC_PLAIN) return q;
  if (kind == QC_FULL || e->lo > 0 || e->hi < 255) q = qv_cut(q, f.lo, f.hi);
  if (residual) q = qv_sum(&f.sum, q, qv_lanes(r0, r1, NULL, NULL));
  return kind == QC_FULL && !curved && e->table ? qv_lookup(e->table, q) : q;
}

/* A block of which only `count` channels are stored: nothing is read or written behind them. */
QC_INLINE void qc_finish_part256(const qc_epilogue *e, qc_finish256 f, const qc_spots *s, int rows, const qc_pair *p, const int32_t *sums, int kind) {
  uint8_t codes[32], residual[32] = {0};
  size_t count = (size_t)p->count;
  for (int i = 0; i < rows; i += 2, sums += 32) {
    int two = i + 1 < rows, added = kind == QC_ADDED || (kind == QC_FULL && s->r[0]);
    for (int j = 0; added && j <= two; j++) memcpy(residual + 16 * j, s->r[i + j] + p->c, count);
    qv_store(codes, qc_codes256(e, f, sums, added ? residual : NULL, residual + 16, kind));
    for (int j = 0; j <= two; j++) {
      if (count == 8)
        memcpy(s->y[i + j] + p->c, codes + 16 * j, 8);
      else
        memcpy(s->y[i + j] + p->c, codes + 16 * j, count);
    }
  }
}

QC_INLINE void qc_finish_floats256(qc_finish256 f, const qc_spots *s, int rows, const qc_pair *p, const int32_t *sums) {
  float v[16];
  for (int i = 0; i < rows; i++, sums += 16) {
    for (int j = 0; j < 2; j++) _mm256_storeu_ps(v + 8 * j, qc_affine256(sums + 8 * j, f.m[j], f.b[j]));
    memcpy(s->y[i] + 4 * p->c, v, (size_t)(4 * p->count));
  }
}

/* sums: [rows][16 channels], one row more where they are odd. */
QC_INLINE void qc_finish_spots(const qc_epilogue *e, const qc_spots *s, int rows, const qc_pair *p, const int32_t *sums, int kind) {
  QC_ALIGNED uint8_t trash[16];
  qc_finish256 f = qc_begin256(e, p->c, kind == QC_ADDED || (kind == QC_FULL && s->r[0]));
  int64_t c = p->c;
  if (kind == QC_FLOATS) {
    qc_finish_floats256(f, s, rows, p, sums);
  } else if (p->count < 16) {
    qc_finish_part256(e, f, s, rows, p, sums, kind);
  } else {
    for (int i = 0; i < rows; i += 2, sums += 32) {
      int two = i + 1 < rows, added = kind == QC_ADDED || (kind == QC_FULL && s->r[0]);
      const uint8_t *r0 = added ? s->r[i] + c : NULL, *r1 = added ? s->r[i + two] + c : NULL;
      __m256i q = qc_codes256(e, f, sums, r0, r1, kind);
      _mm_storeu_si128((__m128i *)(void *)(s->y[i] + c), _mm256_castsi256_si128(q));
      _mm_storeu_si128((__m128i *)(void *)(two ? s->y[i + 1] + c : trash), _mm256_extracti128_si256(q, 1));
    }
  }
}

#endif
