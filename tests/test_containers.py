"""Containers of the user's model, indexed and walked as they were, in what is prepared, converted, copied, pickled and loaded."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.errors import ConfigError
from qcompiler.ir.items import ITEMS


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn1(self.conv1(x))) + x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.layer1 = nn.Sequential(Block(), Block())
        self.heads = nn.ModuleDict({"a": nn.Linear(8, 4), "class": nn.Linear(8, 4)})
        self.offsets = nn.ParameterList([nn.Parameter(torch.full((4,), float(i))) for i in range(2)])
        self.gains = nn.ParameterDict({"up": nn.Parameter(torch.full((4,), 2.0))})
        self.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), nn.ModuleList([nn.Linear(4, 4)])])

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer1(self.stem(x)).mean([2, 3])
        y = self.heads["a"](y) + torch.relu(self.heads["class"](y)) * self.gains["up"] + self.offsets[0] + self.offsets[1]
        for row in self.blocks:
            for block in row:
                y = block(y)
        return y


X = torch.randn(2, 3, 8, 8)
torch.manual_seed(0)
PREPARED = qc.prepare_fx(Net().eval(), None, (X,))
qc.calibrate(PREPARED, [X])
INT8 = qc.convert_fx(PREPARED)
TRAINED = qc.prepare_qat_fx(Net().train(), None, (X,))


TWO_FORMS = [((X,), {}), ((torch.randn(1, 3, 12, 9),), {})]
OF_FORMS = qc.prepare_fx(Net().eval(), None, (X,), example_kwargs=TWO_FORMS)
qc.calibrate(OF_FORMS, [args for args, _ in TWO_FORMS])
INT8_OF_FORMS = qc.convert_fx(OF_FORMS)
TRAINED_FORMS: Any = qc.prepare_qat_fx(Net().train(), None, (X,), example_kwargs=TWO_FORMS)


def through_pickle(module: Any) -> Any:
    return pickle.loads(pickle.dumps(module))


def saved(folder: Path, module: Any = INT8) -> Any:
    qc.save(module, folder / "m.qc")
    return qc.load(folder / "m.qc")


FORMS: dict[str, Callable[[Path], Any]] = {
    "prepared": lambda _: PREPARED,
    "copy of a prepared": lambda _: copy.deepcopy(PREPARED),
    "pickle of a prepared": lambda _: through_pickle(PREPARED),
    "trained": lambda _: TRAINED,
    "copy of a trained": lambda _: copy.deepcopy(TRAINED),
    "pickle of a trained": lambda _: through_pickle(TRAINED),
    "reference": lambda _: qc.convert_to_reference_fx(PREPARED),
    "converted": lambda _: INT8,
    "copy of a converted": lambda _: copy.deepcopy(INT8),
    "pickle of a converted": lambda _: through_pickle(INT8),
    "converted after training": lambda _: qc.convert_fx(TRAINED),
    "loaded": saved,
    "copy of a loaded": lambda folder: copy.deepcopy(saved(folder)),
    "prepared forms": lambda _: OF_FORMS,
    "pickle of prepared forms": lambda _: through_pickle(OF_FORMS),
    "trained forms": lambda _: TRAINED_FORMS,
    "copy of trained forms": lambda _: copy.deepcopy(TRAINED_FORMS),
    "converted forms": lambda _: INT8_OF_FORMS,
    "copy of converted forms": lambda _: copy.deepcopy(INT8_OF_FORMS),
    "pickle of converted forms": lambda _: through_pickle(INT8_OF_FORMS),
    "loaded forms": lambda folder: saved(folder, INT8_OF_FORMS),
}


@pytest.mark.parametrize("form", FORMS)
def test_containers_answer_as_the_users(form: str, tmp_path: Path) -> None:
    module = FORMS[form](tmp_path)
    assert [len(module.stem), len(module.layer1), len(module.offsets), len(module.blocks), len(module.blocks[0])] == [3, 2, 2, 2, 2]
    assert module.layer1[0] is module.get_submodule("layer1.0") is next(iter(module.layer1))
    assert module.layer1[-1] is module.layer1[1] is list(module.layer1)[1]
    assert module.layer1[1] in module.layer1 and module.stem not in module.layer1
    assert list(module.blocks[0])[1] is module.blocks[0][1] is module.get_submodule("blocks.0.1")
    assert list(module.layer1[:1]) == [module.layer1[0]] and list(module.layer1[::-1]) == [module.layer1[1], module.layer1[0]]
    assert module.heads.keys() == list(module.heads) == ["a", "class"] and len(module.heads) == 2
    assert module.heads["class"] is dict(module.heads.items())["class"] is module.heads.values()[1]
    assert "a" in module.heads and "b" not in module.heads
    assert torch.equal(module.offsets[1], torch.ones(4)) and torch.equal(module.gains["up"], torch.full((4,), 2.0))
    for wrong in (lambda: module.layer1[2], lambda: module.layer1[-3]):
        with pytest.raises(IndexError):
            wrong()
    with pytest.raises(KeyError):
        module.heads["b"]
    assert [module.stem[i] is not None for i in range(len(module.stem))] == [True] * 3
    assert torch.is_tensor(module(X))


def test_batch_norm_of_a_block_is_frozen_by_its_place() -> None:
    prepared = copy.deepcopy(TRAINED)
    before = prepared.layer1[0].bn1.running_mean.clone(), prepared.layer1[1].bn1.running_mean.clone()
    prepared.layer1[0].bn1.eval()
    prepared(X)
    assert torch.equal(prepared.layer1[0].bn1.running_mean, before[0])
    assert not torch.equal(prepared.layer1[1].bn1.running_mean, before[1])
    for block in prepared.layer1[1:]:
        block.requires_grad_(False)
    assert not any(p.requires_grad for p in prepared.layer1[1].parameters())


def test_of_what_was_merged_a_stand_in_is_left_that_cannot_be_called() -> None:
    absent = INT8.stem[2]
    assert absent.eval() is absent and not list(absent.parameters())
    with pytest.raises(ConfigError, match="merged"):
        absent(X)
    assert not any(type(m) is type(absent) for m in INT8.modules())


@pytest.mark.parametrize("train", [False, True])
def test_a_root_that_is_a_container(train: bool, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)).train(train)
    x = torch.randn(3, 4)
    prepared = qc.prepare_qat_fx(model, None, (x,)) if train else qc.prepare_fx(model, None, (x,))
    qc.calibrate(prepared, [x])
    module = qc.convert_fx(prepared)
    for form in (prepared, copy.deepcopy(prepared), through_pickle(prepared), module, copy.deepcopy(module), through_pickle(module),
                 saved(tmp_path, module)):  # fmt: skip
        assert len(form) == 3 and len(list(form)) == 3 and form[-1] is form.get_submodule("2") and form
        assert form(x).shape == (3, 4)
    assert torch.equal(torch.jit.script(module)(x), module(x))
    assert qc.convert_fx(copy.deepcopy(prepared)) is not None


def test_a_sequential_with_names_of_its_own_is_indexed_by_position() -> None:
    model = nn.Sequential()
    for name in ("keys", "class", "items"):
        model.add_module(name, nn.Linear(4, 4)) if name == "class" else model._modules.__setitem__(name, nn.Linear(4, 4))
    module = qc.quantize(nn.ModuleDict({"body": model})["body"].eval(), [torch.randn(3, 4)], progress=False)
    assert len(module) == 3 and module[1] is module.get_submodule("class")


@pytest.mark.parametrize("note", [{"layer1": 3}, {"layer1": ["list", []]}, {"layer1": ["set", ["0"]]}, {"nowhere.x": ["list", ["0"]]},
                                  {"layer1": ["list", [1]]}, 7])  # fmt: skip
def test_a_note_that_does_not_fit_is_passed_over(note: Any) -> None:
    module = copy.deepcopy(INT8)
    module.__dict__[ITEMS] = note
    again = through_pickle(module)
    assert torch.equal(again(X), INT8(X))


@pytest.mark.parametrize("form", ["as it is", "copy", "pickle"])
def test_what_is_set_on_a_module_of_several_forms_is_set_in_each(form: str) -> None:
    prepared = {"as it is": TRAINED_FORMS, "copy": copy.deepcopy(TRAINED_FORMS), "pickle": through_pickle(TRAINED_FORMS)}[form]
    prepared = copy.deepcopy(prepared)
    frozen, other = prepared.layer1[0].bn1.eval(), prepared.layer1[1].bn1
    before = frozen.running_mean.clone(), other.running_mean.clone()
    for args, _ in TWO_FORMS:
        prepared(*args)
        assert torch.equal(frozen.running_mean, before[0]) and not torch.equal(other.running_mean, before[1])
        before = before[0], other.running_mean.clone()
    prepared.layer1.requires_grad_(False)
    assert not any(p.requires_grad for form in prepared.call_forms for p in form.get_submodule("layer1").parameters())


class Optional(nn.Module):
    """A list of which one form uses a part more."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.norms = nn.ModuleDict({"after": nn.BatchNorm1d(4)})
        self.shift = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        y = self.steps[0](x)
        return y if more is None else self.norms["after"](self.steps[1](y + more)) + self.shift


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("train", [False, True])
def test_modules_that_one_form_alone_uses(train: bool, first: int, tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    forms: list[Any] = [{}, {"more": x}]
    prepare = qc.prepare_qat_fx if train else qc.prepare_fx
    prepared: Any = prepare(Optional().train(train), None, (x,), example_kwargs=forms if first == 0 else forms[::-1])
    prepared(x), prepared(x, x)
    module: Any = qc.convert_fx(prepared)
    for made in (prepared, copy.deepcopy(prepared), module, copy.deepcopy(module), saved(tmp_path, module)):
        assert len(made.steps) == 2 and made.steps[1].weight.shape == (4, 4) and torch.equal(made.shift, torch.ones(4))
        assert made.steps[0].weight is made.call_forms[0].get_submodule("steps.0").weight
        assert made.norms.keys() == ["after"] and made.norms["after"] is not None
        with pytest.raises(AttributeError):
            made.nothing  # noqa: B018
    if train:
        prepared.norms["after"].eval()
        assert not any(m.training for form in prepared.call_forms for m in form.modules() if isinstance(m, nn.BatchNorm1d))


def test_a_sequential_of_several_forms() -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)).eval(), torch.randn(3, 4)
    prepared: Any = qc.prepare_fx(model, None, (x,), example_kwargs=[((x,), {}), ((torch.randn(2, 3, 4),), {})])
    prepared(x), prepared(torch.randn(2, 3, 4))
    for made in (prepared, copy.deepcopy(prepared), qc.convert_fx(prepared)):
        assert len(made) == 3 and made[0].weight.shape == (6, 4) and made[-1] is made.get_submodule("2") and len(made[:2]) == 2
        assert made(x).shape == (3, 4)


class Merged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.acts = nn.Linear(4, 4), nn.ModuleList([nn.ReLU(), nn.Identity()])
        self.ends = nn.ModuleDict({"a": nn.Sequential(nn.Dropout(), nn.Identity())})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.ends["a"](self.acts[1](self.acts[0](self.first(x))))
        return y


def test_a_container_of_which_nothing_is_left(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    prepared = qc.prepare_fx(Merged().eval(), None, (x,))
    prepared(x)
    module: Any = qc.convert_fx(prepared)
    for made in (prepared, copy.deepcopy(prepared), through_pickle(prepared), module, copy.deepcopy(module), saved(tmp_path, module)):
        assert len(made.acts) == len(list(made.acts)) == 2 and len(made.ends["a"]) == 2 and made.ends.keys() == ["a"]
        assert made.acts[0].train(False) is not None and made(x).shape == (3, 4)
    assert torch.equal(torch.jit.script(module)(x), module(x))
