"""The last step of a conversion: the back end makes its module of the LOWERED graph."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from qcompiler.backends import Backend, Model
from qcompiler.compile.pass_manager import Context
from qcompiler.errors import ConfigError
from qcompiler.executable import Executable
from qcompiler.ir.types import Stage


@dataclass
class BuildModule:
    """A pass in form, so that what fails in it is named and reproduced like one: it changes no graph, `module` holds what it made."""

    backend: Backend
    model: Model
    module: Executable | None = None
    name: str = "build"
    stage: Stage = Stage.LOWERED
    required: bool = True

    def run(self, gm: fx.GraphModule, context: Context) -> bool:
        if self.backend.build is None:
            raise ConfigError(f"the back end {self.backend.name} builds no modules", code="backend")
        self.module = self.backend.build(gm, self.model)
        return False

    def built(self) -> Executable:
        """The module, once the step has run."""
        assert self.module is not None
        return self.module
