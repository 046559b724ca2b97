"""What a row says is checked when it is registered: whether its parts agree, and whether its example does what the row says.

`check_row` reads the row alone. `try_row` runs its example on floats, and is asked for rows that are added to a table; the built-in ones
are tried by a test. Both raise ConfigError that names the row and what is wrong with it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from qcompiler.errors import ConfigError
from qcompiler.ops.example_call import canonical_call
from qcompiler.ops.signature import NO_DEFAULT, parse_signature
from qcompiler.ops.spec import CONVOLUTIONS, Family, ModuleForm, Op, Output, Role, Spelling, never

BOUNDS = (-0.25, 0.5)  # cut some values of nearly every example


def check_row(row: Op) -> None:
    """Raises ConfigError for a row whose parts contradict each other."""
    for problem in _problems(row):
        raise _bad(row, problem)


def _bad(row: Op, problem: str) -> ConfigError:
    return ConfigError(
        f"the row of op {row.name!r} is wrong: {problem}", code="bad-row", hint="qcompiler/ops/spec.py says what a row holds"
    )


def _problems(row: Op) -> Iterator[str]:
    names = [canonical for kind, _, canonical, _ in parse_signature(row.signature) if kind in ("", "*", "?")]
    params = [param.name for param in row.params]
    if names[: len(params)] != params:
        yield f"its signature begins with {names[: len(params)]}, its params are {params}"
    if len(set(names)) < len(names):
        yield "its signature names an argument twice"
    yield from _of_function(row, names)
    yield from _of_spellings(row, {*names, "bounds"})
    for form in row.modules:
        yield from _of_module(row, form, {*names, "padding_mode", "bounds"})
    yield from _of_output(row)
    yield from _of_example(row, names)


def _of_function(row: Op, names: list[str]) -> Iterator[str]:
    """The canonical function must take what the signature says, with the same defaults; functions written in C do not tell."""
    try:
        parameters = inspect.signature(row.fn).parameters
    except (ValueError, TypeError):
        return
    if any(p.kind is p.VAR_POSITIONAL or p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    first = {param.name for param in row.params}  # given by position, under whatever names the function has
    for kind, _, name, default in parse_signature(row.signature):
        if name not in parameters and name in names and name not in first:
            yield f"its function takes no {name!r}"
        stated = default is not NO_DEFAULT and default is not None and kind in ("", "*", "?") and name not in first
        if stated and name in parameters and parameters[name].default != default:
            yield f"{name!r} is {default!r} where it is left out, in the function {parameters[name].default!r}"
    if row.takes_bounds and "bounds" not in parameters:
        yield "it takes bounds, and its function has no argument of that name"


def _of_spellings(row: Op, known: set[str]) -> Iterator[str]:
    for spelling in row.spellings:
        if isinstance(spelling, Spelling):
            entries = parse_signature(spelling.signature or row.signature)
            said = [name for kind, _, canonical, _ in entries if kind in ("", "*", "?") for name in canonical.split(",")]
            unknown = sorted({*said, *spelling.extra} - known)
            if unknown:
                yield f"the spelling {_named(spelling.target)} gives {unknown}, which its signature does not have"


def _named(target: object) -> str:
    return f".{target}()" if isinstance(target, str) else str(getattr(target, "__name__", target))


def _of_module(row: Op, form: ModuleForm, known: set[str]) -> Iterator[str]:
    name = form.cls if isinstance(form.cls, str) else form.cls.__name__
    tensors, live = set(form.tensors) - {p.name for p in row.params}, set(form.live) - known
    if tensors or live:
        yield f"its form as {name} gives {sorted(tensors | live)}, which its params or signature do not have"


def _of_output(row: Op) -> Iterator[str]:
    """What the kind of the result asks for, and what goes with no other kind."""
    roles = [param.role for param in row.params]
    first = roles[0] if roles else None
    if (row.output is Output.FIXED) != (row.fixed is not None):
        yield "a fixed result has `fixed` qparams, and no other has"
    if row.output is Output.SAME and first is not Role.ACTIVATION:
        yield "a result on its input's scale needs an activation as its first argument"
    if row.output is Output.JOIN and first is not Role.ACTIVATIONS:
        yield "a join takes a list of activations"
    copies = (row.clamp is not None, row.adds_values is not never, row.averages is not never)
    if any(copies) and row.output is not Output.SAME:
        yield "`clamp`, `adds_values` and `averages` are said of results on their input's scale"
    if row.elementwise and (roles != [Role.ACTIVATION] or row.output not in (Output.OWN, Output.FIXED)):
        yield "a function of single values takes one activation, and its result has qparams of its own or fixed ones"
    if row.takes_bounds and row.output is not Output.OWN:
        yield "an op that takes bounds has a result of its own"
    if row.weight_axis and Role.WEIGHT not in roles:
        yield "`weight_axis` is said of ops with a weight"
    if row.macs is None and row.output is Output.OWN and Role.WEIGHT in roles:
        yield "an op with a weight says how many multiply-accumulates it takes"
    if row.commutes is not never and roles[:2] != [Role.ACTIVATION] * 2:
        yield "operands that commute are activations"
    if row.dims not in (None, 1, 2, 3):
        yield f"dims is 1, 2 or 3, or None, not {row.dims}"


def _of_example(row: Op, names: list[str]) -> Iterator[str]:
    if row.example is None:
        return
    example, params = row.example, {param.name: param.role for param in row.params}
    unknown = sorted({*example.attributes, *example.tensors} - set(names)) + sorted(set(example.tensors) - set(params))
    if unknown:
        yield f"its example gives {unknown}, which the row does not have"
    needed = [name for kind, _, name, default in parse_signature(row.signature) if kind == "" and default is NO_DEFAULT]
    values = [name for name, role in params.items() if role in (Role.ACTIVATION, Role.ACTIVATIONS)]
    given = {*example.attributes, *example.tensors, *values[: len(example.inputs)]}
    missing = [name for name in needed if name not in given and params.get(name) not in (Role.BIAS, Role.INDICES)]  # may be None
    if missing:
        yield f"its example leaves out {missing}"
    if row.dims is not None and len(example.inputs[0]) != row.dims + 2:
        yield f"its example has no input of {row.dims} spatial dimensions"


def try_row(row: Op) -> None:
    """Runs the example: raises ConfigError where it fails, or where the result is not what the row says."""
    if row.example is None:
        return
    try:
        problem = next(_findings(row), None)
    except Exception as error:
        raise _bad(row, f"its example fails: {type(error).__name__}: {error}") from error
    if problem is not None:
        raise _bad(row, problem)


def _findings(row: Op) -> Iterator[str]:
    assert row.example is not None
    args, attributes = canonical_call(row, row.example)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.random.get_rng_state()
        results = _tensors(row.fn(*args, **attributes))
        if (drawn := not torch.equal(before, torch.random.get_rng_state())) is not row.draws(attributes):
            yield "its function draws random numbers" if drawn else "it says that it draws random numbers, and draws none"
        yield from _values(row, args, results)
        if row.family in (*CONVOLUTIONS, Family.LINEAR) and not _is_linear(row, args, attributes, results[0]):
            yield f"its family is {row.family.value}, and its result is not linear in weight and bias"
        if row.elementwise and not _is_elementwise(row, args[0], attributes, results[0]):
            yield "it is no function of single values"
        if row.commutes(attributes) and not torch.equal(_tensors(row.fn(*args[1::-1], *args[2:], **attributes))[0], results[0]):
            yield "its operands do not commute"
        if row.takes_bounds and not torch.equal(_tensors(row.fn(*args, **attributes, bounds=BOUNDS))[0], results[0].clamp(*BOUNDS)):
            yield "with bounds it is not the clamp of what it is without them"


def _is_linear(row: Op, args: tuple[Any, ...], attributes: dict[str, Any], result: Tensor) -> bool:
    """Whether twice the weight and the bias give twice the result."""
    roles = [param.role for param in row.params]
    double = [2 * a if role in (Role.WEIGHT, Role.BIAS) and a is not None else a for role, a in zip(roles, args, strict=False)]
    return torch.allclose(_tensors(row.fn(*double, **attributes))[0], 2 * result, rtol=1e-5, atol=1e-5)


def _tensors(result: object) -> list[Tensor]:
    found: list[Any] = tree_leaves(result)
    if not found or not all(isinstance(value, Tensor) and value.is_floating_point() for value in found):
        raise TypeError(f"its result is no float tensor, but {type(result).__name__}")
    return found


def _values(row: Op, args: tuple[Any, ...], results: list[Tensor]) -> Iterator[str]:
    if not all(bool(value.isfinite().all()) for value in results):
        yield "its example has results that are not finite"
    if row.fixed is not None:
        assert isinstance(row.fixed.scale, float) and isinstance(row.fixed.zero_point, int)
        low, high = ((q - row.fixed.zero_point) * row.fixed.scale for q in (row.fixed.quant_min, row.fixed.quant_max + 1))
        if not all(bool(((value >= low) & (value <= high)).all()) for value in results):
            yield f"its result leaves the fixed range {low:g} to {high:g}"
    copies = row.output is Output.SAME and row.clamp is None and not row.adds_values(row.example.attributes if row.example else {})
    if copies and not all(_copies(row, args[0], value) for value in results):
        yield "its result has values that its input has not, nor 0"


def _copies(row: Op, x: Tensor, result: Tensor) -> bool:
    """Whether all values are the input's, or 0; of an op that averages, whether they lie between those."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    between = bool(((result >= low) & (result <= high)).all())
    averages = row.averages(row.example.attributes if row.example else {})
    return between if averages else bool(torch.isin(result, torch.cat([x.flatten(), x.new_zeros(1)])).all())


def _is_elementwise(row: Op, x: Tensor, attributes: dict[str, Any], result: Tensor) -> bool:
    """Whether the values, taken in another order and form, give the same results."""
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0))
    again = _tensors(row.fn(x.flatten()[order], **attributes))[0]
    return result.shape == x.shape and torch.allclose(again, result.flatten()[order], rtol=1e-5, atol=1e-6, equal_nan=True)
