"""QuantizedModule: a row of the op table as a module on quint8 tensors, built from the kernel table."""

from __future__ import annotations

import math
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx, nn

from qcompiler.backends.torch.runtime.functions import as_quint8
from qcompiler.backends.torch.site import Operand
from qcompiler.errors import ConfigError, InputError, QCompilerError, Where
from qcompiler.executable.tensors import keep_dtypes
from qcompiler.ir.check_state import assigns, check_state
from qcompiler.nn.float_classes import FloatClasses
from qcompiler.nn.place import place_of
from qcompiler.nn.quantized.ends import note_ends, noted_ends
from qcompiler.nn.quantized.from_float import ALL_CODES, Parts
from qcompiler.nn.quantized.lowering import Compiled, Lowering, compile_module
from qcompiler.nn.quantized.wide_codes import watched

QUANTIZE = "quantize it first: put a QuantStub (or nn.quantized.Quantize) before this module"


class QuantizedModule(nn.Module):
    """Base of the modules that take and give quint8 tensors.

    A subclass says in `_lower` which ops it computes. What it holds is plain: buffers (`scale` and `zero_point` of its result
    among them) and settings; the packed weights and `forward` follow from them and are made anew by whatever changes a buffer:
    a setter, load_state_dict, unpickling. Who changes one in place calls `rebuild()`. Packed for the quantized engine that was
    set when the module was made.
    """

    _FLOAT_MODULE: ClassVar[FloatClasses] = None  # what it replaces: a class or a tuple of classes
    _QAT_MODULE: ClassVar[object] = None
    _BASE: ClassVar[type[nn.Module]] = nn.Module  # of the float module's parts, the one with the parameters
    _TAIL: ClassVar[tuple[type[nn.Module], ...]] = ()  # what follows it in a fused module
    _INPUTS: ClassVar[tuple[str, ...]] = ("input",)
    _RANKS: ClassVar[tuple[int, ...]] = ()  # ranks of the first input, the usual one first; empty: any, with the same kernels
    _RANK_OR_MORE: ClassVar[bool] = False  # the first of _RANKS stands for all above it, too
    _ends: tuple[int, int] = ALL_CODES  # the codes between which results stay
    __constants__ = ["_script"]  # torch.jit.script compiles modules apart whose forward differs
    _fixed_dtypes: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.__jit_unused_properties__ = [n for n in dir(cls) if isinstance(getattr(cls, n, None), property)]  # type: ignore[attr-defined]

    def __init__(self, scale: float | None = 1.0, zero_point: int = 0) -> None:
        """`scale` None: the result has the qparams of the input."""
        super().__init__()
        self._engine = torch.backends.quantized.engine
        self._qc_path = ""  # where it stands in the user's model, for messages
        if scale is not None:
            self._buffers["scale"] = torch.tensor(float(scale), dtype=torch.float64)
            self._buffers["zero_point"] = torch.tensor(int(zero_point), dtype=torch.int64)

    def _lower(self, lowering: Lowering, *inputs: Operand) -> Operand | fx.Node:
        """Emits the module's ops on its inputs; the result is what forward returns."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it computes")

    @property
    def scale(self) -> float:
        """Real step of the result."""
        return float(self._own("scale"))

    @scale.setter
    def scale(self, value: float) -> None:
        self._set_qparams(value, self.zero_point)

    @property
    def zero_point(self) -> int:
        """Stored integer that stands for real 0 in the result."""
        return int(self._own("zero_point"))

    @zero_point.setter
    def zero_point(self, value: int) -> None:
        self._set_qparams(self.scale, value)

    def _set_qparams(self, scale: float, zero_point: int) -> None:
        """Raises ConfigError for a pair that no quint8 tensor can have."""
        if not (math.isfinite(scale) and scale > 0) or not 0 <= zero_point <= 255:
            raise ConfigError(f"no quint8 tensor has scale {scale} and zero point {zero_point}", code="qparams", where=self._where())
        self._buffers["scale"] = torch.tensor(float(scale), dtype=torch.float64)
        self._buffers["zero_point"] = torch.tensor(int(zero_point), dtype=torch.int64)
        self.rebuild()

    @classmethod
    def _expect(cls, mod: nn.Module, parts: Parts, where: Where) -> None:
        """Raises ConfigError where this class does not stand for `mod`. A QAT module has its activation inside."""
        trained = hasattr(mod, "weight_fake_quant")
        same = isinstance(parts.base, cls._BASE) or (trained and hasattr(parts.base, "weight"))
        tail = all(isinstance(m, t) for m, t in zip(parts.tail, cls._TAIL)) and (trained or len(parts.tail) == len(cls._TAIL))
        if not same or not tail:
            wanted = ", ".join([cls._BASE.__name__, *(t.__name__ for t in cls._TAIL)])
            package = cls.__module__.rpartition(".")[0]
            raise ConfigError(f"{package}.{cls.__name__} stands for [{wanted}], not for {type(mod).__name__} [{parts}]",
                              code="from-float", where=where)  # fmt: skip

    def _own(self, name: str) -> Tensor:
        value = self._buffers.get(name)
        if value is None:  # not a KeyError: hasattr has to work
            raise AttributeError(f"the result of {type(self).__name__} has the qparams of its input")
        return value

    @property
    def engine(self) -> str:
        """The quantized engine that the module is packed for."""
        return self._engine

    @property
    def code(self) -> str:
        """Source of forward, as it runs."""
        return self.__dict__["_compiled"].source  # type: ignore[no-any-return]

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module would take a buffer's name for the buffer; load_state_dict(assign=True) means that
        if isinstance(getattr(type(self), name, None), property) and "_loading" not in self.__dict__:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def rebuild(self) -> None:
        """Packs weights and makes forward anew from the module's tensors."""
        self._forget()
        self._install(self._compile(self._RANKS[0] if self._RANKS else None))

    def _compile(self, rank: int | None, like: tuple[Compiled, ...] = ()) -> Compiled:
        lowering = Lowering(self._engine, self._ends)
        more = self._RANK_OR_MORE and rank == self._RANKS[0]
        refused = "" if rank is None else f"dim() {'<' if more else '!='} {rank}"
        known = None if more else rank
        inputs = [lowering.input(name, known if i == 0 else None) for i, name in enumerate(self._INPUTS)]
        try:
            return compile_module(lowering, self._lower(lowering, *inputs), self._get_name(), refused, like)
        except QCompilerError as error:
            error.where = self._where()
            raise

    def _channels(self) -> tuple[int, int] | None:
        """(dimension, size) that every first input has; None: any."""
        return None

    def _install(self, made: Compiled) -> None:
        # The packs are attributes since torch.jit takes them from there; a bound function on the instance is the shortest call.
        built = dict(made.attributes) | {"_compiled": made, "_script": made.script, "_by_rank": {}}
        built["__jit_ignored_attributes__"] = [*self._buffers, "_compiled", "_by_rank"]  # packs hold what the buffers do
        plain = types.MethodType(made.forward, weakref.proxy(self))
        # `convert` gives what it converts 7 bits; values beyond its range are cut there, and no worse by the kernel
        by_hand = made.saturates and not self._qc_path
        built["forward"] = self._watched(made, plain) if by_hand else plain
        self.__dict__.update(built)
        self.__dict__["_built"] = tuple(built)

    def _watched(self, made: Compiled, plain: object) -> object:
        """The forward of a module that is made by hand, on a CPU whose kernels need 7 bits: it gives way to `plain`."""
        own = weakref.proxy(self)
        assert isinstance(made.forward, types.FunctionType)
        return types.MethodType(watched(made.forward, lambda: own.__dict__.update(forward=plain), self._get_name()), own)

    def _forget(self) -> None:
        for name in self.__dict__.pop("_built", ()):
            self.__dict__.pop(name, None)

    def _otherwise(self, *inputs: Any) -> object:
        """forward for inputs that its source was not made for: another rank that the module takes, qint8 tensors, or an error."""
        if any(isinstance(x, Tensor) and x.dtype is torch.qint8 for x in inputs):
            inputs = tuple(as_quint8(x) if isinstance(x, Tensor) else x for x in inputs)
            for name, value in zip(self._INPUTS, inputs):
                self._check(name, value)
            return self.__dict__["_compiled"].forward(self, *inputs)
        for name, value in zip(self._INPUTS, inputs):
            self._check(name, value)
        rank = inputs[0].dim()
        self._check_shape(tuple(inputs[0].shape))
        by_rank = self.__dict__["_by_rank"]
        if rank not in by_rank:
            by_rank[rank] = self._compile(rank, like=(self.__dict__["_compiled"],))
        return by_rank[rank].forward(self, *inputs)

    def _check(self, name: str, value: Any) -> None:
        """Raises InputError unless it is a quint8 tensor; one of qint8 was made one before, where it has one scale."""
        if isinstance(value, Tensor) and value.dtype is torch.quint8:
            return
        title, where = f"{self._get_name()}: {name}", self._where()
        if not isinstance(value, Tensor):
            raise InputError(f"{title} is no tensor but a {type(value).__qualname__}", code="input-type", where=where)
        if value.is_quantized:
            raise InputError(f"{title} is a {value.dtype} tensor; kernels take torch.quint8", code="input-type", where=where,
                             hint="observe activations with dtype=torch.quint8")  # fmt: skip
        raise InputError(f"{title} is a {value.dtype} tensor, not a quantized one", code="not-quantized", where=where, hint=QUANTIZE)

    def _failed(self, error: Exception, *inputs: Tensor) -> None:
        """What a kernel raised: InputError where the number of channels is to blame, else the error itself, with the place noted."""
        self._check_shape(tuple(inputs[0].shape))
        place = f" ({self._qc_path})" if self._qc_path else ""
        error.add_note(f"in {self._get_name()}{place}, inputs of shape {', '.join(str(tuple(x.shape)) for x in inputs)}")

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises InputError for a number of dimensions or channels that the module does not take."""
        if self._RANKS and len(shape) not in self._RANKS and not (self._RANK_OR_MORE and len(shape) > self._RANKS[0]):
            known = " or ".join(map(str, sorted(self._RANKS))) + (" or more" if self._RANK_OR_MORE else "")
            raise InputError(f"{self._get_name()} takes an input of {known} dimensions, got shape {shape}", code="input-rank",
                             where=self._where())  # fmt: skip
        channels = self._channels()
        if channels is not None and shape[channels[0]] != channels[1]:
            text = f"{self._get_name()} takes {channels[1]} channels, got shape {shape}"
            raise InputError(text, code="input-channels", where=self._where())

    def _where(self) -> Where:
        return place_of(self)

    def _as_ours(self, state_dict: Mapping[str, object], prefix: str) -> Mapping[str, object]:
        """The state with the names and tensors that this module has; others may have written it."""
        return state_dict

    def _save_to_state_dict(self, destination: object, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        note_ends(destination, prefix, self._ends)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, *rest: Any) -> None:
        check_state(self, state_dict, prefix, assigns(local_metadata))
        self._ends = noted_ends(local_metadata, self._ends, prefix)
        state_dict = self._as_ours(state_dict, prefix)
        for name, buffer in list(self._buffers.items()):
            value = state_dict.get(prefix + name)
            if buffer is None or not isinstance(value, Tensor):
                continue
            # a new tensor: scripts and traces made before hold packs that keep the old one
            resized = value.shape != buffer.shape and self._resizes(name, value)
            self._buffers[name] = torch.empty(value.shape, dtype=buffer.dtype) if resized else buffer.clone()
        self.__dict__["_loading"] = True
        try:
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        finally:
            del self.__dict__["_loading"]
        self.rebuild()

    def _resizes(self, name: str, value: Tensor) -> bool:
        """Whether a buffer may take the shape of a loaded one."""
        return name in ("scale", "zero_point") and value.numel() == 1  # torch.ao writes either one element or none

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(keep_dtypes(fn, self._get_name()), recurse)
        self.rebuild()
        return self

    def __getstate__(self) -> dict[str, object]:
        built = {*self.__dict__.get("_built", ()), "_built"}
        return {name: value for name, value in self.__dict__.items() if name not in built}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__["_buffers"] = self._buffers.copy()  # a shallow copy's setters must not reach the original
        self.rebuild()

    def _get_name(self) -> str:
        return f"Quantized{type(self).__name__}"

    def extra_repr(self) -> str:
        return f"scale={self.scale}, zero_point={self.zero_point}" if "scale" in self._buffers else ""
