/* Chunks are claimed one by one with compare-and-swap, so a thread that the system takes away holds up one chunk at most.

   `word` holds a number that counts publications, and how many chunks are left: a claim takes one off. What a worker reads about the
   job (layer, state, units) cannot change between its claim and the end of its chunk, since the caller waits for all of them. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "workers.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#if defined(__x86_64__)
#define QC_PAUSE() __asm__ volatile("pause")
#elif defined(__aarch64__)
#define QC_PAUSE() __asm__ volatile("yield")
#else
#define QC_PAUSE() ((void)0)
#endif

#define QC_WORKERS 255
#define QC_LEFT 0xffffffffu
#define QC_SPIN 40000 /* nanoseconds that a worker looks for work before it sleeps: by the clock, a pause takes 40 to 140 cycles */

static _Atomic(int) qc_taken;
static _Atomic(uint64_t) qc_word;
static _Atomic(int64_t) qc_done;
static _Atomic(int) qc_allowed, qc_asleep;
static int qc_made;
static struct {
  qc_layer layer;
  const qc_state *s;
  int64_t units, chunks;
} qc_job;
static pthread_mutex_t qc_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t qc_wake = PTHREAD_COND_INITIALIZER;

static int64_t qc_clock(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Takes a chunk of the job that is published, and computes it. 0 where none is left. */
static int qc_help(void (**end)(void)) {
  uint64_t word = atomic_load_explicit(&qc_word, memory_order_acquire);
  do {
    if ((word & QC_LEFT) == 0) return 0;
  } while (!atomic_compare_exchange_weak_explicit(&qc_word, &word, word - 1, memory_order_acq_rel, memory_order_acquire));
  int64_t chunk = (int64_t)(word & QC_LEFT) - 1, units = qc_job.units, chunks = qc_job.chunks;
  *end = qc_job.s->k->end; /* the function outlives the model */
  qc_job.layer(qc_job.s, units * chunk / chunks, units * (chunk + 1) / chunks);
  atomic_fetch_add_explicit(&qc_done, 1, memory_order_acq_rel);
  return 1;
}

static void qc_sleep(int index) {
  pthread_mutex_lock(&qc_mutex);
  atomic_fetch_add(&qc_asleep, 1);
  while (index >= atomic_load(&qc_allowed) || (atomic_load(&qc_word) & QC_LEFT) == 0) pthread_cond_wait(&qc_wake, &qc_mutex);
  atomic_fetch_sub(&qc_asleep, 1);
  pthread_mutex_unlock(&qc_mutex);
}

static void *qc_worker(void *number) {
  void (*end)(void) = NULL;
  int index = (int)(intptr_t)number;
  int64_t since = qc_clock();
  for (;;) {
    if (index < atomic_load_explicit(&qc_allowed, memory_order_relaxed) && qc_help(&end)) {
      since = qc_clock();
      continue;
    }
    for (int i = 0; i < 16; i++) QC_PAUSE();
    if (qc_clock() - since < QC_SPIN) continue;
    if (end) end();
    end = NULL;
    qc_sleep(index);
    since = qc_clock();
  }
  return NULL;
}

/* A child process has no threads but the one that forked. */
static void qc_forked(void) {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
  qc_mutex = mutex;
  qc_wake = wake;
  qc_made = 0;
  atomic_store(&qc_taken, 0);
  atomic_store(&qc_asleep, 0);
  atomic_store(&qc_word, 0);
}

static void qc_watch_forks(void) { pthread_atfork(NULL, NULL, qc_forked); }

int qc_workers_take(int threads) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  int free_ = 0;
  if (threads < 2 || !atomic_compare_exchange_strong(&qc_taken, &free_, 1)) return 0;
  pthread_once(&once, qc_watch_forks);
  int wanted = threads - 1 < QC_WORKERS ? threads - 1 : QC_WORKERS;
  while (qc_made < wanted) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, qc_worker, (void *)(intptr_t)qc_made) != 0) break;
    pthread_detach(thread);
    qc_made++;
  }
  atomic_store(&qc_allowed, wanted);
  return 1;
}

void qc_workers_give(void) { atomic_store_explicit(&qc_taken, 0, memory_order_release); }

void qc_workers_run(qc_layer layer, const qc_state *s, int64_t units, int64_t chunks) {
  void (*end)(void) = NULL;
  qc_job.layer = layer, qc_job.s = s, qc_job.units = units, qc_job.chunks = chunks;
  atomic_store_explicit(&qc_done, 0, memory_order_relaxed);
  uint64_t before = atomic_load_explicit(&qc_word, memory_order_relaxed);
  atomic_store(&qc_word, ((before >> 32) + 1) << 32 | (uint64_t)chunks);
  if (atomic_load(&qc_asleep)) {
    pthread_mutex_lock(&qc_mutex);
    pthread_cond_broadcast(&qc_wake);
    pthread_mutex_unlock(&qc_mutex);
  }
  while (qc_help(&end)) {
  }
  while (atomic_load_explicit(&qc_done, memory_order_acquire) < chunks) QC_PAUSE();
}
