"""Every row of the op table in every spelling: it becomes that row, keeps its float values, and runs in int8 as the reference does.

The calls are made from the spelling's own signature, so that a wrong name or order of arguments in a row shows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompiler import TraceError, explain, fuse_fx, remarks
from qcompiler.debug import compute_sqnr
from qcompiler.ir.types import quant_of
from qcompiler.ops.example import IMAGE, Example
from qcompiler.ops.obstacles import CODES
from qcompiler.ops.reference import quantize
from qcompiler.ops.spec import ModuleForm, Op, Role, Spelling
from qcompiler.ops.table import OPS, parse_signature
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.target import Neutral
from qcompiler.vision import import_torchvision
from tests.flow import QUANTIZED, Flow, flow, max_difference, passed, randn, randomized

VECTOR = {"mean": (8,), "var": (8,), "weight": (8,), "bias": (8,)}
WHOLE = (torch.batch_norm, torch.instance_norm)  # functions of torch that have no defaults


class Call(nn.Module):
    """`target` between an int8 op per input and the output."""

    def __init__(self, row: Op, case: Example, target: Any, make: Callable[[Call, list[Any]], Any]) -> None:
        super().__init__()
        self.row, self.case, self.target, self.make = row, case, target, make
        self.before = nn.ModuleList(nn.Linear(shape[-1], shape[-1]) for shape in case.inputs)
        for i, (name, shape) in enumerate(case.tensors.items()):
            value = randn(*shape, seed=i + 3)
            self.register_parameter(name, nn.Parameter(value.abs() + 0.5 if name == "var" else value))

    def forward(self, x: Tensor, other: Tensor) -> Any:
        steep = self.row.spreads({}, 0)
        shift = (
            0.0 if Neutral().computes_float(self.row) or steep else 0.25
        )  # a sum in front of such an op would stay float, and the op with it
        values = [linear(v) + shift if shift else linear(v) for linear, v in zip(self.before, (x, other), strict=False)]
        values = [v.clamp(1.0, 4.0) if steep else v.abs() + 1.0 for v in values] if self.case.positive else values
        values = [v.clamp(-0.9, 0.9) for v in values] if self.case.bounded else values
        result = self.make(self, values)
        return result if self.case.pick is None else result[self.case.pick]


def spelled_call(row: Op, case: Example, spelling: Spelling, by_name: bool) -> Callable[[Call, list[Any]], Any]:
    """The user's call in one spelling: all positional, or attributes by the user's names."""

    def value(self: Call, values: list[Any], canonical: str) -> Any:
        names = [p.name for p in row.params if p.role in (Role.ACTIVATION, Role.ACTIVATIONS)]
        if canonical in names:
            return values if row.params[0].role is Role.ACTIVATIONS else values[names.index(canonical)]
        return getattr(self, canonical) if canonical in case.tensors else case.attributes[canonical]

    def known(canonical: str) -> bool:
        return canonical in (*(p.name for p in row.params), *case.attributes) and canonical not in (set(VECTOR) - set(case.tensors))

    def make(self: Call, values: list[Any]) -> Any:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for kind, user, canonical, default in parse_signature(spelling.signature or row.signature):
            user = user.partition("|")[0]
            if user == "training" and kind == "!":
                kwargs[user] = default
            if spelling.target in WHOLE and (kind in ("_", "!", "?") or not known(canonical)):
                kwargs[user] = default
                continue
            if kind in ("_", "!") or not known(canonical):
                continue
            if kind == "*":
                args += value(self, values, canonical)
            elif kwargs or (by_name and args and canonical not in [p.name for p in row.params]) or _gap(row, spelling, canonical, known):
                kwargs[user] = value(self, values, canonical)
            else:
                args.append(value(self, values, canonical))
        if isinstance(spelling.target, str):
            return getattr(args[0], spelling.target)(*args[1:], **kwargs)
        return spelling.target(*args, **kwargs)

    return make


def _gap(row: Op, spelling: Spelling, canonical: str, known: Callable[[str], bool]) -> bool:
    """Whether an argument that is left out stands before this one."""
    for kind, _, name, _ in parse_signature(spelling.signature or row.signature):
        if name == canonical:
            return False
        if kind in ("_", "!") or not known(name):
            return True
    return False


# The others only quantize weights: tests/test_dynamic_graph.py, tests/test_embedding.py.
STATIC = [row for row in OPS.rows.values() if Neutral().default_mode(row) is None]


def all_spellings() -> list[Any]:
    """Every spelling that users write; the canonical functions of our own are none."""
    found: dict[str, Any] = {}
    for row in STATIC:
        for s in (*row.spellings, row.fn):
            spelling = s if isinstance(s, Spelling) else Spelling(s, row.signature)
            target = spelling.target
            origin = str(getattr(target, "__module__", ""))
            name = f".{target}" if isinstance(target, str) else f"{origin}.{getattr(target, '__name__', target)}"
            if not origin.startswith("qcompiler"):
                found.setdefault(f"{row.name}-{name}", pytest.param(row, spelling, id=f"{row.name}-{name}"))
    return list(found.values())


def case_of(row: Op, spelling: Spelling | None = None) -> Example:
    case = row.example
    assert case is not None
    if spelling is None:
        return case
    names = {canonical for _, _, canonical, _ in parse_signature(spelling.signature or row.signature)} | set(spelling.extra)
    operators = getattr(spelling.target, "__module__", None) == "_operator"
    attributes = {k: v for k, v in case.attributes.items() if k in names and k not in spelling.extra and not (operators and k == "alpha")}
    shapes = (IMAGE[:-1],) if spelling.target is F.dropout1d else case.inputs
    shapes = ((*IMAGE, 4),) if spelling.target is F.dropout3d else shapes
    name = spelling.target if isinstance(spelling.target, str) else getattr(spelling.target, "__name__", "")
    shapes = {"mm": ((5, 8), (8, 3)), "mv": ((5, 8), (8,))}.get(name, shapes)
    if "split_with_sizes" in name:
        attributes["split_size_or_sections"] = [3, 5]
    return replace(case, inputs=shapes, attributes=attributes)


def inputs_of(case: Example) -> tuple[Tensor, Tensor]:
    shapes = (*case.inputs, case.inputs[0])[:2]
    return randn(*shapes[0], seed=1), randn(*shapes[1], seed=2)


def model_of(row: Op, case: Example, target: Any, make: Callable[[Call, list[Any]], Any]) -> Call:
    torch.manual_seed(0)
    model = Call(row, case, target, make)
    model.eval()
    return model


def checked_float(model: Call, example: tuple[Tensor, Tensor], row: Op) -> None:
    """The call becomes the row, and its float values stay."""
    with torch.no_grad():
        wanted = model(*example)
        gm, _ = passed(model, example, (Canonicalize(),))
        assert row.name in [r.name for n in gm.graph.nodes if (r := OPS.of(n)) is not None]
        assert max_difference(gm(*example), wanted) <= 1e-5
        assert max_difference(fuse_fx(model, example)(*example), wanted) <= 1e-5


def checked(model: Call, example: tuple[Tensor, Tensor], quantized: bool = True) -> Flow:
    """Lowered against reference and float values; the flow, for more. `quantized`: the result is wanted so, else the op gives floats."""
    result = flow(model, example, prepare_custom_config=QUANTIZED if quantized else None)
    with torch.no_grad():
        wanted, reference, lowered = model(*example), result.reference(*example), result.module(*example).dequantize()
    assert reference.shape == lowered.shape == wanted.shape and lowered.dtype is wanted.dtype
    step = output_step(result.reference)
    difference = (reference - lowered).abs()
    assert difference.max() <= 3.01 * step + 1e-6, f"{difference.max() / step} quanta"
    assert (difference <= 1.01 * step + 1e-6).double().mean() >= 0.99
    assert compute_sqnr(wanted, lowered) >= 24 or not model.case.smooth
    return result


def output_step(reference: fx.GraphModule) -> float:
    """The largest scale of the quantized values that the output is made from."""
    scales = [float(n.args[1]) for n in reference.graph.nodes if n.target is quantize]  # type: ignore[arg-type]
    return scales[-1] if scales else 0.0


def with_kernel(graph: fx.Graph, row: Op) -> bool:
    return any(quant_of(n).int8 for n in graph.nodes if (r := OPS.of(n)) is not None and r.name == row.name)


@pytest.mark.parametrize(("row", "spelling"), all_spellings())
def test_spelling(row: Op, spelling: Spelling) -> None:
    """Once with all arguments by position, once with attributes by name, where the function itself takes that."""
    case = case_of(row, spelling)
    example = inputs_of(case)
    models = [model_of(row, case, spelling.target, spelled_call(row, case, spelling, by_name)) for by_name in (False, True)]
    models = [model for model in models if runs(model, example)]
    assert models, "the table's signature is not the function's"
    for model in models:
        checked_float(model, example, row)
    result = checked(models[0], example)
    if not row.identity({"training": False, "p": 0.5}):
        assert with_kernel(result.prepared.graph, row) or row.clamp is not None, "it stays float"


def runs(model: Call, example: tuple[Tensor, Tensor]) -> bool:
    try:
        with torch.no_grad():
            model(*example)
    except TypeError:
        return False
    return True


def module_class(cls: Any) -> type[nn.Module]:
    if isinstance(cls, str):
        import_torchvision()
        path, _, name = cls.rpartition(".")
        return getattr(__import__(path, fromlist=[name]), name)  # type: ignore[no-any-return]
    return cls  # type: ignore[no-any-return]


def all_modules() -> list[Any]:
    found = []
    for row in STATIC:
        for form in row.modules:
            found.append(pytest.param(row, form, id=f"{row.name}-{form.cls if isinstance(form.cls, str) else form.cls.__name__}"))
    return found


class Holder(Call):
    def __init__(self, row: Op, case: Example, module: nn.Module) -> None:
        super().__init__(row, case, module, lambda self, values: self.module(*values))
        self.module = module


@pytest.mark.parametrize(("row", "form"), all_modules())
def test_module(row: Op, form: ModuleForm) -> None:
    kind = module_class(form.cls)
    written = re.search(r"([123])d$", kind.__name__)
    shape = (2, 8, *[6] * int(written[1])) if written else case_of(row).inputs[0]
    case = Example((shape,))
    torch.manual_seed(0)
    model = Holder(row, case, randomized(form.make(kind)))
    model.eval()
    checked_float(model, inputs_of(case), row)
    copies = not row.adds_values(form.attributes(model.module))  # else it may leave its input's range, and stays float
    checked(model, inputs_of(case), quantized=copies or row.clamp is not None)


class Function(nn.Module):
    """A function between a convolution and the output."""

    def __init__(self, function: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.conv = function, nn.Conv2d(8, 8, 1)
        self.scale, self.matrix = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6, 6))
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.conv(x))


def functions_left(model: nn.Module, x: Tensor, quantized: bool = False) -> tuple[Flow, list[str]]:
    """The flow of a model, within tolerance, and why its parts stay float. `quantized`: its result is wanted in int8."""
    result = flow(model.eval(), (x,), prepare_custom_config=QUANTIZED if quantized else None)
    with torch.no_grad():
        wanted, reference, lowered = model(x), result.reference(x), result.module(x).dequantize()
    assert max_difference(reference, lowered) <= 1.01 * output_step(result.reference) + 1e-5
    assert lowered.shape == wanted.shape and compute_sqnr(wanted, lowered) >= 20
    return result, [remark.text.removeprefix("stays float: ") for remark in remarks(result.module) if remark.code in CODES]


DECOMPOSED: dict[str, Callable[[Any, Tensor], Any]] = {
    "glu": lambda s, x: F.glu(x, 1),
    "nn.GLU": lambda s, x: s.glu(x),
    "addmm with constants": lambda s, x: torch.addmm(s.scale, x[0, 0], s.matrix),
    "addmm": lambda s, x: torch.addmm(x[0, 0], x[0, 1], x[0, 2], beta=0.5, alpha=2),
    "addmm method": lambda s, x: x[0, 0].addmm(x[0, 1], x[0, 2]),
    "baddbmm": lambda s, x: torch.baddbmm(x[:, 0], x[:, 1], x[:, 2]),
    "addcmul": lambda s, x: torch.addcmul(x, x, x.relu(), value=0.5),
    "addcdiv": lambda s, x: torch.addcdiv(x, x, s.conv.bias.abs()[:, None, None] + 1),
    "lerp": lambda s, x: torch.lerp(x, x.relu(), 0.3),
    "max of two": lambda s, x: torch.max(x, -x),
    "min of two": lambda s, x: x.min(x.relu()),
    "max along": lambda s, x: x.max(1)[0],
    "min along": lambda s, x: torch.min(x, 1, keepdim=True).values,
    "instance_norm by statistics": lambda s, x: F.instance_norm(x[..., 0], s.conv.bias.abs(), s.conv.bias.abs() + 1, use_input_stats=False),
    "movedim": lambda s, x: torch.movedim(x, (1, 2), (-1, 0)),
    "moveaxis": lambda s, x: x.moveaxis(1, -1),
    "t": lambda s, x: x[0, 0].t(),
    "T": lambda s, x: x[0, 0].T,
    "mT": lambda s, x: x.mT,
    "tile": lambda s, x: x.tile(2, 1),
    "hstack": lambda s, x: torch.hstack([x, x]),
    "vstack": lambda s, x: torch.vstack([x, x.relu()]),
    "fliplr": lambda s, x: torch.fliplr(x),
    "view_as": lambda s, x: x.view_as(x.transpose(2, 3)),
    "expand_as": lambda s, x: x[:, :1].expand_as(x),
    "float": lambda s, x: x.float(),
    "to": lambda s, x: x.to(torch.float32).to("cpu").type_as(x),
    "to channels_last": lambda s, x: x.to(memory_format=torch.channels_last),
    "rsub": lambda s, x: torch.rsub(x, 1.0, alpha=2),
    "in-place chain": lambda s, x: F.elu_(F.leaky_relu_(x, 0.2).neg_().exp_()),
}


@pytest.mark.parametrize("name", DECOMPOSED)
def test_a_function_made_of_others_runs_in_int8(name: str) -> None:
    result, left = functions_left(Function(DECOMPOSED[name], glu=nn.GLU(1)), randn(2, 8, 6, 6), quantized=True)
    assert not left, left
    assert all(row.int8 for row in explain(result.module).rows)


# fmt: off
FLOAT: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "cumsum": (lambda s, x: x.cumsum(1), "cumsum: it adds up values without bound, which leaves the range of 8 bits"),
    "where": (lambda s, x: torch.where(x > 0, x, x * 0.1), "where: int8 has no kernel that chooses by a mask"),
    "masked_fill": (lambda s, x: x.masked_fill(x < 0, 0.0), "masked_fill: int8 has no kernel that chooses by a mask"),
    "einsum": (lambda s, x: torch.einsum("nchw,ndhw->ncd", x, x),
               "einsum: int8 has no kernel for sums of products by index; matmul has one"),
    "normalize": (lambda s, x: F.normalize(x), "normalize has no int8 form"),
    "std": (lambda s, x: x.std((2, 3)), "std has no int8 form"),
    "rounding": (lambda s, x: torch.div(x, 0.1, rounding_mode="floor"), "div: not with rounding_mode=floor"),
    "computed weight": (lambda s, x: F.conv2d(x, x[:, :, :3, :3]), "its weight is computed at run time"),
    "computed matrix": (lambda s, x: F.linear(x, x[0, 0]), "its weight is computed at run time"),
    "computed exponent": (lambda s, x: x.abs() ** x, "its settings are computed at run time"),
    "indices": (lambda s, x: F.max_pool2d(x, 2, return_indices=True)[0], "max_pool2d_with_indices: its int8 kernel gives no indices"),
    "pool module": (lambda s, x: s.unpool(*s.pool(x)), "MaxPool2d: it returns indices too"),
    "statistics": (lambda s, x: s.norm(x), "InstanceNorm2d: it tracks running statistics"),
    "log_softmax": (lambda s, x: F.log_softmax(x, 1), "log_softmax: its results span too wide a range for 8 bits"),
    "bilinear": (lambda s, x: s.bilinear(x, x.relu()), "Bilinear: int8 has no kernel for a product of three factors"),
}
# fmt: on


@pytest.mark.parametrize("name", FLOAT)
def test_what_stays_float_says_why(name: str) -> None:
    function, reason = FLOAT[name]
    children = {"pool": nn.MaxPool2d(2, return_indices=True), "unpool": nn.MaxUnpool2d(2), "bilinear": nn.Bilinear(6, 6, 3)}
    children["norm"] = nn.InstanceNorm2d(8, track_running_stats=True)
    _, left = functions_left(Function(function, **children), randn(2, 8, 6, 6))
    assert reason in left


@pytest.mark.parametrize("shape", [(8,), (1, 8), (2, 3, 8)])
@pytest.mark.parametrize("after", [None, nn.ReLU(), nn.Sigmoid()])
def test_linear_of_any_rank(shape: tuple[int, ...], after: nn.Module | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), *([after] if after is not None else [])).eval()
    result = flow(model, (randn(*shape),))
    assert result.module(randn(*shape)).shape == (*shape[:-1], 6)
    assert compute_sqnr(model(randn(*shape)), result.module(randn(*shape))) >= 28
    assert all(row.int8 for row in explain(result.module).rows if row.op != "sigmoid")  # which gives the result in floats


def strided(s: Any, x: Tensor) -> Tensor:
    y = s.conv(x)
    n = int(y.max())
    return torch.as_strided(y, (2, 2), (1, 1)) + n


@pytest.mark.parametrize("how", [lambda s, x: x.as_strided((2, 2), (1, 1)), lambda s, x: torch.as_strided(x, (2, 2), (1, 1)), strided])
def test_as_strided_is_refused_by_name(how: Any) -> None:
    """Also in a statement that could stay float: an int8 value lies in memory otherwise than the float one."""
    with pytest.raises(TraceError, match="as_strided"):
        flow(Function(how).eval(), (randn(2, 8, 6, 6),))
