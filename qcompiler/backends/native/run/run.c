/* Runs the layers of a network one after the other. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "workers.h"

#include "codes.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#define QC_STEP 4000       /* nanoseconds of work that are worth handing to another thread */
#define QC_MOST_STEPS 65536 /* of a layer */
#define QC_FIRST_PART 10   /* of a layer's time, what the first pieces take */
#define QC_PAGE 2097152

/* An arena that nobody uses at the moment. */
typedef struct qc_arena {
  struct qc_arena *next;
  uint8_t *bytes, *room; /* room: for what threads share within a layer */
  int64_t size, room_size;
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
    free(arena->room);
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
                z->pixels, z->moved, z->strides, z->spread,           z->maps,            NULL};
  return s;
}

/* The steps in which threads claim so many pieces, which take `cost` together. */
static int64_t qc_steps(int64_t units, int64_t cost) {
  int64_t worth = cost / QC_STEP < QC_MOST_STEPS ? cost / QC_STEP : QC_MOST_STEPS;
  return units < worth ? units : worth > 1 ? worth : 1;
}

static uint8_t *qc_room(qc_arena *arena, int64_t size) {
  if (arena->room_size < size) {
    free(arena->room);
    arena->room = qc_bytes(size);
    arena->room_size = arena->room ? size : 0;
  }
  return arena->room;
}

/* One layer; threads: 1 where the call does not have the workers. */
static void qc_run_layer(qc_layer layer, const qc_state *given, int64_t cost, qc_arena *arena, int threads) {
  if (cost == QC_NOTHING) return;
  qc_state s = *given;
  int64_t units = layer(&s, QC_PIECES, -1), first = 0;
  if (threads < 2 || qc_steps(units, cost) < 2 || !qc_workers_ask()) {
    if (units > 0) layer(&s, 0, units);
    return;
  }
  if ((first = layer(&s, QC_FIRST, -1)) > 0) s.room = qc_room(arena, layer(&s, QC_ROOM_BYTES, -1));
  if (s.room) qc_workers_run(layer, &s, 0, first, qc_steps(first, cost / QC_FIRST_PART));
  if (!s.room) first = 0;
  qc_workers_run(layer, &s, first, units, qc_steps(units - first, cost));
}

static int64_t qc_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A call. What workers see of it is its state, which stands first. */
typedef struct qc_call {
  qc_state s;
  qc_model *model;
  const qc_sizes *sizes;
  atomic_int failed; /* there was no memory for an arena */
} qc_call;

/* nanoseconds: what each layer took is added to them, where that is asked. */
static void qc_run_layers(const qc_model *model, const qc_sizes *sizes, const qc_state *s, qc_arena *arena, int threads, int64_t *nanoseconds) {
  for (int32_t i = 0; i < model->network->layers; i++) {
    int64_t start = nanoseconds ? qc_now() : 0;
    qc_run_layer(model->network->layer[i], s, sizes->cost[i], arena, threads);
    if (nanoseconds) nanoseconds[i] += qc_now() - start;
  }
}

/* The parts lo..hi-1 of a call, one after the other in an arena of its own. */
static void qc_run_parts(qc_call *call, int64_t lo, int64_t hi, int threads, int64_t *nanoseconds) {
  const qc_sizes *z = call->sizes;
  qc_arena *arena = qc_take(call->model, z->arena);
  if (!arena || z->arena > arena->size) atomic_store(&call->failed, 1);
  for (int64_t part = lo; part < hi && !atomic_load(&call->failed); part++) {
    void *io[QC_TENSORS];
    qc_state s = call->s;
    s.arena = arena->bytes;
    for (int64_t i = 0; z->parts > 1 && i < z->tensors; i++)
      io[i] = (char *)call->s.io[i] + (part + 1 < z->parts ? part * z->step[i] : z->last[i]);
    if (z->parts > 1) s.io = io;
    qc_run_layers(call->model, z, &s, arena, threads, nanoseconds);
  }
  if (arena) qc_give(call->model, arena);
}

/* A qc_layer of a call's parts: each thread computes some of them alone. */
static int64_t qc_parts(const qc_state *s, int64_t lo, int64_t hi) {
  qc_run_parts((qc_call *)(uintptr_t)(const void *)s, lo, hi, 1, NULL);
  return 0;
}

static int qc_run_with(qc_model *model, const qc_kernels *k, const qc_sizes *sizes, void *const *io, int threads, int64_t *nanoseconds) {
  qc_call call = {qc_begin(model, sizes, io, NULL), model, sizes, 0};
  int64_t parts = sizes->parts > 1 ? sizes->parts : 1, together = 0;
  int shared = qc_workers_take(threads);
  call.s.k = k;
  if (shared && !nanoseconds && parts >= threads && qc_workers_ask()) {
    together = parts / threads * threads;
    qc_workers_run(qc_parts, &call.s, 0, together, together);
  }
  if (together < parts) qc_run_parts(&call, together, parts, shared ? threads : 1, nanoseconds);
  if (shared) qc_workers_give();
  k->end();
  return atomic_load(&call.failed);
}

int qc_run(qc_model *model, const qc_sizes *sizes, void *const *io, int threads) {
  return qc_run_with(model, model->k, sizes, io, threads, NULL);
}

int qc_run_codes(qc_model *model, const qc_sizes *sizes, void *const *io, int threads) {
  return qc_run_with(model, &model->codes, sizes, io, threads, NULL);
}

void qc_watch(qc_model *model, const qc_sizes *sizes, void *const *io, uint8_t *arena) {
  qc_state s = qc_begin(model, sizes, io, arena);
  qc_run_layers(model, sizes, &s, NULL, 1, NULL);
  model->k->end();
}

int qc_time(qc_model *model, const qc_sizes *sizes, void *const *io, int threads, int64_t *nanoseconds) {
  memset(nanoseconds, 0, sizeof *nanoseconds * (size_t)model->network->layers);
  return qc_run_with(model, model->k, sizes, io, threads, nanoseconds);
}
