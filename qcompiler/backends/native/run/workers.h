/* Worker threads that help one call at a time. A call that finds them busy runs alone. */
#ifndef QC_WORKERS_H
#define QC_WORKERS_H

#include "net.h"

/* Whether the workers are this call's until qc_workers_give; `threads` counts the caller. */
int qc_workers_take(int threads);
void qc_workers_give(void);

/* How many workers the next qc_workers_run asks: none where they cost time, since other processes need the processors. The caller has the
   workers. */
int qc_workers_ask(void);

/* Runs the pieces from..to-1 of a layer in `steps` steps (fewer than 2^32) on the caller and the workers; returns when all are done. The
   caller has the workers and has asked. */
void qc_workers_run(qc_layer layer, const qc_state *s, int64_t from, int64_t to, int64_t steps);

#endif
