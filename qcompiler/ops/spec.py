"""The row: all that the compiler knows of one op (see table.py for the rows themselves)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

from torch import fx, nn

from qcompiler.ir.types import QParams
from qcompiler.ops.example import Example
from qcompiler.ops.row_power import RowPower
from qcompiler.ops.signature import parse_signature

Holds: TypeAlias = Callable[[Mapping[str, Any]], bool]  # of a call, by its attributes


def never(attributes: Mapping[str, object]) -> bool:
    """Holds for no call."""
    return False


def always(attributes: Mapping[str, object]) -> bool:
    """Holds for every call."""
    return True


class Output(Enum):
    """Who owns the qparams of an op's result."""

    OWN = "own"  # observed for itself
    SAME = "same as input"  # copies or averages its input's values: one group with the first activation
    JOIN = "may be joined"  # own, or one group with all inputs where that costs nothing (cat, stack)
    FIXED = "fixed"  # a mathematical range, e.g. sigmoid
    FLOAT = "float"  # no int8 form: consumes and makes floats
    OTHER = "not a tensor"  # sizes, indices, containers


class Family(Enum):
    """What kind of op a row describes: rules and passes that hold for many ops ask for it, never for names.

    They rely on what is common to a family: convolutions, transposed ones and LINEAR are linear in weight and bias together, so that a
    BatchNorm behind one folds into them. An op that is not (say, one that normalizes its weight) is OTHER.
    """

    CONVOLUTION = "convolution"
    TRANSPOSED = "transposed convolution"
    LINEAR = "linear"
    NORM = "norm"
    RECURRENT = "recurrent layer"
    EMBEDDING = "embedding"
    EPILOGUE = "op with weights and what follows it"
    ARITHMETIC = "arithmetic of two values"
    CLAMP = "clamp"
    ACTIVATION = "activation"
    FUNCTION = "function of single values"
    POOL = "pool"
    REDUCTION = "reduction"
    RESIZE = "resize"
    COPY = "copy"
    JOIN = "join"
    OTHER = "other"


CONVOLUTIONS = (Family.CONVOLUTION, Family.TRANSPOSED)


class Role(Enum):
    ACTIVATION = "activation"
    WEIGHT = "weight"
    WEIGHTS = "list of weights"
    BIAS = "bias"  # a float tensor that stays float; also a list of these
    INDICES = "integers"
    ACTIVATIONS = "list of activations"


@dataclass(frozen=True)
class Param:
    """One tensor argument of the canonical call; attributes need no Param."""

    name: str
    role: Role = Role.ACTIVATION


@dataclass(frozen=True)
class Spelling:
    """One way to write an op: a function or a method name, and how its arguments map to the canonical ones.

    `signature` lists the arguments in the user's order, with defaults: a canonical name; `*name` gathers the rest;
    `_name` is accepted and means nothing for values (inplace); `!name=x` must be x, else this is not a spelling of the op;
    `?name=x` must be x or be read while the model runs (`training` of a module, while a model is prepared for training).
    `extra` adds attributes that the spelling implies (relu6: min=0, max=6).
    """

    target: Callable[..., Any] | str
    signature: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModuleForm:
    """How a module becomes a canonical call.

    `tensors` maps a tensor argument to the module's attribute (a parameter or buffer), `lists` an argument that is a list of
    tensors to the attributes of this instance; `attributes` gives the keyword arguments of the canonical call from the module;
    `refuse` returns a reason when this instance cannot be rewritten. `signature` (as of a Spelling) names the arguments of the
    module's forward where it takes more than the row's first one. `packed`: the row that takes the fields of a PackedSequence.
    `live` maps arguments to attributes that a model which is trained reads at each call, such as `training`. `make` is an instance
    for the row's example.
    """

    cls: type[nn.Module] | str  # a qualified name where the class must not be imported
    tensors: Mapping[str, str] = field(default_factory=dict)
    attributes: Callable[[Any], Mapping[str, Any]] = lambda module: {}
    refuse: Callable[[nn.Module], str | None] = lambda module: None
    live: Mapping[str, str] = field(default_factory=dict)
    lists: Callable[[Any], Mapping[str, tuple[str, ...]]] = lambda module: {}
    signature: str | None = None
    packed: str | None = None
    make: Callable[[Any], nn.Module] = lambda cls: cls()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Op:
    """One op, one row.

    `fn` is the canonical callable with float semantics: tensor arguments first, in the order of `params`, positional;
    then attributes as keywords, defaults left out. `signature` spells all of fn's arguments in the user's order with
    their defaults, e.g. "input weight bias=None stride=1"; a spelling with another order or names gives its own.

    `check_row.py` checks a row when it is registered, and tries its example.
    """

    name: str
    fn: Callable[..., Any]
    signature: str
    params: tuple[Param, ...]
    output: Output
    family: Family = field(default=Family.OTHER, kw_only=True)
    dims: int | None = field(default=None, kw_only=True)  # spatial dimensions, where there is an op for each number of them
    example: Example | None = field(default=None, kw_only=True)
    commutes: Holds = field(default=never, kw_only=True)  # the first two arguments may change places
    draws: Holds = field(default=never, kw_only=True)  # draws random numbers
    spellings: tuple[Spelling | Callable[..., Any] | str, ...] = ()  # functions, and method names as strings
    modules: tuple[ModuleForm, ...] = ()
    fixed: QParams | None = None
    takes_bounds: bool = False  # fn has `bounds=(low, high)`: a clamp of its result that fusion may absorb
    clamp: Callable[[Mapping[str, Any]], tuple[float | None, float | None]] | None = None  # this op is a clamp
    identity: Holds = never  # does nothing in eval mode
    adds_values: Holds = never  # SAME, but may give values outside its input's range
    averages: Holds = never  # SAME, but gives values between its input's steps
    homogeneous: Holds = never  # of each channel: f(s x) = s f(x) for any s > 0, of two operands as of one
    weight_axis: int = 0
    elementwise: bool = False  # a unary function of single values: exact as a 256-entry table
    row_power: RowPower | None = None  # a normalization: what it divides each row of its input by, squared
    float_inside: bool = False  # its int8 form, on any CPU, computes in float: int8 in front of it saves nothing
    spreads: Callable[[Mapping[str, object], int], bool] = lambda attributes, i: False  # argument i: steep near 0, one step becomes many
    macs: Callable[[fx.Node], int] | None = None
    float_reason: str | None = None  # why there is no int8 form, where output is FLOAT
    rounds_inside: bool = False  # under Mode.DYNAMIC fn quantizes its activations itself: `activation_range=(0, 255)`
    eval_form: Op | None = None  # the op that this one, which only trains, is in eval mode: kernels and qconfig rules are its

    @property
    def settled(self) -> Op:
        """The row of the op in eval mode: what kernels, qconfig rules and users know."""
        return self.eval_form or self

    def takes(self, name: str) -> bool:
        """Whether the op has an argument of that canonical name."""
        return any(canonical == name for _, _, canonical, _ in parse_signature(self.signature))

    @property
    def given_by_passes(self) -> tuple[str, ...]:
        """The keywords that passes add to a call of it: a clamp, a range to round to inside, a fake quantization."""
        has = {"bounds": self.takes_bounds, "activation_range": self.rounds_inside, "fake_quant": self.eval_form is not None}
        return tuple(name for name, given in has.items() if given)

    @property
    def weight(self) -> int | None:
        """Position of the weight among the positional arguments."""
        return next((i for i, p in enumerate(self.params) if p.role is Role.WEIGHT), None)

    @property
    def reads_table(self) -> bool:
        """Whether its weight is a table that integers pick rows of, as an embedding's."""
        return self.weight is not None and any(p.role is Role.INDICES for p in self.params)

    def weights(self, node: fx.Node) -> list[Any]:
        """The arguments of a canonical call that are weights, lists of them spread out."""
        found: list[Any] = []
        for param, arg in zip(self.params, node.args, strict=False):
            if param.role is Role.WEIGHT:
                found.append(arg)
            elif param.role is Role.WEIGHTS and isinstance(arg, (list, tuple)):
                found += arg
        return found
