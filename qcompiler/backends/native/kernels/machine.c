/* Which instruction sets this machine runs. */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "qc.h"

#include <string.h>

int qc_has_vbmi;

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static const char *const qc_names[] = {"scalar", "avx2", "avx_vnni", "avx512_vnni", "amx"};

static int qc_bit(unsigned word, int bit) { return (int)(word >> bit) & 1; }

/* The register files that the operating system saves: bit 1-2 SSE and AVX, 5-7 AVX-512, 17-18 AMX. */
static unsigned qc_saved(void) {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  (void)high;
  return low;
}

/* Linux gives the tiles only to a process that asks for them. */
static int qc_ask_for_tiles(void) {
#if defined(__linux__) && defined(SYS_arch_prctl)
  return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0;
#else
  return 0;
#endif
}

static int qc_runs(int level) {
  unsigned a, b, c, d, b7, c7, d7, a71, unused;
  if (level == 0) return 1;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !qc_bit(c, 27) || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return 0;
  unsigned saved = qc_saved();
  if ((saved & 6) != 6 || !qc_bit(b7, 5)) return 0;
  if (level == 1) return 1;
  if (level == 2) return __get_cpuid_count(7, 1, &a71, &unused, &c, &d) && qc_bit(a71, 4);
  int wide = (saved & 0xe0) == 0xe0 && qc_bit(b7, 16) && qc_bit(b7, 17) && qc_bit(b7, 30) && qc_bit(b7, 31) && qc_bit(c7, 11);
  qc_has_vbmi = wide && qc_bit(c7, 1);
  if (level == 3) return wide;
  return wide && (saved & 0x60000) == 0x60000 && qc_has_vbmi && qc_bit(d7, 24) && qc_bit(d7, 25) && qc_ask_for_tiles();
}
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#endif

static const char *const qc_names[] = {"scalar", "neon"};

static int qc_runs(int level) {
  if (level == 0) return 1;
#if defined(__linux__)
  return (int)(getauxval(AT_HWCAP) >> 20) & 1; /* HWCAP_ASIMDDP: the dot product */
#elif defined(__APPLE__)
  return 1;
#else
  return 0;
#endif
}
#else
static const char *const qc_names[] = {"scalar"};
static int qc_runs(int level) { return level == 0; }
#endif

#define QC_LEVELS (int)(sizeof(qc_names) / sizeof(qc_names[0]))

static int qc_level(const char *name) {
  for (int i = 0; i < QC_LEVELS; i++)
    if (strcmp(name, qc_names[i]) == 0) return i;
  return -1;
}

const char *qc_fastest(const char *cap) {
  int level = cap && *cap ? qc_level(cap) : QC_LEVELS - 1;
  while (level > 0 && !qc_runs(level)) level--;
  return level < 0 ? NULL : qc_names[level];
}
