/* A convolution reads, for each output position, a few contiguous spans of bytes: one a kernel row (fold) or one a tap.

   Span t of position (z, y, x) begins at x.p + image + z * stride[0] * sd + y * stride[1] * sh + x * stride[2] * sw + off[t].
   Its weights are `chunks` chunks of `chunk` bytes, padded with zeros behind `length`: what vectors read there does not count. */
#ifndef QC_SPANS_H
#define QC_SPANS_H

#include "round.h"

typedef struct qc_spans {
  int32_t count, length, chunks, chunk, padded; /* padded = chunks * chunk */
  int32_t in, out, blocks;                      /* channels a group, and blocks of 16 output channels in the weights */
  int64_t off[QC_MAX_SPANS];
} qc_spans;

QC_INLINE int64_t qc_tap(const qc_window *k, const qc_tensor *x, int i, int j, int l) {
  return ((int64_t)i * k->dilation[0] - k->pad[0]) * x->sd + ((int64_t)j * k->dilation[1] - k->pad[1]) * x->sh +
         ((int64_t)l * k->dilation[2] - k->pad[2]) * x->sw;
}

static void qc_find_spans(const qc_conv *a, qc_spans *s) {
  const qc_window *k = &a->k;
  int32_t taps = a->fold ? 1 : k->kernel[2];
  s->in = a->x.c / a->groups;
  s->out = a->y.c / a->groups;
  s->blocks = (int32_t)(a->groups == 1 ? 2 * qc_ceil(s->out, 32) : qc_ceil(s->out, 16));
  s->length = a->fold ? s->in * k->kernel[2] : s->in;
  s->chunks = (int32_t)qc_ceil(s->length, 64);
  s->chunk = (int32_t)(4 * qc_ceil(qc_ceil(s->length, s->chunks), 4));
  s->padded = s->chunk * s->chunks;
  s->count = 0;
  for (int i = 0; i < k->kernel[0]; i++)
    for (int j = 0; j < k->kernel[1]; j++)
      for (int l = 0; l < taps; l++) s->off[s->count++] = qc_tap(k, &a->x, i, j, l);
}

/* The bytes of weights of one block of 16 channels. */
QC_INLINE int64_t qc_block_bytes(const qc_spans *s) { return (int64_t)s->count * s->padded * 16; }

#endif
