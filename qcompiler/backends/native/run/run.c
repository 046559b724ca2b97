/* Runs the layers of a network one after the other. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "workers.h"

#include "codes.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#define QC_CHUNK 4000 /* nanoseconds of work that are worth handing to another thread */
#define QC_EACH 4     /* chunks a thread */
#define QC_PAGE 2097152

/* An arena that nobody uses at the moment. */
typedef struct qc_arena {
  struct qc_arena *next;
  uint8_t *bytes;
  int64_t size;
} qc_arena;

struct qc_model {
  const qc_network *network;
  qc_values values;
  const qc_kernels *k;
  qc_kernels codes; /* the same, but for the ends of the network */
  qc_arena *arenas;
};

/* Guards the arenas of all models. A fork waits for it, so that a child finds it free. */
static pthread_mutex_t qc_arenas = PTHREAD_MUTEX_INITIALIZER;
static void qc_lock(void) { pthread_mutex_lock(&qc_arenas); }
static void qc_unlock(void) { pthread_mutex_unlock(&qc_arenas); }
static void qc_guard_forks(void) { pthread_atfork(qc_lock, qc_unlock, qc_unlock); }

qc_model *qc_open(const qc_network *network, const qc_values *values, const char *isa) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, qc_guard_forks);
  const qc_kernels *k = qc_select(isa);
  qc_model *model = k ? calloc(1, sizeof *model) : NULL;
  if (!model) return NULL;
  model->network = network;
  model->values = *values;
  model->k = k;
  model->codes = *k;
  model->codes.quantize_units = qc_codes_in_units, model->codes.quantize = qc_codes_in;
  model->codes.dequantize_units = qc_codes_out_units, model->codes.dequantize = qc_codes_out;
  return model;
}

const char *qc_isa(const qc_model *model) { return model->k->isa; }

void qc_close(qc_model *model) {
  while (model->arenas) {
    qc_arena *arena = model->arenas;
    model->arenas = arena->next;
    free(arena->bytes);
    free(arena);
  }
  free(model);
}

/* Large arenas lie on large pages: fewer misses of the address cache. Zeros: kernels multiply what lies between values by weights of zero,
   and valgrind takes a product of nothing known for unknown. */
static uint8_t *qc_bytes(int64_t size) {
  size_t line = size >= QC_PAGE ? QC_PAGE : 64, whole = ((size_t)size + line - 1) / line * line;
  uint8_t *bytes = aligned_alloc(line, whole ? whole : line);
#if defined(__linux__)
  if (bytes && line == QC_PAGE) madvise(bytes, whole, MADV_HUGEPAGE);
#endif
  if (bytes) memset(bytes, 0, whole ? whole : line);
  return bytes;
}

static qc_arena *qc_take(qc_model *model, int64_t size) {
  qc_lock();
  qc_arena *arena = model->arenas;
  if (arena) model->arenas = arena->next;
  qc_unlock();
  if (!arena && !(arena = calloc(1, sizeof *arena))) return NULL;
  if (arena->size < size) {
    free(arena->bytes);
    arena->bytes = qc_bytes(size);
    arena->size = arena->bytes ? size : 0;
  }
  return arena;
}

static void qc_give(qc_model *model, qc_arena *arena) {
  qc_lock();
  arena->next = model->arenas;
  model->arenas = arena;
  qc_unlock();
}

static qc_state qc_begin(const qc_model *model, const qc_sizes *z, void *const *io, uint8_t *arena) {
  qc_state s = {model->k,          arena,      io,         model->values.data, model->values.integers, model->values.reals, model->values.doubles,
                z->pixels, z->moved, z->strides, z->spread,           z->maps};
  return s;
}

static int64_t qc_chunks(int64_t units, int64_t cost, int threads) {
  int64_t most = (int64_t)threads * QC_EACH, worth = cost / QC_CHUNK;
  most = worth < most ? worth : most;
  return units < most ? units : most;
}

static int qc_run_with(qc_model *model, const qc_kernels *k, const qc_sizes *sizes, void *const *io, int threads) {
  qc_arena *arena = qc_take(model, sizes->arena);
  if (!arena) return 1;
  if (sizes->arena > arena->size) {
    qc_give(model, arena);
    return 1;
  }
  qc_state s = qc_begin(model, sizes, io, arena->bytes);
  s.k = k;
  int shared = qc_workers_take(threads);
  for (int32_t i = 0; i < model->network->layers; i++) {
    if (sizes->cost[i] == QC_NOTHING) continue;
    qc_layer layer = model->network->layer[i];
    int64_t units = layer(&s, 0, -1), chunks = shared ? qc_chunks(units, sizes->cost[i], threads) : 1;
    if (chunks > 1)
      qc_workers_run(layer, &s, units, chunks);
    else if (units > 0)
      layer(&s, 0, units);
  }
  if (shared) qc_workers_give();
  k->end();
  qc_give(model, arena);
  return 0;
}

int qc_run(qc_model *model, const qc_sizes *sizes, void *const *io, int threads) {
  return qc_run_with(model, model->k, sizes, io, threads);
}

int qc_run_codes(qc_model *model, const qc_sizes *sizes, void *const *io, int threads) {
  return qc_run_with(model, &model->codes, sizes, io, threads);
}

static int64_t qc_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void qc_watch(qc_model *model, const qc_sizes *sizes, void *const *io, uint8_t *arena, int64_t *nanoseconds) {
  qc_state s = qc_begin(model, sizes, io, arena);
  for (int32_t i = 0; i < model->network->layers; i++) {
    int64_t start = qc_now(), units = sizes->cost[i] == QC_NOTHING ? 0 : model->network->layer[i](&s, 0, -1);
    if (units > 0) model->network->layer[i](&s, 0, units);
    nanoseconds[i] = qc_now() - start;
  }
  model->k->end();
}
