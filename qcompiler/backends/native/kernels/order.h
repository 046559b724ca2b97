/* Rows in order: where the largest or smallest element stands, the first places of a sorted row, the elements at such places; and whole
   numbers as int64. A piece is a row.

   The key of an element is 32 bits that compare as the floats do, -0 as 0, NaN where the op says; behind it, in a key of 64 bits, stands
   its place in the row. So no two keys of a row are equal, and there is one order. */
#ifndef QC_ORDER_H
#define QC_ORDER_H

#include "norm.h"

/* What comes first has the least key: `flip` turns the order around, `nan` is the key of NaN. */
QC_INLINE uint32_t qc_key(float v, uint32_t flip, uint32_t nan) {
  float plain = v + 0.0f; /* -0 becomes 0 */
  uint32_t bits, key;
  memcpy(&bits, &plain, 4);
  key = (bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u)) ^ flip;
  return v != v ? nan : key;
}
QC_INLINE uint32_t qc_key_flip(const qc_order *s) { return s->op == QC_ARGMAX || s->op == QC_DESCENDING ? 0xffffffffu : 0u; }
QC_INLINE uint32_t qc_key_nan(const qc_order *s) { return s->op == QC_ASCENDING ? 0xffffffffu : 0u; }

/* Codes: in 16 bits the code, the largest first, and how far the end of the run is, so that of equal ones the first is the largest. */
static int64_t qc_first_code(const qc_order *s, const uint8_t *x) {
  int32_t turned = s->op == QC_ARGMAX ? 0 : 255, best = -1;
  int64_t found = 0, step = s->x.step;
  QC_EACH_RUN(s->x.t.c) {
    uint16_t most = 0;
    const uint8_t *from = x + at * step;
    if (step == 1)
      for (int64_t i = 0; i < count; i++) {
        uint16_t key = (uint16_t)((from[i] ^ turned) << 8 | (int32_t)(QC_RUN - 1 - i));
        most = key > most ? key : most;
      }
    else
      for (int64_t i = 0; i < count; i++) {
        uint16_t key = (uint16_t)((from[i * step] ^ turned) << 8 | (int32_t)(QC_RUN - 1 - i));
        most = key > most ? key : most;
      }
    if (most >> 8 > best) {
      best = most >> 8;
      found = at + QC_RUN - 1 - (most & 255);
    }
  }
  return found;
}

static int64_t qc_first_float(const qc_order *s, const uint8_t *x) {
  float space[QC_RUN];
  uint32_t keys[QC_RUN], flip = qc_key_flip(s), nan = qc_key_nan(s), best = 0xffffffffu;
  int64_t found = 0;
  QC_EACH_RUN(s->x.t.c) {
    const float *v = qc_floats(&s->x, x + at * s->x.step, count, space);
    uint32_t least = 0xffffffffu;
    for (int64_t i = 0; i < count; i++) {
      keys[i] = qc_key(v[i], flip, nan);
      least = keys[i] < least ? keys[i] : least;
    }
    if (least < best) {
      int64_t i = 0;
      while (keys[i] != least) i++;
      best = least;
      found = at + i;
    }
  }
  return found;
}

/* Element `at` of a heap whose largest is on top sinks to where it belongs. */
static void qc_sink(uint64_t *heap, int64_t at, int64_t count) {
  uint64_t moved = heap[at];
  for (int64_t child; (child = 2 * at + 1) < count; at = child) {
    if (child + 1 < count && heap[child + 1] > heap[child]) child++;
    if (heap[child] <= moved) break;
    heap[at] = heap[child];
  }
  heap[at] = moved;
}

/* The least `y.c` keys so far are a heap; at the end it is sorted. */
static void qc_order_row(const qc_order *s, const uint8_t *x, float *y, uint64_t *heap) {
  float space[QC_RUN];
  uint32_t flip = qc_key_flip(s), nan = qc_key_nan(s);
  int64_t wanted = s->y.c, have = 0;
  QC_EACH_RUN(s->x.t.c) {
    const float *v = qc_floats(&s->x, x + at * s->x.step, count, space);
    for (int64_t i = 0; i < count; i++) {
      uint64_t key = (uint64_t)qc_key(v[i], flip, nan) << 32 | (uint64_t)(at + i);
      if (have < wanted) {
        heap[have++] = key;
        if (have == wanted)
          for (int64_t top = wanted / 2 - 1; top >= 0; top--) qc_sink(heap, top, wanted);
      } else if (key < heap[0]) {
        heap[0] = key;
        qc_sink(heap, 0, wanted);
      }
    }
  }
  for (int64_t last = wanted - 1; last > 0; last--) {
    uint64_t largest = heap[0];
    heap[0] = heap[last];
    heap[last] = largest;
    qc_sink(heap, 0, last);
  }
  for (int64_t i = 0; i < wanted; i++) y[i] = (float)(uint32_t)heap[i];
}

static int64_t qc_order_rows_units(const qc_order *s) { return qc_pixels_of(&s->y); }

static void qc_order_rows(const qc_order *s, int64_t lo, int64_t hi) {
  for (int64_t row = lo; row < hi; row++) {
    const uint8_t *x = qc_pixel(&s->x.t, row, &s->y);
    float *y = (float *)(void *)qc_pixel(&s->y, row, &s->y);
    if (s->op == QC_ARGMAX || s->op == QC_ARGMIN)
      *y = (float)(s->x.codes ? qc_first_code(s, x) : qc_first_float(s, x));
    else
      qc_order_row(s, x, y, s->work + row * s->y.c);
  }
}

static int64_t qc_elements_rows_units(const qc_elements *s) { return qc_pixels_of(&s->y); }

static void qc_elements_rows(const qc_elements *s, int64_t lo, int64_t hi) {
  float places[QC_RUN];
  for (int64_t row = lo; row < hi; row++) {
    const uint8_t *x = qc_pixel(&s->x.t, row, &s->y), *from = qc_pixel(&s->at.t, row, &s->y);
    float *y = (float *)(void *)qc_pixel(&s->y, row, &s->y);
    QC_EACH_RUN(s->y.c) {
      const float *place = qc_floats(&s->at, from + at * s->at.step, count, places);
      for (int64_t i = 0; i < count; i++) {
        float one = __builtin_nanf("");
        float stands = s->from_end && place[i] < 0.0f ? place[i] + (float)s->x.t.c : place[i];
        int inside = stands >= 0.0f && stands < (float)s->x.t.c;
        y[at + i] = inside ? *qc_floats(&s->x, x + (int64_t)stands * s->x.step, 1, &one) : one;
      }
    }
  }
}

static int64_t qc_int64_rows_units(const qc_int64 *s) { return qc_pixels_of(&s->y); }

static void qc_int64_rows(const qc_int64 *s, int64_t lo, int64_t hi) {
  float space[QC_RUN];
  for (int64_t row = lo; row < hi; row++) {
    const uint8_t *x = qc_pixel(&s->x.t, row, &s->y);
    int64_t *y = (int64_t *)(void *)qc_pixel(&s->y, row, &s->y);
    QC_EACH_RUN(s->y.c) {
      const float *v = qc_floats(&s->x, x + at * s->x.step, count, space);
      for (int64_t i = 0; i < count; i++) y[at + i] = (int64_t)v[i];
    }
  }
}

#endif
