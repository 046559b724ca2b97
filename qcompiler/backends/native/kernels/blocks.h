/* The blocks of channels that a convolution computes at once, and the kinds of its epilogue. */
#ifndef QC_BLOCKS_H
#define QC_BLOCKS_H

#include "spans.h"

#include <math.h>

/* The channels of a piece, one block of 16 or two: where their weights and inputs are. A missing second block is the first again. */
typedef struct qc_pair {
  const int8_t *w[2];
  int64_t x[2];  /* offset of the group's first input channel */
  int64_t c;     /* first channel */
  int32_t count; /* channels that are stored, at most 32 */
} qc_pair;

QC_INLINE qc_pair qc_find_pair(const qc_conv *a, const qc_spans *s, int64_t index, int blocks) {
  int64_t last = (int64_t)a->groups * s->blocks - 1, b[2] = {blocks * index, qc_min(blocks * index + blocks - 1, last)};
  int64_t c = 16 * blocks * index;
  qc_pair p = {.c = c, .count = (int32_t)qc_max(0, qc_min(16 * blocks, a->y.c - c))};
  for (int i = 0; i < 2; i++) {
    p.w[i] = a->w + b[i] * qc_block_bytes(s);
    p.x[i] = a->groups == 1 ? 0 : b[i] / s->blocks * s->in;
  }
  return p;
}

#define QC_SPOTS 96

/* Where the codes of positions are, where their residuals are and their results go. */
typedef struct qc_spots {
  const uint8_t *x[QC_SPOTS], *r[QC_SPOTS];
  uint8_t *y[QC_SPOTS];
} qc_spots;

/* Codes 0..255; a sum of codes with a residual; all that codes may have; floats. The first two: no acc * m + b leaves 32 bits. */
enum { QC_PLAIN, QC_ADDED, QC_FULL, QC_FLOATS };

/* Which epilogue a convolution needs; kernels are made for each. */
QC_INLINE int qc_kind(const qc_epilogue *e, int residual, int floats) {
  if (floats) return QC_FLOATS;
  if (e->table || e->gain || qc_is_curved(e)) return QC_FULL;
  if (e->wide) return QC_FULL;
  if (residual) return QC_ADDED;
  return e->lo > 0 || e->hi < 255 ? QC_FULL : QC_PLAIN;
}

#endif
