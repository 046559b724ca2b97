/* The rates that bound every kernel on this machine, one thread, the best of many runs: products a second of each instruction, loads
   and stores by the size of what is read or written. x86 only; what the processor lacks is left out. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define REPEAT8(x) x x x x x x x x
#define W __attribute__((target("avx512f,avx512bw,avx512vnni")))

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The rate of a function that does `work` per call: the best of 200 calls. */
static double rate(void (*f)(void *, int64_t), void *p, int64_t count, double work) {
  double best = 0;
  for (int i = 0; i < 200; i++) {
    double start = now();
    f(p, count);
    double found = work / (now() - start);
    best = found > best ? found : best;
  }
  return best;
}

/* A product of integers takes three cycles, and no processor leaves one out. */
static void dependent_products(void *p, int64_t count) {
  int64_t v = 1;
  for (int64_t i = 0; i < count; i++) __asm__ volatile(REPEAT8("imul %0, %0\n") : "+r"(v));
  *(int64_t *)p = v;
}

#define DP(n) "vpdpbusd %%zmm31, %%zmm30, %%zmm" #n "\n"
W static void wide_products(void *p, int64_t count) {
  (void)p;
  for (int64_t i = 0; i < count; i++)
    __asm__ volatile(DP(0) DP(1) DP(2) DP(3) DP(4) DP(5) DP(6) DP(7) DP(8) DP(9) DP(10) DP(11) DP(12) DP(13) DP(14) DP(15)::
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",
                           "xmm14", "xmm15");
}

#define VDP(n) "%{vex%} vpdpbusd %%ymm15, %%ymm14, %%ymm" #n "\n"
__attribute__((target("avx2"))) static void narrow_products(void *p, int64_t count) {
  (void)p;
  for (int64_t i = 0; i < count; i++)
    __asm__ volatile(VDP(0) VDP(1) VDP(2) VDP(3) VDP(4) VDP(5) VDP(6) VDP(7) VDP(8) VDP(9) VDP(10) VDP(11)::
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11");
}

/* Products of 16-bit numbers with the sum behind each, as AVX2's kernels make them. */
#define MADD(n) "vpmaddwd %%ymm15, %%ymm14, %%ymm13\nvpaddd %%ymm13, %%ymm" #n ", %%ymm" #n "\n"
__attribute__((target("avx2"))) static void short_products(void *p, int64_t count) {
  (void)p;
  for (int64_t i = 0; i < count; i++)
    __asm__ volatile(MADD(0) MADD(1) MADD(2) MADD(3) MADD(4) MADD(5) MADD(6) MADD(7) MADD(8) MADD(9) MADD(10) MADD(11)::
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm13");
}

/* Products of bytes, which may saturate: what others do with AVX2. */
#define BYTES(n) "vpmaddubsw %%ymm15, %%ymm14, %%ymm13\nvpmaddwd %%ymm12, %%ymm13, %%ymm13\nvpaddd %%ymm13, %%ymm" #n ", %%ymm" #n "\n"
__attribute__((target("avx2"))) static void byte_products(void *p, int64_t count) {
  (void)p;
  for (int64_t i = 0; i < count; i++)
    __asm__ volatile(BYTES(0) BYTES(1) BYTES(2) BYTES(3) BYTES(4) BYTES(5) BYTES(6) BYTES(7) BYTES(8) BYTES(9) BYTES(10) BYTES(11)::
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm13");
}

#define TDP(c, a, b) "tdpbusd %%tmm" #b ", %%tmm" #a ", %%tmm" #c "\n"
static void tile_products(void *p, int64_t count) {
  (void)p;
  for (int64_t i = 0; i < count; i++) __asm__ volatile(TDP(0, 4, 6) TDP(1, 4, 7) TDP(2, 5, 6) TDP(3, 5, 7)::);
}

/* As a convolution does it: two tiles of codes and two of weights loaded for four products. */
static void tile_steps(void *p, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm4\ntileloadd 1024(%0,%1,1), %%tmm6\n" TDP(0, 4, 6) "tileloadd 2048(%0,%1,1), %%tmm7\n" TDP(
                         1, 4, 7) "tileloadd 3072(%0,%1,1), %%tmm5\n" TDP(2, 5, 6) TDP(3, 5, 7)
                     :
                     : "r"(p), "r"((int64_t)64)
                     : "memory");
}

static void tile_stores(void *p, int64_t count) {
  for (int64_t i = 0; i < count; i++) __asm__ volatile("tilestored %%tmm0, (%0,%1,1)" : : "r"(p), "r"((int64_t)64) : "memory");
}

W static void loads(void *p, int64_t bytes) {
  const char *v = p;
  __m512i sum = _mm512_setzero_si512(), other = sum;
  for (int64_t i = 0; i < bytes; i += 256) {
    sum = _mm512_or_si512(sum, _mm512_loadu_si512(v + i));
    other = _mm512_or_si512(other, _mm512_loadu_si512(v + i + 64));
    sum = _mm512_or_si512(sum, _mm512_loadu_si512(v + i + 128));
    other = _mm512_or_si512(other, _mm512_loadu_si512(v + i + 192));
  }
  __asm__ volatile("" : : "v"(_mm512_or_si512(sum, other)));
}

W static void stores(void *p, int64_t bytes) {
  char *v = p;
  __m512i value = _mm512_set1_epi8(1);
  for (int64_t i = 0; i < bytes; i += 64) _mm512_storeu_si512(v + i, value);
  __asm__ volatile("" : : : "memory");
}

static int tiles_are_given(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

static void configure(void) {
  uint8_t c[64] __attribute__((aligned(64))) = {1};
  for (int i = 0; i < 8; i++) c[16 + 2 * i] = 64, c[48 + i] = 16;
  __asm__ volatile("ldtilecfg %0" : : "m"(c));
}

static void report_memory(char *p) {
  static const struct {
    const char *name;
    int64_t bytes;
  } sizes[] = {{"first cache (24 KB)", 24 << 10}, {"second cache (1 MB)", 1 << 20}, {"third cache (16 MB)", 16 << 20}};
  for (int i = 0; i < 3; i++) {
    double bytes = (double)sizes[i].bytes;
    printf("%-22s load %7.1f GB/s, store %7.1f GB/s\n", sizes[i].name, rate(loads, p, sizes[i].bytes, bytes) * 1e-9,
           rate(stores, p, sizes[i].bytes, bytes) * 1e-9);
  }
}

int main(void) {
  char *p = aligned_alloc(1 << 21, 32 << 20);
  if (!p) return 1;
  memset(p, 1, 32 << 20);
  printf("clock                  %.2f GHz\n", rate(dependent_products, p, 20000, 3 * 160000) * 1e-9);
  if (__builtin_cpu_supports("avx512vnni")) {
    printf("vpdpbusd, 64 bytes     %.0f GMAC/s\n", rate(wide_products, p, 2000, 2000.0 * 16 * 64) * 1e-9);
    report_memory(p);
  }
  if (__builtin_cpu_supports("avx2")) {
    printf("vpmaddwd, vpaddd       %.0f GMAC/s\n", rate(short_products, p, 2000, 2000.0 * 12 * 16) * 1e-9);
    printf("vpmaddubsw, and both   %.0f GMAC/s, may saturate\n", rate(byte_products, p, 2000, 2000.0 * 12 * 32) * 1e-9);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("avxvnni"))
    printf("vpdpbusd, 32 bytes     %.0f GMAC/s\n", rate(narrow_products, p, 2000, 2000.0 * 12 * 32) * 1e-9);
  if (tiles_are_given()) {
    configure();
    printf("tdpbusd                %.0f GMAC/s\n", rate(tile_products, p, 1000, 1000.0 * 4 * 16384) * 1e-9);
    printf("2 x 2 tiles with loads %.0f GMAC/s\n", rate(tile_steps, p, 1000, 1000.0 * 4 * 16384) * 1e-9);
    printf("tilestored             %.2f ns\n", 1e9 / rate(tile_stores, p, 1000, 1000));
    __asm__ volatile("tilerelease" : :);
  }
  free(p);
  return 0;
}
