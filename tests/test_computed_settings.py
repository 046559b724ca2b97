"""Settings that a forward computes from the sizes of its input: int8 where a kernel can take them, float with a reason where none can."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler
from qcompiler.debug import compute_sqnr

Forward = Callable[..., Tensor]
FORMS: dict[str, tuple[Forward, bool]] = {  # how the layer in the middle is called, and whether it has to be float
    "groups of the input": (lambda s, x: F.conv2d(x, s.each.weight, s.each.bias, padding=1, groups=x.shape[1]), True),
    "groups of a product": (
        lambda s, x: F.conv2d(x, s.each.weight, s.each.bias, padding=1, groups=x.size(1) * x.size(0) // x.size(0)),
        True,
    ),
    "padding": (lambda s, x: F.conv2d(x, s.each.weight, s.each.bias, padding=x.shape[1] // 8, groups=8), True),
    "padding of a pair": (lambda s, x: F.conv2d(x, s.each.weight, None, padding=(1, x.shape[1] // 8), groups=8), True),
    "stride": (lambda s, x: F.conv2d(x, s.dense.weight, None, stride=x.shape[1] // 4), True),
    "groups of one dimension": (
        lambda s, x: F.conv1d(x.flatten(2), s.line.weight, None, padding=1, groups=x.shape[1]).unflatten(2, (6, 6)),
        True,
    ),
    "pool over all": (lambda s, x: F.avg_pool2d(s.dense(x), x.shape[2:]), True),
    "pool of one number": (lambda s, x: F.max_pool2d(s.dense(x), x.shape[2]), True),
    "pool of a stride": (lambda s, x: F.avg_pool2d(s.dense(x), 2, stride=x.shape[2] // 3), True),
    "pool of a line": (lambda s, x: F.avg_pool1d(s.dense(x).flatten(2), x.shape[3]).unflatten(2, (6, 1)), True),
    "adaptive pool": (lambda s, x: F.adaptive_avg_pool2d(s.dense(x), x.shape[2] // 2), False),
    "adaptive pool of a pair": (lambda s, x: F.adaptive_max_pool2d(s.dense(x), (x.shape[2] // 2, x.shape[3])), False),
    "mean": (lambda s, x: s.dense(x).sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3]), False),
    "slope": (lambda s, x: F.leaky_relu(s.dense(x), 1 / x.shape[1]), True),
    "alpha of elu": (lambda s, x: F.elu(s.dense(x), 1 / x.shape[1]), True),
    "alpha of a sum": (lambda s, x: torch.add(s.dense(x), x, alpha=x.shape[1] // 4), True),
    "alpha of a difference": (lambda s, x: s.dense(x).sub(x, alpha=x.shape[1] / 4), True),
    "alpha in place": (lambda s, x: s.dense(x).add_(x, alpha=x.shape[2] // 2), True),
    "alpha of a number": (lambda s, x: torch.rsub(s.dense(x), 1.5, alpha=x.shape[1] // 4), True),
    "power": (lambda s, x: s.dense(x).pow(x.shape[1] // 4), True),
    "clamp": (lambda s, x: s.dense(x).clamp(-1, x.shape[1] / 4), False),
    "eps": (lambda s, x: F.instance_norm(s.dense(x), eps=1 / x.shape[1]), True),
    "roll": (lambda s, x: torch.roll(s.dense(x), x.shape[2] // 2, 2), False),
    "shuffled": (lambda s, x: F.channel_shuffle(s.dense(x), x.shape[1] // 4), False),
    "repeated": (lambda s, x: s.dense(x).repeat_interleave(x.shape[2] // 3, 2), False),
    "unfolded": (lambda s, x: F.unfold(s.dense(x), x.shape[2] // 6).view(x.shape), False),
    "as many groups": (lambda s, x: F.group_norm(s.dense(x), x.shape[1] // 2), False),
    "size of a resize": (lambda s, x: F.interpolate(s.dense(x), size=(x.shape[2] * 2, x.shape[3])), False),
    "pad": (lambda s, x: F.pad(s.dense(x), (0, x.shape[3] % 4, 0, x.shape[2] % 4)), False),
}


class Net(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.first, self.dense, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.each, self.line = nn.Conv2d(8, 8, 3, groups=8), nn.Conv1d(8, 8, 3, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(FORMS[self.form][0](self, self.first(x))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("engine", ["x86", "qnnpack"])
def test_a_computed_setting_is_right(form: str, engine: str) -> None:
    torch.manual_seed(0)
    model, x = Net(form).eval(), torch.randn(2, 3, 6, 6)
    mapping = qcompiler.get_default_qconfig_mapping(engine)
    small = qcompiler.quantize(model, [x], mapping, engine=engine, progress=False)
    assert compute_sqnr(model(x), small(x)) > 20
    assert compute_sqnr(model(x[:1]), small(x[:1])) > 15
    codes = [row.code for row in qcompiler.explain(small).rows]
    assert ("computed-setting" in codes) or not FORMS[form][1]
