/* Times the convolutions of mobilenet_v2 and resnet50 one by one, on one thread: microseconds and GMAC/s of each instruction set.

   Usage: layers ISA [part of a layer's name]. Build: see bench/README.md. */
#define _GNU_SOURCE
#include "../kernels/qc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct layer {
  const char *name;
  int in, out, size, kernel, stride, groups; /* groups = in: depthwise */
  int added;                                 /* another value is added to the result */
} layer;

static const layer layers[] = {
    {"r 7x7s2 3>64 @112", 3, 64, 224, 7, 2, 1},       {"r 1x1 64>64 @56", 64, 64, 56, 1, 1, 1},
    {"r 3x3 64>64 @56", 64, 64, 56, 3, 1, 1},         {"r 1x1 64>256 @56", 64, 256, 56, 1, 1, 1},
    {"r 1x1 256>64 @56", 256, 64, 56, 1, 1, 1},       {"r 3x3s2 128>128 @28", 128, 128, 56, 3, 2, 1},
    {"r 3x3 128>128 @28", 128, 128, 28, 3, 1, 1},     {"r 1x1 128>512 @28", 128, 512, 28, 1, 1, 1},
    {"r 1x1 512>128 @28", 512, 128, 28, 1, 1, 1},     {"r 3x3 256>256 @14", 256, 256, 14, 3, 1, 1},
    {"r 1x1 256>1024 @14", 256, 1024, 14, 1, 1, 1},   {"r 1x1 1024>256 @14", 1024, 256, 14, 1, 1, 1},
    {"r 1x1s2 1024>2048 @7", 1024, 2048, 14, 1, 2, 1}, {"r 3x3 512>512 @7", 512, 512, 7, 3, 1, 1},
    {"r 1x1 512>2048 @7", 512, 2048, 7, 1, 1, 1},     {"r 1x1 2048>512 @7", 2048, 512, 7, 1, 1, 1},
    {"r linear 2048>1000", 2048, 1000, 1, 1, 1, 1},   {"r 1x1 64>256 + @56", 64, 256, 56, 1, 1, 1, 1},
    {"r 1x1 128>512 + @28", 128, 512, 28, 1, 1, 1, 1}, {"r 1x1 256>1024 + @14", 256, 1024, 14, 1, 1, 1, 1},
    {"r 1x1 512>2048 + @7", 512, 2048, 7, 1, 1, 1, 1}, {"m 3x3s2 3>32 @112", 3, 32, 224, 3, 2, 1},
    {"m 1x1 32>16 @112", 32, 16, 112, 1, 1, 1},       {"m 1x1 16>96 @112", 16, 96, 112, 1, 1, 1},
    {"m 1x1 96>24 @56", 96, 24, 56, 1, 1, 1},         {"m 1x1 24>144 @56", 24, 144, 56, 1, 1, 1},
    {"m 1x1 144>24 @56", 144, 24, 56, 1, 1, 1},       {"m 1x1 144>32 @28", 144, 32, 28, 1, 1, 1},
    {"m 1x1 32>192 @28", 32, 192, 28, 1, 1, 1},       {"m 1x1 192>64 @14", 192, 64, 14, 1, 1, 1},
    {"m 1x1 64>384 @14", 64, 384, 14, 1, 1, 1},       {"m 1x1 384>96 @14", 384, 96, 14, 1, 1, 1},
    {"m 1x1 96>576 @14", 96, 576, 14, 1, 1, 1},       {"m 1x1 576>160 @7", 576, 160, 7, 1, 1, 1},
    {"m 1x1 160>960 @7", 160, 960, 7, 1, 1, 1},       {"m 1x1 960>320 @7", 960, 320, 7, 1, 1, 1},
    {"m 1x1 320>1280 @7", 320, 1280, 7, 1, 1, 1},     {"m linear 1280>1000", 1280, 1000, 1, 1, 1, 1},
    {"d 3x3 32 @112", 32, 32, 112, 3, 1, 32},         {"d 3x3s2 96 @56", 96, 96, 112, 3, 2, 96},
    {"d 3x3 144 @56", 144, 144, 56, 3, 1, 144},       {"d 3x3 192 @28", 192, 192, 28, 3, 1, 192},
    {"d 3x3 384 @14", 384, 384, 14, 3, 1, 384},       {"d 3x3 960 @7", 960, 960, 7, 3, 1, 960},
    {"d 5x5 120 @28", 120, 120, 28, 5, 1, 120},       {"d 5x5s2 240 @14", 240, 240, 28, 5, 2, 240},
    {"d 5x5 672 @14", 672, 672, 14, 5, 1, 672},       {"d 7x7 96 @56", 96, 96, 56, 7, 1, 96},
    {"g 3x3 128/32 @56", 128, 128, 56, 3, 1, 32},     {"g 3x3 512/32 @14", 512, 512, 14, 3, 1, 32},
};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* what others run meanwhile does not count */
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void *block(size_t bytes) {
  uint8_t *p = aligned_alloc(1 << 21, (bytes + QC_SLACK + (1 << 21)) >> 21 << 21);
  if (!p) exit(1);
  for (size_t i = 0; i < bytes; i++) p[i] = (uint8_t)(rand() >> 8);
  return p;
}

/* Most weights are small: means of three uniform numbers. */
static int8_t *weights(size_t bytes) {
  int8_t *w = block(bytes);
  for (size_t i = 0; i < bytes; i++) w[i] = (int8_t)((rand() >> 8) % 85 + (rand() >> 8) % 85 + (rand() >> 8) % 85 - 126);
  return w;
}

static qc_tensor tensor(uint8_t *memory, int size, int c, int halo) {
  int64_t wide = size + 2 * halo;
  qc_tensor t = {.n = 1, .d = 1, .h = size, .w = size, .c = c, .sw = c, .sh = wide * c, .sd = wide * wide * c, .sn = wide * wide * c};
  t.p = memory + (wide + 1) * halo * c;
  return t;
}

/* The work in PARTS parts, each of which has its least time counted: what a busy machine does to one run is not in the sum. */
enum { PARTS = 16 };

static void report(const layer *l, const qc_kernels *k, const qc_conv *a, double macs) {
  qc_depthwise d = {.x = a->x, .y = a->y, .k = a->k, .e = a->e, .w = a->w, .wsum = a->wsum};
  int depthwise = l->groups == l->in && l->in > 1;
  int64_t units = depthwise ? k->depthwise_units(&d) : k->conv_units(a), parts = units < PARTS ? units : PARTS;
  double best[PARTS], sum = 0, begin = now(), clock = 1e9;
  for (int i = 0; i < 200; i++) { /* asking for the time takes half a microsecond itself */
    double start = now(), time = now() - start;
    clock = time < clock ? time : clock;
  }
  for (int i = 0; i < 2000 && (i < 5 || now() - begin < 30e3); i++)
    for (int64_t p = 0; p < parts; p++) {
      double start = now();
      if (depthwise)
        k->depthwise(&d, units * p / parts, units * (p + 1) / parts);
      else
        k->conv(a, units * p / parts, units * (p + 1) / parts);
      double time = now() - start;
      best[p] = i == 0 || time < best[p] ? time : best[p];
    }
  k->end();
  for (int64_t p = 0; p < parts; p++) sum += best[p] - clock;
  printf("%-22s %9.1f us %8.0f GMAC/s\n", l->name, sum, macs / sum * 1e-3);
}

static void run(const layer *l, const qc_kernels *k) {
  int halo = l->kernel / 2, out = (l->size + 2 * halo - l->kernel) / l->stride + 1, merge = 1, groups = l->groups;
  int depthwise = l->groups == l->in && l->in > 1;
  while (!depthwise && groups > 1 && l->out / groups % 16) merge *= 2, groups /= 2;
  size_t taps = (size_t)l->kernel * (size_t)l->kernel, wide = (size_t)(l->size + 2 * halo);
  uint8_t *x = block(wide * wide * (size_t)l->in), *y = block((size_t)out * (size_t)out * (size_t)l->out), *r = block((size_t)out * (size_t)out * (size_t)l->out);
  float *m = block(4 * (size_t)l->out + 512), *b = block(4 * (size_t)l->out + 512);
  for (int i = 0; i < l->out; i++) m[i] = 0.001f, b[i] = 3.0f;
  qc_conv a = {.x = tensor(x, l->size, l->in, halo), .y = tensor(y, out, l->out, 0), .groups = groups, .fold = groups == 1, .small = 1};
  a.k = (qc_window){{1, l->kernel, l->kernel}, {1, l->stride, l->stride}, {1, 1, 1}, {0, halo, halo}};
  a.e = (qc_epilogue){.m = m, .b = b, .zero = 12, .hi = 255};
  if (l->added) a.r = tensor(r, out, l->out, 0), a.e.sum = (qc_sum){.hi = 255, .whole = 1, .whole_a = 5734, .whole_b = 4915, .whole_c = 9600};
  a.w = weights((taps + 60) * (size_t)(l->in / groups + 64) * (size_t)(l->out + 64));
  a.wsum = block(4 * (size_t)l->out + 512);
  report(l, k, &a, (double)out * out * l->out * (double)taps * l->in / l->groups);
  free(x), free(y), free(r), free(m), free(b), free((void *)a.w), free((void *)a.wsum);
}

int main(int argc, char **argv) {
  const qc_kernels *k = qc_select(argc > 1 ? argv[1] : NULL);
  if (!k) return fprintf(stderr, "No such instruction set: %s.\n", argv[1]), 1;
  printf("%s\n", k->isa);
  for (size_t i = 0; i < sizeof layers / sizeof *layers; i++)
    if (argc < 3 || strstr(layers[i].name, argv[2])) run(&layers[i], k);
  return 0;
}
