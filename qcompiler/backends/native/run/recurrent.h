/* One direction of one layer of recurrent cells: for each step the hidden state is quantized on its own range, multiplied by its weights,
   and goes through the gates with the input's products, which are given for all steps. */
#ifndef QC_RECURRENT_H
#define QC_RECURRENT_H

#include "net.h"

/* ih: [steps][rows][gates * width]. y: [steps][rows][width], behind it the final hidden state, and of an LSTM the final cell state, both
   [rows][width]. hidden, cell: at the start, NULL where zeros. w, wsum: of qc_conv; scale, bias: of qc_factors. room: qc_recurrent_room
   bytes. reverse: from the last step to the first. */
typedef struct qc_recurrent {
  const float *ih, *hidden, *cell;
  float *y;
  uint8_t *room;
  const int8_t *w;
  const int32_t *wsum;
  const double *scale, *bias;
  int64_t steps, rows, width;
  int32_t kind, gates, reverse;
} qc_recurrent;

static inline int64_t qc_line(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static inline void qc_start(float *state, const float *given, int64_t count) {
  if (given)
    memcpy(state, given, (size_t)(4 * count));
  else
    memset(state, 0, (size_t)(4 * count));
}

static inline void qc_run_recurrent(const qc_kernels *k, const qc_recurrent *a) {
  int64_t n = a->rows, w = a->width, wide = a->gates * w, padded = (wide + 31) / 32 * 32, state = n * w;
  double *ends = (double *)(void *)a->room;
  float *m = (float *)(void *)(a->room + 64), *hh = (float *)(void *)(a->room + 64 + qc_line(8 * padded));
  uint8_t *codes = a->room + 64 + qc_line(8 * padded) + qc_line(4 * n * wide);
  float *hidden = a->y + a->steps * state, *cell = hidden + (a->kind == QC_LSTM ? state : 0);
  qc_tensor floats = {(uint8_t *)(void *)hidden, 1, 1, 1, (int32_t)n, (int32_t)w, 4 * state, 4 * state, 4 * state, 4 * w};
  qc_tensor coded = {codes, 1, 1, 1, (int32_t)n, (int32_t)w, state, state, state, w};
  qc_tensor product = {(uint8_t *)(void *)hh, 1, 1, 1, (int32_t)n, (int32_t)wide, 4 * n * wide, 4 * n * wide, 4 * n * wide, 4 * wide};
  qc_range range = {{floats, 4, 0, 0, 0}, ends};
  qc_encode encode = {range.x, ends, coded};
  qc_factors factors = {ends, a->scale, a->bias, a->wsum, m, (int32_t)wide, (int32_t)padded};
  qc_window one = {{1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}};
  qc_conv conv = {.x = coded, .y = product, .k = one, .e = {.m = m, .b = m + padded}, .w = a->w, .wsum = a->wsum, .groups = 1, .floats = 1};
  qc_start(hidden, a->hidden, state);
  if (a->kind == QC_LSTM) qc_start(cell, a->cell, state);
  for (int64_t i = 0; i < a->steps; i++) {
    int64_t t = a->reverse ? a->steps - 1 - i : i;
    qc_gates gates = {a->ih + t * n * wide, hh, hidden, cell, a->y + t * state, n, w, w, a->kind};
    k->range(&range, 0, 1);
    k->encode(&encode, 0, k->encode_units(&encode));
    k->factors(&factors, 0, padded);
    k->conv(&conv, 0, k->conv_units(&conv));
    k->gates(&gates, 0, n);
  }
}

#endif
