"""The header of an exported network and what stands behind it: sizes as tables, loading of weights, a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qcompiler.backends.native.emit.source import Source
from qcompiler.backends.native.export.weights import Weights
from qcompiler.backends.native.plan.network import Network
from qcompiler.backends.native.plan.table import Table

MOST = 8  # dimensions of an input or a result


@dataclass(frozen=True)
class Interface:
    """`name`: what C calls the network; `title`: what Python calls it. A table for each set of input sizes."""

    name: str
    title: str
    network: Network
    source: Source
    tables: Sequence[Table]

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.network.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.network.tensor_outputs

    def shapes(self, names: Sequence[str]) -> list[list[tuple[int, ...]]]:
        """For each set of sizes the shapes of these values."""
        return [[table.sizes.shape(name) for name in names] for table in self.tables]


def header(net: Interface) -> str:
    """The C header: what goes in and out, with its sizes and meaning."""
    up = net.name.upper()
    return f"""/* {net.title}, written by qcompiler's export_c. Tensors are float arrays in row-major order, as torch's contiguous ones.

{_table_text(net)}

   The codes inside are 8-bit integers; the result is the same bits on every instruction set, number of threads and compiler. */
#ifndef {up}_H
#define {up}_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define {up}_SIZES {len(net.tables)} /* sets of input sizes */
#define {up}_INPUTS {len(net.inputs)}
#define {up}_OUTPUTS {len(net.outputs)}

typedef struct {net.name} {net.name};

/* Reads {net.name}.weights. `isa`: NULL for the fastest instruction set of this machine, else the fastest that is allowed (scalar, avx2,
   avx_vnni, avx512_vnni, amx; neon). NULL where the file cannot be read or belongs to another network, or isa is no such name. */
{net.name} *{net.name}_load(const char *weights, const char *isa);
void {net.name}_free({net.name} *net);

/* How many floats an input or a result has, and its shape: {MOST} numbers, unused ones 0. */
int64_t {net.name}_input_length(int sizes, int input);
int64_t {net.name}_output_length(int sizes, int output);
const int64_t *{net.name}_input_shape(int sizes, int input);
const int64_t *{net.name}_output_shape(int sizes, int output);

/* Computes the results; any number of threads may call it with one net. `sizes`: which set of input sizes. Returns 0, or 1 where there
   is no memory. */
int {net.name}_run({net.name} *net, int sizes, const float *const *inputs, float *const *outputs, int threads);

#ifdef __cplusplus
}}
#endif
#endif
"""


def _table_text(net: Interface) -> str:
    lines = []
    for index, (taken, given) in enumerate(zip(net.shapes(net.inputs), net.shapes(net.outputs), strict=True)):
        ins = ", ".join(f"{_plain(name)} {_times(shape)}" for name, shape in zip(net.inputs, taken, strict=True))
        outs = ", ".join(f"{_plain(name)} {_times(shape)}" for name, shape in zip(net.outputs, given, strict=True))
        lines.append(f"   sizes {index}: inputs {ins}; results {outs}")
    return "\n".join(lines)


def _plain(name: str) -> str:
    return "".join(c for c in name.removesuffix(".floats") if c.isalnum() or c == "_")


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "1"


def implementation(net: Interface, weights: Weights) -> str:
    """The C file behind the header."""
    tables = "\n".join(_sizes(index, table) for index, table in enumerate(net.tables))
    rows = ", ".join(
        f"{{pixels_{i}, moved_{i}, strides_{i}, spread_{i}, cost_{i}, maps_{i}, {t.struct.arena}}}" for i, t in enumerate(net.tables)
    )
    shapes = "\n".join(_shapes(kind, net.shapes(names)) for kind, names in (("inputs", net.inputs), ("outputs", net.outputs)))
    code = BODY.replace("@NAME@", net.name).replace("@UP@", net.name.upper()).replace("@NETWORK@", f"{weights.network:#x}u")
    return f"{FIRST.replace('@NAME@', net.name)}\n{tables}\nstatic const qc_sizes all_sizes[] = {{{rows}}};\n{shapes}\n{code}"


def _sizes(index: int, table: Table) -> str:
    pixels, moved, strides, spread, cost, _, lists = table.kept
    places = [_array("int64_t", f"map_{index}_{i}[]", map(str, at)) for i, at in enumerate(lists)]
    tensors = [f"{{(uint8_t *){t.p or 0}, {_list((t.n, t.d, t.h, t.w, t.c, t.sn, t.sd, t.sh, t.sw))}}}" for t in pixels]
    copies = [
        f"{{(const void *){c.x or 0}, (void *){c.y or 0}, {', '.join(map(_braces, (c.length, c.xs, c.ys)))}, {c.size}}}" for c in moved
    ]
    return "\n".join([
        *places, _array("int64_t *const", f"maps_{index}[]", [f"map_{index}_{i}" for i in range(len(lists))] or ["0"]),
        _array("qc_tensor", f"pixels_{index}[]", tensors), _array("qc_copy", f"moved_{index}[]", copies),
        _array("int64_t", f"strides_{index}[][5]", [_braces(five) for five in strides]),
        _array("int32_t", f"spread_{index}[]", map(str, spread)), _array("int64_t", f"cost_{index}[]", map(str, cost)),
    ])  # fmt: skip


def _shapes(kind: str, shapes: list[list[tuple[int, ...]]]) -> str:
    rows = [_braces([*shape, *[0] * (MOST - len(shape))]) for one in shapes for shape in one]
    return _array("int64_t", f"{kind}_shape[][{MOST}]", rows)


def _array(kind: str, name: str, rows: Any) -> str:
    body = ",\n  ".join(rows)
    return f"static const {kind} {name} = {{\n  {body}\n}};"


def _list(values: Any) -> str:
    return ", ".join(str(int(v)) for v in values)


def _braces(values: Any) -> str:
    return f"{{{_list(values)}}}"


FIRST = """/* Written by qcompiler's export_c: the sizes of the network, and how its weights are read. @NAME@_layers.c has the layers. */
#include "@NAME@.h"

#include <stdio.h>
#include <stdlib.h>

#include "kernels/net.h"

extern const qc_network @NAME@_network;
"""

BODY = """
struct @NAME@ {
  qc_model *model;
  uint8_t *block;
};

typedef struct head {
  char magic[8];
  uint64_t network, data;
  uint32_t integers, reals, doubles;
  char unused[28];
} head;

/* Everything behind the header, at a cache line; NULL where the file does not hold what its header says. */
static uint8_t *read_block(FILE *file, head *h) {
  if (fread(h, sizeof *h, 1, file) != 1 || memcmp(h->magic, "QCWEIGHT", 8) || h->network != @NETWORK@) return NULL;
  size_t size = (size_t)h->data + 8 * (size_t)h->doubles + 4 * ((size_t)h->integers + h->reals), whole = (size + QC_SLACK + 63) / 64 * 64;
  uint8_t *block = aligned_alloc(64, whole);
  if (block && fread(block, 1, size, file) == size) return block;
  free(block);
  return NULL;
}

@NAME@ *@NAME@_load(const char *weights, const char *isa) {
  head h;
  FILE *file = fopen(weights, "rb");
  if (!file) return NULL;
  uint8_t *block = read_block(file, &h);
  fclose(file);
  @NAME@ *net = block ? malloc(sizeof *net) : NULL;
  if (net) {
    const uint8_t *doubles = block + h.data, *integers = doubles + 8 * (size_t)h.doubles, *reals = integers + 4 * (size_t)h.integers;
    qc_values values = {block, (const void *)integers, (const void *)reals, (const void *)doubles};
    net->block = block;
    net->model = qc_open(&@NAME@_network, &values, isa);
    if (net->model) return net;
  }
  free(net);
  free(block);
  return NULL;
}

void @NAME@_free(@NAME@ *net) {
  if (!net) return;
  qc_close(net->model);
  free(net->block);
  free(net);
}

static int64_t length(const int64_t *shape) {
  int64_t count = 1;
  for (int i = 0; i < 8 && shape[i]; i++) count *= shape[i];
  return count;
}

const int64_t *@NAME@_input_shape(int sizes, int input) { return inputs_shape[sizes * @UP@_INPUTS + input]; }
const int64_t *@NAME@_output_shape(int sizes, int output) { return outputs_shape[sizes * @UP@_OUTPUTS + output]; }
int64_t @NAME@_input_length(int sizes, int input) { return length(@NAME@_input_shape(sizes, input)); }
int64_t @NAME@_output_length(int sizes, int output) { return length(@NAME@_output_shape(sizes, output)); }

int @NAME@_run(@NAME@ *net, int sizes, const float *const *inputs, float *const *outputs, int threads) {
  void *io[@UP@_INPUTS + @UP@_OUTPUTS];
  memcpy(io, inputs, @UP@_INPUTS * sizeof *io);
  memcpy(io + @UP@_INPUTS, outputs, @UP@_OUTPUTS * sizeof *io);
  return qc_run(net->model, &all_sizes[sizes], io, threads);
}
"""
