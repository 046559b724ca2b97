/* Products of matrices of floats. Each result is one sum over k in order: a vector holds neighbouring columns, never parts of a sum. */
#ifndef QC_MATMUL_H
#define QC_MATMUL_H

#include "float_rows.h"

#define QC_COLUMNS 16 /* of a panel of b */
#define QC_VECTORS (QC_COLUMNS / QC_F)

/* Rows of a tile, as many as registers hold sums for, and the parts that fewer rows are cut into. */
#if QC_IS_512
#define QC_TALL 12
#define QC_TALL_PARTS(F) F(12) F(8) F(4) F(2) F(1)
#elif QC_IS_256 || QC_ISA == QC_NEON
#define QC_TALL 6
#define QC_TALL_PARTS(F) F(6) F(4) F(2) F(1)
#else
#define QC_TALL 2
#define QC_TALL_PARTS(F) F(2) F(1)
#endif

static int64_t qc_matrices(const qc_tensor *t) { return (int64_t)t->n * t->d * t->h; }

/* Matrix i of an operand that has the n, d, h of `of`. */
QC_INLINE uint8_t *qc_matrix(const qc_tensor *t, int64_t i, const qc_tensor *of) { return qc_row(t, i, of->d, of->h); }
QC_INLINE int64_t qc_matrix_of(const int64_t by[3], int64_t i, const qc_tensor *of) {
  int64_t plane = i / of->h, image = plane / of->d;
  return image * by[0] + (plane - image * of->d) * by[1] + (i - plane * of->h) * by[2];
}

/* A piece is a panel. */
static int64_t qc_pack_panels_units(const qc_pack *s) { return qc_matrices(&s->x.t) * qc_ceil(s->x.t.c, QC_COLUMNS); }

typedef float qf_four __attribute__((vector_size(16)));

/* 16 columns of floats, `step` bytes apart, as rows of 16: four by four. */
static void qc_turn(const uint8_t *x, int64_t step, int64_t depth, float *y) {
  int64_t k = 0;
  for (; k + 4 <= depth; k += 4)
    for (int i = 0; i < QC_COLUMNS; i += 4) {
      qf_four v[4], low[2], high[2];
      for (int j = 0; j < 4; j++) memcpy(v + j, x + (i + j) * step + 4 * k, sizeof *v);
      for (int j = 0; j < 2; j++) {
        low[j] = __builtin_shufflevector(v[j], v[j + 2], 0, 4, 1, 5);
        high[j] = __builtin_shufflevector(v[j], v[j + 2], 2, 6, 3, 7);
      }
      v[0] = __builtin_shufflevector(low[0], low[1], 0, 4, 1, 5), v[1] = __builtin_shufflevector(low[0], low[1], 2, 6, 3, 7);
      v[2] = __builtin_shufflevector(high[0], high[1], 0, 4, 1, 5), v[3] = __builtin_shufflevector(high[0], high[1], 2, 6, 3, 7);
      for (int j = 0; j < 4; j++) memcpy(y + (k + j) * QC_COLUMNS + i, v + j, sizeof *v);
    }
  for (; k < depth; k++)
    for (int i = 0; i < QC_COLUMNS; i++) memcpy(y + k * QC_COLUMNS + i, x + i * step + 4 * k, 4);
}

static void qc_pack_panels(const qc_pack *s, int64_t lo, int64_t hi) {
  int64_t panels = qc_ceil(s->x.t.c, QC_COLUMNS), depth = s->x.t.w, down = s->x.t.sw, step = s->x.step;
  qc_operand along = s->x;
  along.step = down;
  for (int64_t piece = lo; piece < hi; piece++) {
    int64_t first = piece % panels * QC_COLUMNS, count = qc_min(QC_COLUMNS, s->x.t.c - first);
    const uint8_t *x = qc_matrix(&s->x.t, piece / panels, &s->x.t) + first * step;
    float *y = s->y + piece * depth * QC_COLUMNS, space[QC_RUN];
    if (count < QC_COLUMNS) memset(y, 0, (size_t)(depth * QC_COLUMNS * 4));
    if (count == QC_COLUMNS && !s->x.codes && step == 4) {
      for (int64_t k = 0; k < depth; k++) memcpy(y + k * QC_COLUMNS, x + k * down, 4 * QC_COLUMNS);
      continue;
    }
    if (count == QC_COLUMNS && !s->x.codes && down == 4) {
      qc_turn(x, step, depth, y);
      continue;
    }
    if (step <= down) { /* rows lie side by side */
      for (int64_t k = 0; k < depth; k++) memcpy(y + k * QC_COLUMNS, qc_floats(&s->x, x + k * down, count, space), (size_t)(4 * count));
      continue;
    }
    for (int64_t at = 0; at < depth; at += QC_RUN)
      for (int64_t i = 0; i < count; i++) {
        int64_t many = qc_min(QC_RUN, depth - at);
        const float *column = qc_floats(&along, x + i * step + at * down, many, space);
        for (int64_t k = 0; k < many; k++) y[(at + k) * QC_COLUMNS + i] = column[k];
      }
  }
}

/* A tile of rows of a times panels of b. `down`, `next`, `across`: floats from one row of a, panel of b, row of y to the next. */
typedef struct qc_product {
  const float *a, *b;
  int64_t down, next, depth;
  float *y; /* [rows][panels of 16] */
  int64_t across;
  int more;    /* y is added to, else it is made */
  float scale; /* what is stored is multiplied by it */
} qc_product;

QC_INLINE void qc_product_of(const qc_product *s, int64_t row, int64_t panel, int rows) {
  qf acc[QC_TALL][QC_VECTORS], scale = qf_all(s->scale);
  const float *a = s->a + row * s->down, *b = s->b + panel * s->next;
  float *y = s->y + row * s->across + panel * QC_COLUMNS;
  int64_t down = s->down, across = s->across, depth = s->depth;
#pragma GCC unroll 12
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < QC_VECTORS; v++) acc[r][v] = s->more ? qf_load(y + r * across + v * QC_F) : (qf){0};
  for (int64_t k = 0; k < depth; k++, b += QC_COLUMNS, a++) {
    qf w[QC_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < QC_VECTORS; v++) w[v] = qf_load(b + v * QC_F);
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
      qf one = qf_all(a[r * down]);
#pragma GCC unroll 4
      for (int v = 0; v < QC_VECTORS; v++) acc[r][v] = acc[r][v] + one * w[v];
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < QC_VECTORS; v++) qf_store(y + r * across + v * QC_F, acc[r][v] * scale);
}

#define QC_PRODUCT(R) \
  static void qc_product_##R(const qc_product *s, int64_t row, int64_t panel) { qc_product_of(s, row, panel, R); }
QC_TALL_PARTS(QC_PRODUCT)
#undef QC_PRODUCT

static void qc_product_rows(const qc_product *s, int64_t rows, int64_t panels) {
  for (int64_t panel = 0; panel < panels; panel++) {
    int64_t row = 0;
#define QC_PRODUCT(R) \
  for (; row + R <= rows; row += R) qc_product_##R(s, row, panel);
    QC_TALL_PARTS(QC_PRODUCT)
#undef QC_PRODUCT
  }
}

/* A piece is a panel of one matrix. */
static int64_t qc_matmul_panels_units(const qc_matmul *s) { return qc_matrices(&s->y.t) * qc_ceil(s->y.t.c, QC_COLUMNS); }

static void qc_matmul_panels(const qc_matmul *s, int64_t lo, int64_t hi) {
  const qc_tensor *y = &s->y.t;
  int64_t panels = qc_ceil(y->c, QC_COLUMNS), depth = s->a.c, wide = qc_width_of(&s->y);
  QC_ALIGNED float sums[QC_TALL * QC_COLUMNS];
  qc_product p = {.down = s->a.sw / 4, .depth = depth, .y = sums, .across = QC_COLUMNS, .scale = 1.0f};
  for (int64_t piece = lo; piece < hi; piece++) {
    int64_t matrix = piece / panels, panel = piece % panels, count = qc_min(QC_COLUMNS, y->c - panel * QC_COLUMNS);
    const float *a = (const float *)(const void *)qc_matrix(&s->a, matrix, y);
    uint8_t *to = qc_matrix(y, matrix, y) + panel * QC_COLUMNS * wide;
    p.b = s->b + (qc_matrix_of(s->b_of, matrix, y) * panels + panel) * depth * QC_COLUMNS;
    for (int64_t row = 0; row < y->w; row += QC_TALL) {
      int64_t rows = qc_min(QC_TALL, y->w - row);
      p.a = a + row * p.down;
      qc_product_rows(&p, rows, 1);
      for (int64_t r = 0; r < rows; r++) {
        uint8_t *place = to + (row + r) * y->sw;
        if (!s->y.codes) memcpy(place, sums + r * QC_COLUMNS, (size_t)(4 * count));
        qc_put(&s->y, place, sums + r * QC_COLUMNS, count);
      }
    }
  }
}

#endif
