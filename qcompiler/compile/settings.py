"""What a user chose for one compile, checked and complete: one frozen value, given whole to whatever needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qcompiler.compile.rewrite import Rule
from qcompiler.config.backend_config import BackendConfig
from qcompiler.config.corrections import NO_CORRECTIONS, Corrections
from qcompiler.config.custom_config import PrepareCustomConfig
from qcompiler.config.qconfig_mapping import QConfigMapping, type_name
from qcompiler.ops.table import OPS, Table
from qcompiler.target import Neutral, Target


@dataclass(frozen=True)
class Settings:
    """What prepare was told, and what convert is told beside it. Nothing changes a field: a convert has a `replace` of its own.

    `mapping` has the `.qconfig` attributes of the model's modules; `module_types`: each module's class, or its name where a pickle
    came from another process. `target` answers what the passes ask of the back end. `trains`: the graph is prepared to be trained,
    so that `table` has the ops of a model in training. `quantized_classes`: of custom modules, by their observed class.
    """

    table: Table = OPS
    mapping: QConfigMapping = field(default_factory=QConfigMapping)
    module_types: Mapping[str, type | str] = field(default_factory=dict)
    target: Target = field(default_factory=Neutral)
    rules: tuple[Rule, ...] = ()
    strict: bool = False
    trains: bool = False
    custom: PrepareCustomConfig = field(default_factory=PrepareCustomConfig)
    backend_config: BackendConfig | None = None  # what it does not name stays float
    concrete_args: Mapping[str, Any] | None = None
    quantized_classes: Mapping[type, type] = field(default_factory=dict)
    allow_uncalibrated: str = "error"
    keep_float: frozenset[str] = frozenset()  # names of nodes
    dynamic: frozenset[str] = frozenset()  # likewise
    corrections: Corrections = NO_CORRECTIONS

    def with_(self, **changes: Any) -> Settings:
        return replace(self, **changes)

    def named(self) -> Settings:
        """The settings as another process can have them: the user's module classes by name, and nothing that only tracing asks."""
        types = {path: kind if self.table.has_form(kind) else type_name(kind) for path, kind in self.module_types.items()}
        return replace(self, module_types=types, concrete_args=None)

    def saved(self) -> Settings:
        """Those that a pickle holds: rows of the op table are code."""
        return replace(self.named(), table=Table())
