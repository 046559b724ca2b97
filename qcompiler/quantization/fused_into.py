"""What stands where a module was fused into another: it passes its input on, and notices when that is not the fused result.

After `fuse_modules(m, ["conv", "bn", "relu"])` the first name holds the fused module and the others hold FusedInto. A forward
that calls `relu` on another value as well (ResNet's blocks do) would silently lose that ReLU; here it is an error.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch._jit_internal import is_scripting

from qcompiler.errors import ConfigError, Where

FUSION = "_qc_fusion"


class Fusion:
    """One fused module: its path, and what it last returned in this thread (held weakly, not copied, not saved)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._last = threading.local()

    def note(self, output: object) -> None:
        self._last.output = weakref.ref(output)

    def returned(self, x: object) -> bool:
        last = getattr(self._last, "output", None)
        return last is not None and last() is x

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


class FusedInto(nn.Identity):
    """The place of a module that was fused into an earlier one. ConfigError when it is called on anything else than its result.

    `convert` makes it a plain nn.Identity.
    """

    def __init__(self, path: str, fusion: Fusion) -> None:
        super().__init__()
        self.path = path
        self._qc_fusion = fusion

    def forward(self, input: Tensor) -> Tensor:
        if not is_scripting():
            self._check(input)
        return input

    @torch.jit.unused
    def _check(self, input: Tensor) -> None:
        fusion: Any = self._qc_fusion
        if torch.compiler.is_compiling() or fusion.returned(input):
            return
        error = ConfigError(
            f"{self.path} was fused into {fusion.path} but is called again on another value", code="fused-called-again",
            where=Where(module_path=self.path),
            hint="what it did to that value is gone: give each call a module of its own, and fuse the one behind the fused module",
        )  # fmt: skip
        error.qc_final = True  # type: ignore[attr-defined]  # a tracer must not take it for a module that cannot be followed
        raise error

    def extra_repr(self) -> str:
        return f"into {self._qc_fusion.path}"


def _note_output(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    """Forward hook; its annotations are TorchScript's, which leaves out what stands under the first `if` (not behind an `and`)."""
    if not is_scripting():  # noqa: SIM102
        if not torch.compiler.is_compiling():
            getattr(module, FUSION).note(output)


def link(path: str, module: nn.Module, absorbed: dict[str, nn.Module], before: Fusion | None = None) -> dict[str, nn.Module]:
    """The placeholders of what was fused into `module`, by path, tied to what it returns. `before`: of an earlier fusion with it."""
    fusion = before or Fusion(path)
    setattr(module, FUSION, fusion)
    module.register_forward_hook(_note_output)
    places: dict[str, nn.Module] = {name: FusedInto(name, fusion) for name in absorbed}
    return {name: place.train(absorbed[name].training) for name, place in places.items()}


def relink(old: nn.Module, new: nn.Module) -> None:
    """`new` stands where the fused module `old` stood (its hooks were taken over)."""
    if hasattr(old, FUSION):
        setattr(new, FUSION, getattr(old, FUSION))


def unlink_(module: nn.Module) -> None:
    """Takes the check away from a fused module."""
    if hasattr(module, FUSION):
        delattr(module, FUSION)
        for key in [key for key, hook in module._forward_hooks.items() if hook is _note_output]:
            del module._forward_hooks[key]


def name_places_(model: nn.Module) -> None:
    """Paths within `model`, where modules were fused under names of a part of it."""
    for path, module in model.named_modules():
        fusion = getattr(module, FUSION, None)
        if isinstance(module, FusedInto):
            module.path = path
        elif fusion is not None:
            fusion.path = path
