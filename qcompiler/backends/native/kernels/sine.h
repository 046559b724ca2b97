/* Sines and cosines, of floats of any size: in double, one at a time, within 6e-8 of the true value.

   x = n * pi / 2 + r with |r| <= pi / 4. Below 2^26 n * QC_HALF_PI_1 is exact. Above it x = m * 2^e with a whole m, and m is multiplied by
   the 64 bits of 2 / pi that count, which leaves n modulo 4 and the rest. */
#ifndef QC_SINE_H
#define QC_SINE_H

#include "float.h"

#define QC_HALF_PI_1 1.57079631090164184570 /* 25 bits of pi / 2 */
#define QC_HALF_PI_2 1.58932547735281966916e-08

static const uint64_t qc_two_over_pi[4] = {0xA2F9836E4E441529u, 0xFC2757D1F534DDC0u, 0xDB6295993C439041u, 0xFE5163ABDEBBC561u};

/* r of an x between 2^26 and infinity; adds n to *quarter. */
static double qc_far_rest(float x, uint32_t *quarter) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  uint64_t m = (bits & 0x7fffffu) | 0x800000u;
  uint32_t first = (bits >> 23) - 152, word = first / 64, shift = first % 64; /* e - 2 */
  uint64_t piece = qc_two_over_pi[word] << shift;
  if (shift) piece |= qc_two_over_pi[word + 1] >> (64 - shift);
  uint64_t turns = m * piece, n = (turns + ((uint64_t)1 << 61)) >> 62;
  *quarter += (uint32_t)n;
  return (double)(int64_t)(turns - (n << 62)) * 3.4061215800865545e-19; /* pi / 2 / 2^62 */
}

/* sin(x + quarter * pi / 2) */
static float qc_sine(float x, uint32_t quarter) {
  float size = x < 0.0f ? -x : x;
  double r, whole = 6755399441055744.0; /* adding 1.5 * 2^52 rounds to an integer */
  if (!(size <= 3.4028234e38f)) return __builtin_nanf("");
  if (size < 67108864.0f) {
    double n = ((double)x * 0.63661977236758134308 + whole) - whole;
    r = ((double)x - n * QC_HALF_PI_1) - n * QC_HALF_PI_2;
    quarter += (uint32_t)(int32_t)n;
  } else {
    uint32_t turned = 0;
    r = qc_far_rest(size, &turned);
    if (x < 0.0f) r = -r, turned = 0u - turned;
    quarter += turned;
  }
  double z = r * r, v;
  if (quarter & 1)
    v = 1.0 + z * (-1.0 / 2 + z * (1.0 / 24 + z * (-1.0 / 720 + z * (1.0 / 40320 + z * (-1.0 / 3628800)))));
  else
    v = r + r * (z * (-1.0 / 6 + z * (1.0 / 120 + z * (-1.0 / 5040 + z * (1.0 / 362880 + z * (-1.0 / 39916800))))));
  return (float)(quarter & 2 ? -v : v);
}

QC_INLINE qf qc_sines(qf x, uint32_t quarter) {
  for (int i = 0; i < QC_F; i++) x[i] = qc_sine(x[i], quarter);
  return x;
}

#endif
