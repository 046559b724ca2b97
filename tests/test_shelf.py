"""What a walk over a model holds between two ops: little in memory, the rest in a file, and the same numbers."""

from __future__ import annotations

import tempfile

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler import calibrate, prepare_fx
from qcompiler.tune import reconstruct
from qcompiler.tune import shelf as shelves
from qcompiler.tune.shelf import Shelf

NODE, OTHER = (fx.Graph().placeholder(name) for name in "xy")


def big(*shape: int) -> Tensor:
    return torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape)


WRITTEN = {
    "floats": big(64, 1024).float(), "bytes": big(512, 512).to(torch.uint8), "truths": big(512, 512) % 3 == 0,
    "brain floats": big(256, 512).bfloat16(), "quarters": big(512, 512).to(torch.int8),
    "channels last": big(2, 16, 64, 64).float().to(memory_format=torch.channels_last), "transposed": big(300, 400).float().T,
    "a slice that fills its memory": big(100, 30, 40).float()[20:80], "one of one": big(1, 40000, 1).float(),
}  # fmt: skip
KEPT = {
    "small": torch.ones(3), "expanded": torch.ones(400, 1).expand(400, 400), "every second": torch.ones(400, 400)[:, ::2],
    "a number": 3, "nothing": torch.ones(0, 5), "a parameter": nn.Parameter(torch.ones(400, 400)), "none": None,
}  # fmt: skip


def in_memory(shelf: Shelf) -> int:
    return shelf._in_memory()


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_large_goes_to_a_file_and_comes_back(name: str) -> None:
    shelf, value = Shelf(0), WRITTEN[name]
    for _ in range(3):  # the files take turns
        shelf.put(0, {NODE: value, OTHER: 7})
        shelf.put(1, {NODE: value + 1 if value.dtype.is_floating_point else value})
        shelf.turn()
        assert in_memory(shelf) == 0
        looked, taken = shelf.look(0), shelf.take(0)
        found = taken[NODE]
        assert isinstance(found, Tensor) and torch.equal(found, value) and found.dtype is value.dtype and found.stride() == value.stride()
        assert taken[OTHER] == 7 and torch.equal(looked[NODE], value) and not shelf.take(0)  # type: ignore[arg-type]
        assert shelf.take(1)


@pytest.mark.parametrize("name", KEPT)
def test_what_is_no_plain_piece_of_memory_stays(name: str) -> None:
    shelf = Shelf(0)
    shelf.put(0, {NODE: KEPT[name]})
    assert shelf.take(0)[NODE] is KEPT[name]


def test_the_room_in_memory_is_used_first() -> None:
    shelf, value = Shelf(2**20), torch.ones(2**16)  # 256 KB
    for number in range(8):
        shelf.put(number, {NODE: value})
    assert in_memory(shelf) == 2**20 and shelf.take(0)[NODE] is value and shelf.take(7)[NODE] is not value


def test_without_a_folder_for_files_all_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    shelf, value = Shelf(0), WRITTEN["floats"]
    shelf.put(0, {NODE: value})
    assert shelf.take(0)[NODE] is value


def test_results_do_not_depend_on_where_values_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 3, 24, 24)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 1))
    prepared = prepare_fx(model.eval(), None, (x[:1],), backend="native")
    calibrate(prepared, [x])
    kept = reconstruct(prepared, list(x.split(8)))
    written, plain = list[Tensor](), Shelf._written
    monkeypatch.setattr(shelves, "ROOM", 0)
    monkeypatch.setattr(shelves, "LEAST", 0)
    monkeypatch.setattr(Shelf, "_written", lambda self, value: (written.append(value), plain(self, value))[1])
    assert reconstruct(prepared, list(x.split(8))) == kept and len(written) > 8
