"""From the MODEL argument of the command line to a float module."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qcompiler.errors import ConfigError
from qcompiler.vision import import_torchvision

SEED = 0
_FORMS = "MODEL is package.module:factory, file.py:factory or torchvision:NAME"


def load_model(reference: str, weights: str | None = None) -> nn.Module:
    """The module that `reference` names, in eval mode. What it draws at random it draws from one seed, so that each command has the
    same weights.

    `package.module:factory` calls the factory without arguments (a module object is taken as it is); the working directory
    is searched first. `path/to/file.py:factory` is the same for a file, with its folder searched first. `torchvision:NAME` builds
    that architecture. `weights` is a file with a state_dict or, for torchvision, one of its weight names such as DEFAULT.

    Raises ConfigError with what is wrong in the reference, the import, the factory or the weights.
    """
    place, colon, name = reference.partition(":")
    if not (place and colon and name):
        raise ConfigError(f"cannot read the model reference {reference!r}", code="model-reference", hint=_FORMS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = _made(place, name, weights)
    if weights and os.path.exists(weights):
        _load_weights(model, weights)
    elif weights and place != "torchvision":
        raise ConfigError(f"there is no file {weights}", code="weights")
    return model.eval()


def _made(place: str, name: str, weights: str | None) -> nn.Module:
    if place == "torchvision":
        return _torchvision_model(name, weights if weights and not os.path.exists(weights) else None)
    return _factory_model(place, name)


def _torchvision_model(name: str, weights: str | None) -> nn.Module:
    models = import_torchvision().models
    try:
        model: nn.Module = models.get_model(name, weights=weights)
    except (ValueError, KeyError, AttributeError) as error:
        close = difflib.get_close_matches(name, models.list_models(), n=5)
        hint = f"names like it: {', '.join(close)}" if close else "torchvision.models.list_models() gives the names"
        text = f"torchvision cannot make {name!r} with weights {weights!r}: {error}"
        raise ConfigError(text, code="model-reference", hint=hint) from error
    except OSError as error:
        raise ConfigError(f"cannot download weights {weights!r} of {name}: {error}", code="weights", hint="--weights FILE") from error
    return model


def _factory_model(place: str, name: str) -> nn.Module:
    folder, module = os.getcwd(), place
    if place.endswith(".py"):
        path = Path(place).resolve()
        if not path.is_file():
            raise ConfigError(f"there is no file {place}", code="model-reference", hint=_FORMS)
        folder, module = str(path.parent), path.stem  # its neighbours can be imported, as when it is run
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(f"cannot import {place}: {type(error).__name__}: {error}", code="model-reference", hint=_FORMS) from error
    if module != place and Path(getattr(found, "__file__", None) or "").resolve() != Path(place).resolve():
        raise ConfigError(f"{place} has the name of another module, {found!r}", code="model-reference", hint="rename the file")
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{place} has no {name}", code="model-reference", hint=_FORMS)
        found = getattr(found, part)
    if not isinstance(found, nn.Module) and callable(found):
        try:
            found = found()
        except Exception as error:
            text = f"{place}:{name}() failed: {type(error).__name__}: {error}"
            raise ConfigError(text, code="model-reference", hint="the factory is called without arguments") from error
    if not isinstance(found, nn.Module):
        raise ConfigError(f"{place}:{name} gives {type(found).__name__}, not an nn.Module", code="model-reference", hint=_FORMS)
    return found


def _load_weights(model: nn.Module, path: str) -> None:
    try:
        state = torch.load(Path(path), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the file makes it raise
        text = f"cannot read {path}: it is no file of torch.save with tensors alone"
        raise ConfigError(text, code="weights", hint="a state_dict is expected") from error
    try:
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
        model.load_state_dict(state)
    except Exception as error:  # torch raises whatever the file makes it raise
        first_line = str(error).split("\n")[0]
        raise ConfigError(f"cannot load {path} into the model: {first_line}", code="weights", hint="a state_dict is expected") from error
