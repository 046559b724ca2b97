/* What the kernels take: one struct a family, the same for every instruction set.

   A value is uint8 codes in NHWC order (NDHWC for volumes; a sequence has h = 1). Around it may lie a halo of pixels that hold the
   zero point, and behind every buffer, weights included, lie QC_SLACK readable bytes, since vectors read past what they use.

   Each family has two functions: `F_units(args)` says into how many independent pieces the work falls, `F(args, lo, hi)` computes
   the pieces lo..hi-1. Pieces may overlap: two of them then write equal bytes to one place. So a result never lies on an operand,
   unless the family's struct says that it may.

   Rounding, everywhere: v = float(acc) * m + b, multiplied, then added, two roundings; r = v rounded to the nearest integer, halves
   to even; y = clamp(r + zero, lo, hi). Compile with -ffp-contract=off. */
#ifndef QC_H
#define QC_H

#include <stddef.h>
#include <stdint.h>

#define QC_SLACK 128
#define QC_MAX_SPANS 1024

/* p is channel 0 of the first pixel inside the halo. Strides are in bytes; the channels of a pixel are adjacent, sw may be larger
   than c (a slice of wider pixels). sh and sd are multiples of sw. d = 1 for images. */
typedef struct qc_tensor {
  uint8_t *p;
  int32_t n, d, h, w, c;
  int64_t sn, sd, sh, sw;
} qc_tensor;

/* Three numbers in the order depth, height, width. */
typedef struct qc_window {
  int32_t kernel[3], stride[3], dilation[3], pad[3];
} qc_window;

/* q = clamp(rne(acc * m[c] + b[c]) + zero, lo, hi). Where a residual r is given: q = clamp(rne(q * k + (r * kr + kc)) + zero2, lo2, hi2).
   Where a table is given: q = table[q]. m and b are padded to a multiple of 32 channels. wide: |acc * m + b| may reach 2^31 for some
   codes, so that it is cut before it becomes an integer. */
typedef struct qc_epilogue {
  const float *m, *b;
  const uint8_t *table;
  float k, kr, kc;
  int32_t zero, lo, hi, zero2, lo2, hi2, wide;
} qc_epilogue;

/* Convolution and linear (a linear is a convolution of 1 x 1 whose pixels are the rows of its input).
   y.p is uint8, or float where floats = 1 (v itself is stored, y's strides in bytes; no residual, no table).
   r.p is NULL where there is no residual; else it has y's sizes.
   x has a halo of at least pad, filled with x's zero point; on the far side it reaches as far as the last window does.
   groups: x channels g * x.c / groups... feed y channels g * y.c / groups...; y.c / groups is a multiple of 16 unless groups = 1.
   fold = 1: the taps of a kernel row are one span of kernel[2] * x.c bytes (needs x.sw == x.c, groups = 1, dilation[2] = 1);
   fold = 0: one span a tap, of x.c / groups bytes.
   Weights: [groups][ceil(y.c / groups / 16)][spans][kp / 4][16][4]: kp is the span's length in chunks of at most 64 bytes, equally
   long, multiples of 4 (packing.py). The blocks of 16 channels are padded to an even number where groups = 1.
   wsum: the sum of the weights of each channel, padded as m is. */
typedef struct qc_conv {
  qc_tensor x, y, r;
  qc_window k;
  qc_epilogue e;
  const int8_t *w;
  const int32_t *wsum;
  int32_t groups, fold, floats;
} qc_conv;

/* Depthwise convolution, y.c == x.c. Weights: [ceil(c / 16)][kernel[0]][ceil(kernel[1] / 4)][kernel[2]][16][4], the last index
   being kernel rows; missing rows and channels are zero. Padded to 64 channels. */
typedef struct qc_depthwise {
  qc_tensor x, y, r;
  qc_window k;
  qc_epilogue e;
  const int8_t *w;
  const int32_t *wsum;
} qc_depthwise;

/* y = clamp(rne(a * ka + (b * kb + kc)) + zero, lo, hi); kc = (-za * sa - zb * sb) / sy. An operand is spread over y by strides
   of 0; step = 0: operand b has one channel that all channels use. y may lie on a or b where it has the same strides. */
typedef struct qc_add {
  qc_tensor a, b, y;
  float ka, kb, kc;
  int32_t zero, lo, hi, step;
} qc_add;

/* y = clamp(rne((a - za) * (b - zb) * k) + zero, lo, hi): the product of integers is exact. Spread as in qc_add. */
typedef struct qc_mul {
  qc_tensor a, b, y;
  float k;
  int32_t za, zb, zero, lo, hi, step;
} qc_mul;

/* y = table[x]; without a table a copy. each = 1: channel c has a table of its own, table + 256 * c. y may lie on x. */
typedef struct qc_map {
  qc_tensor x, y;
  const uint8_t *table;
  int32_t each;
} qc_map;

/* Floats of any strides (in elements; order n, d, h, w, c) to codes: clamp(rne(x * inverse) + zero, lo, hi). NaN becomes lo. */
typedef struct qc_quantize {
  const float *x;
  int64_t xs[5];
  qc_tensor y;
  float inverse;
  int32_t zero, lo, hi;
} qc_quantize;

/* Codes to floats of any strides: (x - zero) * scale. */
typedef struct qc_dequantize {
  qc_tensor x;
  float *y;
  int64_t ys[5];
  float scale;
  int32_t zero;
} qc_dequantize;

/* The largest code of each window, as far as it lies inside of x. adaptive = 1: windows as in adaptive pools, k is not used. */
typedef struct qc_max_pool {
  qc_tensor x, y;
  qc_window k;
  int32_t adaptive;
} qc_max_pool;

/* acc = the sum of the codes of a window; v = acc * float(ratio / count) + b; y = clamp(rne(v) + zero, lo, hi), ratio = sx / sy,
   b = -zx * sx / sy. count: divisor if > 0, else the pixels of the window inside of x, with include_pad also those in the
   padding, which add x_zero each to acc. A mean over all pixels is adaptive with one result. */
typedef struct qc_avg_pool {
  qc_tensor x, y;
  qc_window k;
  double ratio;
  float b;
  int32_t adaptive, include_pad, divisor, x_zero, zero, lo, hi;
} qc_avg_pool;

/* Another size. Nearest modes copy codes. Linear modes: v = the value between its neighbours (of codes), y = clamp(rne(v * m + b) +
   zero, lo, hi). scale: of each axis (depth, height, width), positions of x per position of y: in / out, 1 / scale_factor where one
   was given, (in - 1) / (out - 1) with aligned corners; 0 where out is 1 with aligned corners. */
enum { QC_NEAREST, QC_NEAREST_EXACT, QC_LINEAR, QC_LINEAR_ALIGNED };
typedef struct qc_resize {
  qc_tensor x, y;
  float scale[3], m, b;
  int32_t mode, zero, lo, hi;
} qc_resize;

/* Writes value into the pixels around t: before[i] and after[i] of them (depth, height, width). */
typedef struct qc_halo {
  qc_tensor t;
  int32_t before[3], after[3], value;
} qc_halo;

/* Moves elements of `size` bytes (1, 2, 4 or 8): all shape ops. Strides in bytes; unused axes have length 1. */
typedef struct qc_copy {
  const void *x;
  void *y;
  int64_t length[6], xs[6], ys[6];
  int32_t size;
} qc_copy;

/* y[n, d, h, w, c] = the element at x + at[0][n] + at[1][d] + at[2][h] + at[3][w] + at[4][c] (bytes); where one of the five is -1 it is
   `fill`. Elements have `size` bytes (1 or 4); y.c counts elements, which are adjacent. */
typedef struct qc_pick {
  const uint8_t *x;
  qc_tensor y;
  const int64_t *at[5];
  uint8_t fill[4];
  int32_t size;
} qc_pick;

#define QC_FAMILIES(F) F(conv) F(depthwise) F(add) F(mul) F(map) F(quantize) F(dequantize) F(max_pool) F(avg_pool) F(halo) F(copy) F(resize) F(pick)

typedef struct qc_kernels {
  const char *isa;
  void (*end)(void); /* each thread calls it when its part of a run is over */
#define QC_MEMBER(F) \
  int64_t (*F##_units)(const qc_##F *); \
  void (*F)(const qc_##F *, int64_t lo, int64_t hi);
  QC_FAMILIES(QC_MEMBER)
#undef QC_MEMBER
} qc_kernels;

/* The fastest kernels that this processor and the operating system run, none above `cap` (scalar < avx2 < avx_vnni < avx512_vnni
   < amx on x86, scalar < neon on Arm; NULL or "": no cap). NULL where cap is no such name. */
const qc_kernels *qc_select(const char *cap);

/* The names that qc_select knows in this library, slowest first, NULL at the end; and those kernels if this machine runs them. */
extern const char *const qc_isa_names[];
const qc_kernels *qc_exactly(const char *isa);

#endif
