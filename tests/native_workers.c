/* Workers that keep the caller waiting, as threads do whose processor the system gave to others: how many of them are asked next. */
#define _GNU_SOURCE
#include "workers.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

#define PIECES 64
static pthread_t caller;
static _Atomic(int) helped, done[PIECES];

static void nap(long milliseconds) {
  struct timespec t = {0, milliseconds * 1000000};
  nanosleep(&t, NULL);
}

/* A worker sleeps over its pieces. The caller's first ones last until a worker has claimed some. */
static int64_t work(const qc_state *s, int64_t lo, int64_t hi) {
  (void)s;
  if (!pthread_equal(pthread_self(), caller)) {
    atomic_store(&helped, 1);
    nap(50);
  }
  while (!atomic_load(&helped)) {
  }
  for (int64_t i = lo; i < hi; i++) atomic_fetch_add(&done[i], 1);
  return 0;
}

static void end(void) {}

int main(void) {
  qc_kernels kernels = {.end = end};
  qc_state s = {.k = &kernels};
  caller = pthread_self();
  int asked = 4;
  for (int job = 0; job < 100; job++) {
    if (!qc_workers_take(4)) return 1;
    int now = qc_workers_ask();
    if (now != asked) printf("%d ", now);
    if (now == 0) break;
    asked = now;
    atomic_store(&helped, 0);
    qc_workers_run(work, &s, 0, PIECES, PIECES);
    for (int i = 0; i < PIECES; i++)
      if (atomic_exchange(&done[i], 0) != 1) return 2;
    qc_workers_give();
  }
  int again = 0;
  for (int i = 0; i < 1000 && !again; i++) {
    nap(10);
    again = qc_workers_ask();
  }
  printf("%d\n", again);
  return 0;
}
