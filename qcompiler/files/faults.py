"""What may be wrong with a file that is read."""

from __future__ import annotations

from qcompiler.errors import ArtifactError


class StandInWarning(UserWarning):
    """A loaded model's results have plain classes in place of classes that this process does not know."""


def corrupt(section: str, why: str) -> ArtifactError:
    """The error for a damaged section."""
    return ArtifactError(f"corrupt at {section}: {why}", code="artifact-corrupt")
