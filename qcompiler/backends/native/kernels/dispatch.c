/* The kernels that this library was built with: one instruction set (QC_ONLY is its name), or all of the architecture. */
#include "qc.h"

#include <string.h>

#if defined(QC_ONLY)
#define QC_ALL(F) F(QC_ONLY)
#elif defined(__x86_64__)
#define QC_ALL(F) F(scalar) F(avx2) F(avx_vnni) F(avx512_vnni) F(amx)
#elif defined(__aarch64__)
#define QC_ALL(F) F(scalar) F(neon)
#else
#define QC_ALL(F) F(scalar)
#endif

#define QC_TABLE_OF(ISA) qc_kernels_##ISA
#define QC_EXTERN(ISA) extern const qc_kernels QC_TABLE_OF(ISA);
#define QC_ADDRESS(ISA) &QC_TABLE_OF(ISA),
QC_ALL(QC_EXTERN)
static const qc_kernels *const qc_all[] = {QC_ALL(QC_ADDRESS)};

static const qc_kernels *qc_built(const char *isa) {
  for (size_t i = 0; i < sizeof(qc_all) / sizeof(qc_all[0]); i++)
    if (strcmp(isa, qc_all[i]->isa) == 0) return qc_all[i];
  return NULL;
}

const qc_kernels *qc_select(const char *cap) {
  const char *isa = qc_fastest(cap);
  return isa ? qc_built(isa) : NULL;
}

const qc_kernels *qc_exactly(const char *isa) {
  const char *found = qc_fastest(isa);
  return found && strcmp(found, isa) == 0 ? qc_built(isa) : NULL;
}
