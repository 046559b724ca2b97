/* The epilogue for AVX-512: 32 channels of two positions at once. */
#ifndef QC_FINISH_512_H
#define QC_FINISH_512_H

#include "tiles.h"

#if QC_IS_512

enum { QC_PLAIN, QC_FULL, QC_FLOATS }; /* codes 0..255; with bounds, residual, table or the cut; floats */

QC_INLINE int qc_kind(const qc_epilogue *e, const qc_tensor *r, int floats) {
  if (floats) return QC_FLOATS;
  return r->p || e->table || e->wide || e->lo > 0 || e->hi < 255 ? QC_FULL : QC_PLAIN;
}

/* Constants of 32 channels. */
typedef struct qc_finish512 {
  __m512 m[2], b[2];
  __m512i zero, lo, hi;
  const qc_epilogue *e;
} qc_finish512;

QC_INLINE qc_finish512 qc_begin512(const qc_epilogue *e, int64_t c) {
  qc_finish512 f = {.e = e};
  for (int i = 0; i < 2; i++) {
    f.m[i] = _mm512_loadu_ps(e->m + c + 16 * i);
    f.b[i] = _mm512_loadu_ps(e->b + c + 16 * i);
  }
  f.zero = _mm512_set1_epi16((short)e->zero);
  f.lo = _mm512_set1_epi8((char)e->lo);
  f.hi = _mm512_set1_epi8((char)e->hi);
  return f;
}

QC_INLINE __m512 qc_affine512(__m512i acc, __m512 m, __m512 b) { return _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc), m), b); }

/* 64 integers of two positions to bytes: position 0 in the low half. Saturating twice is the clamp to 0..255. */
QC_INLINE __m512i qc_pack512(const __m512i v[4], __m512i zero) {
  __m512i p0 = _mm512_adds_epi16(_mm512_packs_epi32(v[0], v[1]), zero), p1 = _mm512_adds_epi16(_mm512_packs_epi32(v[2], v[3]), zero);
  __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(p0, p1));
}

/* 64 lookups in a table of 256. */
QC_INLINE __m512i qc_lookup512(const uint8_t *table, __m512i q) {
#if defined(__AVX512VBMI__)
  __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(table), q, _mm512_loadu_si512(table + 64));
  __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(table + 128), q, _mm512_loadu_si512(table + 192));
  return _mm512_mask_blend_epi8(_mm512_movepi8_mask(q), low, high);
#else
  __m512i index = _mm512_and_si512(q, _mm512_set1_epi8(15)), row = _mm512_and_si512(_mm512_srli_epi16(q, 4), _mm512_set1_epi8(15));
  __m512i found = _mm512_setzero_si512();
  for (int i = 0; i < 16; i++) {
    __m512i part = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)(table + 16 * i)));
    found = _mm512_mask_shuffle_epi8(found, _mm512_cmpeq_epi8_mask(row, _mm512_set1_epi8((char)i)), part, index);
  }
  return found;
#endif
}

/* v is cut to the codes and rounded; the code as a float. See qc_round. */
QC_INLINE __m512 qc_code512(__m512 v, int32_t zero, int32_t lo, int32_t hi) {
  v = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps((float)(lo - zero))), _mm512_set1_ps((float)(hi - zero)));
  return _mm512_sub_ps(_mm512_add_ps(v, _mm512_set1_ps(12582912.0f)), _mm512_set1_ps(12582912.0f - (float)zero));
}

QC_INLINE __m512i qc_add_residual512(const qc_epilogue *e, __m512 v, const uint8_t *r, __mmask16 mask) {
  __m512 q = qc_code512(v, e->zero, e->lo, e->hi);
  __m512 codes = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, r)));
  __m512 right = _mm512_add_ps(_mm512_mul_ps(codes, _mm512_set1_ps(e->kr)), _mm512_set1_ps(e->kc));
  __m512 sum = _mm512_add_ps(_mm512_mul_ps(q, _mm512_set1_ps(e->k)), right);
  return _mm512_cvtps_epi32(qc_code512(sum, e->zero2, e->lo2, e->hi2));
}

/* acc: [position][half of 16 channels]; r: the residual of each position, or NULL. */
QC_INLINE __m512i qc_codes512(const qc_finish512 *f, const __m512i acc[4], const uint8_t *r0, const uint8_t *r1, __mmask32 mask, int kind) {
  __m512i v[4];
  const uint8_t *r[4] = {r0, r0 + 16, r1, r1 + 16};
  int residual = kind == QC_FULL && r0;
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    __m512 value = qc_affine512(acc[i], f->m[i & 1], f->b[i & 1]);
    if (kind == QC_FULL) value = _mm512_min_ps(value, _mm512_set1_ps(1e6f));
    v[i] = residual ? qc_add_residual512(f->e, value, r[i], (__mmask16)(mask >> (16 * (i & 1)))) : _mm512_cvtps_epi32(value);
  }
  __m512i q = qc_pack512(v, residual ? _mm512_setzero_si512() : f->zero);
  if (kind == QC_PLAIN) return q;
  if (!residual) q = _mm512_min_epu8(_mm512_max_epu8(q, f->lo), f->hi);
  return f->e->table ? qc_lookup512(f->e->table, q) : q;
}

QC_INLINE void qc_store512(__m512i q, uint8_t *y0, uint8_t *y1, __mmask32 mask) {
  if (mask == 0xffffffffu) {
    _mm256_storeu_si256((__m256i *)(void *)y0, _mm512_castsi512_si256(q));
    _mm256_storeu_si256((__m256i *)(void *)y1, _mm512_extracti64x4_epi64(q, 1));
  } else {
    _mm256_mask_storeu_epi8(y0, mask, _mm512_castsi512_si256(q));
    _mm256_mask_storeu_epi8(y1, mask, _mm512_extracti64x4_epi64(q, 1));
  }
}

QC_INLINE void qc_store_floats512(const qc_finish512 *f, const __m512i acc[4], uint8_t *y0, uint8_t *y1, __mmask32 mask) {
  uint8_t *y[4] = {y0, y0 + 64, y1, y1 + 64};
  for (int i = 0; i < 4; i++)
    _mm512_mask_storeu_ps(y[i], (__mmask16)(mask >> (16 * (i & 1))), qc_affine512(acc[i], f->m[i & 1], f->b[i & 1]));
}

/* Where the results of a tile's positions go, and where their residuals are; positions that are none go to `trash` (128 bytes). */
typedef struct qc_places {
  uint8_t *y[16];
  const uint8_t *r[16];
} qc_places;

QC_INLINE void qc_point512(void *to, const uint8_t *base, __m512i row, __m512i column, int64_t down, int64_t right, __mmask16 real, void *trash) {
  __m512i place = _mm512_add_epi32(_mm512_mullo_epi32(row, _mm512_set1_epi32((int)down)), _mm512_mullo_epi32(column, _mm512_set1_epi32((int)right)));
  for (int i = 0; i < 2; i++) {
    __m256i half = i ? _mm512_extracti64x4_epi64(place, 1) : _mm512_castsi512_si256(place);
    __m512i address = _mm512_add_epi64(_mm512_cvtepi32_epi64(half), _mm512_set1_epi64((long long)(intptr_t)base));
    address = _mm512_mask_blend_epi64((__mmask8)(real >> (8 * i)), _mm512_set1_epi64((long long)(intptr_t)trash), address);
    _mm512_storeu_si512((char *)to + 64 * i, address);
  }
}

/* `at`: bytes from a position's first channel to those that are stored. */
QC_INLINE void qc_find_places(const qc_conv *a, const qc_runs *t, const qc_tile *tile, int64_t c, qc_places *p, uint8_t *trash) {
  __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i position = _mm512_add_epi32(_mm512_set1_epi32((int)tile->start), lane);
  __m512 middle = _mm512_add_ps(_mm512_cvtepi32_ps(position), _mm512_set1_ps(0.5f));
  __m512i row = _mm512_cvttps_epi32(_mm512_mul_ps(middle, _mm512_set1_ps(1.0f / (float)t->flat)));
  __m512i column = _mm512_sub_epi32(position, _mm512_mullo_epi32(row, _mm512_set1_epi32((int)t->flat)));
  int64_t real_width = t->length == t->flat ? t->length : a->y.w;
  __mmask16 real = _mm512_cmplt_epi32_mask(column, _mm512_set1_epi32((int)real_width));
  real &= _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(t->rows));
  qc_point512(p->y, tile->y + (a->floats ? 4 * c : c), row, column, a->y.sh, a->y.sw, real, trash);
  if (tile->r) qc_point512(p->r, tile->r + c, row, column, a->r.sh, a->r.sw, real, trash);
}

#endif
#endif
