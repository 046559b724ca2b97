"""The native back end in the registry. Its module is a program of torch's back end in which native regions are calls."""

from __future__ import annotations

from qcompiler.backends import Backend
from qcompiler.backends.native.lower import LowerNative
from qcompiler.backends.native.target import native_target
from qcompiler.backends.torch.backend import BACKEND as TORCH

BACKEND = Backend("native", native_target, (LowerNative(),), TORCH.build, TORCH.load, TORCH.running)
