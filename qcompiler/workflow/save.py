"""save: a compiled module as a file, or as a folder such as a model hub shows: card, config, weights."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qcompiler.artifact.layout import FORMAT, WEIGHTS
from qcompiler.artifact.write import check_converted, write
from qcompiler.debug.explain import Explanation
from qcompiler.errors import ArtifactWriteError, ConfigError, QCompilerWarning
from qcompiler.executable import Executable
from qcompiler.executable.call_forms import CallForms, forms_of
from qcompiler.files.atomic import atomic_write
from qcompiler.inputs.door import door
from qcompiler.workflow.explain import explain

CARD, CONFIG = "README.md", "config.json"
CARD_DIGEST = "card_sha256"  # by which a card that somebody edited is known
MOST_ROWS = 20  # of what stays float, in the card

TEMPLATE = """---
library_name: qcompiler
tags:
- pytorch
- int8
- quantization
---

# {title}

An int8 program for CPUs, compiled from a PyTorch model by qcompiler.

| | |
|---|---|
{facts}

## Use

```python
import qcompiler

model = qcompiler.load({load})
```

`{weights}` is a safetensors file: any tool lists and reads its tensors. The program stands in its metadata, as data; no code of the file
is run.
{needs}
## What stays float

{floats}

## Measured

{measured}
"""
NOT_MEASURED = """Nothing was measured: the file knows no data. `qcompiler.debug.compare(float_model, model, data)` says how near it is to
the float model, value by value; what it is worth at its task, your own test set says.
`qcompiler.save(model, folder, measured={"what, on which data": "figure"})` writes figures here. A card that was edited is kept."""
MEASURED = """Agreement with the float model, such as an SQNR or the share of equal answers, is not accuracy: that wants labels.

| what | figure |
|---|---|
"""


@door
def save(module: Executable | CallForms, path: str | os.PathLike[str], measured: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Writes the module to a file, atomically; the same module gives the same bytes.

    The file is a safetensors file: `net.qc` or `net.safetensors`. A path that ends in a slash, or is a folder, becomes a folder as model
    hubs show it: model.safetensors, config.json and README.md, a card; a card that somebody edited is kept. `load` takes both. `measured`:
    figures for the card, `{"top-1, 5,000 photos of the test set": "71.2 %"}`; without any, the card says that nothing was measured.
    Returns the names that `load` will need in `modules=` (with a MissingModulesWarning where there are any). Raises
    ArtifactWriteError, with what stood at `path` intact; ConfigError for anything but a compiled module, for a name that says another
    format, such as `net.onnx`, and for figures where no folder is written.
    """
    figures = _figures(measured, path)
    if not is_folder(path):
        return write(module, path, stacklevel=3)
    check_converted(module)
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ArtifactWriteError(f"{folder!s:.400}: cannot make the folder: {reason}") from error
    needed = write(module, folder / WEIGHTS, stacklevel=3)
    explanation = _explanation(module)
    described = _described(module, explanation, needed) | {"measured": figures}
    card = _card(described, explanation).encode("utf-8")
    ours = _is_ours(folder)
    if ours:
        atomic_write(folder / CARD, [card])
    described[CARD_DIGEST] = hashlib.sha256(card).hexdigest()
    atomic_write(folder / CONFIG, [json.dumps(described, indent=2, sort_keys=True, allow_nan=False).encode("ascii"), b"\n"])
    if not ours:
        text = f"{folder / CARD} was written by somebody else, or edited: it is kept as it is"
        warnings.warn(text, QCompilerWarning, stacklevel=2)
    return needed


def _figures(measured: object, path: object) -> dict[str, str]:
    """The figures for a card. ConfigError for what is none, and where there is no card."""
    if not measured:
        return {}
    if not isinstance(measured, Mapping) or not all(isinstance(text, str) for item in measured.items() for text in item):
        raise ConfigError(f"measured={measured!r:.200} holds no figures by name, as text", code="save",
                          hint='measured={"what, on which data": "figure"}')  # fmt: skip
    if not is_folder(path):
        raise ConfigError(f"{path!s:.200} is one file, and has no card for figures", code="save", hint="a path that ends in / is a folder")
    return dict(measured)


def is_folder(path: object) -> bool:
    """Whether `save` makes a folder of this path."""
    if isinstance(path, str) and path.endswith(("/", os.sep)):
        return True
    return isinstance(path, (str, os.PathLike)) and os.path.isdir(path)


def _is_ours(folder: Path) -> bool:
    """Whether the folder has no card, or one that stands as it was written."""
    card, config = folder / CARD, folder / CONFIG
    if not os.path.lexists(card):
        return True
    try:
        if not (card.is_file() and config.is_file()):  # a FIFO would be waited for
            return False
        described = json.loads(config.read_bytes())
        return isinstance(described, dict) and described.get(CARD_DIGEST) == hashlib.sha256(card.read_bytes()).hexdigest()
    except (OSError, ValueError, RecursionError):
        return False


def _explanation(module: Executable | CallForms) -> Explanation | None:
    """None for a module that was built by hand and has no notes."""
    try:
        return explain(module)
    except ConfigError:
        return None


def _described(module: Executable | CallForms, explanation: Explanation | None, needed: tuple[str, ...]) -> dict[str, object]:
    """What config.json holds."""
    first = forms_of(module)[0]
    payload: Any = first._payload().data
    program = payload.get("program")
    tensors = [value for value in module.state_dict().values() if isinstance(value, Tensor)]
    share = explanation.int8_mac_share if explanation else math.nan
    return {
        "library_name": "qcompiler", "format": f"{FORMAT[0]}.{FORMAT[1]}", "model": first._title(), "backend": first._backend,
        "engine": payload.get("engine"), "isa": program.get("isa") or None if isinstance(program, dict) else None,
        "call_forms": len(forms_of(module)), "modules": list(needed), "tensors": len(tensors),
        "tensor_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "int8_mac_share": None if math.isnan(share) else share, "macs": explanation.macs if explanation else None,
        "sample": explanation.sample.to_data() if explanation else None,
    }  # fmt: skip


def _card(described: dict[str, Any], explanation: Explanation | None) -> str:
    runs, engine, isa = described["backend"], described["engine"], described["isa"]
    if runs == "torch":  # another back end takes torch's kernels for parts at most
        runs += f", engine {engine}{f', compiled for {isa}' if isa else ''}"
    facts = {"back end": runs, "tensors": f"{described['tensors']}, {described['tensor_bytes'] / 1e6:.3g} MB"}
    if explanation is not None:
        facts = {"runs in int8": explanation.verdict, "multiply-accumulates": explanation.work or "not counted"} | facts
    names = described["modules"]
    needs = f"\nIt calls parts of your model that a file cannot hold: give them as `modules={{name: module}}`, for {_listed(names)}.\n"
    loaded = '"this folder"' + (", modules={...}" if names else "")
    return TEMPLATE.format(
        title=_cell(described["model"]), facts="\n".join(f"| {name} | {_cell(text)} |" for name, text in facts.items()), load=loaded,
        weights=WEIGHTS, needs=needs if names else "", floats=_floats(explanation), measured=_measured(described["measured"]),
    )  # fmt: skip


def _floats(explanation: Explanation | None) -> str:
    """What stays float, and why, as a table."""
    if explanation is None:
        return "The module has lost the notes that would tell."
    rows = [row for row in explanation.rows if not row.int8 and not row.mode]
    if not rows:
        return "Nothing."
    lines = [f"| {_cell(row.op)} | {_cell(row.module_path or row.node)} | {_cell(row.reason)} |" for row in rows[:MOST_ROWS]]
    more = f"\n\nand {len(rows) - MOST_ROWS} more: `qcompiler.explain(model)`" if len(rows) > MOST_ROWS else ""
    return "\n".join(["| op | in | why |", "|---|---|---|", *lines]) + more


def _measured(figures: Mapping[str, str]) -> str:
    return MEASURED + "\n".join(f"| {_cell(name)} | {_cell(text)} |" for name, text in figures.items()) if figures else NOT_MEASURED


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{_cell(name)}`" for name in names)


def _cell(text: str) -> str:
    """Text that stays one cell of one line, and text: names of a model may be anything."""
    plain = "".join(c if c.isprintable() else " " for c in text)[:300]
    return plain.replace("\\", "\\\\").replace("|", "\\|").replace("`", "'").replace("<", "&lt;")
