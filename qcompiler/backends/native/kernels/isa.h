/* The instruction set of this translation unit: QC_ISA is one of the numbers below, set by the compiler's command line. */
#ifndef QC_ISA_H
#define QC_ISA_H

#define QC_SCALAR 0
#define QC_AVX2 1
#define QC_AVX_VNNI 2
#define QC_AVX512_VNNI 3
#define QC_AMX 4
#define QC_NEON 5

#if QC_ISA == QC_SCALAR
#define QC_NAME scalar
#elif QC_ISA == QC_AVX2
#define QC_NAME avx2
#elif QC_ISA == QC_AVX_VNNI
#define QC_NAME avx_vnni
#elif QC_ISA == QC_AVX512_VNNI
#define QC_NAME avx512_vnni
#elif QC_ISA == QC_AMX
#define QC_NAME amx
#elif QC_ISA == QC_NEON
#define QC_NAME neon
#endif

#define QC_IS_512 (QC_ISA == QC_AVX512_VNNI || QC_ISA == QC_AMX)
#define QC_IS_256 (QC_ISA == QC_AVX2 || QC_ISA == QC_AVX_VNNI)
#define QC_IS_X86 (QC_IS_512 || QC_IS_256)

#if QC_IS_X86
#include <immintrin.h>
#elif QC_ISA == QC_NEON
#include <arm_neon.h>
#endif

#define QC_INLINE static inline __attribute__((always_inline))

/* Called from many places, for long runs each time: one copy of its code is enough. */
#define QC_APART static __attribute__((noinline))

/* Scratch that a kernel keeps on its stack is aligned to a cache line. */
#define QC_ALIGNED __attribute__((aligned(64)))

QC_INLINE int64_t qc_min(int64_t a, int64_t b) { return a < b ? a : b; }
QC_INLINE int64_t qc_max(int64_t a, int64_t b) { return a > b ? a : b; }
QC_INLINE int64_t qc_ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

#endif
