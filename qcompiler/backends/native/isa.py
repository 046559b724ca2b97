"""The instruction sets that kernels exist for, and how a C compiler is told to use them."""

from __future__ import annotations

import platform
from pathlib import Path

KERNELS = Path(__file__).parent / "kernels"

# No fused multiply-add (-ffp-contract=off): results are the same bits everywhere.
COMMON_FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC")

_WIDE = ("-mavx2", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512")
_FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "scalar": (),
        "avx2": ("-mavx2",),
        "avx_vnni": ("-mavx2", "-mavxvnni"),
        "avx512_vnni": _WIDE,
        "amx": (*_WIDE, "-mamx-tile", "-mamx-int8"),
    },
    "aarch64": {"scalar": (), "neon": ("-mcpu=generic+dotprod",)},
}


def architecture() -> str:
    """The machine's name as it stands in the table above: x86_64, aarch64, or what the platform says."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


def isas(machine: str) -> tuple[str, ...]:
    """The instruction sets of a machine, slowest first."""
    return tuple(_FLAGS.get(machine, {"scalar": ()}))


def flags(machine: str, isa: str) -> tuple[str, ...]:
    """What compiles kernels.c for one instruction set."""
    return (*COMMON_FLAGS, *_FLAGS.get(machine, {"scalar": ()})[isa], f"-DQC_ISA=QC_{isa.upper()}")


def units(machine: str, only: str | None = None) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """The translation units of the kernels, of all instruction sets or of one: the object's name, its source and its flags."""
    found = {f"kernels_{isa}": (KERNELS / "kernels.c", flags(machine, isa)) for isa in ([only] if only else isas(machine))}
    dispatch = (*COMMON_FLAGS, f"-DQC_ONLY={only}") if only else COMMON_FLAGS
    return {**found, "dispatch": (KERNELS / "dispatch.c", dispatch), "machine": (KERNELS / "machine.c", COMMON_FLAGS)}
