"""Where a module stands in the user's model: what prepare and convert noted, for messages."""

from __future__ import annotations

from torch import nn

from qcompiler.errors import Where

PATH = "_qc_path"  # the attribute; never in a state_dict
OUTPUTS = "_qc_outputs"  # how many numbers an observed module last gave, for counting multiply-accumulates


def place_of(module: nn.Module) -> Where:
    """The module's path, if it was told one."""
    return Where(module_path=getattr(module, PATH, None) or None)
