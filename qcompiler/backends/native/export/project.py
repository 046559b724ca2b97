"""The example program of an exported network, its CMake file and its README."""

from __future__ import annotations

from qcompiler.backends.native import isa
from qcompiler.backends.native.export.interface import Interface


def example(net: Interface) -> str:
    """main.c: reads the inputs from a file of floats, runs the first sizes, prints the largest values of the first result, or its first
    whole numbers."""
    sizes = ", ".join("8" if end.whole else "4" for end in net.ends.results)
    return MAIN.replace("@NAME@", net.name).replace("@UP@", net.name.upper()).replace("@BYTES@", sizes)


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


MAIN = """/* Runs the network: run_@NAME@ WEIGHTS INPUTS [THREADS [SIZES [RESULTS]]].

   INPUTS is a file of 32-bit floats, one input after the other, for the set of sizes number SIZES. The five largest values of the first
   result are printed with their places; where it is whole numbers, the first five. RESULTS: a file into which all results are written, one
   after the other, as 32-bit floats, or as 64-bit whole numbers where the header says so. */
#include "@NAME@.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of an element of each result. */
static const size_t result_bytes[] = {@BYTES@};

static float *room(int64_t count, size_t bytes) {
  float *found = malloc((size_t)(count ? count : 1) * bytes);
  if (!found) exit(2);
  return found;
}

static void print_whole(const float *values, int64_t count) {
  for (int64_t i = 0; i < 5 && i < count; i++) {
    int64_t value;
    memcpy(&value, (const char *)values + 8 * i, sizeof value);
    printf("%lld %lld\\n", (long long)i, (long long)value);
  }
}

/* Prints the five largest values with their places. It overwrites them. */
static void print_largest(float *values, int64_t count) {
  for (int rank = 0; rank < 5 && rank < count; rank++) {
    int64_t best = 0;
    for (int64_t i = 1; i < count; i++)
      if (values[i] > values[best]) best = i;
    printf("%lld %.9g\\n", (long long)best, (double)values[best]);
    values[best] = -3.4e38f;
  }
}

static int read_inputs(const char *name, int sizes, float **inputs) {
  FILE *file = fopen(name, "rb");
  int whole = file != NULL;
  for (int i = 0; i < @UP@_INPUTS && whole; i++) {
    size_t length = (size_t)@NAME@_input_length(sizes, i);
    inputs[i] = room((int64_t)length, sizeof **inputs);
    whole = fread(inputs[i], sizeof **inputs, length, file) == length;
  }
  if (file) fclose(file);
  return whole;
}

static int write_results(const char *name, int sizes, float **outputs) {
  FILE *file = fopen(name, "wb");
  int whole = file != NULL;
  for (int i = 0; i < @UP@_OUTPUTS && whole; i++) {
    size_t length = (size_t)@NAME@_output_length(sizes, i);
    whole = fwrite(outputs[i], result_bytes[i], length, file) == length;
  }
  return file && fclose(file) == 0 && whole;
}

static int fail(const char *what, const char *name) {
  fprintf(stderr, "%s %s\\n", what, name);
  return 1;
}

int main(int count, char **words) {
  float *inputs[@UP@_INPUTS] = {0}, *outputs[@UP@_OUTPUTS] = {0};
  int threads = count > 3 ? atoi(words[3]) : 1, sizes = count > 4 ? atoi(words[4]) : 0;
  if (count < 3 || sizes < 0 || sizes >= @UP@_SIZES) {
    fprintf(stderr, "usage: %s WEIGHTS INPUTS [THREADS [SIZES [RESULTS]]], SIZES below %d\\n", words[0], @UP@_SIZES);
    return 2;
  }
  @NAME@ *net = @NAME@_load(words[1], getenv("QCOMPILER_ISA"));
  if (!net) return fail("these are no weights of this network:", words[1]);
  if (!read_inputs(words[2], sizes, inputs)) return fail("too short, or not to be read:", words[2]);
  for (int i = 0; i < @UP@_OUTPUTS; i++) outputs[i] = room(@NAME@_output_length(sizes, i), result_bytes[i]);
  if (@NAME@_run(net, sizes, (const float *const *)inputs, outputs, threads)) return fail("no memory for", words[2]);
  if (count > 5 && !write_results(words[5], sizes, outputs)) return fail("cannot write", words[5]);
  if (result_bytes[0] == 8)
    print_whole(outputs[0], @NAME@_output_length(sizes, 0));
  else
    print_largest(outputs[0], @NAME@_output_length(sizes, 0));
  for (int i = 0; i < @UP@_INPUTS; i++) free(inputs[i]);
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
add_library(@NAME@ STATIC @NAME@.c @NAME@_layers.c kernels/run.c kernels/workers.c kernels/dispatch.c kernels/machine.c)
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

`input.f32` holds the inputs as 32-bit floats in the order of torch's contiguous tensors, one after the other.
In Python: `x.float().numpy().tofile("input.f32")`. `@NAME@.h` says what goes in and comes out, as floats and as 8-bit codes.

| file | what it is |
|---|---|
| `@NAME@.h` | the functions to call, with the sizes of inputs and results |
| `@NAME@.c` | the sizes as tables, and loading of weights |
| `@NAME@_layers.c` | one small function for each layer, in the order in which they run |
| `@NAME@.weights` | packed weights, tables and scales, with a checksum |
| `kernels/` | the kernels; `qc.h` says what they take, `net.h` how a network is run |
| `main.c` | an example |

gcc 12 and clang 14, or newer ones, know all the instruction sets.
"""
