"""The example program of an exported network, its CMake file and its README."""

from __future__ import annotations

from qcompiler.backends.native import isa
from qcompiler.backends.native.export.interface import Interface


def example(net: Interface) -> str:
    """main.c: reads the inputs from a file of floats, runs the first sizes, prints the largest values of the first result."""
    return MAIN.replace("@NAME@", net.name).replace("@UP@", net.name.upper())


def cmake(net: Interface) -> str:
    """One object library for each instruction set, since each has flags of its own."""
    parts = []
    for machine, pattern in (("x86_64", "x86_64|AMD64|amd64"), ("aarch64", "aarch64|arm64")):
        lines = [f'if(CMAKE_SYSTEM_PROCESSOR MATCHES "{pattern}")']
        for name in isa.isas(machine):
            flags = " ".join(flag for flag in isa.flags(machine, name) if flag not in isa.COMMON_FLAGS)
            lines += [f"  kernels({name} {flags})"]
        parts.append("\n".join([*lines, "endif()"]))
    common = " ".join(flag for flag in isa.COMMON_FLAGS if not flag.startswith("-std"))
    return CMAKE.replace("@NAME@", net.name).replace("@FLAGS@", common).replace("@KERNELS@", "\n".join(parts))


def readme(net: Interface) -> str:
    return README.replace("@TITLE@", net.title).replace("@NAME@", net.name)


MAIN = """/* Runs the network: @NAME@ WEIGHTS INPUTS [THREADS]. INPUTS is a file of 32-bit floats, one input after the other. */
#include "@NAME@.h"

#include <stdio.h>
#include <stdlib.h>

static float *room(int64_t count) {
  float *found = malloc((size_t)(count ? count : 1) * sizeof *found);
  if (!found) exit(2);
  return found;
}

/* Prints the five largest values of the first result with their places. It overwrites them. */
static void print_largest(float *values, int64_t count) {
  for (int rank = 0; rank < 5 && rank < count; rank++) {
    int64_t best = 0;
    for (int64_t i = 1; i < count; i++)
      if (values[i] > values[best]) best = i;
    printf("%lld %.9g\\n", (long long)best, (double)values[best]);
    values[best] = -3.4e38f;
  }
}

int main(int count, char **words) {
  const float *inputs[@UP@_INPUTS];
  float *outputs[@UP@_OUTPUTS];
  if (count < 3) {
    fprintf(stderr, "usage: %s WEIGHTS INPUTS [THREADS]\\n", words[0]);
    return 2;
  }
  @NAME@ *net = @NAME@_load(words[1], getenv("QCOMPILER_ISA"));
  FILE *file = fopen(words[2], "rb");
  if (!net || !file) {
    fprintf(stderr, "cannot read %s\\n", net ? words[2] : words[1]);
    return 1;
  }
  for (int i = 0; i < @UP@_INPUTS; i++) {
    size_t length = (size_t)@NAME@_input_length(0, i);
    float *values = room((int64_t)length);
    if (fread(values, sizeof *values, length, file) != length) {
      fprintf(stderr, "%s is too short\\n", words[2]);
      return 1;
    }
    inputs[i] = values;
  }
  fclose(file);
  for (int i = 0; i < @UP@_OUTPUTS; i++) outputs[i] = room(@NAME@_output_length(0, i));
  if (@NAME@_run(net, 0, inputs, outputs, count > 3 ? atoi(words[3]) : 1)) return 1;
  print_largest(outputs[0], @NAME@_output_length(0, 0));
  for (int i = 0; i < @UP@_INPUTS; i++) free((void *)inputs[i]);
  for (int i = 0; i < @UP@_OUTPUTS; i++) free(outputs[i]);
  @NAME@_free(net);
  return 0;
}
"""

CMAKE = """cmake_minimum_required(VERSION 3.13)
project(@NAME@ C)
set(CMAKE_C_STANDARD 11)
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

# -ffp-contract=off: no fused multiply-add, so that results are the same bits everywhere.
add_library(@NAME@ STATIC @NAME@.c @NAME@_layers.c kernels/run.c kernels/workers.c kernels/dispatch.c)
target_compile_options(@NAME@ PRIVATE @FLAGS@)
target_include_directories(@NAME@ PUBLIC . kernels)
target_link_libraries(@NAME@ PUBLIC Threads::Threads)

# The kernels of one instruction set. The fastest that the machine has is chosen when the weights are loaded.
function(kernels name)
  add_library(kernels_${name} OBJECT kernels/kernels.c)
  target_compile_options(kernels_${name} PRIVATE @FLAGS@ ${ARGN})
  target_sources(@NAME@ PRIVATE $<TARGET_OBJECTS:kernels_${name}>)
endfunction()
@KERNELS@

add_executable(run_@NAME@ main.c)
target_link_libraries(run_@NAME@ @NAME@)
"""

README = """# @TITLE@ as C

An int8 network that qcompiler wrote. It needs a C11 compiler and threads, and nothing else.

    cmake -B build -DCMAKE_BUILD_TYPE=Release && cmake --build build
    build/run_@NAME@ @NAME@.weights input.f32

`input.f32` holds the input as 32-bit floats in the order of torch's contiguous tensors.
In Python: `x.numpy().tofile("input.f32")`.

| file | what it is |
|---|---|
| `@NAME@.h` | the functions to call, with the sizes of inputs and results |
| `@NAME@.c` | the sizes as tables, and loading of weights |
| `@NAME@_layers.c` | one small function for each layer, in the order in which they run |
| `@NAME@.weights` | packed weights, tables and scales |
| `kernels/` | the kernels; `qc.h` says what they take, `net.h` how a network is run |
| `main.c` | an example |

gcc 12 and clang 16, or newer ones, know all the instruction sets.
"""
