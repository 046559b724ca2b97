/* Stands in for kernels/machine.c in a library that the tests alone build: QC_EMULATED, an instruction set that this machine has not, runs
   here with emulated instructions, where AVX-512 VNNI does. It is taken where it is named, never as the fastest of all. */
#define qc_fastest qc_fastest_of_the_processor
#include "machine.c"
#undef qc_fastest

const char *qc_fastest(const char *cap);

const char *qc_fastest(const char *cap) {
  const char *found = qc_fastest_of_the_processor("avx512_vnni");
  if (cap && strcmp(cap, QC_EMULATED) == 0 && strcmp(found, "avx512_vnni") == 0) return QC_EMULATED;
  return qc_fastest_of_the_processor(cap);
}
