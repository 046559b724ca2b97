"""What an exported network is: its layers as C, the sizes that it takes as tables, its ends, and its header."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.backends.native.emit.source import Source
from qcompiler.backends.native.export.ends import End, Ends
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
    ends: Ends
    tables: Sequence[Table]

    def shapes(self, ends: Sequence[End]) -> list[list[tuple[int, ...]]]:
        """For each set of sizes the shapes of these values."""
        return [[table.whole.shape(end.value) for end in ends] for table in self.tables]

    @property
    def fingerprint(self) -> str:
        """What weights must have been made for: the layers, and what the codes at the ends mean."""
        return self.source.text + repr([end.codes for end in (*self.ends.inputs, *self.ends.results)])


def header(net: Interface) -> str:
    """The C header: what goes in and out, with its sizes and meaning."""
    up = net.name.upper()
    text = HEADER.replace("@TITLE@", comment(net.title)).replace("@SIZES_TEXT@", _sizes_text(net)).replace("@ENDS_TEXT@", _ends_text(net))
    text = text.replace("@CONSTANTS@", _constants(net)).replace("@CODES@", CODES if net.ends.has_codes else NO_CODES)
    return text.replace("@MOST@", str(MOST)).replace("@NAME@", net.name).replace("@UP@", up)


def comment(text: str) -> str:
    """Text of the user's as a comment can hold it."""
    plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return plain.replace("*/", "* /").replace("/*", "/ *").replace("\\", "/")[:200]


def _constants(net: Interface) -> str:
    up, lines = net.name.upper(), [("SIZES", len(net.tables)), ("INPUTS", len(net.ends.inputs)), ("OUTPUTS", len(net.ends.results))]
    for kind, ends in (("INPUT", net.ends.inputs), ("OUTPUT", net.ends.results)):
        lines += [(f"{kind}_{end.constant}", index) for index, end in enumerate(ends)]
    return "\n".join(f"#define {up}_{name} {value}" for name, value in lines)


def _sizes_text(net: Interface) -> str:
    lines = []
    ends = net.ends
    for index, (taken, given) in enumerate(zip(net.shapes(ends.inputs), net.shapes(ends.results), strict=True)):
        ins = ", ".join(f"{comment(end.label)} {times(shape)}" for end, shape in zip(ends.inputs, taken, strict=True))
        outs = ", ".join(f"{comment(end.label)} {times(shape)}" for end, shape in zip(ends.results, given, strict=True))
        lines.append(f"   sizes {index}: inputs {ins}; results {outs}")
        shapes = net.tables[index].whole.shapes
        for label, value in ends.numbers:
            known = shapes.get(value, value) if isinstance(value, str) else value
            lines.append(f"            {comment(label)} is {comment(str(known))}")
    return "\n".join(lines)


def _ends_text(net: Interface) -> str:
    rows = [("input", net.ends.inputs), ("result", net.ends.results)]
    return "\n".join(f"   {kind} {i}: {comment(end.label)}{_code_text(end)}" for kind, ends in rows for i, end in enumerate(ends))


def _code_text(end: End) -> str:
    if end.whole:
        return ", whole numbers: an array of int64_t, whose address is given as a float *"
    if end.numbers:
        return f", whole numbers as floats: {end.numbers}, any other gives NaN"
    if end.codes is None:
        return ", floats"
    c = end.codes
    return f", floats; as codes (code - {c.zero}) * {c.scale:.9g}, codes {c.low} to {c.high}"


def times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "1"


def length(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


HEADER = """/* @TITLE@, written by qcompiler's export_c. Tensors are arrays in row-major order, as torch's contiguous ones.

@SIZES_TEXT@

@ENDS_TEXT@

   The codes inside are 8-bit integers; the result is the same bits on every instruction set, number of threads and compiler. */
#ifndef @UP@_H
#define @UP@_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How many sets of input sizes, inputs and results there are; then the number of each input and result by its name. */
@CONSTANTS@

typedef struct @NAME@ @NAME@;

/* Reads @NAME@.weights. `isa`: NULL for the fastest instruction set of this machine, else the fastest that is allowed (scalar, avx2,
   avx_vnni, avx512_vnni, amx; neon). NULL where the file cannot be read, is damaged or belongs to another network, or isa is no such
   name. */
@NAME@ *@NAME@_load(const char *weights, const char *isa);
void @NAME@_free(@NAME@ *net);

/* How many elements an input or a result has, its shape (@MOST@ numbers, unused ones 0), and how many of these count; -1 or NULL where
   there is no such thing. */
int64_t @NAME@_input_length(int sizes, int input);
int64_t @NAME@_output_length(int sizes, int output);
const int64_t *@NAME@_input_shape(int sizes, int input);
const int64_t *@NAME@_output_shape(int sizes, int output);

/* Computes the results; any number of threads may call it with one net. `sizes`: which set of input sizes. Returns 0; 1 where there is
   no memory; 2 where there are no such sizes. */
int @NAME@_run(@NAME@ *net, int sizes, const float *const *inputs, float *const *outputs, int threads);

@CODES@

#ifdef __cplusplus
}
#endif
#endif
"""

CODES = """/* What the 8-bit codes of an input or a result mean: value = (code - zero) * scale; NULL where it is floats in every call. */
typedef struct @NAME@_codes {
  float scale;
  int zero, low, high;
} @NAME@_codes;
const @NAME@_codes *@NAME@_input_codes(int input);
const @NAME@_codes *@NAME@_output_codes(int output);

/* As @NAME@_run, but inputs and results that have codes are arrays of uint8_t; the others are floats. */
int @NAME@_run_codes(@NAME@ *net, int sizes, const void *const *inputs, void *const *outputs, int threads);"""

NO_CODES = "/* No input or result of this network is codes: there is no @NAME@_run_codes. */"
