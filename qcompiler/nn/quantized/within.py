"""A quint8 tensor cut to the codes that training had, where those are fewer than the 256 that kernels give."""
# no `from __future__ import annotations`: torch.jit reads the annotations themselves

from torch import Tensor, nn

from qcompiler.backends.torch.runtime import floats


class Within(nn.Module):
    """Cuts a quint8 tensor of any shape to codes from `least` to `most`."""

    def __init__(self, least: int, most: int) -> None:
        super().__init__()
        self.least, self.most = least, most

    def forward(self, x: Tensor) -> Tensor:
        zero = int(x.q_zero_point())
        step = float(x.q_scale())
        return floats.clamp_own(x, step * (self.least - zero), step * (self.most - zero))

    def extra_repr(self) -> str:
        return f"{self.least}..{self.most}"
