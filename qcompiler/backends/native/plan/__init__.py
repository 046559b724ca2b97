"""From the steps of a region to layers, places in memory and constants.

| what | files |
|---|---|
| steps -> layers | planner, planning, answers, forms, network, computes, bundle |
| what every layer answers | layer, codes, place, window |
| sums of codes and weights | conv, transposed, float_conv, dynamic, recurrent, embedding |
| behind sums | fuse, bend, curve, knee, on_sums, batch_norm, prelu |
| products of two values | matmul, attention, einsum |
| single codes and single floats | pointwise, float_pointwise, masks |
| along dimensions | float_rows, reduce, statistics, order, pool, resize, warp, fold |
| copies and views | shape, rearrange, copies, pick, places, homes, relayout |
| by numbers found at run time | by_number, taken |
| where a region begins and ends | edges, floats, settled |
| input sizes -> strides and offsets | sizes, arena, samples, rows, table |
| for people | text, drawing |
"""
