/* Vectors of QC_VB bytes: the few operations that the dot product kernels need, for AVX-512, AVX2 (with or without VNNI) and NEON.

   affine: acc * m + b, floats; bend: what a function does to them, see qc_bend; whole: floats to integers; cut: some of them may be larger
   than integers are; round: whole of affine. bytes: four vectors of integers to bytes, in the order in which unpacking leaves them. within, cut: bytes between lo and hi. sum: of codes, see qc_sum. shift: each four bytes one place up, the lowest from the top of `above`. lookup: a table of
   256. store_part: the first `count` bytes. max: of unsigned bytes.
   dp(acc, x, w): acc[i] += the sum over j < 4 of x[4 i + j] * w[4 i + j], x unsigned, w signed, exact.
   dp16(acc, x, w): the same of two 16-bit numbers each, modulo 2^32; AVX-512 VNNI and AVX-VNNI.
   - VNNI: vpdpbusd, in assembly, since gcc 12 spills accumulators around the intrinsic.
   - AVX2: even and odd bytes as 16-bit numbers, vpmaddwd: vpmaddubsw would saturate.
   - NEON: sdot takes signed codes only: x - 128, so that sums begin at 128 * sum(w) instead of 0 (QC_START). */
#ifndef QC_VEC_H
#define QC_VEC_H

#include "round.h"

#if QC_IS_512

#define QC_VB 64
typedef __m512i qv;
typedef qv qv_x;
typedef qv qv_w;
QC_INLINE qv qv_load(const void *p) { return _mm512_loadu_si512(p); }
QC_INLINE void qv_store(void *p, qv v) { _mm512_storeu_si512(p, v); }
QC_INLINE qv qv_zero(void) { return _mm512_setzero_si512(); }
QC_INLINE qv qv_words(int16_t v) { return _mm512_set1_epi16(v); }
QC_INLINE qv qv_all(uint8_t v) { return _mm512_set1_epi8((char)v); }
QC_INLINE qv qv_cut(qv q, qv lo, qv hi) { return _mm512_min_epu8(_mm512_max_epu8(q, lo), hi); }
QC_INLINE qv qv_max(qv a, qv b) { return _mm512_max_epu8(a, b); }
QC_INLINE qv qv_low8(qv a, qv b) { return _mm512_unpacklo_epi8(a, b); }
QC_INLINE qv qv_high8(qv a, qv b) { return _mm512_unpackhi_epi8(a, b); }
QC_INLINE qv qv_low16(qv a, qv b) { return _mm512_unpacklo_epi16(a, b); }
QC_INLINE qv qv_high16(qv a, qv b) { return _mm512_unpackhi_epi16(a, b); }
QC_INLINE qv qv_four(const uint8_t *p) {
  int32_t v;
  memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}
QC_INLINE qv qv_lanes(const void *a, const void *b, const void *c, const void *d) {
  __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(a)), _mm_loadu_si128(b), 1);
  __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(c)), _mm_loadu_si128(d), 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
QC_INLINE qv qv_affine(qv acc, qv m, qv b) {
  __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(acc), _mm512_castsi512_ps(m));
  return _mm512_castps_si512(_mm512_add_ps(v, _mm512_castsi512_ps(b)));
}
QC_INLINE qv qv_bend(qv v, qv slope, qv gain, qv offset, float top) {
  __m512 x = _mm512_castsi512_ps(v), none = _mm512_setzero_ps(), above = _mm512_min_ps(_mm512_max_ps(x, none), _mm512_set1_ps(top));
  x = _mm512_add_ps(above, _mm512_mul_ps(_mm512_min_ps(x, none), _mm512_castsi512_ps(slope)));
  return _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(x, _mm512_castsi512_ps(gain)), _mm512_castsi512_ps(offset)));
}
QC_INLINE qv qv_whole(qv v, int cut) {
  __m512 x = _mm512_castsi512_ps(v);
  return _mm512_cvtps_epi32(cut ? _mm512_min_ps(x, _mm512_set1_ps(1e6f)) : x);
}
QC_INLINE qv qv_shift(qv w, qv above) { return _mm512_or_si512(_mm512_slli_epi32(w, 8), _mm512_srli_epi32(above, 24)); }
QC_INLINE void qv_store_part(void *p, qv v, int64_t count) {
  _mm512_mask_storeu_epi8(p, count == 64 ? ~0ull : (1ull << count) - 1, v);
}
/* Two tables of 128 by vpermi2b where the processor has it: in assembly, since only the other way may be taken for granted. */
QC_INLINE qv qv_lookup(const uint8_t *table, qv q) {
  if (qc_has_vbmi) {
    qv low = q, high = q;
    __asm__("vpermi2b %2, %1, %0" : "+v"(low) : "v"(qv_load(table)), "v"(qv_load(table + 64)));
    __asm__("vpermi2b %2, %1, %0" : "+v"(high) : "v"(qv_load(table + 128)), "v"(qv_load(table + 192)));
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(q), low, high);
  }
  qv found = qv_zero();
  for (int i = 0; i < 16; i++) {
    qv row = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)(table + 16 * i)));
    qv index = _mm512_adds_epu8(_mm512_xor_si512(q, _mm512_set1_epi8((char)(16 * i))), _mm512_set1_epi8(0x70));
    found = _mm512_or_si512(found, _mm512_shuffle_epi8(row, index));
  }
  return found;
}
QC_INLINE qv qv_bytes(const qv v[4], int32_t zero, int32_t lo, int32_t hi) {
  qv z = _mm512_set1_epi16((short)zero);
  qv a = _mm512_adds_epi16(_mm512_packs_epi32(v[0], v[1]), z), b = _mm512_adds_epi16(_mm512_packs_epi32(v[2], v[3]), z);
  return _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(a, b), _mm512_set1_epi8((char)lo)), _mm512_set1_epi8((char)hi));
}

#elif QC_IS_256

#define QC_VB 32
typedef __m256i qv;
QC_INLINE qv qv_load(const void *p) { return _mm256_loadu_si256(p); }
QC_INLINE void qv_store(void *p, qv v) { _mm256_storeu_si256(p, v); }
QC_INLINE qv qv_zero(void) { return _mm256_setzero_si256(); }
QC_INLINE qv qv_words(int16_t v) { return _mm256_set1_epi16(v); }
QC_INLINE qv qv_all(uint8_t v) { return _mm256_set1_epi8((char)v); }
QC_INLINE qv qv_cut(qv q, qv lo, qv hi) { return _mm256_min_epu8(_mm256_max_epu8(q, lo), hi); }
QC_INLINE qv qv_max(qv a, qv b) { return _mm256_max_epu8(a, b); }
QC_INLINE qv qv_low8(qv a, qv b) { return _mm256_unpacklo_epi8(a, b); }
QC_INLINE qv qv_high8(qv a, qv b) { return _mm256_unpackhi_epi8(a, b); }
QC_INLINE qv qv_low16(qv a, qv b) { return _mm256_unpacklo_epi16(a, b); }
QC_INLINE qv qv_high16(qv a, qv b) { return _mm256_unpackhi_epi16(a, b); }
QC_INLINE qv qv_four(const uint8_t *p) {
  int32_t v;
  memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}
QC_INLINE qv qv_lanes(const void *a, const void *b, const void *c, const void *d) {
  (void)c, (void)d;
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(a)), _mm_loadu_si128(b), 1);
}
QC_INLINE qv qv_affine(qv acc, qv m, qv b) {
  __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(acc), _mm256_castsi256_ps(m));
  return _mm256_castps_si256(_mm256_add_ps(v, _mm256_castsi256_ps(b)));
}
QC_INLINE qv qv_bend(qv v, qv slope, qv gain, qv offset, float top) {
  __m256 x = _mm256_castsi256_ps(v), none = _mm256_setzero_ps(), above = _mm256_min_ps(_mm256_max_ps(x, none), _mm256_set1_ps(top));
  x = _mm256_add_ps(above, _mm256_mul_ps(_mm256_min_ps(x, none), _mm256_castsi256_ps(slope)));
  return _mm256_castps_si256(_mm256_add_ps(_mm256_mul_ps(x, _mm256_castsi256_ps(gain)), _mm256_castsi256_ps(offset)));
}
QC_INLINE qv qv_whole(qv v, int cut) {
  __m256 x = _mm256_castsi256_ps(v);
  return _mm256_cvtps_epi32(cut ? _mm256_min_ps(x, _mm256_set1_ps(1e6f)) : x);
}
QC_INLINE qv qv_shift(qv w, qv above) { return _mm256_or_si256(_mm256_slli_epi32(w, 8), _mm256_srli_epi32(above, 24)); }
/* The entries at 16 * i + low of the table. */
QC_INLINE qv qv_row(const uint8_t *table, int i, qv low) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(table + 16 * i))), low);
}
/* Of four rows the one that bits 4 and 5 of the code name; blends look at the top bit of a byte. */
QC_INLINE qv qv_of_four(const uint8_t *table, int i, qv low, qv bit4, qv bit5) {
  qv left = _mm256_blendv_epi8(qv_row(table, i, low), qv_row(table, i + 1, low), bit4);
  qv right = _mm256_blendv_epi8(qv_row(table, i + 2, low), qv_row(table, i + 3, low), bit4);
  return _mm256_blendv_epi8(left, right, bit5);
}
QC_INLINE qv qv_lookup(const uint8_t *table, qv q) {
  qv low = _mm256_and_si256(q, _mm256_set1_epi8(15)), bit4 = _mm256_slli_epi16(q, 3), bit5 = _mm256_slli_epi16(q, 2);
  qv bit6 = _mm256_slli_epi16(q, 1);
  qv lower = _mm256_blendv_epi8(qv_of_four(table, 0, low, bit4, bit5), qv_of_four(table, 4, low, bit4, bit5), bit6);
  qv upper = _mm256_blendv_epi8(qv_of_four(table, 8, low, bit4, bit5), qv_of_four(table, 12, low, bit4, bit5), bit6);
  return _mm256_blendv_epi8(lower, upper, q);
}
QC_INLINE qv qv_bytes(const qv v[4], int32_t zero, int32_t lo, int32_t hi) {
  qv z = _mm256_set1_epi16((short)zero);
  qv a = _mm256_adds_epi16(_mm256_packs_epi32(v[0], v[1]), z), b = _mm256_adds_epi16(_mm256_packs_epi32(v[2], v[3]), z);
  return _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(a, b), _mm256_set1_epi8((char)lo)), _mm256_set1_epi8((char)hi));
}

#elif QC_ISA == QC_NEON

#define QC_VB 16
typedef int32x4_t qv;
typedef qv qv_w;
typedef qv qv_x;
#define QV8(v) vreinterpretq_s8_s32(v)
#define QV16(v) vreinterpretq_s16_s32(v)
#define QVF(v) vreinterpretq_f32_s32(v)
QC_INLINE qv qv_load(const void *p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
QC_INLINE void qv_store(void *p, qv v) { vst1q_u8(p, vreinterpretq_u8_s32(v)); }
QC_INLINE qv qv_zero(void) { return vdupq_n_s32(0); }
QC_INLINE qv qv_words(int16_t v) { return vreinterpretq_s32_s16(vdupq_n_s16(v)); }
QC_INLINE qv qv_all(uint8_t v) { return vreinterpretq_s32_u8(vdupq_n_u8(v)); }
QC_INLINE qv qv_cut(qv q, qv lo, qv hi) {
  return vreinterpretq_s32_u8(vminq_u8(vmaxq_u8(vreinterpretq_u8_s32(q), vreinterpretq_u8_s32(lo)), vreinterpretq_u8_s32(hi)));
}
QC_INLINE qv qv_max(qv a, qv b) { return vreinterpretq_s32_u8(vmaxq_u8(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(b))); }
QC_INLINE qv qv_low8(qv a, qv b) { return vreinterpretq_s32_s8(vzip1q_s8(QV8(a), QV8(b))); }
QC_INLINE qv qv_high8(qv a, qv b) { return vreinterpretq_s32_s8(vzip2q_s8(QV8(a), QV8(b))); }
QC_INLINE qv qv_low16(qv a, qv b) { return vreinterpretq_s32_s16(vzip1q_s16(QV16(a), QV16(b))); }
QC_INLINE qv qv_high16(qv a, qv b) { return vreinterpretq_s32_s16(vzip2q_s16(QV16(a), QV16(b))); }
QC_INLINE qv qv_four(const uint8_t *p) {
  int32_t v;
  memcpy(&v, p, 4);
  return vdupq_n_s32(v);
}
QC_INLINE qv qv_lanes(const void *a, const void *b, const void *c, const void *d) {
  (void)b, (void)c, (void)d;
  return qv_load(a);
}
QC_INLINE qv qv_affine(qv acc, qv m, qv b) { return vreinterpretq_s32_f32(vaddq_f32(vmulq_f32(vcvtq_f32_s32(acc), QVF(m)), QVF(b))); }
QC_INLINE qv qv_bend(qv v, qv slope, qv gain, qv offset, float top) {
  float32x4_t none = vdupq_n_f32(0.0f), above = vminq_f32(vmaxq_f32(QVF(v), none), vdupq_n_f32(top));
  float32x4_t x = vaddq_f32(above, vmulq_f32(vminq_f32(QVF(v), none), QVF(slope)));
  return vreinterpretq_s32_f32(vaddq_f32(vmulq_f32(x, QVF(gain)), QVF(offset)));
}
QC_INLINE qv qv_whole(qv v, int cut) { /* conversions saturate: nothing to cut */
  (void)cut;
  return vcvtnq_s32_f32(QVF(v));
}
QC_INLINE qv qv_shift(qv w, qv above) {
  uint32x4_t low = vshlq_n_u32(vreinterpretq_u32_s32(w), 8), high = vshrq_n_u32(vreinterpretq_u32_s32(above), 24);
  return vreinterpretq_s32_u32(vorrq_u32(low, high));
}
QC_INLINE qv qv_lookup(const uint8_t *table, qv q) {
  uint8x16_t index = vreinterpretq_u8_s32(q), found = vdupq_n_u8(0);
  for (int i = 0; i < 4; i++) {
    uint8x16x4_t part = {{vld1q_u8(table + 64 * i), vld1q_u8(table + 64 * i + 16), vld1q_u8(table + 64 * i + 32), vld1q_u8(table + 64 * i + 48)}};
    found = vorrq_u8(found, vqtbl4q_u8(part, vsubq_u8(index, vdupq_n_u8((uint8_t)(64 * i)))));
  }
  return vreinterpretq_s32_u8(found);
}
QC_INLINE qv qv_bytes(const qv v[4], int32_t zero, int32_t lo, int32_t hi) {
  int16x8_t z = vdupq_n_s16((int16_t)zero);
  int16x8_t a = vqaddq_s16(vcombine_s16(vqmovn_s32(v[0]), vqmovn_s32(v[1])), z);
  int16x8_t b = vqaddq_s16(vcombine_s16(vqmovn_s32(v[2]), vqmovn_s32(v[3])), z);
  uint8x16_t q = vcombine_u8(vqmovun_s16(a), vqmovun_s16(b));
  return vreinterpretq_s32_u8(vminq_u8(vmaxq_u8(q, vdupq_n_u8((uint8_t)lo)), vdupq_n_u8((uint8_t)hi)));
}

#endif

#if QC_ISA != QC_SCALAR

QC_INLINE qv qv_within(qv q, int32_t lo, int32_t hi) { return qv_cut(q, qv_all((uint8_t)lo), qv_all((uint8_t)hi)); }

/* What a sum of codes needs; sum: its numbers, for one that is not in whole numbers. */
typedef struct qv_sums {
  qv a, b, c, lo, hi;
  const qc_sum *sum;
} qv_sums;

QC_INLINE qv_sums qv_find_sums(const qc_sum *s) {
  return (qv_sums){qv_words((int16_t)s->whole_a), qv_words((int16_t)s->whole_b), qv_words((int16_t)s->whole_c),
                   qv_all((uint8_t)s->lo), qv_all((uint8_t)s->hi), s};
}

#if QC_IS_512
QC_INLINE qv qv_sum_half(const qv_sums *s, qv a, qv b) {
  qv y = _mm512_adds_epi16(_mm512_mulhrs_epi16(a, s->a), _mm512_mulhrs_epi16(b, s->b));
  return _mm512_srai_epi16(_mm512_adds_epi16(y, s->c), 6);
}
#elif QC_IS_256
QC_INLINE qv qv_sum_half(const qv_sums *s, qv a, qv b) {
  qv y = _mm256_adds_epi16(_mm256_mulhrs_epi16(a, s->a), _mm256_mulhrs_epi16(b, s->b));
  return _mm256_srai_epi16(_mm256_adds_epi16(y, s->c), 6);
}
#else
QC_INLINE uint8x8_t qv_sum_half(const qv_sums *s, qv a, qv b) {
  int16x8_t y = vqaddq_s16(vqrdmulhq_s16(QV16(a), QV16(s->a)), vqrdmulhq_s16(QV16(b), QV16(s->b)));
  return vqmovun_s16(vshrq_n_s16(vqaddq_s16(y, QV16(s->c)), 6));
}
#endif

/* Codes less 128 become the upper bytes of 16-bit numbers; what unpacks them and what packs the sums keep to the same lanes. */
QC_INLINE qv qv_sum_words(const qv_sums *s, qv a, qv b) {
  qv none = qv_zero(), flip = qv_all(128);
#if QC_IS_512
  a = _mm512_xor_si512(a, flip), b = _mm512_xor_si512(b, flip);
  return _mm512_packus_epi16(qv_sum_half(s, qv_low8(none, a), qv_low8(none, b)), qv_sum_half(s, qv_high8(none, a), qv_high8(none, b)));
#elif QC_IS_256
  a = _mm256_xor_si256(a, flip), b = _mm256_xor_si256(b, flip);
  return _mm256_packus_epi16(qv_sum_half(s, qv_low8(none, a), qv_low8(none, b)), qv_sum_half(s, qv_high8(none, a), qv_high8(none, b)));
#else
  a = veorq_s32(a, flip), b = veorq_s32(b, flip);
  uint8x8_t low = qv_sum_half(s, qv_low8(none, a), qv_low8(none, b)), high = qv_sum_half(s, qv_high8(none, a), qv_high8(none, b));
  return vreinterpretq_s32_u8(vcombine_u8(low, high));
#endif
}

/* The sums of QC_VB codes each. */
QC_INLINE qv qv_sum(const qv_sums *s, qv a, qv b) {
  if (!s->sum->whole) {
    QC_ALIGNED uint8_t x[QC_VB], y[QC_VB];
    qv_store(x, a), qv_store(y, b);
    for (int i = 0; i < QC_VB; i++) x[i] = (uint8_t)qc_sum_code(s->sum, x[i], y[i]);
    return qv_load(x);
  }
  return qv_cut(qv_sum_words(s, a, b), s->lo, s->hi);
}

QC_INLINE qv qv_round(qv acc, qv m, qv b, int cut) { return qv_whole(qv_affine(acc, m, b), cut); }
#endif

#if QC_ISA != QC_SCALAR && !QC_IS_512
QC_INLINE void qv_store_part(void *p, qv v, int64_t count) {
  QC_ALIGNED uint8_t bytes[QC_VB];
  qv_store(bytes, v);
  memcpy(p, bytes, (size_t)count);
}
#endif

#if QC_ISA == QC_AVX2

/* Four bytes as two 16-bit numbers each: the even ones and the odd ones. */
typedef struct qv_halves {
  qv even, odd;
} qv_halves;
typedef qv_halves qv_x;
typedef qv_halves qv_w;
QC_INLINE qv_x qv_codes(qv v) { return (qv_x){_mm256_and_si256(v, _mm256_set1_epi16(255)), _mm256_srli_epi16(v, 8)}; }
QC_INLINE qv_w qv_weights(qv v) { return (qv_w){_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(v, 8)}; }
QC_INLINE qv qv_dp(qv acc, qv_x x, qv_w w) {
  acc = _mm256_add_epi32(acc, _mm256_madd_epi16(x.even, w.even));
  return _mm256_add_epi32(acc, _mm256_madd_epi16(x.odd, w.odd));
}

#elif QC_ISA == QC_NEON

QC_INLINE qv_x qv_codes(qv v) { return veorq_s32(v, vreinterpretq_s32_u8(vdupq_n_u8(128))); }
QC_INLINE qv_w qv_weights(qv v) { return v; }
QC_INLINE qv qv_dp(qv acc, qv_x x, qv_w w) { return vdotq_s32(acc, QV8(x), QV8(w)); }

#elif QC_IS_X86

#if QC_IS_256
typedef qv qv_x;
typedef qv qv_w;
#define QC_DP_TEXT(name) "%{vex%} " name " %2, %1, %0"
#define QC_DP_CLASS "x"
#else
#define QC_DP_TEXT(name) name " %2, %1, %0"
#define QC_DP_CLASS "v"
#endif
QC_INLINE qv_x qv_codes(qv v) { return v; }
QC_INLINE qv_w qv_weights(qv v) { return v; }
QC_INLINE qv qv_dp(qv acc, qv_x x, qv_w w) {
  __asm__(QC_DP_TEXT("vpdpbusd") : "+" QC_DP_CLASS(acc) : QC_DP_CLASS(x), QC_DP_CLASS "m"(w));
  return acc;
}
QC_INLINE qv qv_dp16(qv acc, qv_x x, qv_w w) {
  __asm__(QC_DP_TEXT("vpdpwssd") : "+" QC_DP_CLASS(acc) : QC_DP_CLASS(x), QC_DP_CLASS "m"(w));
  return acc;
}

#endif

#if QC_ISA == QC_NEON
#define QC_START(sum) (128 * (sum))
#else
#define QC_START(sum) (0 * (sum))
#endif

#endif
