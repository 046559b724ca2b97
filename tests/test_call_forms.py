"""Several forms of one call: each has a graph of its own over the same weights, and runs where a call has its form."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler import (
    calibrate,
    convert_fx,
    convert_to_reference_fx,
    explain,
    export_source,
    load,
    prepare_fx,
    prepare_qat_fx,
    quantize,
    save,
    viz,
)
from qcompiler import remarks as remarks_of
from qcompiler.artifact.header import further_forms
from qcompiler.artifact.read import read
from qcompiler.debug import compare
from qcompiler.errors import ArtifactError, CalibrationError, ConfigError, InputError
from qcompiler.executable.call_forms import CallForms
from tests.flow import randn

X, MASK = randn(2, 4, 10), (randn(2, 10, 1, seed=1) > 0).float()


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 8)  # an int8 op behind what differs between the forms: each has ranges of its own
        self.tag = "mine"

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0, *, double: bool = False) -> Tensor:
        y = self.head(self.norm(self.conv(x)).relu().transpose(1, 2)) * scale
        y = y if mask is None else y * mask
        return self.last(y + y if double else y)


FORMS: list[Any] = [{}, {"mask": MASK}, {"mask": MASK, "double": True}, ((X,), {"scale": 2.0})]
CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((X,), {}), ((X, MASK), {}), ((X,), {"mask": MASK, "double": True}), ((X,), {"scale": 0.5}),
]  # fmt: skip


def sqnr(expected: Tensor, found: Tensor) -> float:
    return float((10 * torch.log10(expected.square().sum() / (expected - found).square().sum())).detach())


def prepared() -> Any:
    made = prepare_fx(Masked().eval(), None, (X,), example_kwargs=FORMS)  # type: ignore[arg-type]
    for args, kwargs in CALLS:
        made(*args, **kwargs)
    return made


@pytest.fixture(scope="module")
def module() -> Any:
    return convert_fx(prepared())


def test_each_call_runs_its_form(module: Any) -> None:
    model = Masked().eval()
    assert [module.choose(*call) for call in CALLS] == [0, 1, 2, 3]
    for args, kwargs in [*CALLS, ((randn(3, 4, 7, seed=5),), {}), ((X, MASK, 1.0), {"double": False})]:
        # two 8-bit layers with eight channels: 33 dB and more in these calls
        assert sqnr(model(*args, **kwargs), module(*args, **kwargs)) > 25
    assert module.tag == "mine" and not module.training


def test_a_form_is_what_it_is_alone(module: Any) -> None:
    alone = prepare_fx(Masked().eval(), None, (X,), example_kwargs={"mask": MASK})
    alone(X, MASK)
    assert torch.equal(convert_fx(alone)(X, MASK), module(X, MASK))
    assert torch.equal(torch.jit.script(module.call_forms[1])(X, MASK), module(X, MASK))


@pytest.mark.parametrize("call", [
    ((X, MASK, 1.0, False, X), {}), ((X.long(),), {}), ((), {}), ((X,), {"other": 1}), ((X,), {"x": X}), ((X,), {"double": True}),
    ((X, MASK, 2.0), {}), ((X[0],), {}),
])  # fmt: skip
def test_a_call_of_no_form_is_one_error_that_lists_them(module: Any, call: Any) -> None:
    for owner in (module, prepared()):
        with pytest.raises(InputError, match="has none of the 4 forms") as caught:
            owner(*call[0], **call[1])
        text = str(caught.value)
        assert all(f"  {i}. (x: torch.float32[2, 4, 10], mask" in text for i in range(4)) and "double=True" in text


def test_weights_stand_once_under_the_users_names(module: Any) -> None:
    state = module.state_dict()
    own = [key for key in state if key.startswith("call_forms.")]
    assert "conv.weight" in state and "head.weight_scale" in state
    assert own and all("activation_" in key for key in own)
    first, second = (form._modules["head"]._buffers["weight"] for form in list(module.call_forms)[:2])
    assert first is second
    before = prepared().state_dict()
    assert "head.weight" in before and all("observers." in key for key in before if key.startswith("call_forms."))


def test_state_goes_round(module: Any, tmp_path: Path) -> None:
    expected = [module(*args, **kwargs) for args, kwargs in CALLS]
    save(module, tmp_path / "m.qc")
    other = prepare_fx(Masked().eval(), None, (X,), example_kwargs=FORMS)  # type: ignore[arg-type]
    for args, kwargs in CALLS:
        other(*[3 * a if isinstance(a, Tensor) else a for a in args], **kwargs)
    filled, parent = convert_fx(other), nn.Sequential(convert_fx(other))
    assert not torch.equal(filled(X), expected[0])
    filled.load_state_dict(module.state_dict())
    parent.load_state_dict({f"0.{key}": value for key, value in module.state_dict().items()})
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    copies = (load(tmp_path / "m.qc"), filled, parent[0], copy.deepcopy(module), torch.load(stream, weights_only=False))
    for made in copies:
        assert all(torch.equal(made(*args, **kwargs), value) for (args, kwargs), value in zip(CALLS, expected, strict=True))
        assert list(made.state_dict()) == list(module.state_dict()) and made.tag == "mine"
    assert str(explain(copies[0])) == str(explain(module)) and remarks_of(copies[0]) == remarks_of(module)


def test_a_state_that_does_not_fit_changes_no_form(module: Any) -> None:
    made = copy.deepcopy(module)
    before = {key: value.clone() for key, value in made.state_dict().items()}
    wrong = dict(before) | {"call_forms.1.activation_scales": -before["call_forms.1.activation_scales"]}
    wrong["conv.bias"] = wrong["conv.bias"] + 1
    for state in (Masked().state_dict(), wrong):
        with pytest.raises(ConfigError):
            made.load_state_dict(state, strict=False)
        assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())


def test_observers_of_each_form_are_its_own_and_survive() -> None:
    first, second = prepared(), prepare_fx(Masked().eval(), None, (X,), example_kwargs=FORMS)  # type: ignore[arg-type]
    second.load_state_dict(first.state_dict())
    expected = convert_fx(first)
    for made in (second, copy.deepcopy(first)):
        found = convert_fx(made)
        assert all(torch.equal(found(*args, **kwargs), expected(*args, **kwargs)) for args, kwargs in CALLS)
    assert convert_to_reference_fx(first)(X, MASK).shape == (2, 10, 8)


def test_a_form_without_data_is_named() -> None:
    made = prepare_fx(Masked().eval(), None, (X,), example_kwargs=[{}, {"mask": MASK}])  # type: ignore[arg-type]
    assert calibrate(made, [(X,), (X,)]) == 2
    with pytest.raises(CalibrationError, match=r"call form 1, \(x: .*, mask: torch.float32\[2, 10, 1\]"):
        convert_fx(made)
    calibrate(made, [{"x": X, "mask": MASK}])
    assert isinstance(convert_fx(made), CallForms)


def test_in_one_call() -> None:
    made: Any = quantize(Masked().eval(), [(X,), (X, MASK)], example_kwargs=[{}, {"mask": MASK}], progress=False)
    assert [made.choose(*call) for call in CALLS[:2]] == [0, 1]
    rows = explain(made).rows
    assert {row.node.partition(".")[0] for row in rows if row.op == "linear"} == {"0", "1"} and explain(made).int8_mac_share == 1


def test_compare_takes_one_form_at_a_time(module: Any) -> None:
    assert str(compare(Masked().eval(), module, [(X, MASK)])) == str(compare(Masked().eval(), module.call_forms[1], [(X, MASK)]))
    with pytest.raises(InputError, match="call forms 0, 1"):
        compare(Masked().eval(), module, [(X,), (X, MASK)])


def test_what_cannot_be() -> None:
    model = Masked().eval()
    for forms, text in (([], "empty list"), ([X], "call form 0 is a Tensor"), ([{}, (X, MASK)], "call form 1 is a tuple")):
        with pytest.raises(ConfigError, match=text):
            prepare_fx(model, None, (X,), example_kwargs=forms)  # type: ignore[arg-type]


TRAINED: list[Any] = [{}, {"mask": MASK}]


def trained(rounds: int = 4) -> Any:
    """Two forms trained in turn."""
    prepared: Any = prepare_qat_fx(Masked().train(), None, (X,), example_kwargs=TRAINED)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(prepared.parameters(), 0.05)
    for i in range(rounds):
        optimizer.zero_grad()
        x = randn(4, 4, 10, seed=i)
        (prepared(x) if i % 2 else prepared(x, (randn(4, 10, 1, seed=i) > 0).float())).square().mean().backward()
        optimizer.step()
    return prepared


def test_forms_are_trained_on_one_set_of_parameters_and_statistics() -> None:
    prepared = trained()
    one, two = prepared.call_forms
    assert len(list(prepared.parameters())) == len(list(Masked().parameters()))
    for name, tensor in (*Masked().named_parameters(), *Masked().named_buffers()):
        held = one.get_parameter(name) if isinstance(tensor, nn.Parameter) else one.get_buffer(name)
        assert held is (two.get_parameter(name) if isinstance(tensor, nn.Parameter) else two.get_buffer(name))
    assert int(one.get_buffer("norm.num_batches_tracked")) == 4
    assert not torch.equal(one.get_parameter("head.weight"), Masked().head.weight)
    quantizers = [{id(m) for n, m in form.weight_fake_quants.named_children()} for form in (one, two)]
    assert quantizers[0] == quantizers[1]


def test_trained_forms_are_converted_to_forms(tmp_path: Path) -> None:
    prepared = trained()
    made: Any = convert_fx(prepared)
    assert isinstance(made, CallForms) and sum(row.int8 for row in explain(made).rows if row.op == "linear") == 4
    prepared.eval()
    for args in ((X,), (X, MASK)):
        assert sqnr(prepared(*args), made(*args)) > 30  # equal but for steps
    assert made.call_forms[0].get_buffer("head.weight") is made.call_forms[1].get_buffer("head.weight")
    save(made, tmp_path / "m.qc")
    loaded = load(tmp_path / "m.qc")
    assert all(torch.equal(loaded(*args), made(*args)) for args in ((X,), (X, MASK)))


@pytest.mark.parametrize("change", ["deepcopy", "load_state_dict", "assign", "double", "pickle"])
def test_what_forms_share_stays_shared(change: str) -> None:
    prepared = trained()
    if change == "deepcopy":
        prepared = copy.deepcopy(prepared)
    elif change == "pickle":
        file = io.BytesIO()
        torch.save(prepared, file)
        file.seek(0)
        prepared = torch.load(file, weights_only=False)
    elif change == "double":
        prepared.double().float()
    else:
        prepared.load_state_dict(trained(1).state_dict(), assign=change == "assign")
    one, two = prepared.call_forms
    assert one.get_parameter("head.weight") is two.get_parameter("head.weight")
    assert one.get_buffer("norm.running_mean") is two.get_buffer("norm.running_mean")
    before = one.get_buffer("norm.running_mean").clone()
    prepared.train()(X, MASK)
    assert not torch.equal(one.get_buffer("norm.running_mean"), before)


def packs_of(form: Any) -> dict[str, Any]:
    return {name: value for name, value in form._bound.forward.__globals__.items() if name.startswith("pack_")}


@pytest.mark.parametrize("change", ["none", "deepcopy", "load_state_dict", "load"])
def test_equal_packs_are_one_object(change: str, tmp_path: Path) -> None:
    model = Masked().eval()
    prepared: Any = prepare_fx(model, None, (X,), example_kwargs=TRAINED, engine="fbgemm")  # type: ignore[arg-type]
    calibrate(prepared, [(X,), (X, MASK)])
    made: Any = convert_fx(prepared)
    calls = [made(X), made(X, MASK)]
    if change == "deepcopy":
        made = copy.deepcopy(made)
    elif change == "load_state_dict":
        made.load_state_dict(made.state_dict())
    elif change == "load":
        save(made, tmp_path / "m.qc")
        made = load(tmp_path / "m.qc")
    one, two = (packs_of(form) for form in made.call_forms)
    shared = {id(pack) for pack in one.values()} & {id(pack) for pack in two.values()}
    assert len(shared) >= 2  # the convolution's and the first linear's
    assert torch.equal(made(X), calls[0]) and torch.equal(made(X, MASK), calls[1])


def test_a_form_with_weights_of_its_own_leaves_the_packs_of_others() -> None:
    made: Any = convert_fx(trained())
    one, two = made.call_forms
    before, masked = made(X), made(X, MASK)
    two.get_submodule("last")._buffers["weight"] = torch.zeros_like(two.get_buffer("last.weight"))
    two.rebuild()
    assert torch.equal(made(X), before) and not torch.equal(made(X, MASK), masked)
    one.rebuild()
    assert torch.equal(made(X), before)


def test_scripts_and_plain_sources_are_of_one_form(module: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot choose"):
        torch.jit.script(module)
    with pytest.raises(ConfigError, match="takes a converted module"):
        export_source(module, tmp_path)
    with pytest.raises(ConfigError, match="has as many graphs"):
        viz.save(module, tmp_path / "graph.html")
    assert export_source(module.call_forms[0], tmp_path).exists()


class Detector(nn.Module):
    """Remembers the points of the last image size, as YOLO heads do, and reads it from text: the graph holds the size fixed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.size, self.points = nn.Conv2d(3, 4, 3, padding=1), (0, 0), torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.size != (y.shape[2], y.shape[3]):
            self.size = (int(f"{y.shape[2]}"), int(f"{y.shape[3]}"))
            rows, columns = (torch.arange(n).float() for n in self.size)
            self.points = torch.stack(torch.meshgrid(columns, rows, indexing="xy"))
        return y[:, :2] * 0.1 + self.points


def test_a_head_that_holds_the_size_fixed_has_a_form_for_each() -> None:
    small, large = randn(2, 3, 8, 8), randn(2, 3, 12, 16, seed=1)
    model = Detector().eval()
    made: Any = quantize(model, [(small,), (large,)], example_kwargs=[((small,), {}), ((large,), {})], progress=False)
    for x in (small, large, large[:1], torch.cat([small, small])):
        assert sqnr(model(x), made(x)) > 30
    with pytest.raises(InputError, match="holds a size fixed") as caught:
        made(randn(1, 3, 10, 10))
    assert any("was taken for form" in note for note in caught.value.__notes__)


class Unfollowed(torch.autograd.Function):
    """A function that no trace follows: the module that calls it is a float leaf."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()


class Head(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Unfollowed.apply(self.same(x))  # type: ignore[no-any-return, no-untyped-call]

    def same(self, x: Tensor) -> Tensor:
        return x


class WithLeaf(Masked):
    def __init__(self) -> None:
        super().__init__()
        self.leaf = Head()
        self.leaf.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return self.leaf(super().forward(x, mask))


@pytest.mark.filterwarnings("ignore::qcompiler.artifact.MissingModulesWarning")
def test_float_leaves_and_hostile_files(tmp_path: Path) -> None:
    made: Any = quantize(WithLeaf().eval(), [(X,), (X, MASK)], example_kwargs=[{}, {"mask": MASK}], progress=False)
    assert save(made, tmp_path / "m.qc") == ("leaf",)
    loaded = load(tmp_path / "m.qc", modules={"leaf": WithLeaf().leaf})
    assert torch.equal(loaded(X, MASK), made(X, MASK)) and torch.equal(loaded(X), made(X))
    with pytest.raises(ConfigError, match="no submodule or function other"):
        load(tmp_path / "m.qc", modules={"leaf": WithLeaf().leaf, "other": WithLeaf().leaf})
    with pytest.raises(ConfigError, match="needs modules= for leaf"):
        load(tmp_path / "m.qc")
    with open(tmp_path / "m.qc", "rb") as file:
        header = read(file, (tmp_path / "m.qc").stat().st_size)[0]
    form = {"attributes": {}, "program": {}}
    for bad in (3, [], [3], [{"program": {}}], [form | {"tensors": []}], [form | {"other": 1}], [form | {"attributes": 3}]):
        with pytest.raises(ArtifactError):
            further_forms(header | {"forms": bad})
