"""Instruction sets that this processor has not, for tests alone: nothing of this is part of the package.

On Linux, where AVX-512 VNNI is and one of these is not, `install` lets this process take it by name (QCOMPILER_ISA); what is taken without
a name is what it was.

* amx: the library that users build. Its tile instructions are unknown to the processor, and emulate/tiles.c computes them.
* avx_vnni: the compiler's assembly, with vpdpbusd and vpdpwssd in the form that AVX-512 has; same registers, operands and results.

Both get another choice of instruction sets (emulate/processor.c), and names of their own in the cache, whose records say so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from qcompiler.backends.native import isa
from qcompiler.backends.native.build import cache as kept
from qcompiler.backends.native.build import library
from qcompiler.backends.native.build.compiler import Compiler, Unit

EMULATE = Path(__file__).with_name("emulate")
NAMES = ("avx_vnni", "amx")
SHORT_FORM = re.compile(rb"\{vex\}\s+(vpdp\w+)")


class Rewriting(Compiler):
    """A compiler whose AVX-VNNI instructions are those of AVX-512 VNNI."""

    def run(self, arguments: Iterable[str], folder: Path) -> None:
        words = list(arguments)
        if "-DQC_ISA=QC_AVX_VNNI" not in words:
            super().run(words, folder)
            return
        target = words[words.index("-o") + 1]
        assembly = folder / f"{target}.s"
        super().run(["-S" if word == "-c" else str(assembly) if word == target else word for word in words], folder)
        text, count = SHORT_FORM.subn(rb"{evex} \1", assembly.read_bytes())
        assert count, "no product of bytes in AVX-VNNI's kernels"
        assembly.write_bytes(text)
        super().run(["-c", str(assembly), "-o", target], folder)


def rewriting(compiler: Compiler) -> Compiler:
    return Rewriting(compiler.command, f"{compiler.version}; emulated")


_fastest = library._fastest


@cache
def really() -> tuple[str, ...]:
    """The instruction sets that the processor has."""
    return tuple(name for name in isa.isas(isa.architecture()) if _fastest()(name.encode()) == name.encode())


@cache
def emulated() -> tuple[str, ...]:
    """Those that can be emulated here."""
    able = sys.platform == "linux" and "avx512_vnni" in really()
    return tuple(name for name in NAMES if able and name not in really())


def in_place(units: Sequence[Unit], name: str) -> list[Unit]:
    """The units of a library of kernels, with what emulates its instruction set."""
    processor = Unit("processor_emulated", EMULATE / "processor.c", (*isa.COMMON_FLAGS, f'-DQC_EMULATED="{name}"'), (isa.KERNELS,))
    tiles = [Unit("tiles_emulated", EMULATE / "tiles.c", isa.COMMON_FLAGS, (EMULATE,))] if name == "amx" else []
    return [processor if unit.name == "machine" else unit for unit in units] + tiles


def kernels(name: str) -> list[Unit]:
    """The units of the kernels of an instruction set, without what runs a network."""
    units = [Unit(unit, *rest) for unit, rest in isa.units(isa.architecture(), name).items()]
    return in_place(units, name) if name in emulated() else units


@cache
def install() -> None:
    """From here on this process runs the instruction sets that can be emulated, where they are asked for by name."""
    units, build = library.runtime_units, kept.library

    def fastest(cap: bytes | None) -> bytes | None:
        return cap if cap is not None and cap.decode() in emulated() else _fastest()(cap)

    def runtime_units(name: str) -> list[Unit]:
        return in_place(units(name), name) if name in emulated() else units(name)

    def build_or_take(compiler: Compiler | None, name: str, units: Sequence[Unit], headers: Sequence[Path]) -> Path:
        if any(unit.name.endswith("_emulated") for unit in units):
            name, compiler = f"{name}-emulated", compiler and rewriting(compiler)
        return build(compiler, name, units, headers)

    library._fastest = lambda: fastest  # type: ignore[assignment]
    library.runtime_units = runtime_units
    kept.library = build_or_take
