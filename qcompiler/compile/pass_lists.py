"""A pipeline as a value: the lists of passes of one way through the compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qcompiler.compile.pass_manager import Pass
from qcompiler.errors import ConfigError


@dataclass(frozen=True)
class Pipeline:
    """The passes of one way through the compiler, in order. Which there are stands in passes/__init__.py."""

    name: str
    fuse: tuple[Pass, ...]  # TRACED -> FUSED
    observe: tuple[Pass, ...]  # FUSED -> OBSERVED: the end of a prepare
    quantize: tuple[Pass, ...]  # OBSERVED -> QUANTIZED
    lower: tuple[Pass, ...] = ()  # QUANTIZED -> what a back end builds from

    @property
    def prepare(self) -> tuple[Pass, ...]:
        """What runs before calibration, or training."""
        return (*self.fuse, *self.observe)

    @property
    def convert(self) -> tuple[Pass, ...]:
        """What runs behind it."""
        return (*self.quantize, *self.lower)

    @property
    def steps(self) -> tuple[Pass, ...]:
        return (*self.prepare, *self.convert)

    @property
    def reference(self) -> Pipeline:
        """The same up to QUANTIZED."""
        return replace(self, lower=())

    @property
    def behind_prepare(self) -> Pipeline:
        """The same without what runs before calibration."""
        return replace(self, fuse=(), observe=())

    def with_passes(self, own: Sequence[Pass]) -> Pipeline:
        """The same with passes of the user's own behind the fusions."""
        return replace(self, fuse=(*self.fuse, *own))

    def with_lowering(self, own: Sequence[Pass]) -> Pipeline:
        """The same with the passes of a back end at the end."""
        return replace(self, lower=(*self.lower, *own))

    def with_corrections(self, floats: Sequence[Pass], codes: Sequence[Pass]) -> Pipeline:
        """The same with passes around those that quantize."""
        return replace(self, quantize=(*floats, *self.quantize, *codes))

    def with_replaced(self, by: Mapping[str, Pass]) -> Pipeline:
        """The same with other passes in the place of those with these names. ConfigError for a name that no pass has."""
        unknown = sorted(set(by) - {step.name for step in self.steps})
        if unknown:
            raise ConfigError(f"there is no pass {unknown[0]!r} to replace", code="no-pass",
                              hint=f"one of {', '.join(step.name for step in self.steps)}")  # fmt: skip
        parts = (tuple(by.get(step.name, step) for step in part) for part in (self.fuse, self.observe, self.quantize, self.lower))
        return Pipeline(self.name, *parts)
