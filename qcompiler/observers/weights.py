"""What qconfigs say of weights: an axis that is given has to exist (each op knows its own), and a weight has one observer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qcompiler.errors import ConfigError, Where


def check_axis(observer: object, weight: Tensor, where: Where | None = None) -> None:
    """ConfigError for a `ch_axis` that the weight does not have."""
    axis = getattr(observer, "ch_axis", -1) if getattr(observer, "is_per_channel", False) else -1
    if weight.dim() and not -weight.dim() <= axis < weight.dim():
        raise ConfigError(f"the qconfig's weight observer has ch_axis={axis}, out of range for a weight of shape {tuple(weight.shape)}",
                          code="channel-axis", where=where, hint="leave ch_axis out: each op knows the axis of its channels")  # fmt: skip


def check_tied(name: str, users: tuple[str, str], makers: tuple[object, object]) -> None:
    """ConfigError, naming both, where two users of one weight would observe it in different ways."""
    if makers[0] != makers[1]:
        text = f"the weight {name} has two users, {users[0]} and {users[1]}, with different qconfigs"
        raise ConfigError(text, code="tied-weight", where=Where(module_path=name),
                          hint="give both the same weight observer, or each a weight of its own: nn.Parameter(weight.clone())")  # fmt: skip


def take_axis(observer: Any, axis: int, weight: Tensor, where: Where | None = None) -> None:
    """Observes along `axis`, the op's; ConfigError where the one that was given cannot be meant for this weight."""
    check_axis(observer, weight, where)
    observer.ch_axis = axis
