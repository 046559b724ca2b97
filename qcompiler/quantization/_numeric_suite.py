"""numeric_suite under the name that torch.quantization has for it."""

from qcompiler.quantization.numeric_suite import *  # noqa: F403
