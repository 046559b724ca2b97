/* Convolution in portable C: a piece is one row of the result, 16 channels at a time. */
#ifndef QC_CONV_SCALAR_H
#define QC_CONV_SCALAR_H

#include "one_position.h"

static int64_t qc_conv_rows_units(const qc_conv *a) { return qc_rows(&a->y); }

static void qc_conv_rows(const qc_conv *a, int64_t lo, int64_t hi) {
  qc_spans s;
  qc_find_spans(a, &s);
  for (int64_t row = lo; row < hi; row++) {
    int64_t h = row % a->y.h, plane = row / a->y.h, d = plane % a->y.d, n = plane / a->y.d;
    const uint8_t *x = a->x.p + n * a->x.sn + d * a->k.stride[0] * a->x.sd + h * a->k.stride[1] * a->x.sh;
    uint8_t *y = a->y.p + n * a->y.sn + d * a->y.sd + h * a->y.sh;
    const uint8_t *r = a->r.p ? a->r.p + n * a->r.sn + d * a->r.sd + h * a->r.sh : NULL;
    for (int64_t i = 0; i < a->y.w; i++, x += a->k.stride[2] * a->x.sw, y += a->y.sw, r = r ? r + a->r.sw : NULL)
      for (int64_t b = 0; b < (int64_t)a->groups * s.blocks; b++) {
        int64_t group = b / s.blocks, c = group * s.out + b % s.blocks * 16, count = qc_min(16, (group + 1) * s.out - c);
        int32_t acc[16] = {0};
        if (count <= 0) continue;
        qc_dot16(&s, x + group * s.in, a->w + b * qc_block_bytes(&s), acc);
        qc_store16(a, acc, c, count, y, r);
      }
  }
}

#endif
