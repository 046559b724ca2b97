"""qcompiler: a graph-based quantization compiler for PyTorch. A float model in, a runnable int8 module out."""

import importlib
from types import ModuleType

from qcompiler.api import (
    autotune,
    bench,
    calibrate,
    convert_fx,
    convert_to_reference_fx,
    explain,
    export_onnx,
    export_program,
    fuse_fx,
    prepare_fx,
    prepare_qat_fx,
    quantize,
    remarks,
    scales,
)
from qcompiler.artifact import load
from qcompiler.backends.native.regions import native_plan
from qcompiler.backends.native.times import native_times
from qcompiler.backends.torch.program.export import export_source
from qcompiler.config.qconfig import QConfig, get_default_qat_qconfig, get_default_qconfig
from qcompiler.config.qconfig_mapping import QConfigMapping, get_default_qat_qconfig_mapping, get_default_qconfig_mapping
from qcompiler.errors import (
    ArtifactError,
    CalibrationError,
    ConfigError,
    InputError,
    NumericsError,
    OutOfMemoryError,
    QCompilerError,
    TraceError,
    UnsupportedOpError,
)
from qcompiler.workflow.export_c import export_c
from qcompiler.workflow.save import save

__all__ = [
    "ArtifactError", "CalibrationError", "ConfigError", "InputError", "NumericsError", "OutOfMemoryError", "QCompilerError", "QConfig",
    "QConfigMapping",
    "TraceError", "UnsupportedOpError", "autotune", "bench", "calibrate", "convert_fx", "convert_to_reference_fx", "explain",
    "export_c",
    "export_onnx", "export_program", "export_source", "fuse_fx",
    "get_default_qat_qconfig", "get_default_qat_qconfig_mapping", "get_default_qconfig", "get_default_qconfig_mapping", "load",
    "native_plan", "native_times", "prepare_fx", "prepare_qat_fx", "quantize", "remarks", "save", "scales",
]  # fmt: skip
__version__ = "0.1.0"
# Those that docs/api.md describes; the others are rooms of the compiler. `nn` and `quantization` are loaded when they are asked for.
_MODULES = (
    "backends", "compile", "debug", "errors", "executable", "fake_quantize", "nn", "observers", "ops", "qat", "quantization", "stages",
    "target", "tune", "viz",
)  # fmt: skip


def __getattr__(name: str) -> ModuleType:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*__all__, *_MODULES, "__version__"))
