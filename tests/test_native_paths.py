"""Short versions of native_paths.py, which compares whole networks on demand."""

from __future__ import annotations

import pytest
import torch

from qcompiler.backends.native.build import library
from tests import native_paths
from tests.native_nets import net


@pytest.mark.slow  # zig builds kernels
def test_a_network_has_the_same_bits_whatever_compiler_built_its_kernels() -> None:
    module, _, x = net("residual")
    with torch.inference_mode():
        expected = module(x).clone()
        assert not native_paths.here_differ(module, x, expected, ("scalar", library.chosen()))
        expected.view(-1)[-1] += 1e-3
        assert len(native_paths.here_differ(module, x, expected, ("scalar",))) >= len(native_paths.THREADS)
