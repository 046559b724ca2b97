"""Each pass on small models: the text of the graph behind it, against tests/golden (written by `pytest --update-golden`).

And the algebra: a pass that runs twice changes nothing more; fusion rules give the same graph in any order.
"""

from __future__ import annotations

import copy
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompiler.backends.torch.passes import LOWERING
from qcompiler.backends.torch.target import TorchTarget
from qcompiler.compile.pass_manager import Context, run_passes
from qcompiler.compile.rewrite import run_rules
from qcompiler.compile.settings import Settings
from qcompiler.config.qconfig_mapping import get_default_qconfig_mapping
from qcompiler.ir.text import format_graph
from qcompiler.ir.types import Stage
from qcompiler.ops.decompositions import DECOMPOSE
from qcompiler.ops.table import OPS
from qcompiler.passes import DECIDE, FUSE, OBSERVE, STATIC
from qcompiler.patterns import FUSE as RULES
from qcompiler.stages.verify import verify
from qcompiler.trace import TraceOptions, trace
from tests.flow import max_difference, randn, randomized

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
GOLDEN = Path(__file__).resolve().parent / "golden"
IMAGE = (1, 3, 8, 8)


class ConvBnRelu(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout())


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        result: Tensor = self.c(F.relu(self.b(y) + y))
        return result


class Cats(nn.Module):
    """Two cats that share an input, and a third of their results, which gives floats."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 2, 1) for _ in range(3))
        self.d = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.a(x), self.b(x), self.c(x)
        return torch.cat([self.d(torch.cat([a, b], 1)), self.d(torch.cat((b, c), dim=1))], 1)


class SharedConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = self.conv(x)
        return x


class Depthwise(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.AvgPool2d(2))


class AffineBlock(nn.Module):
    """What NoteAffine, FoldAffine, ReadNumbers and KeepCodes are for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
        self.gain = nn.Parameter(torch.tensor([0.5, 1.0, 1.5, 2.0]))
        self.register_buffer("factor", torch.tensor([0.8]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x) * self.gain.view(1, -1, 1, 1) + 0.25
        z: Tensor = self.last(F.hardswish(y) * self.factor - 0.3)
        return z


class LinearHardswish(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(F.hardswish(self.up(x.flatten(2))))
        return result


class Padding(nn.Module):
    """Functional convolution with padding 'same', modules with padding modes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 4, 3))
        self.reflect = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        self.valid = nn.Conv2d(3, 3, 3, padding="valid", padding_mode="circular")

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, padding="same", dilation=1)
        result: Tensor = self.valid(self.reflect(x))
        return result


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        result: Tensor = x + self.attention(y, y, y, need_weights=False)[0]
        return result


class Handwritten(nn.Module):
    """Activations that are written out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.b(x * torch.sigmoid(x))
        result: Tensor = self.c(F.relu6(x + 3.0) / 6.0 * x)
        return result


class Clamped(nn.Module):
    """A clamp that keeps a small part of a square, and a ReLU that keeps half of a range."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.a(x)
        square = y * y
        return self.b(square.clamp(-1, 0.05)), self.c(square), self.d(F.relu(y))


MODELS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "conv_bn_relu": (ConvBnRelu, IMAGE),
    "residual": (Residual, IMAGE),
    "handwritten": (Handwritten, IMAGE),
    "cats": (Cats, IMAGE),
    "shared_conv": (SharedConv, IMAGE),
    "depthwise": (Depthwise, IMAGE),
    "linear_hardswish": (LinearHardswish, (1, 3, 2, 4)),
    "affine": (AffineBlock, IMAGE),
    "padding": (Padding, IMAGE),
    "clamped": (Clamped, IMAGE),
    "attention": (Attention, (1, 4, 8)),
}
STEPS = STATIC.with_lowering(LOWERING).steps


def start(name: str) -> tuple[fx.GraphModule, Context, Tensor]:
    """A model's TRACED graph, and what the passes need."""
    torch.manual_seed(0)
    kind, shape = MODELS[name]
    model, x = randomized(kind()), randn(*shape)

    def is_leaf(module: nn.Module, path: str) -> bool:
        return OPS.module_form(module) is not None

    types = {path: type(module) for path, module in model.named_modules()}
    target = TorchTarget("x86", "avx512_vnni")
    context = Context(Settings(mapping=get_default_qconfig_mapping("x86"), module_types=types, target=target))
    return trace(model, (x,), options=TraceOptions(is_leaf, decompose=DECOMPOSE)).graph_module, context, x


def text_of(gm: fx.GraphModule) -> str:
    """Without the lines of this file, and without digits that another CPU's rounding may change."""
    text = re.sub(r"; \w+\.py:\d+", "", format_graph(gm.graph))
    return re.sub(r"\d+\.\d{4,}(e-?\d+)?", lambda m: f"{float(m[0]):.3g}", text)


def stages(name: str) -> str:
    gm, context, x = start(name)
    parts, last = [f"== traced\n{text_of(gm)}"], text_of(gm)
    stage = Stage.TRACED
    for step in STEPS:
        if step.name == "freeze_qparams":
            gm(x)
        run_passes(gm, (step,), stage, context)
        stage = step.stage
        if (text := text_of(gm)) != last:
            parts.append(f"== {step.name}\n{text}")
        last = text
    parts.append("== remarks\n" + "".join(f"{r.pass_name} {r.code}: {r.text}\n" for r in context.journal.remarks))
    return "\n".join(parts)


@pytest.mark.parametrize("name", MODELS)
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    text, path = stages(name), GOLDEN / f"{name}.ir"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), "run pytest --update-golden once, and read what it wrote"
    assert text.splitlines() == path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", MODELS)
def test_passes_are_idempotent(name: str) -> None:
    """FUSE and the annotating passes: running one again leaves text and values as they are."""
    gm, context, x = start(name)
    with torch.no_grad():
        wanted = gm(x)
        stage = Stage.TRACED
        for step in (*FUSE, *DECIDE):
            run_passes(gm, (step,), stage, context)
            stage, text = step.stage, format_graph(gm.graph)
            changed = step.run(gm, context)
            verify(gm, stage, after=step.name)
            assert format_graph(gm.graph) == text, step.name
            assert not changed or step.name in ("annotate", "share_qparams", "hand_out_floats"), step.name
            gm.recompile()
            assert max_difference(flat(gm(x)), flat(wanted)) <= 1e-5, step.name


def flat(value: Any) -> Tensor:
    return torch.cat([v.flatten() for v in value]) if isinstance(value, tuple) else value.flatten()


@pytest.mark.parametrize("name", MODELS)
def test_rules_fuse_in_any_order(name: str) -> None:
    texts = set()
    families = [[rule for rule in RULES if rule.name == name] for name in dict.fromkeys(rule.name for rule in RULES)]
    for order in (*itertools.permutations(families, 2), tuple(reversed(families))):
        rules = [rule for family in (*order, *(f for f in families if f not in order)) for rule in family]
        gm, context, x = start(name)
        run_passes(gm, FUSE[:-1], Stage.TRACED, context)
        with torch.no_grad():
            wanted = gm(x)
            run_rules(gm, rules, OPS)
            gm.graph.eliminate_dead_code()
            gm.recompile()
            assert max_difference(flat(gm(x)), flat(wanted)) <= 1e-5
        texts.add(format_graph(gm.graph))
    assert len(texts) == 1


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_goes_the_same_way(name: str) -> None:
    """Passes depend on the graph alone: a copy of the traced module gives the same text."""
    gm, context, _ = start(name)
    other = copy.deepcopy(gm)
    _, again, _ = start(name)
    run_passes(gm, (*FUSE, *OBSERVE), Stage.TRACED, context)
    run_passes(other, (*FUSE, *OBSERVE), Stage.TRACED, again)
    assert format_graph(gm.graph) == format_graph(other.graph)
