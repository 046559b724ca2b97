"""torchvision's CNNs through the native back end at a small input size: one region each, every layer within a step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import qcompiler
from qcompiler.debug import compute_sqnr
from tests import zoo
from tests.native_nets import region_of, steps_apart

WHOLE = ("mobilenet_v2", "mobilenet_v3_small", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x1_0", "efficientnet_b0",
         "googlenet", "densenet121", "mnasnet1_0", "regnet_y_400mf", "alexnet")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_a_cnn_is_one_region(name: str) -> None:
    model, (first, second) = zoo.few(name), zoo.inputs(2, 64, 2)
    prepared = qcompiler.prepare_fx(model, None, (first,), backend="native")
    qcompiler.calibrate(prepared, [first, second])
    module, graph = qcompiler.convert_fx(prepared), qcompiler.convert_to_reference_fx(prepared)
    region_of(module)
    held = {"method.size", "guard.guard_int"}  # of the input's channels, in front of the region
    assert {call.op for call in module.program.calls} - held == {"runtime.run_region", "operator.getitem"}
    assert not [remark for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    for x in (first, zoo.inputs(1, 96, 1)[0]):
        apart = steps_apart(module, graph, x)
        # A sum or a SiLU inside a convolution is two layers: the convolution's own value may be a step off, and what follows rounds again.
        twice = {n.name for n in graph.graph.nodes if n.name.startswith("add") or F.silu in {p.target for p in n.all_input_nodes}}
        assert max(apart.values()) <= 2 and {name for name, steps in apart.items() if steps > 1} <= twice
    with torch.inference_mode():
        expected, simulated, got = model(first), graph(first), module(first)
    # One value at a half step falls to the other side somewhere, and untrained layers enlarge it: neither is the better one.
    assert compute_sqnr(expected, got) > compute_sqnr(expected, simulated) - 1
