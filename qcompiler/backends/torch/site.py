"""What a kernel is given and what it makes: the int8 site in QUANTIZED form, and the nodes of the LOWERED graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import fx

from qcompiler.backends.torch.runtime import floats
from qcompiler.ir.types import QParams, value_of
from qcompiler.ops.spec import Op

ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")
VNNI = ("avx512_vnni", "avx512_amx")  # instruction sets where u8 x s8 products are summed in 32 bits
WIDE_VECTORS = ("avx512", *VNNI)  # those with vectors of 512 bits
INSTRUCTION_SETS = ("default", "avx2", *WIDE_VECTORS)
_ONEDNN = {"AVX512_CORE": "avx512", "AVX2": "avx2", "AVX2_VNNI": "avx2", "AVX2_VNNI_2": "avx2", "AVX": "default", "SSE41": "default"}
# What the environment may limit kernels to. VNNI of 256 bits counts as none: nothing else here says that a CPU has it.
LIMITS: dict[str, dict[str, str]] = {
    "ONEDNN_MAX_CPU_ISA": _ONEDNN, "DNNL_MAX_CPU_ISA": _ONEDNN,
    "FBGEMM_ENABLE_INSTRUCTIONS": {"AVX2": "avx2", "AVX512": "avx512", "AVX512_256": "avx512"},
}  # fmt: skip


@dataclass(frozen=True)
class Operand:
    """An activation: `node` yields a quint8 tensor in the lowered graph. `qparams` None: known only when the kernel runs."""

    node: fx.Node
    qparams: QParams | None


@dataclass(frozen=True)
class Weight:
    """An int8 parameter: three get_attr nodes; `axis` is the channel axis, None when quantized per tensor.

    `bits` 4: `node` holds two codes in a byte.
    """

    node: fx.Node
    scale: fx.Node
    zero_point: fx.Node
    axis: int | None
    shape: tuple[int, ...]
    bits: int = 8


@dataclass(frozen=True)
class Half:
    """A float16 parameter."""

    node: fx.Node
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Rounded:
    """A float activation that the kernel quantizes itself, to 255 steps of its range, or 127."""

    node: fx.Node
    reduce_range: bool


Argument: TypeAlias = Any  # Operand | list[Operand] | Weight | Half | Rounded | fx.Node | None | int | float | bool


@dataclass(frozen=True)
class Site:
    """One op between dequantize and quantize: its positional `args`, its keyword `attributes` and its output's qparams.

    Defaults of attributes may be left out. `output` equals the input's qparams where the op's row says SAME. `ends`: the codes
    between which the result must stay, where that is less than the kernel's own 0 to 255.
    """

    op: Op
    node: fx.Node
    args: tuple[Argument, ...]
    attributes: Mapping[str, Any]
    output: QParams
    engine: str = "x86"
    isa: str = "avx512_vnni"
    ends: tuple[int, int] = (0, 255)

    @property
    def scale(self) -> float:
        assert isinstance(self.output.scale, float)
        return self.output.scale

    @property
    def zero_point(self) -> int:
        assert isinstance(self.output.zero_point, int)
        return self.output.zero_point

    def shape(self, position: int) -> tuple[int, ...] | None:
        """Shape of one activation with the example inputs; None when unknown."""
        argument = self.args[position]
        nodes = [argument.node] if isinstance(argument, Operand) else []
        nodes += [n for n in self.node.args[position : position + 1] if isinstance(n, fx.Node)]
        return next((s for s in (value_of(n).shape for n in nodes) if s is not None), None)

    @property
    def rank(self) -> int | None:
        """Number of dimensions of the first activation, else of the result; None when unknown."""
        shapes = (self.shape(0), value_of(self.node).shape)
        return next((len(s) for s in shapes if s is not None), None)

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def plain(self) -> dict[str, Any]:
        """The attributes of the op itself, without `bounds`."""
        return {k: v for k, v in self.attributes.items() if k != "bounds"}


def always(site: Site) -> str | None:
    """Refuses nothing."""
    return None


def never(site: Site) -> bool:
    """Does not saturate."""
    return False


@dataclass(frozen=True)
class Kernel:
    """One way to run an op on the named engines. `refuse` gives the reason why it cannot run a site, else None.

    `saturates`: partial sums may overflow 16 bits when activations use all of 0..255 (on the site's isa).
    """

    op: str
    engines: tuple[str, ...]
    emit: Callable[[Site, Emit], fx.Node]
    refuse: Callable[[Site], str | None] = always
    saturates: Callable[[Site], bool] = never
    note: str = ""

    @property
    def label(self) -> str:
        """What the tables of measurements call it."""
        return f"{self.emit.__name__} ({self.note})" if self.note else self.emit.__name__


@dataclass
class Emit:
    """Builds the nodes of the lowered graph. `constant` adds a buffer to `module` (needed by tables alone)."""

    graph: fx.Graph
    module: torch.nn.Module | None = None
    made: list[fx.Node] = field(default_factory=list)

    def call(self, target: Callable[..., object], *args: object, **kwargs: object) -> fx.Node:
        """A call_function node; Operands stand for their nodes."""
        node = self.graph.call_function(target, tuple(wire(a) for a in args), {k: wire(v) for k, v in kwargs.items()})
        self.made.append(node)
        return node

    def constant(self, name: str, value: torch.Tensor) -> fx.Node:
        """A get_attr node of a new buffer, named after `name`."""
        assert self.module is not None, "this kernel needs a module to hold its table"
        unique, count = name, 0
        while hasattr(self.module, unique):
            count += 1
            unique = f"{name}_{count}"
        self.module.register_buffer(unique, value)
        node = self.graph.get_attr(unique)
        self.made.append(node)
        return node


def wire(argument: Argument) -> Any:
    """The argument as fx takes it."""
    if isinstance(argument, Operand):
        return argument.node
    if isinstance(argument, (list, tuple)):
        return type(argument)(wire(a) for a in argument)
    return argument


def ints(value: Any, dims: int) -> list[int]:
    """An int or a sequence of ints as a list of `dims` ints; one int stands for all."""
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def code(qparams: QParams, real: float, ends: tuple[int, int]) -> int:
    """The stored integer of a real value, within `ends`."""
    assert isinstance(qparams.scale, float) and isinstance(qparams.zero_point, int)
    steps = real / qparams.scale
    if steps != steps or abs(steps) > 1e6:  # inf, or far outside: round() cannot take inf
        return ends[1] if steps > 0 else ends[0]
    return min(max(round(steps) + qparams.zero_point, ends[0]), ends[1])


def bound_codes(site: Site) -> tuple[int, int]:
    """Codes between which the result must stay because of `bounds` or `ends`; (0, 255) where the kernel's saturation is the clamp.

    Kernels saturate at 0 and 255, also where quant_max is 127: such codes are valid values of the same scale. After calibration
    only bounds make us cut them; training has learned with values cut at the ends of its range, so there they are cut as well.
    """
    low, high = site.get("bounds") or (None, None)
    lowest, highest = site.ends
    return (lowest if low is None else code(site.output, low, site.ends)), (highest if high is None else code(site.output, high, site.ends))


def needs_relu(site: Site) -> bool:
    """Whether the bounds cut at real 0 and saturation at code 0 does not do it."""
    low, _ = site.get("bounds") or (None, None)
    return low == 0 and bound_codes(site)[0] > 0


def finish(site: Site, emit: Emit, result: fx.Node, relu_done: bool = False) -> fx.Node:
    """Appends the clamp of `bounds` where neither saturation nor the kernel's own ReLU does it."""
    low, high = bound_codes(site)
    if relu_done:
        low = 0
    if low <= 0 and high >= 255:
        return result
    return cut(site.engine, emit, result, site.output, max(low, 0), min(high, 255))


def cut(engine: str, emit: Emit, x: Argument, qparams: QParams, low: int, high: int) -> fx.Node:
    """A clamp of quint8 values to the codes `low` to `high`."""
    assert isinstance(qparams.scale, float) and isinstance(qparams.zero_point, int)
    return clamp(engine, emit, x, qparams, qparams.scale * (low - qparams.zero_point), qparams.scale * (high - qparams.zero_point))


def clamp(engine: str, emit: Emit, x: Argument, qparams: QParams, low: float, high: float) -> fx.Node:
    """A clamp of quint8 values to real limits; qnnpack's own mixes up the values of channels_last tensors."""
    if engine == "qnnpack":
        return emit.call(floats.clamp_float, x, low, high, qparams.scale, qparams.zero_point)
    return emit.call(torch.ops.aten.clamp.default, x, low, high)


def constant_of(node: Any) -> torch.Tensor | None:
    """The tensor behind a get_attr node, where its graph knows its module."""
    module = node.graph.owning_module if isinstance(node, fx.Node) and node.op == "get_attr" else None
    value: Any = module
    for atom in str(node.target).split(".") if module is not None else ():
        value = getattr(value, atom, None)
    return value if isinstance(value, torch.Tensor) else None


def host_isa() -> str:
    """The instruction set of this machine as kernels see it, or that they are limited to: avx512_vnni, avx512, avx2 or default."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    vnni = bool(getattr(torch.cpu, "_is_vnni_supported", lambda: False)())
    found = "avx512_vnni" if capability == "avx512" and vnni else capability
    if found not in INSTRUCTION_SETS:
        return found
    limits = (values.get(os.environ.get(name, "").upper(), found) for name, values in LIMITS.items())
    return min((found, *limits), key=INSTRUCTION_SETS.index)
