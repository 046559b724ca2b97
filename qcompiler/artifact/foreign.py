"""Files of other tools: what they are, from their first bytes, and which names belong to them."""

from __future__ import annotations

import os
from pathlib import Path

from qcompiler.errors import ArtifactError, ConfigError

ZIP = "a file of torch.save, torch.jit.save or torch.export.save, or another ZIP archive"
KNOWN = (  # how they begin
    (b"PK\x03\x04", ZIP),
    (b"\x80\x02", "a pickle, such as torch.save wrote before version 1.6"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"\x93NUMPY", "an array of NumPy"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them"),
    (b"GGUF", "a GGUF file"),
    (b"\xff\xd8\xff", "a photo"),
    (b"\x89PNG", "a picture"),
    (b"<?xml", "XML, such as an OpenVINO model"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x08", "perhaps an ONNX model"),
)
OTHERS = {
    ".onnx": ("ONNX", "export_onnx writes that"),
    ".pt": ("torch.save, torch.jit.save", "torch.jit.script(module).save(path) writes TorchScript"),
    ".pth": ("torch.save", "torch.save(module.state_dict(), path) writes the tensors"),
    ".pt2": ("torch.export", "torch.export.save writes that"),
    ".pte": ("ExecuTorch", "that is made from a program of torch.export"),
    ".tflite": ("TensorFlow Lite", ""),
    ".h5": ("Keras", ""),
    ".xml": ("OpenVINO", ""),
    ".gguf": ("llama.cpp", ""),
    ".py": ("Python", "export_source(module, folder) writes the program as Python"),
    ".c": ("C", "export_c(module, folder) writes the network as C"),
}


def foreign(start: bytes) -> ArtifactError:
    """The error for a file that begins otherwise than ours."""
    kind = next((what for magic, what in KNOWN if start.startswith(magic)), "")
    kind = "a safetensors file without a program" if not kind and start[8:9] == b"{" else kind
    text = "this is not a file that qcompiler saved" + (f"; it is {kind}" if kind else "")
    return ArtifactError(text, code="artifact-magic", hint="qcompiler.load reads what qcompiler.save or `qcompiler quantize` wrote")


def check_name(path: str | os.PathLike[str]) -> None:
    """Raises ConfigError for a file name by which readers would take our format for another one."""
    other, instead = OTHERS.get(Path(path).suffix.lower(), ("", ""))
    if other:
        hint = f"name it .safetensors or .qc{f'; {instead}' if instead else ''}"
        raise ConfigError(f"{path}: what is written is a safetensors file, and the name says {other}", code="file-name", hint=hint)
