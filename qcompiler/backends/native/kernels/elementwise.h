/* Sums, products and tables. A piece is one row of the result; where pixels lie without gaps a row is one run of w * c codes. */
#ifndef QC_ELEMENTWISE_H
#define QC_ELEMENTWISE_H

#include "vec.h"

QC_INLINE void qc_add_run(const qc_add *s, const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t count, int step) {
  qc_sum sum = s->sum;
  int64_t i = 0;
#if QC_ISA != QC_SCALAR
  qv_sums sums = qv_find_sums(&sum);
  qv one = qv_all(b[0]);
  for (; i + QC_VB <= count; i += QC_VB) qv_store(y + i, qv_sum(&sums, qv_load(a + i), step ? qv_load(b + i) : one));
#endif
  for (; i < count; i++) y[i] = (uint8_t)qc_sum_code(&sum, a[i], b[step ? i : 0]);
}

static int64_t qc_add_rows_units(const qc_add *s) { return qc_rows(&s->y); }

static void qc_add_rows(const qc_add *s, int64_t lo, int64_t hi) {
  int64_t c = s->y.c;
  int flat = s->step && s->a.sw == c && s->b.sw == c && s->y.sw == c;
  int64_t pixels = flat ? 1 : s->y.w, count = flat ? c * s->y.w : c;
  for (int64_t row = lo; row < hi; row++) {
    const uint8_t *a = qc_row(&s->a, row, s->y.d, s->y.h), *b = qc_row(&s->b, row, s->y.d, s->y.h);
    uint8_t *y = qc_row(&s->y, row, s->y.d, s->y.h);
    for (int64_t i = 0; i < pixels; i++, a += s->a.sw, b += s->b.sw, y += s->y.sw) {
      if (s->step)
        qc_add_run(s, a, b, y, count, 1);
      else
        qc_add_run(s, a, b, y, count, 0);
    }
  }
}

#if QC_IS_256
/* 16 differences as numbers of 16 bits. */
QC_INLINE __m256i qc_centred(const uint8_t *x, __m256i zero) {
  return _mm256_sub_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)x)), zero);
}

/* 16 products of such numbers, times k, as numbers of 16 bits; in two halves of a lane each, which the packing puts in order. */
QC_INLINE __m256i qc_scaled(__m256i a, __m256i b, __m256 k) {
  __m256i low = _mm256_mullo_epi16(a, b), high = _mm256_mulhi_epi16(a, b);
  __m256 v[2] = {_mm256_cvtepi32_ps(_mm256_unpacklo_epi16(low, high)), _mm256_cvtepi32_ps(_mm256_unpackhi_epi16(low, high))};
  for (int i = 0; i < 2; i++) v[i] = _mm256_min_ps(_mm256_mul_ps(v[i], k), _mm256_set1_ps(1e6f));
  return _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
}

/* As many of the codes as vectors take; the rest is left. */
QC_INLINE int64_t qc_mul_vectors(const qc_mul *s, const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t count, int step) {
  __m256i za = _mm256_set1_epi16((short)s->za), zb = _mm256_set1_epi16((short)s->zb), zero = _mm256_set1_epi16((short)s->zero);
  __m256i lo = _mm256_set1_epi8((char)s->lo), hi = _mm256_set1_epi8((char)s->hi), one = _mm256_set1_epi16((short)(b[0] - s->zb));
  __m256 k = _mm256_set1_ps(s->k);
  int64_t i = 0;
  for (; i + 32 <= count; i += 32) {
    __m256i v[2];
    for (int j = 0; j < 2; j++) {
      __m256i right = step ? qc_centred(b + i + 16 * j, zb) : one;
      v[j] = _mm256_adds_epi16(qc_scaled(qc_centred(a + i + 16 * j, za), right, k), zero);
    }
    __m256i q = _mm256_permute4x64_epi64(_mm256_packus_epi16(v[0], v[1]), 0xd8);
    qv_store(y + i, _mm256_min_epu8(_mm256_max_epu8(q, lo), hi));
  }
  return i;
}
#else
#define qc_mul_vectors(s, a, b, y, count, step) 0
#endif

QC_INLINE void qc_mul_run(const qc_mul *s, const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t count, int step) {
  float k = s->k;
  int32_t za = s->za, zb = s->zb, zero = s->zero, lo = s->lo, hi = s->hi;
  for (int64_t i = qc_mul_vectors(s, a, b, y, count, step); i < count; i++)
    y[i] = (uint8_t)qc_code((float)((a[i] - za) * (b[step ? i : 0] - zb)) * k, zero, lo, hi);
}

static int64_t qc_mul_rows_units(const qc_mul *s) { return qc_rows(&s->y); }

static void qc_mul_rows(const qc_mul *s, int64_t lo, int64_t hi) {
  int64_t c = s->y.c;
  int flat = s->step && s->a.sw == c && s->b.sw == c && s->y.sw == c;
  int64_t pixels = flat ? 1 : s->y.w, count = flat ? c * s->y.w : c;
  for (int64_t row = lo; row < hi; row++) {
    const uint8_t *a = qc_row(&s->a, row, s->y.d, s->y.h), *b = qc_row(&s->b, row, s->y.d, s->y.h);
    uint8_t *y = qc_row(&s->y, row, s->y.d, s->y.h);
    for (int64_t i = 0; i < pixels; i++, a += s->a.sw, b += s->b.sw, y += s->y.sw) {
      if (s->step)
        qc_mul_run(s, a, b, y, count, 1);
      else
        qc_mul_run(s, a, b, y, count, 0);
    }
  }
}

static void qc_map_run(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t count) {
  if (table) {
    int64_t i = 0;
#if QC_ISA != QC_SCALAR
    for (; i + QC_VB <= count; i += QC_VB) qv_store(y + i, qv_lookup(table, qv_load(x + i)));
#endif
    for (; i < count; i++) y[i] = table[x[i]];
  } else if (x != y) {
    memcpy(y, x, (size_t)count);
  }
}

static void qc_map_channels(const uint8_t *tables, const uint8_t *x, uint8_t *y, int64_t count) {
  for (int64_t i = 0; i < count; i++, tables += 256) y[i] = tables[x[i]];
}

static int64_t qc_map_rows_units(const qc_map *s) { return qc_rows(&s->y); }

static void qc_map_rows(const qc_map *s, int64_t lo, int64_t hi) {
  int flat = !s->each && s->x.sw == s->y.c && s->y.sw == s->y.c;
  int64_t pixels = flat ? 1 : s->y.w, count = flat ? (int64_t)s->y.c * s->y.w : s->y.c;
  for (int64_t row = lo; row < hi; row++) {
    const uint8_t *x = qc_row(&s->x, row, s->y.d, s->y.h);
    uint8_t *y = qc_row(&s->y, row, s->y.d, s->y.h);
    for (int64_t i = 0; i < pixels; i++) {
      if (s->each)
        qc_map_channels(s->table, x + i * s->x.sw, y + i * s->y.sw, count);
      else
        qc_map_run(s->table, x + i * s->x.sw, y + i * s->y.sw, count);
    }
  }
}

#endif
