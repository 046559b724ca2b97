/* Convolutions of 3 x 3 in stride 1 with fewer products: F(4x4, 3x3) of Winograd's method (Lavin and Gray, Fast algorithms for
   convolutional neural networks, 2015), in integers. For AVX2, where products are of 16-bit numbers anyhow, and for AVX-512 VNNI, where
   such products are half as many an instruction as those of bytes.

   A tile is 4 x 4 results. With its 6 x 6 codes D and a channel's 3 x 3 weights G, A (U * V) A^T = 576 times the results, where
   V = B D B^T, U = g G g^T and * is by element: 36 products a tile instead of 144. The rows of g are scaled such that they, and A, are
   whole numbers, and that U and V fit into 16 bits: |V| <= 68 * 255, |U| <= 144 * 128.
   Sums of products of U and V wrap around at 2^32, and nothing is lost by that: 576 is 9 * 64, 9 has an inverse modulo 2^32, so what
   is left is 64 times the result modulo 2^32, and that is 64 times the result where results are below 2^25, which is proved for the
   weights of each layer before it is computed so. Hence the bits are those of every other way.

   A piece is some tiles times QC_WINO_OUT channels. V, [36][tile][x.c], is made once for the pieces of the same tiles: by the first pieces,
   a tile each, where there is room that threads share, else by each call for its own. U,
   [block of 16 channels][36][x.c / 2][16][2], for every piece, from the weights as they are for all: that is a fifth of the time which
   it takes to read U from the third cache. */
#ifndef QC_WINOGRAD_H
#define QC_WINOGRAD_H

#include "one_position.h"

#if QC_IS_512
#include "dot_sums.h"
#define QC_WINO_BLOCKS 2
#define QC_WINO_TILES 56      /* in a block, at most */
#define QC_WINO_BYTES 700000  /* of V */
#define QC_WINO_CHANNELS 128  /* of U */
#else
#include "wide_sums.h"
#define QC_WINO_BLOCKS 1
#define QC_WINO_TILES 49
#define QC_WINO_BYTES 294912
#define QC_WINO_CHANNELS 128
#endif
#define QC_WINO_POINTS 36
#define QC_WINO_PIECES 4 /* at least, for threads */
#define QC_WINO_SHARED (4 << 20) /* bytes of V that threads share, at most: of many tiles, most are read by the thread that made them */
#define QC_WINO_OUT (16 * QC_WINO_BLOCKS)
#define QC_WINO_LANES (QC_VB / 2) /* 16-bit numbers of a vector */

/* Vectors of which the compiler knows the arithmetic; numbers wrap around. */
typedef uint16_t qc_shorts __attribute__((vector_size(QC_VB)));
typedef uint32_t qc_ints __attribute__((vector_size(QC_VB)));
typedef int32_t qc_signed __attribute__((vector_size(QC_VB)));

static int qc_wino_can(const qc_conv *a) {
  const qc_window *k = &a->k;
  const int32_t kernel[3] = {1, 3, 3};
  for (int i = 0; i < 3; i++)
    if (k->kernel[i] != kernel[i] || k->stride[i] != 1 || k->dilation[i] != 1) return 0;
  return a->small && k->pad[0] == 0 && a->groups == 1 && a->x.c >= 16 && a->y.c >= 16 && a->x.c % 4 == 0;
}

/* down, right: tiles of an image; tiles: of a block. wide: channels of V. pitch, sum, step: bytes from one point of V, of the sums and
   of U to the next: no multiples of a page, or all of them would share a few lines of the first cache. */
typedef struct qc_wino_plan {
  int64_t down, right, all, tiles, blocks, pairs, wide, pitch, sum, step;
} qc_wino_plan;

static qc_wino_plan qc_wino_choose(const qc_conv *a) {
  qc_wino_plan p = {.down = qc_ceil(a->y.h, 4), .right = qc_ceil(a->y.w, 4), .pairs = qc_ceil(a->y.c, QC_WINO_OUT)};
  p.wide = QC_WINO_LANES * qc_ceil(a->x.c, QC_WINO_LANES);
  p.all = (int64_t)a->y.n * a->y.d * p.down * p.right;
  int64_t most = qc_max(6, qc_min(QC_WINO_TILES, QC_WINO_BYTES / (2 * QC_WINO_POINTS * p.wide)));
  p.blocks = qc_max(qc_max(1, qc_ceil(p.all, most)), qc_min(p.all, qc_ceil(QC_WINO_PIECES, p.pairs)));
  p.tiles = qc_ceil(p.all, p.blocks);
  p.pitch = 2 * p.tiles * p.wide + 64;
  p.sum = 4 * QC_WINO_OUT * p.tiles + 64;
  p.step = 32 * qc_min(QC_WINO_CHANNELS, a->x.c) + 64;
  return p;
}

QC_INLINE int64_t qc_wino_bytes(const qc_wino_plan *p) { return QC_WINO_POINTS * p->pitch; }

/* How many pieces make V, where it is shared. */
QC_INLINE int64_t qc_wino_makers(const qc_wino_plan *p) { return p->pairs > 1 && p->blocks * qc_wino_bytes(p) <= QC_WINO_SHARED ? p->all : 0; }

/* Whether it takes less time than the plain way, in the plain way's products: of tiles, and of the weights of a block of tiles. Measured
   on Zen 3 (AVX2) and Zen 4 (AVX-512 VNNI). */
static int qc_wino_pays(const qc_conv *a) {
  if (!qc_wino_can(a)) return 0;
  qc_wino_plan p = qc_wino_choose(a);
  int64_t x = a->x.c, y = QC_WINO_OUT * p.pairs, plain = 9 * x * 16 * qc_ceil(a->y.c, 16) * qc_rows(&a->y) * a->y.w;
#if QC_IS_512
  return p.all * (77 * x * y + 450 * x + 760 * y) + p.blocks * 260 * x * y < plain;
#else
  return p.all * (36 * x * y + 130 * x + 230 * y) + p.blocks * 75 * x * y < plain;
#endif
}

typedef struct qc_wino_tile {
  int64_t n, d, h, w;
} qc_wino_tile;

QC_INLINE qc_wino_tile qc_wino_find(const qc_conv *a, const qc_wino_plan *p, int64_t index) {
  int64_t row = index / p->right, plane = row / p->down;
  return (qc_wino_tile){plane / a->y.d, plane % a->y.d, 4 * (row % p->down), 4 * (index % p->right)};
}

QC_INLINE void qc_wino_input(qc_shorts d[6]) {
  qc_shorts a = d[4] - (d[2] << 2), b = d[3] - (d[1] << 2), c = d[4] - d[2], e = d[3] - d[1], e2 = e + e;
  d[0] = c + ((d[0] - d[2]) << 2);
  d[5] = d[5] - d[3] - (e2 + e2);
  d[1] = a + b, d[2] = a - b;
  d[3] = c + e2, d[4] = c - e2;
}

QC_INLINE void qc_wino_output(const qc_ints m[6], qc_ints y[4]) {
  qc_ints s = m[1] + m[2], d = m[2] - m[1], p = m[3] + m[4], q = m[3] - m[4], far = (q << 2) + m[5];
  y[0] = m[0] - s + p;
  y[1] = d + (q + q);
  y[2] = (p << 2) - s;
  y[3] = d + (far + far);
}

/* A vector of codes as 16-bit numbers. */
QC_INLINE qc_shorts qc_wino_codes(const uint8_t *x) {
#if QC_IS_512
  return (qc_shorts)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)x));
#else
  return (qc_shorts)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)x));
#endif
}

/* V of one tile. Rows and columns behind the last window's are read again in their place: what they give is not stored. */
static void qc_wino_fill(const qc_conv *a, const qc_wino_plan *p, qc_wino_tile t, uint8_t *v) {
  const uint8_t *row[6], *x = a->x.p + t.n * a->x.sn + t.d * a->x.sd;
  int64_t column[6];
  for (int i = 0; i < 6; i++) {
    row[i] = x + (qc_min(t.h + i, a->y.h + 1) - a->k.pad[1]) * a->x.sh;
    column[i] = (qc_min(t.w + i, a->y.w + 1) - a->k.pad[2]) * a->x.sw;
  }
  for (int64_t c = 0; c < p->wide; c += QC_WINO_LANES, v += QC_VB) {
    qc_shorts half[6][6], d[6];
#pragma GCC unroll 6
    for (int i = 0; i < 6; i++) {
#pragma GCC unroll 6
      for (int j = 0; j < 6; j++) half[i][j] = qc_wino_codes(row[i] + column[j] + c);
      qc_wino_input(half[i]);
    }
#pragma GCC unroll 6
    for (int j = 0; j < 6; j++) {
#pragma GCC unroll 6
      for (int i = 0; i < 6; i++) d[i] = half[i][j];
      qc_wino_input(d);
#pragma GCC unroll 6
      for (int i = 0; i < 6; i++) qv_store(v + (6 * i + j) * p->pitch, (qv)d[i]);
    }
  }
}

/* Three weights, one below the other or side by side, times the rows of g. */
QC_INLINE void qc_wino_three(qc_shorts a, qc_shorts b, qc_shorts c, qc_shorts u[6]) {
  qc_shorts s = a + c, far = a + (c << 2), b2 = b + b;
  u[0] = a * 6;
  u[1] = (s + b) << 2, u[2] = (s - b) << 2;
  u[3] = far + b2, u[4] = far - b2;
  u[5] = c * 12;
}

/* Two weights of each four at w, the first or the second two, as 16-bit numbers. */
QC_INLINE qc_shorts qc_wino_two(const int8_t *w, int second) {
  char z = (char)0x80, i = (char)(2 * second);
  __m128i pick = _mm_setr_epi8(z, i, z, (char)(i + 1), z, (char)(i + 4), z, (char)(i + 5), z, (char)(i + 8), z, (char)(i + 9), z, (char)(i + 12),
                               z, (char)(i + 13));
#if QC_IS_512
  return (qc_shorts)_mm512_srai_epi16(_mm512_shuffle_epi8(qv_load(w), _mm512_broadcast_i32x4(pick)), 8);
#else
  return (qc_shorts)_mm256_srai_epi16(_mm256_shuffle_epi8(qv_load(w), _mm256_broadcastsi128_si256(pick)), 8);
#endif
}

/* U of a vector of channels and a pair of input channels, the first or the second of the four whose weights lie at w; tap: bytes to
   those of each tap. */
QC_INLINE void qc_wino_weights_of(const int8_t *w, const int64_t tap[9], int second, uint8_t *u, int64_t step) {
  qc_shorts half[6][3], in[3], out[6];
#pragma GCC unroll 3
  for (int j = 0; j < 3; j++) {
#pragma GCC unroll 3
    for (int k = 0; k < 3; k++) in[k] = qc_wino_two(w + tap[3 * k + j], second);
    qc_wino_three(in[0], in[1], in[2], out);
#pragma GCC unroll 6
    for (int k = 0; k < 6; k++) half[k][j] = out[k];
  }
#pragma GCC unroll 6
  for (int k = 0; k < 6; k++) {
    qc_wino_three(half[k][0], half[k][1], half[k][2], out);
#pragma GCC unroll 6
    for (int j = 0; j < 6; j++) qv_store(u + (6 * k + j) * step, (qv)out[j]);
  }
}

/* U of one block of 16 channels, input channels from..to-1; w: the block's weights. */
static void qc_wino_weights(const qc_conv *a, const qc_spans *s, const int8_t *w, int64_t from, int64_t to, uint8_t *u, int64_t step) {
  int64_t tap[9];
  for (int t = 0; t < 9; t++) tap[t] = a->fold ? 16 * (t / 3 * s->padded + t % 3 * (int64_t)s->in) : 16 * (int64_t)t * s->padded;
  for (int64_t c = from; c < to; c += 4, u += 128)
    for (int part = 0; part < 64; part += QC_VB) {
      qc_wino_weights_of(w + 16 * c + part, tap, 0, u + part, step);
      qc_wino_weights_of(w + 16 * c + part, tap, 1, u + part + 64, step);
    }
}

/* All points of `tiles` tiles; fours: a fourth of the channels. */
static void qc_wino_products(const qc_wino_plan *p, const uint8_t *v, const uint8_t *u, int64_t fours, int64_t tiles, uint8_t *sums,
                             int more) {
  for (int point = 0; point < QC_WINO_POINTS; point++, v += p->pitch, u += p->step, sums += p->sum)
#if QC_IS_512
    qc_dot_wide_many(v, 2 * p->wide, 8 * fours, (const int8_t *)u, (const int8_t *)u + QC_WINO_POINTS * p->step, (int32_t *)(void *)sums, more,
                     tiles);
#else
    qc_wide_many(v, 2 * p->wide, u, fours, (int32_t *)(void *)sums, more, tiles, 0, 0);
#endif
}

/* acc[4 x 4 results][QC_WINO_OUT channels] of the tile whose sums begin at m. */
static void qc_wino_results(const qc_wino_plan *p, const uint8_t *m, int32_t *acc) {
  for (int v = 0; v < 2; v++, m += QC_VB, acc += QC_VB / 4) {
    qc_ints half[6][4], in[6], out[4];
#pragma GCC unroll 6
    for (int i = 0; i < 6; i++) {
#pragma GCC unroll 6
      for (int j = 0; j < 6; j++) in[j] = (qc_ints)qv_load(m + (6 * i + j) * p->sum);
      qc_wino_output(in, half[i]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
#pragma GCC unroll 6
      for (int i = 0; i < 6; i++) in[i] = half[i][j];
      qc_wino_output(in, out);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) /* 954437177 * 9 = 1 modulo 2^32 */
        qv_store(acc + QC_WINO_OUT * (4 * i + j), (qv)((qc_signed)(out[i] * 954437177u) >> 6));
    }
  }
}

/* The positions of row i of a tile's results; returns how many they are. */
QC_INLINE int qc_wino_spots(const qc_conv *a, qc_wino_tile t, int64_t i, qc_spots *s) {
  int columns = (int)qc_min(4, a->y.w - t.w);
  int64_t h = t.h + i;
  for (int j = 0; j < columns; j++) {
    int64_t w = t.w + j;
    s->x[j] = a->x.p + t.n * a->x.sn + t.d * a->x.sd + h * a->x.sh + w * a->x.sw;
    s->y[j] = a->y.p + t.n * a->y.sn + t.d * a->y.sd + h * a->y.sh + w * a->y.sw;
    s->r[j] = a->r.p ? a->r.p + t.n * a->r.sn + t.d * a->r.sd + h * a->r.sh + w * a->r.sw : NULL;
  }
  return columns;
}

/* Where V, the sums and U of a piece are; v is NULL where there was no memory. */
typedef struct qc_wino_places {
  uint8_t *v, *sums, *u;
} qc_wino_places;

/* The sums of a piece's channels at all points. */
static void qc_wino_all_sums(const qc_conv *a, const qc_spans *s, const qc_wino_plan *p, const qc_pair *pair, const qc_wino_places *at, int64_t tiles) {
  for (int64_t c = 0; c < a->x.c; c += QC_WINO_CHANNELS) {
    int64_t end = qc_min(c + QC_WINO_CHANNELS, a->x.c);
    for (int b = 0; b < QC_WINO_BLOCKS; b++) qc_wino_weights(a, s, pair->w[b], c, end, at->u + b * QC_WINO_POINTS * p->step, p->step);
    qc_wino_products(p, at->v + 2 * c, at->u, (end - c) / 4, tiles, at->sums, c > 0);
  }
}

/* The channels of piece `index` for the tiles from `first` on. */
QC_INLINE void qc_wino_piece(const qc_conv *a, const qc_spans *s, const qc_wino_plan *p, const qc_wino_places *at, int64_t first, int64_t tiles,
                             int64_t index, int kind) {
  QC_ALIGNED int32_t acc[QC_WINO_OUT * 17];
  qc_spots spots;
  qc_pair pair = qc_find_pair(a, s, index, QC_WINO_BLOCKS);
  if (at->v) qc_wino_all_sums(a, s, p, &pair, at, tiles);
  for (int64_t i = 0; i < tiles; i++) {
    qc_wino_tile t = qc_wino_find(a, p, first + i);
    if (at->v) qc_wino_results(p, at->sums + 4 * QC_WINO_OUT * i, acc);
    for (int64_t row = 0, rows = qc_min(4, a->y.h - t.h); row < rows; row++) {
      int columns = qc_wino_spots(a, t, row, &spots);
      if (at->v)
        qc_finish_spots(&a->e, &spots, columns, &pair, acc + 4 * QC_WINO_OUT * row, kind);
      else
        qc_without_room(a, s, &spots, columns, &pair, QC_WINO_BLOCKS);
    }
  }
}

/* V of the tiles lo..hi-1, in the room that is shared. */
static void qc_wino_make(const qc_conv *a, const qc_wino_plan *p, int64_t lo, int64_t hi) {
  for (int64_t i = lo; i < hi; i++)
    qc_wino_fill(a, p, qc_wino_find(a, p, i), a->room + i / p->tiles * qc_wino_bytes(p) + 2 * (i % p->tiles) * p->wide);
}

QC_INLINE void qc_wino_pieces(const qc_conv *a, int64_t lo, int64_t hi, int kind) {
  qc_wino_plan p = qc_wino_choose(a);
  int64_t makers = qc_wino_makers(&p), own = makers && a->room ? 0 : qc_wino_bytes(&p);
  if (!own) qc_wino_make(a, &p, lo, qc_min(hi, makers));
  lo = qc_max(lo, makers) - makers, hi -= makers;
  if (lo >= hi) return;
  qc_spans s;
  qc_find_spans(a, &s);
  uint8_t *room = QC_ROOM(own + QC_WINO_POINTS * (p.sum + QC_WINO_BLOCKS * p.step));
  for (int64_t piece = lo; piece < hi; piece++) {
    int64_t block = piece / p.pairs, first = block * p.tiles, tiles = qc_min(p.tiles, p.all - first);
    qc_wino_places at = {NULL, NULL, NULL};
    if (room) at = (qc_wino_places){own ? room : a->room + block * qc_wino_bytes(&p), room + own, room + own + QC_WINO_POINTS * p.sum};
    if (room && own && (piece == lo || piece % p.pairs == 0))
      for (int64_t i = 0; i < tiles; i++) qc_wino_fill(a, &p, qc_wino_find(a, &p, first + i), room + 2 * i * p.wide);
    qc_wino_piece(a, &s, &p, &at, first, tiles, piece % p.pairs, kind);
  }
  free(room);
}

static int64_t qc_wino_units(const qc_conv *a) {
  qc_wino_plan p = qc_wino_choose(a);
  return p.all ? qc_wino_makers(&p) + p.blocks * p.pairs : 0;
}

static int64_t qc_wino_first(const qc_conv *a) {
  if (!qc_wino_pays(a)) return 0;
  qc_wino_plan p = qc_wino_choose(a);
  return qc_wino_makers(&p);
}

static int64_t qc_wino_room(const qc_conv *a) {
  qc_wino_plan p = qc_wino_choose(a);
  return p.blocks * qc_wino_bytes(&p);
}

#endif
