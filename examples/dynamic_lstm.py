"""A character-level LSTM, trained for a few seconds on Python's license text, then quantized without any data.

    python examples/dynamic_lstm.py [--quick]

float32, int8 (one call, `quantize_dynamic`), the same through the graph flow, and float16: perplexity on text that was held
out, bytes on disk, milliseconds for one line.
"""

from __future__ import annotations

import argparse
import io
import math
import site
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import interleaved_medians
from torch import Tensor, nn

from qcompiler import convert_fx, explain, load, prepare_fx, save
from qcompiler.quantization import QConfigMapping, default_dynamic_qconfig, quantize_dynamic

LINE = 64


class CharacterModel(nn.Module):
    """Reads characters one after the other and predicts the next."""

    def __init__(self, characters: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(characters, 64)
        self.lstm = nn.LSTM(64, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, characters)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.lstm(self.table(ids))
        result: Tensor = self.head(states)
        return result


def license_text() -> str:
    """Python's own license, which `license()` prints."""
    folders = [Path(sys.base_prefix), Path(site.__file__).parent, Path(site.__file__).parent.parent]
    for path in (folder / name for folder in folders for name in ("LICENSE.txt", "LICENSE", "lib/python3/LICENSE.txt")):
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
    return "\n\n".join(str(module.__doc__) for module in (argparse, io, math, site, tempfile, torch, nn, F))


def lines_of(text: str) -> tuple[Tensor, int]:
    """The text as lines of LINE + 1 characters, by number, and how many different ones there are."""
    letters = sorted(set(text))
    codes = torch.tensor([letters.index(c) for c in text])
    return codes[: len(codes) // (LINE + 1) * (LINE + 1)].reshape(-1, LINE + 1), len(letters)


def loss_on(model: nn.Module, lines: Tensor) -> Tensor:
    scores = model(lines[:, :-1])
    return F.cross_entropy(scores.flatten(0, 1), lines[:, 1:].flatten())


def train(model: nn.Module, lines: Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for step in range(steps):
        picked = torch.randint(len(lines), (16,), generator=torch.Generator().manual_seed(step))
        loss = loss_on(model, lines[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def perplexity(model: nn.Module, lines: Tensor) -> float:
    """exp of the mean loss: among how many characters the model still wavers."""
    with torch.inference_mode():
        return math.exp(float(loss_on(model, lines)))


def bytes_of(model: nn.Module) -> int:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return len(buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller model, a few steps")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    torch.set_num_threads(1)  # one line at a time gives threads nothing to share
    lines, characters = lines_of(license_text())
    held_out, rest = lines[::10], torch.cat([lines[k::10] for k in range(1, 10)])
    model = CharacterModel(characters, 64 if quick else 192)
    train(model, rest, 20 if quick else 60)
    model.eval()

    int8 = quantize_dynamic(model, {nn.LSTM, nn.Linear})  # one call, no data
    half = quantize_dynamic(model, {nn.LSTM, nn.Linear}, dtype=torch.float16)
    mapping = QConfigMapping().set_global(default_dynamic_qconfig)  # the table, too: 8 bits
    compiled = convert_fx(prepare_fx(model, mapping, (held_out[:1, :-1],)))
    print(explain(compiled))

    forms: dict[str, nn.Module] = {"float32": model, "int8, quantize_dynamic": int8, "int8, convert_fx": compiled, "float16": half}
    line = held_out[:1, :-1]
    times = interleaved_medians({name: lambda form=form: form(line) for name, form in forms.items()}, rounds=10 if quick else 40)
    print(f"{'':24}{'perplexity':>12}{'kilobytes':>12}{'ms a line':>12}")
    for name, form in forms.items():
        print(f"{name:24}{perplexity(form, held_out):12.3f}{bytes_of(form) / 1e3:12.1f}{times[name]:12.3f}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "characters.qc"
        save(compiled, path)
        same = torch.equal(load(path)(line), compiled(line))
        print(f"saved in {path.stat().st_size / 1e3:.1f} kilobytes, loaded: {'the same bits' if same else 'other bits'}")


if __name__ == "__main__":
    main()
