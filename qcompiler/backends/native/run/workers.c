/* Steps of a layer are claimed with compare-and-swap: a half of a thread's share of what is left, and single ones at the end. So a thread
   that is slower than the others, or that the system takes away, has the less to do, and what a kernel does once a claim it does seldom.

   `word` holds a number that counts publications, and how many steps are left: a claim takes some off. What a worker reads about the
   job (layer, state, units) cannot change between its claim and the end of its steps, since the caller waits for all of them.

   A worker that the system takes away in the middle of its steps makes the caller wait for as long as other processes run there. So a job
   that took longer than the caller alone would have needed, told by what its own steps took, makes it ask half of the workers, or none,
   for eight times as long as was lost; then twice as many again, and for longer where these are late, too. Where it waits, it sleeps soon:
   another thread may need its processor. */
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
#define QC_SPIN 40000 /* nanoseconds that a thread looks for work before it sleeps: by the clock, a pause takes 40 to 140 cycles */
#define QC_LATE 50000 /* nanoseconds that a job may take longer than the caller alone would have needed */
#define QC_SHY 8      /* how many times as long as was lost the caller asks fewer workers, and how many at most */
#define QC_SHYEST 64
#define QC_LONGEST 4000000000 /* nanoseconds */

static _Atomic(int) qc_taken;
static _Atomic(uint64_t) qc_word;
static _Atomic(int64_t) qc_done;
static _Atomic(int) qc_allowed, qc_asleep;
static _Atomic(uint32_t) qc_share; /* a claim takes one step of so many */
static _Atomic(int) qc_waits;      /* whether the caller sleeps until the last step is done */
static int qc_made;
static int qc_wanted, qc_trusted = QC_WORKERS; /* workers that the call wants, and those that it asks at most before qc_again */
static int64_t qc_again, qc_for, qc_shy; /* qc_for: how long before qc_again that was decided */
static struct {
  qc_layer layer;
  const qc_state *s;
  int64_t from, units, steps;
} qc_job;
static pthread_mutex_t qc_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t qc_wake = PTHREAD_COND_INITIALIZER, qc_finished = PTHREAD_COND_INITIALIZER;

static int64_t qc_clock(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Takes some steps of the job that is published, and computes them. Their number: 0 where none is left. */
static int64_t qc_help(void (**end)(void)) {
  uint64_t word = atomic_load_explicit(&qc_word, memory_order_acquire);
  uint32_t left, some;
  do {
    left = (uint32_t)(word & QC_LEFT);
    if (left == 0) return 0;
    some = left / atomic_load_explicit(&qc_share, memory_order_relaxed);
    if (some == 0) some = 1;
  } while (!atomic_compare_exchange_weak_explicit(&qc_word, &word, word - some, memory_order_acq_rel, memory_order_acquire));
  int64_t from = qc_job.from, units = qc_job.units, steps = qc_job.steps;
  *end = qc_job.s->k->end; /* the function outlives the model */
  qc_job.layer(qc_job.s, from + units * (left - some) / steps, from + units * left / steps);
  if (atomic_fetch_add(&qc_done, some) + some == steps && atomic_load(&qc_waits)) {
    pthread_mutex_lock(&qc_mutex);
    pthread_cond_broadcast(&qc_finished);
    pthread_mutex_unlock(&qc_mutex);
  }
  return some;
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
  qc_wake = qc_finished = wake;
  qc_made = 0;
  atomic_store(&qc_taken, 0);
  atomic_store(&qc_asleep, 0);
  atomic_store(&qc_waits, 0);
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
  qc_wanted = qc_made < wanted ? qc_made : wanted;
  return 1;
}

void qc_workers_give(void) { atomic_store_explicit(&qc_taken, 0, memory_order_release); }

int qc_workers_ask(void) {
  if (qc_trusted < qc_wanted && qc_clock() >= qc_again) qc_trusted = 2 * qc_trusted + 1;
  int asked = qc_trusted < qc_wanted ? qc_trusted : qc_wanted;
  atomic_store_explicit(&qc_allowed, asked, memory_order_relaxed);
  atomic_store_explicit(&qc_share, 2 * (uint32_t)(asked + 1), memory_order_relaxed);
  return asked;
}

/* Waits for the steps that workers hold, by the clock until `sleep`. */
static void qc_wait(int64_t steps, int64_t sleep) {
  while (atomic_load_explicit(&qc_done, memory_order_acquire) < steps) {
    for (int i = 0; i < 16; i++) QC_PAUSE();
    if (qc_clock() < sleep) continue;
    atomic_store(&qc_waits, 1);
    pthread_mutex_lock(&qc_mutex);
    while (atomic_load(&qc_done) < steps) pthread_cond_wait(&qc_finished, &qc_mutex);
    pthread_mutex_unlock(&qc_mutex);
    atomic_store(&qc_waits, 0);
  }
}

/* `mine` of `steps` took the caller `alone` nanoseconds, and all of them `together`. */
static void qc_judge(int64_t mine, int64_t steps, int64_t alone, int64_t together) {
  int64_t lost = together - (int64_t)((double)alone * (double)steps / (double)mine);
  if (lost < QC_LATE) return;
  int64_t now = qc_clock();
  qc_trusted = atomic_load_explicit(&qc_allowed, memory_order_relaxed) / 2;
  qc_shy = now > qc_again + qc_for ? QC_SHY : qc_shy < QC_SHYEST ? 2 * qc_shy : qc_shy;
  qc_for = lost < QC_LONGEST / qc_shy ? lost * qc_shy : QC_LONGEST;
  qc_again = now + qc_for;
}

void qc_workers_run(qc_layer layer, const qc_state *s, int64_t from, int64_t to, int64_t steps) {
  void (*end)(void) = NULL;
  int64_t start = qc_clock(), mine = 0, some;
  qc_job.layer = layer, qc_job.s = s, qc_job.from = from, qc_job.units = to - from, qc_job.steps = steps;
  atomic_store_explicit(&qc_done, 0, memory_order_relaxed);
  uint64_t before = atomic_load_explicit(&qc_word, memory_order_relaxed);
  atomic_store(&qc_word, ((before >> 32) + 1) << 32 | (uint64_t)steps);
  if (atomic_load(&qc_asleep)) {
    pthread_mutex_lock(&qc_mutex);
    pthread_cond_broadcast(&qc_wake);
    pthread_mutex_unlock(&qc_mutex);
  }
  while ((some = qc_help(&end)) > 0) mine += some;
  if (atomic_load_explicit(&qc_done, memory_order_acquire) == steps) return;
  int64_t alone = qc_clock() - start;
  qc_wait(steps, start + 2 * alone + QC_SPIN);
  if (mine) qc_judge(mine, steps, alone, qc_clock() - start);
}
