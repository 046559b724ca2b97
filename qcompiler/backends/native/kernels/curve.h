/* Functions of one variable of 16-bit numbers: in 32 pieces, each a parabola, or with a knee; see qc_epilogue.

   Vectors of x hold 16-bit numbers; what comes out are bytes as packing leaves them, those of `a` in front of those of `b` in each lane.
   - AVX-512: the pieces are picked by vpermw, 32 at once.
   - AVX2, NEON: by tables of 32 bytes, two for the halves of each number. */
#ifndef QC_CURVE_H
#define QC_CURVE_H

#include "vec.h"

#if QC_ISA != QC_SCALAR

/* What such a function needs. pieces: NULL where it has a knee, or where there is no function. */
typedef struct qc_curved {
  const int16_t *pieces;
  qv knee, half, zero;
} qc_curved;

QC_INLINE qc_curved qc_find_curve(const qc_epilogue *e) {
  return (qc_curved){e->curve, qv_words((int16_t)e->knee), qv_words((int16_t)e->half), qv_words((int16_t)e->zero)};
}

#endif

#if QC_IS_512

QC_INLINE __m512i qc_curve_words(__m512i x, const int16_t *curve) {
  __m512i piece = _mm512_srli_epi16(x, 11), t = _mm512_xor_si512(_mm512_slli_epi16(x, 5), _mm512_set1_epi16(-32768));
  __m512i y = _mm512_mulhrs_epi16(_mm512_permutexvar_epi16(piece, qv_load(curve + 64)), t);
  y = _mm512_mulhrs_epi16(_mm512_adds_epi16(_mm512_permutexvar_epi16(piece, qv_load(curve + 32)), y), t);
  return _mm512_srai_epi16(_mm512_adds_epi16(_mm512_permutexvar_epi16(piece, qv_load(curve)), y), 6);
}

QC_INLINE qv qc_knee_words(qv x, const qc_curved *c) {
  qv t = _mm512_min_epi16(_mm512_max_epi16(x, qv_zero()), c->knee);
  return _mm512_adds_epi16(_mm512_mulhrs_epi16(t, _mm512_subs_epi16(x, c->half)), c->zero);
}

QC_INLINE qv qv_curve(qv a, qv b, const qc_curved *c) {
  if (!c->pieces) return _mm512_packus_epi16(qc_knee_words(a, c), qc_knee_words(b, c));
  qv q = _mm512_packs_epi16(qc_curve_words(a, c->pieces), qc_curve_words(b, c->pieces));
  return _mm512_xor_si512(q, _mm512_set1_epi8((char)128));
}

QC_INLINE qv qv_curve_sums(const qv v[4], const qc_curved *c) {
  return qv_curve(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]), c);
}

#elif QC_IS_256

/* p: the numbers of each piece. */
QC_INLINE __m256i qc_curve_words(__m256i x, __m256i p0, __m256i p1, __m256i p2) {
  __m256i t = _mm256_xor_si256(_mm256_slli_epi16(x, 5), _mm256_set1_epi16(-32768));
  __m256i y = _mm256_mulhrs_epi16(_mm256_adds_epi16(p1, _mm256_mulhrs_epi16(p2, t)), t);
  return _mm256_srai_epi16(_mm256_adds_epi16(p0, y), 6);
}

QC_INLINE qv qc_knee_words(qv x, const qc_curved *c) {
  qv t = _mm256_min_epi16(_mm256_max_epi16(x, qv_zero()), c->knee);
  return _mm256_adds_epi16(_mm256_mulhrs_epi16(t, _mm256_subs_epi16(x, c->half)), c->zero);
}

QC_INLINE qv qv_curve(qv a, qv b, const qc_curved *c) {
  if (!c->pieces) return _mm256_packus_epi16(qc_knee_words(a, c), qc_knee_words(b, c));
  const uint8_t *table = (const uint8_t *)(c->pieces + 96);
  qv piece = _mm256_packus_epi16(_mm256_srli_epi16(a, 11), _mm256_srli_epi16(b, 11)), bit4 = _mm256_slli_epi16(piece, 3), p[6];
#pragma GCC unroll 6
  for (int i = 0; i < 6; i++) p[i] = _mm256_blendv_epi8(qv_row(table, 2 * i, piece), qv_row(table, 2 * i + 1, piece), bit4);
  qv first = qc_curve_words(a, qv_low8(p[0], p[1]), qv_low8(p[2], p[3]), qv_low8(p[4], p[5]));
  qv second = qc_curve_words(b, qv_high8(p[0], p[1]), qv_high8(p[2], p[3]), qv_high8(p[4], p[5]));
  return _mm256_xor_si256(_mm256_packs_epi16(first, second), _mm256_set1_epi8((char)128));
}

QC_INLINE qv qv_curve_sums(const qv v[4], const qc_curved *c) {
  return qv_curve(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]), c);
}

#elif QC_ISA == QC_NEON

QC_INLINE uint8x8_t qc_knee_words(int16x8_t x, const qc_curved *c) {
  int16x8_t t = vminq_s16(vmaxq_s16(x, vdupq_n_s16(0)), QV16(c->knee));
  return vqmovun_s16(vqaddq_s16(vqrdmulhq_s16(t, vqsubq_s16(x, QV16(c->half))), QV16(c->zero)));
}

/* p: the numbers of each piece. */
QC_INLINE int8x8_t qc_curve_words(int16x8_t x, int8x16_t p0, int8x16_t p1, int8x16_t p2) {
  int16x8_t t = veorq_s16(vshlq_n_s16(x, 5), vdupq_n_s16(-32768));
  int16x8_t slope = vqaddq_s16(vreinterpretq_s16_s8(p1), vqrdmulhq_s16(vreinterpretq_s16_s8(p2), t));
  return vqmovn_s16(vshrq_n_s16(vqaddq_s16(vreinterpretq_s16_s8(p0), vqrdmulhq_s16(slope, t)), 6));
}

QC_INLINE qv qv_curve_sums(const qv v[4], const qc_curved *c) {
  int16x8_t a = vcombine_s16(vqmovn_s32(v[0]), vqmovn_s32(v[1])), b = vcombine_s16(vqmovn_s32(v[2]), vqmovn_s32(v[3]));
  if (!c->pieces) return vreinterpretq_s32_u8(vcombine_u8(qc_knee_words(a, c), qc_knee_words(b, c)));
  uint16x8_t i = vshrq_n_u16(vreinterpretq_u16_s16(a), 11), j = vshrq_n_u16(vreinterpretq_u16_s16(b), 11);
  uint8x16_t piece = vcombine_u8(vmovn_u16(i), vmovn_u16(j));
  const uint8_t *table = (const uint8_t *)(c->pieces + 96);
  int8x16_t p[6];
  for (int k = 0; k < 6; k++, table += 32) {
    uint8x16x2_t part = {{vld1q_u8(table), vld1q_u8(table + 16)}};
    p[k] = vreinterpretq_s8_u8(vqtbl2q_u8(part, piece));
  }
  int8x8_t first = qc_curve_words(a, vzip1q_s8(p[0], p[1]), vzip1q_s8(p[2], p[3]), vzip1q_s8(p[4], p[5]));
  int8x8_t second = qc_curve_words(b, vzip2q_s8(p[0], p[1]), vzip2q_s8(p[2], p[3]), vzip2q_s8(p[4], p[5]));
  return vreinterpretq_s32_u8(veorq_u8(vreinterpretq_u8_s8(vcombine_s8(first, second)), vdupq_n_u8(128)));
}

#endif
#endif
