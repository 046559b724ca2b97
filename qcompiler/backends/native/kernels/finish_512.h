/* The epilogue for AVX-512: 32 channels of two positions at once. */
#ifndef QC_FINISH_512_H
#define QC_FINISH_512_H

#include "tiles.h"
#include "curve.h"

#if QC_IS_512

/* Constants of 32 channels. zero, lo, hi: of the result, or of what a residual is added to. They are made here once, since a compiler must
   think that what is stored may change the epilogue. */
typedef struct qc_finish512 {
  __m512 m[2], b[2];
  __m512i zero, lo, hi;
  qv_sums sum;
  qc_curved curved;
  const qc_epilogue *e;
  int64_t c[2]; /* the first channel of each half */
} qc_finish512;

QC_INLINE qc_finish512 qc_begin512(const qc_epilogue *e, int64_t c, int residual) {
  qc_finish512 f = {.e = e, .c = {c, c + 16}};
  for (int i = 0; i < 2; i++) {
    f.m[i] = _mm512_loadu_ps(e->m + c + 16 * i);
    f.b[i] = _mm512_loadu_ps(e->b + c + 16 * i);
  }
  f.curved = qc_find_curve(e);
  f.zero = qv_words((int16_t)e->zero), f.lo = qv_all((uint8_t)e->lo), f.hi = qv_all((uint8_t)e->hi);
  if (residual) f.sum = qv_find_sums(&e->sum);
  return f;
}

QC_INLINE __m512 qc_affine512(__m512i acc, __m512 m, __m512 b) { return _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc), m), b); }

QC_INLINE __m512i qc_in_order512(__m512i q) {
  return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), q);
}

/* 64 integers of two positions to bytes: position 0 in the low half. Saturating twice is the clamp to 0..255. */
QC_INLINE __m512i qc_pack512(const __m512i v[4], __m512i zero) {
  __m512i p0 = _mm512_adds_epi16(_mm512_packs_epi32(v[0], v[1]), zero), p1 = _mm512_adds_epi16(_mm512_packs_epi32(v[2], v[3]), zero);
  return qc_in_order512(_mm512_packus_epi16(p0, p1));
}

/* What a function does to sums of channels from c on. See qc_bend. */
QC_INLINE __m512 qc_bend512(const qc_epilogue *e, __m512 v, int64_t c) {
  __m512 none = _mm512_setzero_ps();
  __m512 above = _mm512_min_ps(_mm512_max_ps(v, none), _mm512_set1_ps(e->top));
  v = _mm512_add_ps(above, _mm512_mul_ps(_mm512_min_ps(v, none), _mm512_loadu_ps(e->slope + c)));
  return _mm512_add_ps(_mm512_mul_ps(v, _mm512_loadu_ps(e->gain + c)), _mm512_loadu_ps(e->offset + c));
}

/* The codes of a curve: what it costs beside the products matters, so nothing is cut that fits. */
QC_INLINE __m512i qc_curve512(const qc_finish512 *f, const __m512i acc[4]) {
  const qc_epilogue *e = f->e;
  __m512 value[4];
  __m512i v[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) value[i] = qc_affine512(acc[i], f->m[i & 1], f->b[i & 1]);
  if (e->wide)
    for (int i = 0; i < 4; i++) value[i] = _mm512_min_ps(value[i], _mm512_set1_ps(1e6f));
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) v[i] = _mm512_cvtps_epi32(value[i]);
  __m512i q = qc_in_order512(qv_curve_sums(v, &f->curved));
  return e->lo > 0 || e->hi < 255 ? qv_cut(q, f->lo, f->hi) : q;
}

/* acc: 16 channels at a time, an even number of them with the constants of the first half. r: the residuals of each position, 32 channels,
   or NULL. mask: the channels that there are. What is too large for an integer is cut before it becomes one; what is too small becomes the
   smallest of them. */
QC_INLINE __m512i qc_codes512(const qc_finish512 *f, const __m512i acc[4], const uint8_t *const r[2], __mmask32 mask, int kind) {
  if (kind == QC_FULL && qc_is_curved(f->e)) return qc_curve512(f, acc);
  __m512i v[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    __m512 value = qc_affine512(acc[i], f->m[i & 1], f->b[i & 1]);
    if (kind == QC_FULL && f->e->gain) value = qc_bend512(f->e, value, f->c[i & 1]);
    if (kind == QC_FULL) value = _mm512_min_ps(value, _mm512_set1_ps(1e6f));
    v[i] = _mm512_cvtps_epi32(value);
  }
  __m512i q = qc_pack512(v, f->zero);
  if (kind == QC_PLAIN) return q;
  if (kind == QC_FULL || f->e->lo > 0 || f->e->hi < 255) q = qv_cut(q, f->lo, f->hi);
  if (kind == QC_ADDED || r) {
    __m512i right = _mm512_castsi256_si512(_mm256_maskz_loadu_epi8(mask, r[0]));
    q = qv_sum(&f->sum, q, _mm512_inserti64x4(right, _mm256_maskz_loadu_epi8(mask, r[1]), 1));
  }
  return kind == QC_FULL && f->e->table ? qv_lookup(f->e->table, q) : q;
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

/* The first `rows` positions of q, which has two of 32 channels or, `narrow`, four of 16. */
QC_INLINE void qc_store_direct(__m512i q, uint8_t *y, int64_t down, __mmask32 mask, int rows, int narrow) {
  if (narrow) {
    __mmask16 few = (__mmask16)mask;
    _mm_mask_storeu_epi8(y, few, _mm512_castsi512_si128(q));
    if (rows > 1) _mm_mask_storeu_epi8(y + down, few, _mm512_extracti32x4_epi32(q, 1));
    if (rows > 2) _mm_mask_storeu_epi8(y + 2 * down, few, _mm512_extracti32x4_epi32(q, 2));
    if (rows > 3) _mm_mask_storeu_epi8(y + 3 * down, few, _mm512_extracti32x4_epi32(q, 3));
  } else {
    _mm256_mask_storeu_epi8(y, mask, _mm512_castsi512_si256(q));
    if (rows > 1) _mm256_mask_storeu_epi8(y + down, mask, _mm512_extracti64x4_epi64(q, 1));
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

QC_INLINE void qc_point512(void *to, const uint8_t *base, __m512i place, __mmask16 real, void *trash) {
  for (int i = 0; i < 2; i++) {
    __m256i half = i ? _mm512_extracti64x4_epi64(place, 1) : _mm512_castsi512_si256(place);
    __m512i address = _mm512_add_epi64(_mm512_cvtepi32_epi64(half), _mm512_set1_epi64((long long)(intptr_t)base));
    address = _mm512_mask_blend_epi64((__mmask8)(real >> (8 * i)), _mm512_set1_epi64((long long)(intptr_t)trash), address);
    _mm512_storeu_si512((char *)to + 64 * i, address);
  }
}

QC_INLINE __m512i qc_offset512(const qc_tensor *t, __m512i row, __m512i columns) {
  return _mm512_add_epi32(_mm512_mullo_epi32(row, _mm512_set1_epi32((int)t->sh)), _mm512_mullo_epi32(columns, _mm512_set1_epi32((int)t->sw)));
}

/* c: the first channel that is stored. */
QC_INLINE void qc_find_places(const qc_conv *a, const qc_runs *t, const qc_tile *tile, int64_t c, qc_places *p, uint8_t *trash) {
  __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), first = _mm512_set1_epi32(tile->column);
  __m512i position = _mm512_add_epi32(first, lane);
  __m512 middle = _mm512_add_ps(_mm512_cvtepi32_ps(position), _mm512_set1_ps(0.5f));
  __m512i row = _mm512_cvttps_epi32(_mm512_mul_ps(middle, _mm512_set1_ps(1.0f / (float)t->flat)));
  __m512i column = _mm512_sub_epi32(position, _mm512_mullo_epi32(row, _mm512_set1_epi32((int)t->flat)));
  __mmask16 real = _mm512_cmplt_epi32_mask(column, _mm512_set1_epi32((int)qc_width(a, t)));
  real &= _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(tile->rows));
  column = _mm512_sub_epi32(column, first);
  qc_point512(p->y, tile->y + (a->floats ? 4 * c : c), qc_offset512(&a->y, row, column), real, trash);
  if (tile->r) qc_point512(p->r, tile->r + c, qc_offset512(&a->r, row, column), real, trash);
}

/* Two positions; r0 NULL: no residual. */
QC_INLINE void qc_finish_two(const qc_finish512 *f, const int32_t *sums, uint8_t *y0, uint8_t *y1, const uint8_t *r0, const uint8_t *r1,
                             __mmask32 mask, int kind) {
  __m512i acc[4] = {_mm512_load_si512(sums), _mm512_load_si512(sums + 16), _mm512_load_si512(sums + 32), _mm512_load_si512(sums + 48)};
  const uint8_t *r[2] = {r0, r1};
  if (kind == QC_FLOATS)
    qc_store_floats512(f, acc, y0, y1, mask);
  else
    qc_store512(qc_codes512(f, acc, r0 ? r : NULL, mask, kind), y0, y1, mask);
}

QC_INLINE void qc_finish_straight(const qc_conv *a, const qc_tile *tile, const qc_finish512 *f, int64_t c, const int32_t *sums,
                                  __mmask32 mask, int kind) {
  uint8_t *y = tile->y + (a->floats ? 4 * c : c);
  const uint8_t *r = tile->r ? tile->r + c : NULL;
  int64_t down = a->y.sw, across = r ? a->r.sw : 0;
  for (int i = 0; i + 1 < tile->rows; i += 2, sums += 64, y += 2 * down, r = r ? r + 2 * across : r)
    qc_finish_two(f, sums, y, y + down, r, r ? r + across : r, mask, kind);
  QC_ALIGNED uint8_t trash[128];
  if (tile->rows & 1) qc_finish_two(f, sums, y, trash, r, r, mask, kind);
}

/* sums: [rows][32 channels], one row more where they are odd. */
QC_INLINE void qc_finish_spots(const qc_epilogue *e, const qc_spots *s, int rows, const qc_pair *p, const int32_t *sums, int kind) {
  QC_ALIGNED uint8_t trash[128];
  qc_finish512 f = qc_begin512(e, p->c, s->r[0] != NULL);
  __mmask32 mask = (__mmask32)(p->count == 32 ? 0xffffffffu : (1u << p->count) - 1);
  int64_t c = kind == QC_FLOATS ? 4 * p->c : p->c;
  for (int i = 0; i < rows; i += 2, sums += 64) {
    int two = i + 1 < rows, added = kind == QC_ADDED || (kind == QC_FULL && s->r[0]);
    const uint8_t *r0 = added ? s->r[i] + p->c : NULL, *r1 = added ? s->r[i + two] + p->c : NULL;
    qc_finish_two(&f, sums, s->y[i] + c, two ? s->y[i + 1] + c : trash, r0, r1, mask, kind);
  }
}

/* At most 16 channels: four positions at once. */
QC_INLINE void qc_finish_narrow(const qc_conv *a, const qc_tile *tile, const qc_finish512 *f, const qc_pair *pair, const int32_t *sums, int rows,
                                int kind) {
  qc_finish512 half = *f;
  uint8_t *y = tile->y + pair->c;
  int64_t down = a->y.sw;
  __mmask16 mask = (__mmask16)((1u << pair->count) - 1);
  half.m[1] = f->m[0], half.b[1] = f->b[0], half.c[1] = f->c[0];
  for (int i = 0; i < rows; i += 4, sums += 128, y += 4 * down) {
    __m512i acc[4] = {_mm512_load_si512(sums), _mm512_load_si512(sums + 32), _mm512_load_si512(sums + 64), _mm512_load_si512(sums + 96)};
    __m512i q = qc_codes512(&half, acc, NULL, 0, kind);
    _mm_mask_storeu_epi8(y, mask, _mm512_castsi512_si128(q));
    _mm_mask_storeu_epi8(y + down, mask, _mm512_extracti32x4_epi32(q, 1));
    _mm_mask_storeu_epi8(y + 2 * down, mask, _mm512_extracti32x4_epi32(q, 2));
    _mm_mask_storeu_epi8(y + 3 * down, mask, _mm512_extracti32x4_epi32(q, 3));
  }
}

/* sums: [positions, tile->rows of them][32 channels]. An odd last position reads one more row of sums. */
QC_INLINE void qc_finish_tile(const qc_conv *a, const qc_runs *t, const qc_tile *tile, const qc_pair *pair, const int32_t *sums, int kind) {
  QC_ALIGNED uint8_t trash[128];
  qc_finish512 f = qc_begin512(&a->e, pair->c, tile->r != NULL);
  __mmask32 mask = (__mmask32)(pair->count == 32 ? 0xffffffffu : (1u << pair->count) - 1);
  qc_places p = {.r = {NULL}};
  if (tile->straight && pair->count <= 16 && tile->rows % 4 == 0 && !tile->r && (kind == QC_PLAIN || kind == QC_FULL)) {
    qc_finish_narrow(a, tile, &f, pair, sums, tile->rows, kind);
    return;
  }
  if (tile->straight) {
    qc_finish_straight(a, tile, &f, pair->c, sums, mask, kind);
    return;
  }
  qc_find_places(a, t, tile, pair->c, &p, trash);
  for (int i = 0; i < tile->rows; i += 2, sums += 64)
    qc_finish_two(&f, sums, p.y[i], p.y[i + 1], tile->r ? p.r[i] : NULL, p.r[i + 1], mask, kind);
}

#endif
#endif
