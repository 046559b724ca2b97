/* What the C of a network reads, and how it is run.

   A network is a list of layers. Each has one function: layer(s, lo, hi) computes the pieces lo..hi-1 of its result. layer(s, QC_PIECES, -1)
   says into how many pieces it falls, layer(s, QC_FIRST, -1) how many of them, the first ones, must be computed before all others where
   s->room are the bytes that layer(s, QC_ROOM_BYTES, -1) says. What depends on the sizes of the inputs stands in a qc_sizes, what depends on weights and scales
   in a qc_values: the functions themselves know the shape of the network alone. */
#ifndef QC_NET_H
#define QC_NET_H

#include <string.h>

#include "qc.h"

/* Weights and tables (data, at 64-byte lines), and numbers that follow from scales and zero points. */
typedef struct qc_values {
  const uint8_t *data;
  const int32_t *integers;
  const float *reals;
  const double *doubles;
} qc_values;

/* One set of input sizes. `p` of each tensor and x, y of each copy are places: bits 0-47 an offset, the bits above it say in what: 0 the
   arena, 1 the data of qc_values, 2 + i tensor i of the caller, QC_LISTS one of `maps`: bits 32-47 say which. cost: about how many nanoseconds a layer takes on one thread, by which it
   is cut into steps; QC_NOTHING where its result has no element, and it is not run. maps: places along an axis, as qc_pick takes them.
   parts > 1: the network is run that many times on parts of each of the caller's `tensors`: part i begins i * step bytes behind the
   first, but the last one `last` bytes, and may compute again what the one before it has. */
enum { QC_PIECES, QC_FIRST, QC_ROOM_BYTES };
#define QC_NOTHING (-1)
#define QC_TENSORS 16 /* at most, of a network that is run in parts */
#define QC_LISTS 0x7fff
typedef struct qc_sizes {
  const qc_tensor *pixels;
  const qc_copy *moved;
  const int64_t (*strides)[5];
  const int32_t *spread;
  const int64_t *cost;
  const int64_t *const *maps;
  int64_t arena;
  int64_t parts, tensors;
  const int64_t *step, *last;
} qc_sizes;

/* One run: io are the tensors that the caller gives and gets, in the order of the network's inputs and outputs. */
typedef struct qc_state {
  const qc_kernels *k;
  uint8_t *arena;
  void *const *io;
  const uint8_t *data;
  const int32_t *integers;
  const float *reals;
  const double *doubles;
  const qc_tensor *pixels;
  const qc_copy *moved;
  const int64_t (*strides)[5];
  const int32_t *spread;
  const int64_t *const *maps;
  uint8_t *room; /* what the threads that share a layer share; NULL: nothing */
} qc_state;

typedef int64_t (*qc_layer)(const qc_state *s, int64_t lo, int64_t hi);

typedef struct qc_network {
  int32_t layers;
  const qc_layer *layer;
} qc_network;

static inline int64_t qc_of_conv(const qc_kernels *k, const qc_conv *a, int64_t what) {
  return what == QC_FIRST ? k->conv_first(a) : k->conv_room(a);
}

static inline uint8_t *qc_at(const qc_state *s, const void *place) {
  uint64_t bits = (uint64_t)(uintptr_t)place, offset = bits & 0xffffffffffffu, where = bits >> 48;
  if (where == QC_LISTS) return (uint8_t *)(uintptr_t)s->maps[offset >> 32] + (offset & 0xffffffffu);
  return (where == 0 ? s->arena : where == 1 ? (uint8_t *)(uintptr_t)s->data : (uint8_t *)s->io[where - 2]) + offset;
}

static inline qc_tensor qc_pixels(const qc_state *s, int i) {
  qc_tensor t = s->pixels[i];
  t.p = qc_at(s, t.p);
  return t;
}

static inline qc_copy qc_moved(const qc_state *s, int i) {
  qc_copy c = s->moved[i];
  c.x = qc_at(s, c.x);
  c.y = qc_at(s, c.y);
  return c;
}

/* A network with its values and kernels; any number of threads may run it at once. qc_open returns NULL where `isa` is no instruction
   set (NULL: the fastest that this machine has). It keeps the pointers that it is given. */
typedef struct qc_model qc_model;
qc_model *qc_open(const qc_network *network, const qc_values *values, const char *isa);
void qc_close(qc_model *model);
const char *qc_isa(const qc_model *model);

/* Computes on up to `threads` threads. Returns 0, or 1 where there is no memory for the arena. */
int qc_run(qc_model *model, const qc_sizes *sizes, void *const *io, int threads);

/* The same for a network whose quantize and dequantize layers stand at its ends alone: io are codes where those layers read or write, and
   the steps of `sizes` between parts count their bytes. */
int qc_run_codes(qc_model *model, const qc_sizes *sizes, void *const *io, int threads);

/* As qc_run, on one thread in an arena of the caller's, which then holds what the layers left there. */
void qc_watch(qc_model *model, const qc_sizes *sizes, void *const *io, uint8_t *arena);

/* As qc_run, one part after the other; nanoseconds[i] becomes what layer i took. */
int qc_time(qc_model *model, const qc_sizes *sizes, void *const *io, int threads, int64_t *nanoseconds);

#endif
