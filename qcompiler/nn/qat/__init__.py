"""Modules of quantization-aware training: float modules with fake-quantized weights."""

from qcompiler.nn.qat import dynamic
from qcompiler.nn.qat.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from qcompiler.nn.qat.embedding import Embedding, EmbeddingBag
from qcompiler.nn.qat.linear import Linear

__all__ = [
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Embedding", "EmbeddingBag", "Linear",
    "dynamic",
]  # fmt: skip
