/* Convolutions of 3 x 3 in stride 1 with fewer products: F(4x4, 3x3) of Winograd's method (Lavin and Gray, Fast algorithms for
   convolutional neural networks, 2015), in integers. For AVX2, where products are of 16-bit numbers anyhow.

   A tile is 4 x 4 results. With its 6 x 6 codes D and a channel's 3 x 3 weights G, A (U * V) A^T = 576 times the results, where
   V = B D B^T, U = g G g^T and * is by element: 36 products a tile instead of 144. The rows of g are scaled such that they, and A, are
   whole numbers, and that U and V fit into 16 bits: |V| <= 68 * 255, |U| <= 144 * 128.
   Sums of products of U and V wrap around at 2^32, and nothing is lost by that: 576 is 9 * 64, 9 has an inverse modulo 2^32, so what
   is left is 64 times the result modulo 2^32, and that is 64 times the result where results are below 2^25, which is proved for the
   weights of each layer before it is computed so. Hence the bits are those of every other way.

   A piece is some tiles times 16 channels. V, [36][tile][x.c], is made once for the pieces of the same tiles; U, [36][x.c / 2][16][2],
   for every piece, from the weights as they are for all: that is a fifth of the time which it takes to read U from the third cache. */
#ifndef QC_WINOGRAD_H
#define QC_WINOGRAD_H

#include "wide_sums.h"

#define QC_WINO_POINTS 36
#define QC_WINO_TILES 49      /* in a block, at most */
#define QC_WINO_BYTES 294912  /* of V */
#define QC_WINO_CHANNELS 128  /* of U */

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
  qc_wino_plan p = {.down = qc_ceil(a->y.h, 4), .right = qc_ceil(a->y.w, 4), .pairs = qc_ceil(a->y.c, 16)};
  p.wide = 16 * qc_ceil(a->x.c, 16);
  p.all = (int64_t)a->y.n * a->y.d * p.down * p.right;
  int64_t most = qc_max(6, qc_min(QC_WINO_TILES, QC_WINO_BYTES / (2 * QC_WINO_POINTS * p.wide)));
  p.blocks = qc_max(1, qc_ceil(p.all, most));
  p.tiles = qc_ceil(p.all, p.blocks);
  p.pitch = 2 * p.tiles * p.wide + 64;
  p.sum = 64 * p.tiles + 64;
  p.step = 32 * qc_min(QC_WINO_CHANNELS, a->x.c) + 64;
  return p;
}

/* Whether it takes less time than the plain way, in products: of tiles, and of the weights of a block of tiles. */
static int qc_wino_pays(const qc_conv *a) {
  if (!qc_wino_can(a)) return 0;
  qc_wino_plan p = qc_wino_choose(a);
  int64_t x = a->x.c, y = a->y.c;
  return p.all * (36 * x * y + 130 * x + 230 * y) + p.blocks * 75 * x * y < 9 * x * y * qc_rows(&a->y) * a->y.w;
}

typedef struct qc_wino_tile {
  int64_t n, d, h, w;
} qc_wino_tile;

QC_INLINE qc_wino_tile qc_wino_find(const qc_conv *a, const qc_wino_plan *p, int64_t index) {
  int64_t row = index / p->right, plane = row / p->down;
  return (qc_wino_tile){plane / a->y.d, plane % a->y.d, 4 * (row % p->down), 4 * (index % p->right)};
}

QC_INLINE void qc_wino_input(qv d[6]) {
  qv a = _mm256_sub_epi16(d[4], _mm256_slli_epi16(d[2], 2)), b = _mm256_sub_epi16(d[3], _mm256_slli_epi16(d[1], 2));
  qv c = _mm256_sub_epi16(d[4], d[2]), e = _mm256_sub_epi16(d[3], d[1]), e2 = _mm256_add_epi16(e, e);
  d[0] = _mm256_add_epi16(c, _mm256_slli_epi16(_mm256_sub_epi16(d[0], d[2]), 2));
  d[5] = _mm256_sub_epi16(_mm256_sub_epi16(d[5], d[3]), _mm256_add_epi16(e2, e2));
  d[1] = _mm256_add_epi16(a, b), d[2] = _mm256_sub_epi16(a, b);
  d[3] = _mm256_add_epi16(c, e2), d[4] = _mm256_sub_epi16(c, e2);
}

QC_INLINE void qc_wino_output(const qv m[6], qv y[4]) {
  qv s = _mm256_add_epi32(m[1], m[2]), d = _mm256_sub_epi32(m[2], m[1]);
  qv p = _mm256_add_epi32(m[3], m[4]), q = _mm256_sub_epi32(m[3], m[4]);
  qv far = _mm256_add_epi32(_mm256_slli_epi32(q, 2), m[5]);
  y[0] = _mm256_add_epi32(_mm256_sub_epi32(m[0], s), p);
  y[1] = _mm256_add_epi32(d, _mm256_add_epi32(q, q));
  y[2] = _mm256_sub_epi32(_mm256_slli_epi32(p, 2), s);
  y[3] = _mm256_add_epi32(d, _mm256_add_epi32(far, far));
}

/* V of one tile. Rows and columns behind the last window's are read again in their place: what they give is not stored. */
static void qc_wino_fill(const qc_conv *a, const qc_wino_plan *p, qc_wino_tile t, uint8_t *v) {
  const uint8_t *row[6], *x = a->x.p + t.n * a->x.sn + t.d * a->x.sd;
  int64_t column[6];
  for (int i = 0; i < 6; i++) {
    row[i] = x + (qc_min(t.h + i, a->y.h + 1) - a->k.pad[1]) * a->x.sh;
    column[i] = (qc_min(t.w + i, a->y.w + 1) - a->k.pad[2]) * a->x.sw;
  }
  for (int64_t c = 0; c < p->wide; c += 16, v += 32) {
    qv half[6][6], d[6];
#pragma GCC unroll 6
    for (int i = 0; i < 6; i++) {
#pragma GCC unroll 6
      for (int j = 0; j < 6; j++)
        half[i][j] = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(row[i] + column[j] + c)));
      qc_wino_input(half[i]);
    }
#pragma GCC unroll 6
    for (int j = 0; j < 6; j++) {
#pragma GCC unroll 6
      for (int i = 0; i < 6; i++) d[i] = half[i][j];
      qc_wino_input(d);
#pragma GCC unroll 6
      for (int i = 0; i < 6; i++) qv_store(v + (6 * i + j) * p->pitch, d[i]);
    }
  }
}

/* Three weights, one below the other or side by side, times the rows of g. */
QC_INLINE void qc_wino_three(qv a, qv b, qv c, qv u[6]) {
  qv s = _mm256_add_epi16(a, c), far = _mm256_add_epi16(a, _mm256_slli_epi16(c, 2)), b2 = _mm256_add_epi16(b, b);
  u[0] = _mm256_mullo_epi16(a, _mm256_set1_epi16(6));
  u[1] = _mm256_slli_epi16(_mm256_add_epi16(s, b), 2), u[2] = _mm256_slli_epi16(_mm256_sub_epi16(s, b), 2);
  u[3] = _mm256_add_epi16(far, b2), u[4] = _mm256_sub_epi16(far, b2);
  u[5] = _mm256_mullo_epi16(c, _mm256_set1_epi16(12));
}

/* U of eight channels and a pair of input channels, the first or the second of the four whose weights lie at w; tap: bytes to those of
   each tap. */
QC_INLINE void qc_wino_weights_of(const int8_t *w, const int64_t tap[9], int second, uint8_t *u, int64_t step) {
  char z = (char)0x80, i = (char)(2 * second);
  qv pick = _mm256_broadcastsi128_si256(_mm_setr_epi8(z, i, z, (char)(i + 1), z, (char)(i + 4), z, (char)(i + 5), z, (char)(i + 8), z,
                                                      (char)(i + 9), z, (char)(i + 12), z, (char)(i + 13)));
  qv half[6][3], in[3], out[6];
#pragma GCC unroll 3
  for (int j = 0; j < 3; j++) {
#pragma GCC unroll 3
    for (int k = 0; k < 3; k++) in[k] = _mm256_srai_epi16(_mm256_shuffle_epi8(qv_load(w + tap[3 * k + j]), pick), 8);
    qc_wino_three(in[0], in[1], in[2], out);
#pragma GCC unroll 6
    for (int k = 0; k < 6; k++) half[k][j] = out[k];
  }
#pragma GCC unroll 6
  for (int k = 0; k < 6; k++) {
    qc_wino_three(half[k][0], half[k][1], half[k][2], out);
#pragma GCC unroll 6
    for (int j = 0; j < 6; j++) qv_store(u + (6 * k + j) * step, out[j]);
  }
}

/* U of one block of 16 channels, input channels from..to-1; w: the block's weights. */
static void qc_wino_weights(const qc_conv *a, const qc_spans *s, const int8_t *w, int64_t from, int64_t to, uint8_t *u, int64_t step) {
  int64_t tap[9];
  for (int t = 0; t < 9; t++) tap[t] = a->fold ? 16 * (t / 3 * s->padded + t % 3 * (int64_t)s->in) : 16 * (int64_t)t * s->padded;
  for (int64_t c = from; c < to; c += 4, u += 128)
    for (int half = 0; half < 2; half++) {
      qc_wino_weights_of(w + 16 * c + 32 * half, tap, 0, u + 32 * half, step);
      qc_wino_weights_of(w + 16 * c + 32 * half, tap, 1, u + 32 * half + 64, step);
    }
}

/* All points of `tiles` tiles; fours: a fourth of the channels. */
static void qc_wino_products(const qc_wino_plan *p, const uint8_t *v, const uint8_t *u, int64_t fours, int64_t tiles, uint8_t *sums,
                             int more) {
  for (int point = 0; point < QC_WINO_POINTS; point++, v += p->pitch, u += p->step, sums += p->sum)
    qc_wide_many(v, 2 * p->wide, u, fours, (int32_t *)(void *)sums, more, tiles, 0, 0);
}

/* acc[4 x 4 results][16 channels] of the tile whose sums begin at m. */
static void qc_wino_results(const qc_wino_plan *p, const uint8_t *m, int32_t *acc) {
  for (int v = 0; v < 2; v++, m += 32, acc += 8) {
    qv half[6][4], in[6], out[4];
#pragma GCC unroll 6
    for (int i = 0; i < 6; i++) {
#pragma GCC unroll 6
      for (int j = 0; j < 6; j++) in[j] = qv_load(m + (6 * i + j) * p->sum);
      qc_wino_output(in, half[i]);
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
#pragma GCC unroll 6
      for (int i = 0; i < 6; i++) in[i] = half[i][j];
      qc_wino_output(in, out);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) /* 954437177 * 9 = 1 modulo 2^32 */
        qv_store(acc + 16 * (4 * i + j), _mm256_srai_epi32(_mm256_mullo_epi32(out[i], _mm256_set1_epi32(954437177)), 6));
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

/* The sums of one block of channels at all points; w: the block's weights. `room` holds V, then the sums, then U. */
static uint8_t *qc_wino_all_sums(const qc_conv *a, const qc_spans *s, const qc_wino_plan *p, const int8_t *w, uint8_t *room, int64_t tiles) {
  uint8_t *sums = room + QC_WINO_POINTS * p->pitch, *u = sums + QC_WINO_POINTS * p->sum;
  for (int64_t c = 0; c < a->x.c; c += QC_WINO_CHANNELS) {
    int64_t end = qc_min(c + QC_WINO_CHANNELS, a->x.c);
    qc_wino_weights(a, s, w, c, end, u, p->step);
    qc_wino_products(p, room + 2 * c, u, (end - c) / 4, tiles, sums, c > 0);
  }
  return sums;
}

/* The channels of block `index` for the tiles from `first` on, whose V lies in `room`. */
QC_INLINE void qc_wino_piece(const qc_conv *a, const qc_spans *s, const qc_wino_plan *p, uint8_t *room, int64_t first, int64_t tiles,
                             int64_t index, int kind) {
  QC_ALIGNED int32_t acc[16 * 17];
  qc_spots spots;
  qc_pair pair = qc_find_pair(a, s, index, 1);
  const uint8_t *sums = room ? qc_wino_all_sums(a, s, p, pair.w[0], room, tiles) : NULL;
  for (int64_t i = 0; i < tiles; i++) {
    qc_wino_tile t = qc_wino_find(a, p, first + i);
    if (room) qc_wino_results(p, sums + 64 * i, acc);
    for (int64_t row = 0, rows = qc_min(4, a->y.h - t.h); row < rows; row++) {
      int columns = qc_wino_spots(a, t, row, &spots);
      if (room)
        qc_finish_spots(&a->e, &spots, columns, &pair, acc + 64 * row, kind);
      else
        qc_wide_without_room(a, s, &spots, columns, &pair);
    }
  }
}

QC_INLINE void qc_wino_pieces(const qc_conv *a, int64_t lo, int64_t hi, int kind) {
  qc_wino_plan p = qc_wino_choose(a);
  qc_spans s;
  qc_find_spans(a, &s);
  uint8_t *room = QC_WIDE_ROOM(QC_WINO_POINTS * (p.pitch + p.sum + p.step));
  for (int64_t piece = lo; piece < hi; piece++) {
    int64_t block = piece / p.pairs, first = block * p.tiles, tiles = qc_min(p.tiles, p.all - first);
    if (room && (piece == lo || piece % p.pairs == 0))
      for (int64_t i = 0; i < tiles; i++) qc_wino_fill(a, &p, qc_wino_find(a, &p, first + i), room + 2 * i * p.wide);
    qc_wino_piece(a, &s, &p, room, first, tiles, piece % p.pairs, kind);
  }
  free(room);
}

static int64_t qc_wino_units(const qc_conv *a) {
  qc_wino_plan p = qc_wino_choose(a);
  return p.all ? p.blocks * p.pairs : 0;
}

#endif
