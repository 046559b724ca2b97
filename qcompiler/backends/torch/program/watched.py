"""What a program was built of: the module's tensors as they stood then. One that was changed since, in place or by assignment, is found."""

from __future__ import annotations

import weakref
from operator import attrgetter
from typing import TYPE_CHECKING

from torch import Tensor, nn

from qcompiler.backends.torch.program.program import Program
from qcompiler.errors import ConfigError, Where
from qcompiler.executable import Executable
from qcompiler.executable.states import assignments
from qcompiler.executable.tensors import find, find_submodule
from qcompiler.ir.check_state import fault_of

WATCHED = "_watched"  # what a module calls it
_version = attrgetter("_version")


class Watched:
    """Packs and forward are made of `get(path)`; `are_as_then` is asked at every call, so it looks at a number a tensor."""

    def __init__(self, module: nn.Module, program: Program) -> None:
        self._module = weakref.ref(module)  # it is the module's own: a cycle would wait for a garbage collection
        self._states = frozenset(program.states)
        self._tensors: dict[str, Tensor] = {}
        self._counted: list[Tensor] = []  # those that torch counts changes of
        self._versions: list[int] = []
        self._assignments = assignments()
        for qparams in (program.scales_name, program.zero_points_name):
            self.get(qparams)

    def get(self, path: str) -> Tensor:
        """The tensor of that name. What forward itself changes, to keep it for the next call, is not watched."""
        found = self._find(path)
        if path not in self._states and path not in self._tensors:
            self._tensors[path] = found
            if not found.is_inference():
                self._counted.append(found)
                self._versions.append(found._version)
        return found

    def _find(self, path: str) -> Tensor:
        module = self._module()
        assert module is not None
        return find(module, path)

    def are_as_then(self) -> bool:
        """A change through `.data` is none that torch tells of."""
        if list(map(_version, self._counted)) != self._versions:
            return False
        if self._assignments == (now := assignments()):
            return True
        same = all(self._find(path) is tensor for path, tensor in self._tensors.items())
        self._assignments = now if same else self._assignments
        return same

    def check(self, module: nn.Module) -> None:
        """Raises ConfigError for a tensor that was assigned and does not fit the program."""
        for path, held in self._tensors.items():
            owner, _, name = path.rpartition(".")
            given = self._find(path)
            if given is not held and (fault := fault_of(find_submodule(module, owner), name, held, given)) is not None:
                text, code, hint = fault
                raise ConfigError(f"{path}, which was assigned: {text}", code=code, where=Where(module_path=owner or None), hint=hint)


class FollowsTensors(Executable):
    """A module that is made anew where tensors were changed that it was built of: `_watched`, which its rebuild() makes, finds them."""

    if TYPE_CHECKING:  # torch.jit would take annotations for its own

        def rebuild(self) -> None: ...

    def _follow(self) -> None:
        """ConfigError for tensors that do not fit."""
        watched = self.__dict__[WATCHED]
        if not watched.are_as_then():
            watched.check(self)
            self.rebuild()
