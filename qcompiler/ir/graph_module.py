"""OwnGraphModule: a torch.fx.GraphModule whose generated source goes when it goes.

torch.fx keeps the text of every forward that it ever made in two process-wide tables (its loader's and linecache's), for tracebacks:
13 KB for each compile, for ever. Here both entries end with the function that they belong to.
"""

from __future__ import annotations

import linecache
import weakref
from typing import Any

from torch import fx
from torch.fx import graph_module


def _forget(filename: str) -> None:
    linecache.cache.pop(filename, None)
    loader: object = getattr(graph_module, "_loader", None)
    getattr(loader, "eval_cache", {}).pop(filename, None)


class OwnGraphModule(fx.GraphModule):
    """A GraphModule that leaves nothing behind; its copies are such modules too."""

    def recompile(self) -> Any:
        made = super().recompile()
        forward = vars(type(self)).get("forward")
        code = getattr(forward, "__code__", None)
        if code is not None and code.co_filename.startswith("<eval_with_key>"):
            weakref.finalize(forward, _forget, code.co_filename)
        return made
