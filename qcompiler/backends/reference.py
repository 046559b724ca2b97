"""The back end `reference`: no kernels. Its QUANTIZED graph holds no back end's decisions, for exporters and convert_to_reference_fx."""

from __future__ import annotations

from qcompiler.backends import Backend
from qcompiler.errors import ConfigError
from qcompiler.target import Neutral


def _target(engine: str | None, isa: str | None) -> Neutral:
    if engine is not None or isa is not None:
        raise ConfigError("the back end reference has no engines and no instruction sets", code="engine", hint="leave engine= and isa= out")
    return Neutral()


BACKEND = Backend("reference", _target)
