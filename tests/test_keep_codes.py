"""Constants of one element as numbers, and affine ops that keep the codes of the value before them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler as qc


class Blocks(nn.Module):
    """As PP-LCNet has them: numbers in tensors of one element, and hardswish written out with such."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)])
        for name, value in {"three": 3.0, "six": 6.0, "scale": 1.3, "bias": 0.4, "after": 0.8, "last": -0.2}.items():
            self.register_buffer(name, torch.tensor([value]))

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            y = conv(x) * self.scale + self.bias
            x = y * F.hardtanh(y + self.three, 0.0, 6.0) / self.six * self.after + self.last
        return x.mean((2, 3)).cos()


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_affine_blocks_round_once(backend: str) -> None:
    model, x = Blocks().eval(), torch.randn(8, 3, 12, 12)
    prepared = qc.prepare_fx(model, None, (x,), backend=backend)
    qc.calibrate(prepared, [x])
    module = qc.convert_fx(prepared)
    names = [row.op for row in qc.explain(module).rows]
    assert names.count("conv2d") == names.count("hardswish") == 3 and "div" not in names
    graph = qc.convert_to_reference_fx(prepared)
    codes = {node.name: node.args[1:3] for node in graph.graph.nodes if node.name.endswith("_q")}
    for active, product, total in (("hardswish", "mul_2", "add_2"),):
        (s, z), (t, y), (u, w) = codes[f"{active}_q"], codes[f"{product}_q"], codes[f"{total}_q"]
        assert t == pytest.approx(s * 0.8, rel=1e-6) and z == y and t == u
        assert (w - y) * u == pytest.approx(0.2, abs=0.02 * u)
    with torch.no_grad():
        assert qc.debug.compute_sqnr(model(x), module(x)) > 30


def test_an_offset_below_the_range_rounds_anew() -> None:
    """A value whose zero would lie beyond the codes cannot keep them, nor can one whose offset is no number of its steps."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardswish()).eval()
    x = torch.randn(4, 3, 8, 8)

    class Shifted(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.body, self.last, self.by = model, nn.Conv2d(4, 4, 1), by

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(self.body(x) + self.by)
            return y

    for by in (1e-3, 0.01, 5.0, -5.0):
        net = Shifted(by).eval()
        with torch.no_grad():
            assert qc.debug.compute_sqnr(net(x), qc.quantize(net, [x], progress=False)(x)) > 25


def test_numbers_are_named_and_training_keeps_them() -> None:
    model, x = Blocks().eval(), torch.randn(8, 3, 12, 12)
    module = qc.quantize(model, [x], progress=False)
    (number,) = [remark for remark in qc.remarks(module) if remark.code == "number"]
    assert "after" in number.text and "last" in number.text
    assert "after" not in module.state_dict()
    trained = qc.prepare_qat_fx(copy.deepcopy(model).train(), None, (x,))
    trained(x)
    assert "after" in dict(trained.named_buffers())
    assert not [remark for remark in qc.remarks(qc.convert_fx(trained.eval())) if remark.code == "number"]


def test_a_trained_three_is_no_number_of_a_pattern() -> None:
    class Learned(nn.Module):
        def __init__(self, learned: bool) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
            three = torch.tensor([3.0])
            if learned:
                self.three = nn.Parameter(three)
            else:
                self.register_buffer("three", three)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            z: Tensor = self.last(y * F.relu6(y + self.three) / 6)
            return z

    for learned in (False, True):
        fused = qc.fuse_fx(Learned(learned).eval())
        assert ("hardswish" in str(fused.graph)) is not learned
