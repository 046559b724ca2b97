"""The one place that imports torchvision, for the command line, the examples and the tests."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from qcompiler.errors import ConfigError

_libraries: list[torch.library.Library] = []  # a definition lives as long as its library


def import_torchvision() -> ModuleType:
    """torchvision, also where its compiled operators do not load.

    Its usual wheel is built against a CUDA torch. On a CPU build the extension is skipped, two of its operators then
    have no schema, and the import fails although no classification model needs them. Declaring the schemas is enough;
    the operators themselves stay unusable.

    Raises ConfigError where torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise ConfigError("torchvision is not installed", code="no-torchvision", hint="pip install 'qcompiler[vision]'") from error
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
        return importlib.import_module("torchvision")
