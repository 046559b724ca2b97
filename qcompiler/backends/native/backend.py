"""The native back end in the registry. Its module is a program of torch's back end in which native regions are calls."""

from __future__ import annotations

from dataclasses import replace

from qcompiler.backends.native.lower import LowerNative
from qcompiler.backends.native.target import native_target
from qcompiler.backends.native.watched_steps import steps_of_lowered
from qcompiler.backends.torch.backend import BACKEND as TORCH

BACKEND = replace(TORCH, name="native", target=native_target, passes=(LowerNative(),), steps=steps_of_lowered)
