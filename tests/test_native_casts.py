"""What transformers do with the mask that a caller gives as whole numbers: casts, and picks by places that sizes settle, in one region."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler
from qcompiler.backends.native.regions import regions_of
from qcompiler.debug import compute_sqnr
from qcompiler.errors import InputError

Made = Callable[[Tensor, Tensor], Tensor]


def by_places(mask: Tensor) -> Tensor:
    """(B, 1, 1, L) of (B, L), as transformers index a mask of padding."""
    rows, columns = torch.arange(mask.shape[0])[:, None, None, None], torch.arange(mask.shape[1])[None, None, None, :]
    return mask[rows, columns]


def scores(y: Tensor) -> Tensor:
    return (y @ y.transpose(1, 2))[:, None]


FORMS: dict[str, Made] = {
    "to bool": lambda y, mask: scores(y).masked_fill(~mask.to(torch.bool)[:, None, None], -9.0).softmax(-1)[:, 0] @ y,
    "to bool, by name": lambda y, mask: torch.where(mask.to(device="cpu", dtype=torch.bool)[..., None], y, y * 0.5),
    "bool()": lambda y, mask: torch.where(mask.bool()[..., None], y, -y),
    "by places": lambda y, mask: scores(y).masked_fill(~by_places(mask.bool()), -9.0).softmax(-1)[:, 0] @ y,
    "floats by places": lambda y, mask: y + by_places(y[..., 0]).mean((1, 2))[..., None],
    "to float, by name": lambda y, mask: y * mask.to(dtype=torch.float32)[..., None],
    "float by device": lambda y, mask: y + (1.0 - mask[..., None].to("cpu", torch.float32)) * -3.0,
    "whole numbers as a factor": lambda y, mask: y * mask[:, :, None] + y / (mask[..., None] + 2),
    "a softmax that says its dtype": lambda y, mask: torch.nn.functional.softmax(scores(y), dim=-1, dtype=torch.float32)[:, 0] @ y,
    "its method": lambda y, mask: scores(y).softmax(-1, dtype=torch.float32)[:, 0] @ y,
    "bool of floats": lambda y, mask: torch.where((y.relu() * 1.5).bool(), y, -y),
    "the size of a mask": lambda y, mask: y.masked_fill((m := mask.bool())[..., None], 0.5)[:, : m.shape[1]],
}


class Masked(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.words, self.first, self.last, self.form = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, 5), form

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        return self.last(FORMS[self.form](self.first(self.words(words)), mask))  # type: ignore[no-any-return]


def given(rows: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    mask = (torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=g)).long()
    return torch.randint(0, 20, (rows, length), generator=g), mask


@pytest.mark.parametrize("form", FORMS)
def test_masks_of_whole_numbers(form: str) -> None:
    torch.manual_seed(0)
    prepared = qcompiler.prepare_fx(model := Masked(form).eval(), None, given(3, 7), backend="native")
    qcompiler.calibrate(prepared, [given(3, 7), given(4, 9, 2), given(2, 5, 3)])
    module, graph = qcompiler.convert_fx(prepared), qcompiler.convert_to_reference_fx(prepared)
    assert len(regions_of(module)) == 1
    beside = [remark.text for remark in qcompiler.remarks(module) if remark.code == "native-torch"]
    assert not beside or form == "whole numbers as a factor"  # the sum of two whole numbers is one
    for other in (given(3, 7), given(1, 4, 5), given(6, 9, 7)):
        with torch.no_grad():
            assert compute_sqnr(graph(*other), module(*other)) > 30 and model(*other).shape == module(*other).shape


def test_a_place_that_is_not_there_is_an_input_error() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 6), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Any:
            return self.last(self.first(x)[:, torch.arange(x.shape[0]) % 6][:, :3])

    module = qcompiler.quantize(Reads().eval(), [torch.randn(5, 8)], backend="native", progress=False)
    assert len(regions_of(module)) == 1 and module(torch.randn(9, 8)).shape == (9, 4)

    class Beyond(Reads):
        def forward(self, x: Tensor) -> Any:
            return self.last(self.first(x)[:, torch.arange(x.shape[0])][:, :3])

    module = qcompiler.quantize(Beyond().eval(), [torch.randn(5, 8)], backend="native", progress=False)
    with pytest.raises(InputError):
        module(torch.randn(7, 8))
