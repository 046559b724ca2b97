/* The kernels of one instruction set: compiled once for each, with -DQC_ISA=QC_... and the flags of isa.py. */
#include "qc.h"

#include "isa.h"

#include "attention.h"
#include "boundary.h"
#include "dynamic.h"
#include "elementwise.h"
#include "float_map.h"
#include "float_pool.h"
#include "norm.h"
#include "order.h"
#include "pick.h"
#include "pool.h"
#include "resize.h"
#include "warp.h"

#if QC_ISA == QC_AMX
#include "conv_amx.h"
#define QC_CONV qc_conv_amx
#define QC_END qc_amx_end
#elif QC_ISA == QC_SCALAR
#include "conv_scalar.h"
#define QC_CONV qc_conv_rows
#define QC_END qc_nothing
#elif QC_ISA == QC_AVX2
#include "conv_avx2.h"
#define QC_CONV qc_conv_avx2
#define QC_END qc_nothing
#else
#include "conv_dot.h"
#define QC_CONV qc_conv_dot
#define QC_END qc_nothing
#endif

#if QC_ISA == QC_SCALAR
#include "depthwise_scalar.h"
#define QC_DEPTHWISE qc_depthwise_rows
#else
#include "depthwise.h"
#define QC_DEPTHWISE qc_depthwise_dots
#endif

#if QC_ISA != QC_AMX
static void qc_nothing(void) {}
#endif

#ifndef QC_WINOGRAD_H
static int64_t qc_wino_first(const qc_conv *a) { return (void)a, 0; }
static int64_t qc_wino_room(const qc_conv *a) { return (void)a, 0; }
#endif

#define QC_JOIN2(a, b) a##b
#define QC_JOIN(a, b) QC_JOIN2(a, b)
#define QC_TEXT2(a) #a
#define QC_TEXT(a) QC_TEXT2(a)
#define QC_PAIR(F) QC_JOIN(F, _units), F

const qc_kernels QC_JOIN(qc_kernels_, QC_NAME) = {
    QC_TEXT(QC_NAME),
    QC_END,
    qc_wino_first,
    qc_wino_room,
    QC_PAIR(QC_CONV),
    QC_PAIR(QC_DEPTHWISE),
    QC_PAIR(qc_add_rows),
    QC_PAIR(qc_mul_rows),
    QC_PAIR(qc_map_rows),
    QC_PAIR(qc_quantize_rows),
    QC_PAIR(qc_dequantize_rows),
    QC_PAIR(qc_max_pool_rows),
    QC_PAIR(qc_avg_pool_rows),
    QC_PAIR(qc_halo_rows),
    QC_PAIR(qc_copy_rows),
    QC_PAIR(qc_resize_rows),
    QC_PAIR(qc_pick_rows),
    QC_PAIR(qc_float_map_pixels),
    QC_PAIR(qc_float_pair_pixels),
    QC_PAIR(qc_float_pool_rows),
    QC_PAIR(qc_norm_rows),
    QC_PAIR(qc_softmax_rows),
    QC_PAIR(qc_cumsum_rows),
    QC_PAIR(qc_reduce_rows),
    QC_PAIR(qc_range_once),
    QC_PAIR(qc_encode_pixels),
    QC_PAIR(qc_factors_all),
    QC_PAIR(qc_gates_rows),
    QC_PAIR(qc_where_pixels),
    QC_PAIR(qc_embed_pixels),
    QC_PAIR(qc_pack_panels),
    QC_PAIR(qc_matmul_panels),
    QC_PAIR(qc_attention_tiles),
    QC_PAIR(qc_order_rows),
    QC_PAIR(qc_elements_rows),
    QC_PAIR(qc_int64_rows),
    QC_PAIR(qc_warp_pixels),
};
