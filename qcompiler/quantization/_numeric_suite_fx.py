"""numeric_suite_fx under the name that torch.quantization has for it."""

from qcompiler.quantization.numeric_suite_fx import *  # noqa: F403
