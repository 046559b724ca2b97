"""Models whose forward keeps something from call to call, one for each way of spelling it."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 2
CARRIED: dict[str, type[nn.Module]] = {}
GLOBAL = torch.zeros(ROWS, 8)
TABLE = {"h": torch.zeros(ROWS, 8)}


def zeros() -> Tensor:
    return torch.zeros(ROWS, 8)


class Kept(nn.Module):
    """A linear layer and the attributes of a kind; `shape` is that of its input."""

    shape: tuple[int, ...] = (ROWS, 8)
    attributes: dict[str, Any] = {}

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l = nn.Linear(8, 8)
        for name, value in copy.deepcopy(self.attributes).items():
            if isinstance(value, nn.Module):
                value.reset_parameters()  # type: ignore[operator]
            if isinstance(value, nn.Parameter):
                self.register_buffer(name, value.data)
            else:
                setattr(self, name, value)
        self.eval()


def buffer(value: Tensor) -> nn.Parameter:
    """Marks an attribute as a buffer."""
    return nn.Parameter(value, requires_grad=False)


def kind(shape: tuple[int, ...] = (ROWS, 8), table: dict[str, type[nn.Module]] | None = CARRIED, **attributes: Any) -> Callable[..., Any]:
    """A class from a forward function."""

    def made(forward: Callable[[Any, Tensor], Any]) -> type[nn.Module]:
        cls = type(forward.__name__, (Kept,), {"forward": forward, "shape": shape, "attributes": attributes, "__module__": __name__})
        if table is not None:
            table[forward.__name__] = cls
        globals()[forward.__name__] = cls
        return cls

    return made


def step(s: Any, x: Tensor, h: Any) -> tuple[Tensor, Tensor]:
    y = s.l(x + 0.5 * h)
    return y, torch.tanh(y)


# ---- recurrent layers and cells


@kind((ROWS, 3, 8), g=nn.GRU(8, 16, batch_first=True), h=None)
def gru(s: Any, x: Tensor) -> Tensor:
    y, s.h = s.g(x, s.h)
    return y  # type: ignore[no-any-return]


@kind((3, ROWS, 8), g=nn.LSTM(8, 16, 2, bidirectional=True), h=None)
def lstm(s: Any, x: Tensor) -> Tensor:
    y, h = s.g(x, s.h)
    s.h = (h[0].detach(), h[1].detach())
    return y  # type: ignore[no-any-return]


@kind(g=nn.LSTMCell(8, 16), h=None)
def lstm_cell(s: Any, x: Tensor) -> Tensor:
    s.h = s.g(x, s.h)
    return s.h[0]  # type: ignore[no-any-return]


@kind((ROWS, 3, 6, 6), c=nn.Conv2d(7, 16, 3, padding=1), state=None)
def conv_lstm(s: Any, x: Tensor) -> Tensor:
    if s.state is None:
        z = torch.zeros(x.size(0), 4, x.size(2), x.size(3))
        s.state = (z, z)
    h, c = s.state
    i, f, o, g = s.c(torch.cat([x, h], 1)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    s.state = (o.sigmoid() * c.tanh(), c)
    return s.state[0]  # type: ignore[no-any-return]


@kind((ROWS, 4, 10), c=nn.Conv1d(4, 4, 3), b=buffer(torch.zeros(1, 4, 2)))
def causal_conv(s: Any, x: Tensor) -> Tensor:
    y = torch.cat([s.b.expand(x.shape[0], -1, -1), x], 2)
    s.b = y[:, :, -2:]
    return s.c(y)  # type: ignore[no-any-return]


@kind((ROWS, 3, 8), k=None)
def key_cache(s: Any, x: Tensor) -> Tensor:
    k = s.l(x)
    s.k = k if s.k is None else torch.cat([s.k, k], 1)
    return torch.softmax(x @ s.k.transpose(1, 2), -1) @ s.k  # type: ignore[no-any-return]


# ---- attributes and buffers


@kind(h=None)
def zeros_at_first(s: Any, x: Tensor) -> Any:
    if s.h is None:
        s.h = torch.zeros_like(x)
    y, s.h = step(s, x, s.h)
    return y


@kind(h=None)
def moving_average(s: Any, x: Tensor) -> Any:
    y = s.l(x)
    s.h = y if s.h is None else 0.9 * s.h + 0.1 * y
    return s.h


@kind(h=None)
def difference(s: Any, x: Tensor) -> Any:
    y = s.l(x)
    d = y if s.h is None else y - s.h
    s.h = y
    return d


@kind(h=0)
def number_at_first(s: Any, x: Tensor) -> Any:
    y, s.h = step(s, x, s.h)
    return y


@kind(h=None)
def set_once(s: Any, x: Tensor) -> Any:
    if s.h is None:
        s.h = x.mean(0, keepdim=True)
    return s.l(x - s.h)


@kind(started=False, h=torch.zeros(1))
def flag(s: Any, x: Tensor) -> Any:
    if not s.started:
        s.started, s.h = True, torch.zeros_like(x)
    y, s.h = step(s, x, s.h)
    return y


@kind(h=torch.zeros(1, 8))
def broadcast(s: Any, x: Tensor) -> Any:
    y, s.h = step(s, x, s.h)
    return y


@kind(h=buffer(zeros()))
def assigned_buffer(s: Any, x: Tensor) -> Any:
    y, s.h = step(s, x, s.h)
    return y


@kind(h=buffer(zeros()))
def buffer_in_place(s: Any, x: Tensor) -> Any:
    y = s.l(x + 0.5 * s.h)
    s.h.mul_(0.9).add_(0.1 * x)
    return y


@kind(h=buffer(zeros()))
def buffer_rows(s: Any, x: Tensor) -> Any:
    y, h = step(s, x, s.h)
    s.h[0] = h[0]
    s.h[1].copy_(h[1])
    return y


@kind(h=buffer(torch.zeros(ROWS, 3, 8)))
def rolled(s: Any, x: Tensor) -> Any:
    y, h = step(s, x, s.h.mean(1))
    s.h = torch.roll(s.h, -1, 1)
    s.h[:, -1] = h
    return y


@kind(h=zeros())
def attribute_in_place(s: Any, x: Tensor) -> Any:
    s.h.mul_(0.5).add_(s.l(x))
    return s.h


@kind(h=zeros())
def by_data(s: Any, x: Tensor) -> Any:
    y, h = step(s, x, s.h)
    s.h.data.copy_(h)
    return y


@kind()
def late_attribute(s: Any, x: Tensor) -> Any:
    y, h = step(s, x, getattr(s, "h", torch.zeros_like(x)))
    setattr(s, "h", h)  # noqa: B010
    return y


@kind()
def late_buffer(s: Any, x: Tensor) -> Any:
    if not hasattr(s, "h"):
        s.register_buffer("h", torch.zeros_like(x))
    y, s.h = step(s, x, s.h)
    return y


# ---- containers, objects, names outside the model


@kind(held={"h": zeros()})
def dict_item(s: Any, x: Tensor) -> Any:
    y, s.held["h"] = step(s, x, s.held["h"])
    return y


@kind(held={})
def new_dict_item(s: Any, x: Tensor) -> Any:
    h = s.held.get("h")
    y, s.held["h"] = step(s, x, torch.zeros_like(x) if h is None else h)
    return y


@kind(held={"a.b": zeros(), 1: zeros(), "type": zeros(), "": zeros()})
def odd_keys(s: Any, x: Tensor) -> Any:
    y, h = step(s, x, 0.2 * sum(s.held.values()))
    for key in s.held:
        s.held[key] = h
    return y


@kind(held=[zeros(), zeros()])
def list_items(s: Any, x: Tensor) -> Any:
    y, h = step(s, x, s.held[0])
    s.held[0], s.held[1] = s.held[1], h
    return y


@kind(held=deque([zeros() for _ in range(3)], maxlen=3))
def queue(s: Any, x: Tensor) -> Any:
    y, h = step(s, x, s.held[0])
    s.held.append(h)
    return y


@kind(**{f"d{i}": zeros() for i in range(6)})
def delay_line(s: Any, x: Tensor) -> Any:
    y, h = step(s, x, s.d0)
    for i in range(5):
        setattr(s, f"d{i}", getattr(s, f"d{i + 1}"))
    s.d5 = h
    return y


@kind(held=SimpleNamespace(h=zeros(), n=0))
def helper_object(s: Any, x: Tensor) -> Any:
    y, s.held.h = step(s, x, s.held.h)
    s.held.n += 1
    return y * s.held.n


@kind(held=(zeros(), 0))
def tuple_with_number(s: Any, x: Tensor) -> Any:
    y, h = step(s, x, s.held[0])
    s.held = (h, s.held[1] + 1)
    return y * s.held[1]


@kind(held={"a": {"b": [zeros()]}})
def nest(s: Any, x: Tensor) -> Any:
    y, h = step(s, x, s.held["a"]["b"][0])
    s.held = {"a": {"b": [h]}}
    return y


@kind()
def class_attribute(s: Any, x: Tensor) -> Any:
    y, type(s).h = step(s, x, s.h)
    return y


CARRIED["class_attribute"].h = zeros()  # type: ignore[assignment]


@kind()
def global_name(s: Any, x: Tensor) -> Any:
    global GLOBAL
    y, GLOBAL = step(s, x, GLOBAL)
    return y


@kind()
def global_dict(s: Any, x: Tensor) -> Any:
    y, TABLE["h"] = step(s, x, TABLE["h"])
    return y


# ---- numbers


@kind(n=0)
def counter(s: Any, x: Tensor) -> Any:
    s.n += 1
    return s.l(x) * s.n


@kind(t=0)
def clock(s: Any, x: Tensor) -> Any:
    s.t += 0.1
    return s.l(x) * (1 + s.t)


@kind((ROWS, 3, 8), t=0, pe=buffer(torch.randn(64, 8, generator=torch.Generator().manual_seed(0))))
def position(s: Any, x: Tensor) -> Any:
    s.t += x.shape[1]
    return s.l(x) + s.pe[s.t - x.shape[1] : s.t]


@kind(h=buffer(torch.zeros(ROWS, 3, 8)), i=0)
def ring(s: Any, x: Tensor) -> Any:
    y = s.l(x)
    s.h[:, s.i] = torch.tanh(y)
    s.i = (s.i + 1) % 3
    return y + s.h.mean(1)


@kind(n=buffer(torch.tensor(0)))
def counting_buffer(s: Any, x: Tensor) -> Any:
    s.n.add_(1)
    return s.l(x) * s.n


@kind(phase=torch.zeros(1))
def phase(s: Any, x: Tensor) -> Any:
    s.phase = s.phase + 0.1
    return s.l(x) + torch.sin(s.phase)


# ---- what is no state: int8 as ever

UNREAD: dict[str, type[nn.Module]] = {}
MEMOS: dict[str, type[nn.Module]] = {}


@kind(table=UNREAD, attention=None)
def last_attention(s: Any, x: Tensor) -> Any:
    s.attention = s.l(x).softmax(-1)
    return x * s.attention


@kind(table=UNREAD, log=[])
def growing_log(s: Any, x: Tensor) -> Any:
    y = s.l(x)
    s.log.append(y)
    return y


@kind(table=UNREAD, calls=0)
def pure_counter(s: Any, x: Tensor) -> Any:
    s.calls += 1
    return s.l(x)


@kind((ROWS, 3, 8), table=MEMOS, pe=None)
def positions_of_size(s: Any, x: Tensor) -> Any:
    if s.pe is None or s.pe.shape[0] != x.shape[1]:
        s.pe = 0.1 * torch.arange(x.shape[1]).float()[:, None].expand(-1, 8)
    return s.l(x) + s.pe


@kind((ROWS, 3, 8), table=MEMOS, pes={})
def positions_by_key(s: Any, x: Tensor) -> Any:
    if "pe" not in s.pes:
        s.pes["pe"] = torch.linspace(0, 1, 8)
    return s.l(x) + s.pes["pe"]


@kind(h=zeros())
def branch_on_state(s: Any, x: Tensor) -> Any:
    y = s.l(x) * 2 if s.h.sum() > 0.1 else s.l(x)
    s.h = y
    return y


# ---- what cannot be carried: the root is an error, a submodule a float leaf

REFUSED: dict[str, type[nn.Module]] = {}


@kind(table=REFUSED, n=0)
def branch_on_counter(s: Any, x: Tensor) -> Any:
    s.n += 1
    return s.l(x) * 2 if s.n > 2 else s.l(x)


@kind(table=REFUSED, first=True)
def first_call_differs(s: Any, x: Tensor) -> Any:
    y = s.l(x) if s.first else F.relu(s.l(x))
    s.first = False
    return y


@kind(table=REFUSED, window=[])
def window_that_fills(s: Any, x: Tensor) -> Any:
    s.window = [*s.window, s.l(x)][-3:]
    return sum(s.window)


@kind(table=REFUSED, mode="a")
def text_each_call(s: Any, x: Tensor) -> Any:
    s.mode = {"a": "b", "b": "c", "c": "a"}[s.mode]
    return s.l(x) * 2 if s.mode == "a" else s.l(x)


@kind(table=REFUSED, t=np.float32(0))
def numpy_number(s: Any, x: Tensor) -> Any:
    s.t = s.t + np.float32(0.5)
    return s.l(x) * float(s.t)


@kind(h=torch.zeros(4, 4))
def view_of_another_form(s: Any, x: Tensor) -> Any:
    y, h = step(s, x, s.h.view(2, 8))
    s.h.view(2, 8).copy_(h)
    return y


@kind(table=REFUSED, h=None)
def now_and_then(s: Any, x: Tensor) -> Any:
    y = s.l(x)
    if s.h is not None:
        y, s.h = y + s.h, None
    else:
        s.h = y
    return y


@kind(table=REFUSED, h=None)
def given_at_first(s: Any, x: Tensor) -> Any:
    y = F.relu(s.l(x)) if s.h is None else s.l(s.h)
    s.h = y
    return y


def forget() -> None:
    """What the kinds keep outside their modules, as it was."""
    global GLOBAL
    GLOBAL, TABLE["h"], CARRIED["class_attribute"].h = zeros(), zeros(), zeros()  # type: ignore[assignment]


class Outer(nn.Module):
    """A kind as a submodule, between int8 layers."""

    def __init__(self, inner: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.inner, self.last = nn.Linear(8, 8), inner(), nn.Linear(8, 8)
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.last(self.inner(self.first(x)))
