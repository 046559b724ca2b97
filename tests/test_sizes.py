"""Which sizes change with the inputs, and how: predicted sizes equal those of real runs at other inputs, for all nodes."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompiler import ConfigError, fuse_fx, prepare_fx
from qcompiler.config.custom_config import PrepareCustomConfig
from qcompiler.ir.text import format_graph
from qcompiler.ir.types import VALUE, Value
from qcompiler.ops.reference import quantize
from qcompiler.stages.size_expressions import Expression, Name, evaluate
from qcompiler.stages.size_rules import Known, Local, window
from qcompiler.stages.sizes import Shape, Sizes, sizes_of
from tests.flow import flow, randn
from tests.quantized_zoo import ENTRIES, SMALL, VISION, WIDE, fused, images, observed, quantized


class Shapes(fx.Interpreter):
    """Runs a graph on data, and notes what size each node's result has, as Sizes.at gives it."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.found[n] = sized(value)
        return value


def sized(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shape(map(int, value.shape))
    if isinstance(value, (list, tuple)):
        return [sized(part) for part in value]
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def real(gm: fx.GraphModule, inputs: tuple[Any, ...]) -> dict[fx.Node, Any]:
    shapes = Shapes(gm)
    with torch.no_grad():
        shapes.run(*inputs)
    return {node: found for node, found in shapes.found.items() if node.op != "output"}


def assert_right(gm: fx.GraphModule, sizes: Sizes, inputs: tuple[Any, ...], **values: int) -> None:
    """The sizes predicted for all nodes whose size is known are the real ones."""
    predicted, found = sizes.at(**values), real(gm, inputs)
    assert predicted.keys() == found.keys()
    wrong = {node.name: (predicted[node], found[node]) for node in found if node not in sizes.unknown and predicted[node] != found[node]}
    assert wrong == {}


QUICK = ("resnet18", "mobilenet_v3_small", "googlenet")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in (*VISION, *WIDE) if name not in QUICK]
IMAGES = ({"batch": 1, "height": 65, "width": 97}, {"batch": 3, "height": 88, "width": 71}, {"batch": 2, "height": 102, "width": 64})
SEQUENCES = ({"batch": 1, "length": 7}, {"batch": 5, "length": 12}, {"batch": 3, "length": 23})


@pytest.mark.parametrize("name", [*SMALL, *QUICK, *SLOW])
def test_predicted_sizes_are_the_real_ones_at_other_inputs(name: str) -> None:
    gm, entry = quantized(name), ENTRIES[name]
    sizes = sizes_of(gm)
    assert {node.name for node in sizes.unknown} == ({"bool_1"} if name == "branch" else set())
    assert_right(gm, sizes, entry.inputs())
    for values in IMAGES if entry.inputs is images else SEQUENCES:
        assert set(values) == set(sizes.dims)
        assert_right(gm, sizes, entry.inputs(**values), **values)


@pytest.mark.parametrize("graph", [fused, observed])
@pytest.mark.parametrize("name", ["parts", "resizes", "resnet18"])
def test_other_stages(name: str, graph: Callable[[str], fx.GraphModule]) -> None:
    gm = graph(name)
    before = format_graph(gm.graph)
    sizes = sizes_of(gm)
    assert sizes.unknown == {} and format_graph(gm.graph) == before
    by_name = {node.name: found for node, found in sizes_of(quantized(name)).items()}
    assert all(by_name.get(node.name, found) == found for node, found in sizes.items())
    if graph is fused:
        assert_right(gm, sizes, images(**IMAGES[1]), **IMAGES[1])


def test_what_a_reader_sees() -> None:
    gm = quantized("parts")
    found = {node.name: sizes for node, sizes in sizes_of(gm).items()}
    assert str(found["last"][0]) == "batch * (height // 2) * (width // 2 + 1)"  # type: ignore[index]
    assert found["second_weight_dq"] == (4, 4, 3, 3) and found["second"][1] == 4  # type: ignore[index]
    numbers = {str(size) for size in found.values() if isinstance(size, Expression)}
    assert numbers == {"width // 2 + 1"}, "what the model returns as a number"


# ---- dimensions of the inputs


def dims_of(model: nn.Module, *inputs: Tensor) -> Sizes:
    return sizes_of(fuse_fx(model.eval(), inputs))


class Coarse(nn.Module):
    """Steps of 32: near the example all sizes behind the pools are the same, and only further away they are not constant."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.avg_pool2d(F.max_pool2d(x, 8), 4)
        return torch.relu(y + y), torch.zeros(y.shape[2], y.size(3))


def test_what_is_constant_only_nearby() -> None:
    gm = fuse_fx(Coarse().eval(), (randn(1, 3, 64, 64),))
    sizes = sizes_of(gm)
    zeros = next(found for node, found in sizes.items() if node.name == "zeros")
    assert str(zeros) == "((height // 8) // 4, (width // 8) // 4)" and sizes.unknown == {}
    for height, width in ((97, 64), (64, 130), (300, 40)):
        assert_right(gm, sizes, (randn(1, 3, height, width),), height=height, width=width)


class Flat(nn.Module):
    """Holds the image size fixed: a view to a number of columns that depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))


def test_a_size_that_a_model_holds_fixed_is_named_with_the_node() -> None:
    sizes = dims_of(Flat(), randn(2, 3, 8, 8))
    assert list(sizes.dims) == ["batch"] and set(sizes.fixed) == {("x", 1), ("x", 2), ("x", 3)}
    assert sizes.fixed["x", 2].startswith("%fc: ") and sizes.fixed["x", 1].startswith("%conv: ")
    with pytest.raises(ConfigError, match="no dimension 'height' changes; there are batch"):
        sizes.at(height=9)


class Halved(nn.Module):
    """Down and up again, and a sum with what was before: multiples of four alone."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 3, 4, stride=4), nn.ConvTranspose2d(3, 3, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x)) + x


def test_a_dimension_that_changes_in_steps() -> None:
    model = Halved()
    gm = fuse_fx(model.eval(), (randn(1, 3, 16, 24),))
    sizes = sizes_of(gm)
    assert [(dim.name, dim.example, dim.step) for dim in sizes.dims.values()] == [("batch", 1, 1), ("height", 16, 4), ("width", 24, 4)]
    assert_right(gm, sizes, (randn(2, 3, 8, 20),), batch=2, height=8, width=20)
    with pytest.raises(ConfigError, match="height changes in steps of 4 from 16, so it cannot be 18") as caught:
        sizes.at(height=18)
    assert caught.value.code == "size-step"


class Masked(nn.Module):
    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return (tokens * mask.unsqueeze(-1)).sum(1)


def test_dimensions_of_several_inputs_that_only_change_together() -> None:
    sizes = dims_of(Masked(), randn(2, 7, 4), torch.ones(2, 7, dtype=torch.int64))
    assert {name: dim.places for name, dim in sizes.dims.items()} == {
        "batch": (("tokens", 0), ("mask", 0)), "length": (("tokens", 1), ("mask", 1)), "features": (("tokens", 2),)
    }  # fmt: skip


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.transpose(2, 3)


def test_two_dimensions_of_one_input_that_must_be_equal() -> None:
    sizes = dims_of(Square(), randn(2, 3, 5, 5))
    assert sizes.dims["height"].places == (("x", 2), ("x", 3)) and "width" not in sizes.dims


class Apart(nn.Module):
    """Two images of different sizes."""

    def forward(self, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
        return F.max_pool2d(one, 2), two[:, :, ::2]


def test_names_of_a_second_input() -> None:
    sizes = dims_of(Apart(), randn(2, 3, 8, 8), randn(2, 3, 12, 10))
    assert set(sizes.dims) == {"batch", "channels", "height", "width", "two_height", "two_width"}
    last = [found for node, found in sizes.items() if node.name.startswith("getitem")][-1]
    assert isinstance(last, Shape) and str(last[2]) == "(two_height + 1) // 2"


class Nested(nn.Module):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        return torch.relu(batch["x"]) + batch["rest"][0]


def test_tensors_in_containers() -> None:
    gm = fuse_fx(Nested().eval(), ({"x": randn(2, 5), "rest": [randn(2, 5)]},))
    sizes = sizes_of(gm)
    assert {name: dim.places for name, dim in sizes.dims.items()} == {
        "batch": (("batch.x", 0), ("batch.rest.0", 0)), "features": (("batch.x", 1), ("batch.rest.0", 1))
    }  # fmt: skip
    assert sizes.unknown == {}


# ---- what nobody can tell


class Selects(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[x > 0] * 2, torch.relu(x)


def test_a_size_that_depends_on_data_is_unknown_with_the_reason() -> None:
    sizes = dims_of(Selects(), randn(2, 5))
    reasons = {node.name: reason for node, reason in sizes.unknown.items()}
    assert set(reasons) == {"getitem", "mul"} and reasons["mul"].startswith("%getitem: "), reasons
    assert next(found for node, found in sizes.items() if node.name == "relu") == (Name("batch"), Name("features"))


def test_a_number_of_parts_that_changes_is_unknown() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta[VALUE] = Value((2, 8), torch.float32)
    parts = graph.call_function(torch.split, (x, 3, 1))
    first = graph.call_function(operator.getitem, (parts, 0))
    graph.output(first)
    sizes = sizes_of(fx.GraphModule(nn.Module(), graph))
    assert sizes.unknown == dict.fromkeys((parts, first), "%split: its kind or its number of parts changes with the sizes")


class Odd(nn.Module):
    """A size that no rule explains: a call that nobody knows, of a size that is no linear function."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).real


def test_a_size_that_nothing_explains_is_not_guessed() -> None:
    reasons = dims_of(Odd(), randn(2, 9)).unknown
    assert [node.name for node in reasons] == ["fft_rfft", "getattr_1"]
    assert all(reason.startswith("%fft_rfft: nothing explains the sizes 5, 7, 8, 10, 13, ") for reason in reasons.values())


# ---- rules


WINDOWS = [(k, s, p, d) for k, s, p, d in itertools.product((1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2)) if p <= k // 2]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), WINDOWS)
def test_windows(kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> None:
    """Every size, not only those of the runs: what a stride leaves over shows at each of them."""
    settings = {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    x = tuple(Known(size, ()) for size in (1, 1, Name("length")))
    rule = window(Local(fx.Graph().placeholder("x"), "max_pool1d", (x,), (), settings), 2, 3)
    for length in range(dilation * (kernel - 1) + 1, 40):
        expected = F.max_pool1d(torch.empty(1, 1, length, device="meta"), kernel, stride, padding, dilation, ceil_mode).shape[2]
        assert rule is not None and evaluate(rule, {"length": length}) == expected, (length, rule)


SLICES: list[Callable[[Tensor], Tensor]] = [
    lambda x: x[:, 2:], lambda x: x[:, :-3], lambda x: x[:, 1:-1], lambda x: x[:, ::3], lambda x: x[:, 1::2], lambda x: x[..., -4:],
    lambda x: x[:, -5:-1], lambda x: x[:, 2 : x.shape[1] - 1], lambda x: x[:, : x.shape[1] // 2], lambda x: x.narrow(1, 1, x.shape[1] - 2),
    lambda x: F.pad(x, (1, 3)), lambda x: F.pad(x, (0, -x.shape[1] % 8)), lambda x: F.pad(x, (-2, 1)), lambda x: x.repeat(2, 3),
    lambda x: torch.cat([x, x[:, 1:], x[:, :1]], 1), lambda x: x.unfold(1, 3, 2), lambda x: x.chunk(3, 1)[0], lambda x: x.reshape(-1),
    lambda x: F.interpolate(x[None], scale_factor=1.5)[0], lambda x: F.interpolate(x[None], scale_factor=0.5)[0],
    lambda x: torch.arange(x.shape[1]) + x, lambda x: torch.zeros(x.shape[1], x.shape[0]), lambda x: x.t() @ x, lambda x: x.sum(1, True),
    lambda x: x.repeat_interleave(2, 1), lambda x: x[:, None].expand(-1, 4, -1).flatten(1),
    lambda x: torch.stack([x, x], 2).view(x.shape[0], -1), lambda x: x.unsqueeze(0).squeeze(0), lambda x: torch.outer(x[0], x[0]),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(SLICES)))
def test_cuts_and_shapes(index: int) -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return SLICES[index](x) * 2

    gm = fuse_fx(Cut().eval(), (randn(2, 12),))
    sizes = sizes_of(gm)
    assert sizes.unknown == {}
    for features in (*range(6, 12), 13, 17, 28, 31):
        assert_right(gm, sizes, (randn(3, features),), batch=3, features=features)


def test_parameters_stay_as_they_are() -> None:
    gm = quantized("sequence")
    before = {name: value.clone() for name, value in gm.state_dict().items()}
    state = torch.get_rng_state()
    sizes_of(gm)
    assert torch.equal(torch.get_rng_state(), state)
    after = gm.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_inside_a_module_that_is_called_whole() -> None:
    """A BatchNorm's buffers cannot be copied where shapes alone are run."""
    norm = nn.Sequential(nn.BatchNorm1d(8), nn.ReLU())
    custom = PrepareCustomConfig().set_non_traceable_module_names(["1"])
    gm = prepare_fx(nn.Sequential(nn.Conv1d(3, 8, 1), norm).eval(), None, (randn(2, 3, 6),), prepare_custom_config=custom)
    (called,) = (node for node in gm.graph.nodes if node.target == "1")
    sizes = sizes_of(gm)
    assert sizes[called] == Shape((Name("batch"), 8, Name("length")))
    assert_right(gm, sizes, (randn(3, 3, 9),), batch=3, length=9)


def test_quantized_and_float_nodes_have_one_size() -> None:
    gm = flow(Halved().eval(), (randn(1, 3, 16, 16),)).reference
    sizes = sizes_of(gm)
    for node in gm.graph.nodes:
        if node.target is quantize:
            assert sizes[node] == sizes[node.args[0]]
