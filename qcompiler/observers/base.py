"""What every observer is: a module that passes its input on, remembers statistics of it, and gives qparams."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from qcompiler.errors import CalibrationError, ConfigError, NumericsError, UnsupportedOpError
from qcompiler.inputs.door import door
from qcompiler.inputs.kinds import module_of
from qcompiler.ir.types import QParams
from qcompiler.observers.affine import PER_CHANNEL, PER_TENSOR, Rule, choose_qparams, quant_range, readable
from qcompiler.observers.factory import Factory, plain_dtype

EPS = torch.finfo(torch.float32).eps
SAW_DATA = "_saw_data"  # set on observers that do not tell by themselves


def _note_call(observer: nn.Module, inputs: Any, output: Any) -> None:
    if any(isinstance(x, torch.Tensor) and x.numel() for x in inputs):
        observer.__dict__[SAW_DATA] = True


def _note_load(observer: nn.Module, state_dict: Mapping[str, object], prefix: str, *rest: object) -> None:
    """Statistics that are loaded count as data; those of an observer that saw none are the ones that are there already."""
    held = {prefix + name: buffer for name, buffer in observer.named_buffers()}
    loaded = {name: new for name in held if isinstance(new := state_dict.get(name), torch.Tensor)}  # of a checkpoint on any device
    if any(not torch.equal(new.to(held[name].device), held[name]) for name, new in loaded.items()):
        observer.__dict__[SAW_DATA] = True


class ObserverBase(nn.Module):
    """Base of all observers: `forward(x)` records x and returns it unchanged.

    `dtype` is plain (uint8, int8, int32, or a float type for placeholders). Tensors without elements are ignored. NaN and inf
    raise NumericsError before anything is recorded; on an accelerator and in torch.compile, where looking at them would wait for
    the device, they stay in the statistics and raise when these are read (`qparams`).
    One of your own overrides `forward` and `calculate_qparams`, as with torch's; `qscheme` and `ch_axis` where it is per channel,
    and `observed` where a call with data, or a state_dict that changes a buffer, is not what makes qparams possible.
    """

    qscheme: torch.qscheme | None = None
    reduce_range: bool | None = None
    decided = False  # whether `set_reduce_range` was called
    ch_axis: int = -1
    gives_qparams: bool = True  # False: it judges a value that another observer measures

    def __init__(self, dtype: torch.dtype, is_dynamic: bool = False) -> None:
        super().__init__()
        self.dtype = plain_dtype(dtype)
        self.is_dynamic = is_dynamic
        if type(self).observed is ObserverBase.observed and self.measures:
            self.register_forward_hook(_note_call)
            self.register_load_state_dict_pre_hook(_note_load)

    @classmethod
    def with_args(cls, **kwargs: object) -> Factory:
        """A factory of this class with arguments bound: `MinMaxObserver.with_args(dtype=torch.int8)`."""
        return Factory(cls, kwargs)

    @property
    def observed(self) -> bool:
        """Whether there is data (or a fixed range) to compute qparams from. Here: whether it was called with data, or loaded some."""
        return self.measures and bool(self.__dict__.get(SAW_DATA))

    @property
    def measures(self) -> bool:
        """Whether qparams come from data: neither a placeholder, which gives none, nor fixed ones."""
        return type(self).calculate_qparams is not ObserverBase.calculate_qparams

    @property
    def is_per_channel(self) -> bool:
        return self.qscheme in PER_CHANNEL

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(scale, zero_point), tensors of shape (1,) or (channels,). CalibrationError where there was no data."""
        raise CalibrationError(f"{type(self).__name__} gives no scales: it is for dynamic or float modules", code="no-qparams",
                               hint="quantize_dynamic and prepare_fx take its qconfig; the static eager flow does not")  # fmt: skip

    def qparams(self) -> QParams:
        """`calculate_qparams` as the IR's type."""
        scale, zero_point = self.calculate_qparams()
        return as_qparams(scale, zero_point, self)

    def merge(self, other: ObserverBase) -> None:
        """Take in what `other` saw, as if this observer had seen it. ConfigError where that is not defined."""
        raise ConfigError(f"{type(self).__name__} cannot be merged", code="observer-merge")

    def set_reduce_range(self, reduce: bool) -> None:
        """The compiler's choice of 7 or 8 bits. Ignored where the user gave `reduce_range`, or there is no such choice."""


class UniformQuantizationObserverBase(ObserverBase):
    """Base of observers whose qparams follow from a smallest and a largest value.

    `reduce_range`: True / False is the user's word; None: full range until the compiler calls `set_reduce_range`. What was
    recorded does not depend on it. `eps`: smallest scale. ConfigError on impossible settings.
    """

    eps: torch.Tensor
    min_val: torch.Tensor
    max_val: torch.Tensor
    latest: tuple[torch.Tensor | float, ...] | None = None  # where it is no None: the smallest and largest value of the last call
    _schemes: tuple[torch.qscheme, ...] = PER_TENSOR

    def __init__(
        self,
        dtype: torch.dtype = torch.uint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool | None = None,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = EPS,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype, is_dynamic)
        if qscheme not in self._schemes:
            raise ConfigError(f"{type(self).__name__} does not take qscheme {qscheme}", code="observer-qscheme")
        if not (math.isfinite(eps) and eps > 0):
            raise ConfigError(f"eps must be a number above 0, not {eps}", code="observer-eps")
        if is_dynamic and not self._allows_dynamic():
            raise ConfigError(f"{type(self).__name__} cannot observe dynamically", code="observer-dynamic")
        self.qscheme: torch.qscheme = qscheme
        self.reduce_range = reduce_range
        self._custom = (dtype, quant_min, quant_max)
        self.quant_min, self.quant_max = quant_range(*self._custom, reduce_range=bool(reduce_range), explicit=True)
        self.has_customized_qrange = quant_min is not None
        if reduce_range and self._rule(eps).symmetric and self.dtype is torch.uint8 and not self.has_customized_qrange:
            raise ConfigError("a symmetric uint8 range cannot be reduced: its zero point is 128", code="observer-reduce")
        self.register_buffer("eps", torch.tensor([eps], dtype=torch.float32))
        self._smallest = float(torch.tensor(eps, dtype=torch.float32, device="cpu"))  # eps, readable without waiting for a device

    def _allows_dynamic(self) -> bool:
        return False

    def _note(self, low: torch.Tensor | float, high: torch.Tensor | float) -> None:
        """The smallest and largest value of a call, for who asked for them."""
        if self.latest is not None:
            self.latest = low, high

    def _rule(self, eps: float | None = None) -> Rule:
        smallest = self._smallest if eps is None else eps
        return Rule(self.dtype, self.qscheme, self.quant_min, self.quant_max, smallest, self.has_customized_qrange)

    @property
    def observed(self) -> bool:
        return self.min_val.numel() > 0 and not bool((self.min_val > self.max_val).any())

    def set_reduce_range(self, reduce: bool) -> None:
        self.decided = True
        if self.reduce_range is None:
            self.quant_min, self.quant_max = quant_range(*self._custom, reduce_range=reduce, explicit=False)

    def _range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The range of real numbers to hold, from what was recorded."""
        return self.min_val, self.max_val

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        if readable(self.min_val):
            self._check_observed()
        return choose_qparams(*self._range(), self._rule())

    def qparams(self) -> QParams:
        self._check_observed()
        scale, zero_point = self.calculate_qparams()
        return as_qparams(scale, zero_point, self)

    def _check_observed(self) -> None:
        if not self.observed:
            raise CalibrationError(f"this {type(self).__name__} saw no data", code="not-calibrated", hint="run the prepared model on data")

    def _check_same_kind(self, other: ObserverBase) -> None:
        if type(other) is not type(self):
            raise ConfigError(f"cannot merge {type(other).__name__} into {type(self).__name__}", code="observer-merge")

    def reset_min_max_vals(self) -> None:
        """Forget all data."""
        self.min_val = torch.full_like(self.min_val, math.inf)
        self.max_val = torch.full_like(self.max_val, -math.inf)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name, buffer in list(self._buffers.items()):
            value = state_dict.get(prefix + name)
            if buffer is not None and isinstance(value, torch.Tensor) and value.shape != buffer.shape:
                self._buffers[name] = buffer.new_empty(value.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if not self.eps.is_meta:
            self._smallest = float(self.eps)

    def extra_repr(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.quant_min}..{self.quant_max}, {str(self.qscheme).removeprefix('torch.')}"


def as_qparams(scale: torch.Tensor, zero_point: torch.Tensor, observer: Any) -> QParams:
    """Tensors of qparams with the observer's range and dtype, as the IR's type (float zero points stay floats)."""
    dtype = observer.dtype
    low, high = getattr(observer, "quant_min", None), getattr(observer, "quant_max", None)
    if low is None or high is None:  # an observer of the user's, with the range of its dtype
        low, high = quant_range(dtype, None, None, reduce_range=False, explicit=True)
    if not bool(torch.isfinite(scale).all()):
        raise NumericsError(f"NaN or inf passed through this {type(observer).__name__}", code="nan",
                            hint="look at the data and the learning rate; on the CPU the step that brings them is named")  # fmt: skip
    if observer.is_per_channel:
        return QParams(tuple(scale.tolist()), tuple(zero_point.tolist()), low, high, dtype, observer.ch_axis)
    return QParams(float(scale.item()), int(zero_point.item()), low, high, dtype)


def as_data(x: torch.Tensor) -> torch.Tensor:
    """x without its autograd history, in float32; UnsupportedOpError for complex numbers."""
    if x.is_complex():
        raise UnsupportedOpError("complex values cannot be quantized", code="complex")
    x = x.detach()
    return x if x.dtype is torch.float32 else x.to(torch.float32)


def refuse_nonfinite(data: torch.Tensor) -> None:
    """Raise the NumericsError that says how many NaN and inf are in `data`."""
    nans, infs = int(data.isnan().sum()), int(data.isinf().sum())
    parts = [f"{count} {name}" for count, name in ((nans, "NaN"), (infs, "inf")) if count]
    message = f"{' and '.join(parts)} in {data.numel()} values of shape {tuple(data.shape)}"
    if nans < data.numel() and infs:
        finite = data[data.isfinite()]
        message += f"; finite values: {finite.min().item():g} .. {finite.max().item():g}" if finite.numel() else ""
    raise NumericsError(message, code="nan" if nans else "inf")


def finite_range(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value of a tensor with elements, in one pass; NumericsError on NaN or inf where that is `readable`.

    aminmax carries a NaN to both results, and an inf is a smallest or largest value, so no second pass is needed.
    """
    low, high = torch.aminmax(data)
    if readable(data) and not (math.isfinite(low.item()) and math.isfinite(high.item())):
        refuse_nonfinite(data)
    return low, high


@door
def get_observer_state_dict(model: nn.Module) -> OrderedDict[str, torch.Tensor]:
    """The statistics of all observers (and fake-quantize modules) in a model, or its script, under their names in its state_dict."""
    if not isinstance(model, torch.jit.ScriptModule):
        model = module_of(model)
    prefixes = tuple(name + "." if name else "" for name, module in model.named_modules() if isinstance(module, ObserverBase))
    return OrderedDict((key, value) for key, value in model.state_dict().items() if prefixes and key.startswith(prefixes))


@door
def load_observer_state_dict(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load what `get_observer_state_dict` gave; ConfigError (before any change) when the names differ."""
    expected = set(get_observer_state_dict(model))
    if missing := sorted(expected - set(state)):
        raise ConfigError(f"no statistics for {', '.join(missing[:5])}", code="observer-state")
    if extra := sorted(set(state) - expected):
        raise ConfigError(f"the model has no observer for {', '.join(extra[:5])}", code="observer-state")
    for name, module in model.named_modules():
        if isinstance(module, ObserverBase):
            prefix = name + "." if name else ""
            module.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
