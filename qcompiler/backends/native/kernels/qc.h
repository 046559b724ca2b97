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

/* A sum of two codes: clamp(rne(a * ka + (b * kb + kc)) + zero, lo, hi). Where whole is given, in 64ths of a step as 16-bit numbers:
   with x * y as (x * y + 64) >> 7, y = (a - 128) * whole_a + (b - 128) * whole_b + whole_c, each sum cut to 16 bits; clamp(y >> 6, lo, hi).
   |whole_a| and |whole_b| are at most 2^14. */
typedef struct qc_sum {
  float ka, kb, kc;
  int32_t zero, lo, hi, whole, whole_a, whole_b, whole_c;
} qc_sum;

/* q = clamp(rne(v) + zero, lo, hi), v = acc * m[c] + b[c]. Where a residual r is given: the sum of q and r.
   Where a table is given: q = table[q]. m and b are padded to a multiple of 32 channels. wide: |acc * m + b| may reach 2^31 for some
   codes, so that it is cut before it becomes an integer.
   Where a gain is given, v is bent before it is rounded, each operation by itself:
   v = (min(max(v, 0), top) + min(v, 0) * slope[c]) * gain[c] + offset[c]. All three are padded as m is.
   Where a curve is given, and neither residual, table nor gain, v counts 2048ths of the 32 pieces of a function, each a parabola:
   x = rne(min(max(v, -32768), 32767)), its piece i = (uint16_t)x >> 11, and where in the piece it lies: t = (int16_t)(x << 5 ^ 0x8000).
   With a * b as (a * b + 2^14) >> 15, y = curve[i] + (curve[32 + i] + curve[64 + i] * t) * t, each sum cut to 16 bits;
   q = clamp((y >> 6) + 128, lo, hi). |curve[32 + i]| + |curve[64 + i]| < 2^15. Behind these 96 numbers stand the same as bytes: the low
   ones of the first 32, the high ones, then those of the others.
   Where a knee is given (not 0), and neither residual, table, gain nor curve, x is the same, t = min(max(x, 0), knee),
   s = max(x - half, -32768); q = clamp(((t * s + 2^14) >> 15) + zero, lo, hi). */
typedef struct qc_epilogue {
  const float *m, *b, *gain, *slope, *offset;
  const uint8_t *table;
  const int16_t *curve;
  qc_sum sum;
  float top;
  int32_t zero, lo, hi, wide, knee, half;
} qc_epilogue;

/* Convolution and linear (a linear is a convolution of 1 x 1 whose pixels are the rows of its input).
   y.p is uint8, or float where floats = 1 (v itself is stored, y's strides in bytes; no residual, no table, no gain, no curve).
   r.p is NULL where there is no residual; else it has y's sizes.
   x has a halo of at least pad, filled with x's zero point; on the far side it reaches as far as the last window does.
   groups: x channels g * x.c / groups... feed y channels g * y.c / groups...; y.c / groups is a multiple of 16 unless groups = 1.
   fold = 1: the taps of a kernel row are one span of kernel[2] * x.c bytes (needs x.sw == x.c, groups = 1, dilation[2] = 1);
   fold = 0: one span a tap, of x.c / groups bytes.
   Weights: [groups][ceil(y.c / groups / 16)][spans][kp / 4][16][4]: kp is the span's length in chunks of at most 64 bytes, equally
   long, multiples of 4 (packing.py). The blocks of 16 channels are padded to an even number where groups = 1.
   wsum: the sum of the weights of each channel, padded as m is.
   small: no sum reaches 2^25, whatever the codes are.
   room: conv_room bytes for what all pieces read, which the first conv_first pieces make: they stand before all others. NULL: each call
   makes what its pieces read itself, and the first pieces are nothing. */
typedef struct qc_conv {
  qc_tensor x, y, r;
  uint8_t *room;
  qc_window k;
  qc_epilogue e;
  const int8_t *w;
  const int32_t *wsum;
  int32_t groups, fold, floats, small;
} qc_conv;

/* Depthwise convolution, y.c == x.c. Weights: [ceil(c / 16)][kernel[0]][ceil(kernel[1] / 4)][kernel[2]][16][4], the last index
   being kernel rows; missing rows and channels are zero. Padded to 64 channels. No residual. */
typedef struct qc_depthwise {
  qc_tensor x, y;
  qc_window k;
  qc_epilogue e;
  const int8_t *w;
  const int32_t *wsum;
} qc_depthwise;

/* y = the sum of a and b; kc = (-za * sa - zb * sb) / sy. An operand is spread over y by strides of 0; step = 0: operand b has one channel
   that all channels use. y may lie on a or b where it has the same strides. */
typedef struct qc_add {
  qc_tensor a, b, y;
  qc_sum sum;
  int32_t step;
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
   b = -zx * sx / sy. count: the divisor if it is not 0, else the pixels of the window inside of x, with include_pad also those in the
   padding. acc begins at x_zero for each by which count is more than the pixels inside of x, less for each by which it is less. A mean
   over all pixels is adaptive with one result. */
typedef struct qc_avg_pool {
  qc_tensor x, y;
  qc_window k;
  double ratio;
  float b;
  int32_t adaptive, include_pad, divisor, x_zero, zero, lo, hi;
} qc_avg_pool;

/* Another size. Nearest modes copy elements, of codes or of floats. Others: v = the value between its neighbours (2 along an axis, 4 with
   the cubic modes, which have no depth), y = clamp(rne(v * m + b) + zero, lo, hi), or v * m + b itself. x_floats, y_floats: x, or y, are
   floats. scale: of each axis (depth, height, width), positions of x per position of y: in / out, 1 / scale_factor where one was given,
   (in - 1) / (out - 1) with aligned corners; 0 where out is 1 with aligned corners. */
enum { QC_NEAREST, QC_NEAREST_EXACT, QC_LINEAR, QC_LINEAR_ALIGNED, QC_CUBIC, QC_CUBIC_ALIGNED };
typedef struct qc_resize {
  qc_tensor x, y;
  float scale[3], m, b;
  int32_t mode, zero, lo, hi, x_floats, y_floats;
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

/* Floats, or codes that become (code - zero) * scale as they are read. Elements of a pixel lie `step` bytes apart, 0: one for all. */
typedef struct qc_operand {
  qc_tensor t;
  int64_t step;
  float scale;
  int32_t zero, codes;
} qc_operand;

/* Floats, or codes clamp(rne(v * inverse) + zero, lo, hi). Elements of a pixel lie side by side. */
typedef struct qc_result {
  qc_tensor t;
  float inverse;
  int32_t zero, lo, hi, codes;
} qc_result;

/* y = f(x), the numbers p being settings of f; or y = table[code of x]. What each function is stands in float_map.h. */
enum {
  QC_COPY, QC_CLAMP, QC_EXP, QC_LOG, QC_TANH, QC_ERF, QC_SIGMOID, QC_SILU, QC_GELU, QC_GELU_TANH, QC_SQRT, QC_RSQRT, QC_RECIPROCAL,
  QC_SQUARE, QC_NEG, QC_ABS, QC_HARDSIGMOID, QC_HARDSWISH, QC_LEAKY_RELU, QC_ELU, QC_SOFTPLUS, QC_MISH, QC_NOT,
  QC_SIN, QC_COS, QC_FLOOR, QC_CEIL, QC_TRUNC, QC_ROUND, QC_FRAC, QC_SIGN, QC_EXPM1, QC_LOG1P, QC_LOG_TO, QC_POWER, QC_SOFTSIGN,
  QC_LOGSIGMOID, QC_TABLE
};
typedef struct qc_float_map {
  qc_operand x;
  qc_result y;
  const float *table;
  float p[2];
  int32_t function;
} qc_float_map;

/* y = clamp(a op b, lo, hi): a + b * times, a - b * times, a * b, a / b, the larger, the smaller; 1 or 0: comparisons, and whether both,
   one or just one of them is not 0. Spread by strides and steps of 0. */
enum {
  QC_ADD, QC_SUB, QC_MUL, QC_DIV, QC_MAXIMUM, QC_MINIMUM, QC_EQ, QC_NE, QC_LT, QC_LE, QC_GT, QC_GE, QC_AND, QC_OR, QC_XOR
};
typedef struct qc_float_pair {
  qc_operand a, b;
  qc_result y;
  float times, lo, hi;
  int32_t op;
} qc_float_pair;

/* Rows of x.t.c elements, m their mean: y = (x - m) / sqrt(mean((x - m)^2) + eps) * w + b; rms = 1: m is 0. Row r uses the numbers
   ((r mod cycle) * c + i) / each of w and b, which may be NULL. */
typedef struct qc_norm {
  qc_operand x;
  qc_result y;
  const float *w, *b;
  int64_t cycle, each;
  float eps;
  int32_t rms;
} qc_norm;

/* Rows of x.t.c elements, m the largest: y = exp(x - m) / sum(exp(x - m)); log = 1: y = x - m - log(sum(exp(x - m))). */
typedef struct qc_softmax {
  qc_operand x;
  qc_result y;
  int32_t log;
} qc_softmax;

/* Rows of x.t.c elements: y = the sum of those up to each, added in order in double. */
typedef struct qc_cumsum {
  qc_operand x;
  qc_result y;
} qc_cumsum;

/* Rows of x.t.c elements: their sum times `factor`, their largest or their smallest. */
enum { QC_SUM, QC_LARGEST, QC_SMALLEST };
typedef struct qc_reduce {
  qc_operand x;
  qc_result y;
  float factor;
  int32_t op;
} qc_reduce;

/* Rows of x.t.c elements, places in them as floats. QC_ARGMAX, QC_ARGMIN (y.c = 1): where the largest or smallest stands, the first of equal
   ones, and a NaN before all others. QC_DESCENDING, QC_ASCENDING: the first y.c places of the row in order, equal elements as they stand,
   NaN as the largest of all; `work` has room for y.c numbers a row. Elements of a pixel of y lie side by side. */
enum { QC_ARGMAX, QC_ARGMIN, QC_DESCENDING, QC_ASCENDING };
typedef struct qc_order {
  qc_operand x;
  qc_tensor y;
  uint64_t *work;
  int32_t op;
} qc_order;

/* y = the elements of a row of x that stand at these places, as floats, side by side; NaN for a place that the row does not have.
   from_end = 1: negative places count from the end of the row. */
typedef struct qc_elements {
  qc_operand x, at;
  qc_tensor y;
  int32_t from_end;
} qc_elements;

/* Whole numbers as int64. Elements of a pixel of y lie side by side. */
typedef struct qc_int64 {
  qc_operand x;
  qc_tensor y;
} qc_int64;

/* Windows of floats, or of codes as floats: op = QC_LARGEST: the largest element inside of x, NaN where there is one; QC_SUM: the sum in
   the order d, h, w, over how many elements the window has: the divisor if it is not 0, else those inside of x, with include_pad also those in the
   padding. adaptive = 1: windows as in adaptive pools, k is not used. */
typedef struct qc_float_pool {
  qc_operand x;
  qc_result y;
  qc_window k;
  int32_t op, adaptive, include_pad, divisor;
} qc_float_pool;

/* The range of all elements of x, widened to contain 0, in 255 steps: y[0] is the step, y[1] the zero point. One piece. */
typedef struct qc_range {
  qc_operand x;
  double *y;
} qc_range;

/* Codes of x on the range that qc_range found: clamp(rne(x * float(1 / ends[0])) + ends[1], 0, 255). Elements of a pixel of y lie side
   by side. */
typedef struct qc_encode {
  qc_operand x;
  const double *ends;
  qc_tensor y;
} qc_encode;

/* What an epilogue takes for codes on such a range, and floats as results: m[c] = float(ends[0] * scale[c]), and behind `padded` of these
   b[c] = float(bias[c] - ends[1] * wsum[c] * m[c]), in double. bias may be NULL. Channels from `channels` on are 0. */
typedef struct qc_factors {
  const double *ends, *scale, *bias;
  const int32_t *wsum;
  float *m;
  int32_t channels, padded;
} qc_factors;

/* One step of recurrent cells: ih and hh, the products with input and state, hold for each of `rows` rows the gates (LSTM i, f, g, o; GRU
   r, z, n), `width` elements each, and lie side by side, as hidden and cell do, which become the new state. `out` gets the hidden state,
   too: its rows lie out_row floats apart. A piece is a row. */
enum { QC_LSTM, QC_GRU, QC_RNN_TANH, QC_RNN_RELU };
typedef struct qc_gates {
  const float *ih, *hh;
  float *hidden, *cell, *out;
  int64_t rows, width, out_row;
  int32_t kind;
} qc_gates;

/* y = a where the condition is not 0, else b. Spread as in qc_float_pair. */
typedef struct qc_where {
  qc_operand condition, a, b;
  qc_result y;
} qc_where;

/* Row x of a table, for the one element x of each pixel: floats; or, where there are codes, float((code - zero[x]) * scale[x]) in double.
   An x that is no number of a row gives NaN. */
typedef struct qc_embed {
  qc_operand x;
  qc_result y;
  const float *table;
  const uint8_t *codes;
  const double *scale, *zero;
  int64_t rows;
} qc_embed;

/* A matrix for products: x has w = K rows and c = N columns in each of n * d * h matrices; y is [n * d * h][ceil(N / 16)][K][16] floats,
   missing columns 0. */
typedef struct qc_pack {
  qc_operand x;
  float *y;
} qc_pack;

/* y[m][n] = sum over k, in order, of a[m][k] * b[k][n], b as qc_pack made it. y.t has w = M, c = N; a (floats, side by side) w = M, c = K;
   b_of: how many matrices of b lie between those of neighbouring n, d, h of y, 0 where they share one. */
typedef struct qc_matmul {
  qc_tensor a;
  const float *b;
  int64_t b_of[3];
  qc_result y;
} qc_matmul;

/* y = softmax(q k^T * scale + mask) v, of each n, d, h: y.t has w = queries, c = width of v. q as a in qc_matmul; k (columns: keys) and v
   (rows: keys) as qc_pack made them, k_of and v_of as b_of. mask.t.p is NULL where there is none; it has c = keys. causal = 1: query i
   sees the keys 0..i alone. A query that sees no key gives zeros. */
typedef struct qc_attention {
  qc_tensor q;
  const float *k, *v;
  int64_t k_of[3], v_of[3];
  qc_operand mask;
  qc_result y;
  float scale;
  int32_t keys, causal;
} qc_attention;

/* The pixels of x at places: places.t has the two numbers of each pixel of y, first the one along the width. */
enum { QC_ZEROS, QC_BORDER, QC_REFLECTION };
typedef struct qc_warp {
  qc_operand x, places;
  qc_result y;
  int32_t padding, nearest, aligned;
} qc_warp;

#define QC_FAMILIES(F) F(conv) F(depthwise) F(add) F(mul) F(map) F(quantize) F(dequantize) F(max_pool) F(avg_pool) F(halo) F(copy) F(resize) F(pick) \
  F(float_map) F(float_pair) F(float_pool) F(norm) F(softmax) F(cumsum) F(reduce) F(range) F(encode) F(factors) F(gates) \
  F(where) F(embed) F(pack) F(matmul) F(attention) F(order) F(elements) F(int64) F(warp)

typedef struct qc_kernels {
  const char *isa;
  void (*end)(void); /* each thread calls it when its part of a run is over */
  int64_t (*conv_first)(const qc_conv *);
  int64_t (*conv_room)(const qc_conv *);
#define QC_MEMBER(F) \
  int64_t (*F##_units)(const qc_##F *); \
  void (*F)(const qc_##F *, int64_t lo, int64_t hi);
  QC_FAMILIES(QC_MEMBER)
#undef QC_MEMBER
} qc_kernels;

/* The fastest instruction set that this processor and the operating system run, none above `cap` (scalar < avx2 < avx_vnni < avx512_vnni
   < amx on x86, scalar < neon on Arm; NULL or "": no cap). NULL where cap is no such name. */
const char *qc_fastest(const char *cap);

/* Its kernels; NULL where this library was built without them. */
const qc_kernels *qc_select(const char *cap);

/* The kernels of one instruction set; NULL where this machine does not run it, or this library was built without it. */
const qc_kernels *qc_exactly(const char *isa);

/* x86: whether bytes can be picked from two vectors (AVX-512 VBMI), which not all that have AVX-512 VNNI can. Set by the first qc_fastest. */
extern int qc_has_vbmi;

#endif
