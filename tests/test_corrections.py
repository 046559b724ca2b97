"""Corrections laid over a conversion: what they change, that all back ends agree on it, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler import calibrate, convert_fx, convert_to_reference_fx, explain, load, prepare_fx, prepare_qat_fx, remarks, save
from qcompiler.errors import ArtifactError, ConfigError
from qcompiler.ir.attributes import attribute
from qcompiler.ir.types import quant_of
from qcompiler.tune import Corrections


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.deep = nn.Conv2d(8, 8, 3, groups=8, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.deep(torch.relu(self.conv(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def data() -> Tensor:
    return torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def prepared_net(data: Tensor, **options: object) -> fx.GraphModule:
    torch.manual_seed(0)
    prepared = prepare_fx(Net().eval(), None, (data[:1],), **options)
    calibrate(prepared, [data], progress=False)
    return prepared


@pytest.fixture(scope="module")
def prepared(data: Tensor) -> fx.GraphModule:
    return prepared_net(data)


def codes_of(gm: fx.GraphModule, name: str) -> Tensor:
    return attribute(gm, name)


def given(prepared: fx.GraphModule) -> Corrections:
    codes = codes_of(convert_to_reference_fx(prepared), "conv.weight").clone()
    codes[0] = codes[0].roll(1)
    return Corrections(
        codes={"conv.weight": codes}, biases={"conv": torch.linspace(-1, 1, 8), "fc": torch.arange(4.0)}, ranges={"conv": (0, 3)}
    )


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_a_back_end_computes_what_the_reference_does(prepared: fx.GraphModule, data: Tensor, backend: str) -> None:
    corrections = given(prepared)
    wanted = convert_to_reference_fx(prepared, corrections=corrections)(data)
    made = convert_fx(prepared, backend, corrections=corrections)
    plain = convert_fx(prepared, backend)(data)
    assert (made(data) - wanted).abs().max() < 0.05 * (plain - wanted).abs().max()
    assert torch.equal(made.state_dict()["fc.bias"], torch.arange(4.0))


def test_what_is_corrected_is_told(prepared: fx.GraphModule, tmp_path: Path) -> None:
    made = convert_fx(prepared, corrections=given(prepared))
    save(made, tmp_path / "net.qc")
    for module in (made, load(tmp_path / "net.qc")):
        rows = {row.node: row.corrected for row in explain(module).rows if row.corrected}
        assert rows == {"conv": "range, codes, bias", "fc": "bias"}
        assert {(r.node, r.text.split(" ")[2]) for r in remarks(module) if r.code == "corrected"} >= {("conv", "its"), ("fc", "its")}
    assert "corrected" in str(explain(made))


def test_a_range_is_that_of_the_value_and_of_those_that_share_its_steps(prepared: fx.GraphModule) -> None:
    made = convert_to_reference_fx(prepared, corrections=Corrections(ranges={"x": (-1, 2.5)}))
    low, high = quant_of(next(n for n in made.graph.nodes if n.name == "x_q")).qparams.range
    step = 3.5 / 255
    assert abs(low + 1) <= 2 * step and abs(high - 2.5) <= 2 * step


def test_float_weights_are_rounded_on_their_own_scales(prepared: fx.GraphModule) -> None:
    weight = attribute(prepared, "conv.weight").detach() * torch.linspace(1, 8, 8).view(-1, 1, 1, 1)
    plain, made = (convert_to_reference_fx(prepared, corrections=c) for c in (None, Corrections(weights={"conv.weight": weight})))
    ratio = codes_of(made, "conv.weight_scale") / codes_of(plain, "conv.weight_scale")
    torch.testing.assert_close(ratio, torch.linspace(1, 8, 8).double(), rtol=1e-6, atol=0)
    assert not torch.equal(attribute(prepared, "conv.weight"), weight)


def test_scales_alone_round_anew(prepared: fx.GraphModule) -> None:
    plain = convert_to_reference_fx(prepared)
    made = convert_to_reference_fx(prepared, corrections=Corrections(scales={"fc.weight": codes_of(plain, "fc.weight_scale") * 2}))
    assert codes_of(made, "fc.weight").abs().max() <= 64 and torch.equal(codes_of(made, "conv.weight"), codes_of(plain, "conv.weight"))


def test_dynamic_and_float_parts(prepared: fx.GraphModule, data: Tensor) -> None:
    made = convert_fx(prepared, corrections=Corrections(dynamic={"fc"}, keep_float={"deep"}))
    kinds = {row.node: row.kind for row in explain(made).rows}
    assert kinds["fc"] == "int8 dynamic" and kinds["deep"] == "float" and kinds["conv"] == "int8"
    assert next(row.corrected for row in explain(made).rows if row.node == "fc") == "dynamic"
    assert made(data).shape == (4, 4)


def test_codes_of_what_stays_float_are_told_to_have_no_use(prepared: fx.GraphModule) -> None:
    made = convert_fx(prepared, keep_float=["conv"], corrections=given(prepared))
    assert {r.node for r in remarks(made) if r.code == "correction-unused"} >= {"conv"}


CODES = torch.zeros(8, 3, 3, 3, dtype=torch.int8)
WRONG = {
    "no such weight": Corrections(codes={"cnv.weight": CODES}),
    "no such scale": Corrections(scales={"conv.weights": torch.ones(8).double()}),
    "no such float weight": Corrections(weights={"conv": torch.ones(8)}),
    "no such value": Corrections(ranges={"y": (0, 1)}),
    "no such op": Corrections(biases={"relu_77": torch.zeros(8)}),
    "no such module": Corrections(keep_float={"backbone"}),
    "no such linear": Corrections(dynamic={"head"}),
    "no linear": Corrections(dynamic={"conv"}),
    "shape of codes": Corrections(codes={"conv.weight": CODES[:4]}),
    "dtype of codes": Corrections(codes={"conv.weight": CODES.to(torch.uint8)}),
    "shape of a bias": Corrections(biases={"conv": torch.zeros(3)}),
    "dtype of a bias": Corrections(biases={"conv": torch.zeros(8).double()}),
    "an op without bias": Corrections(biases={"mean": torch.zeros(8)}),
    "shape of scales": Corrections(scales={"conv.weight": torch.ones(3).double()}),
    "scales of zero": Corrections(scales={"conv.weight": torch.zeros(8).double()}),
    "shape of a weight": Corrections(weights={"conv.weight": torch.zeros(8)}),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_one_error(prepared: fx.GraphModule, kind: str) -> None:
    for convert in (convert_fx, convert_to_reference_fx):
        with pytest.raises(ConfigError) as error:
            convert(prepared, corrections=WRONG[kind])
        assert error.value.code in ("correction", "keep-float") and error.value.hint


def test_codes_that_overflow_the_kernel_are_refused(data: Tensor) -> None:
    """255 * (127 + 127) does not fit into 16 bits; the same codes are right where sums have 32."""
    codes = {"deep.weight": torch.full((8, 1, 3, 3), 127, dtype=torch.int8)}
    narrow = prepared_net(data, engine="fbgemm", isa="avx512_vnni")
    with pytest.raises(ConfigError, match="16-bit sums"):
        convert_to_reference_fx(narrow, corrections=Corrections(codes=codes))
    with pytest.raises(ConfigError, match="16-bit sums"):
        convert_to_reference_fx(narrow, corrections=Corrections(scales={"deep.weight": torch.full((8,), 1e-4).double()}))
    assert convert_to_reference_fx(prepared_net(data, backend="native"), corrections=Corrections(codes=codes))


def test_an_error_names_what_has_the_name(prepared: fx.GraphModule) -> None:
    with pytest.raises(ConfigError, match="dynamic of corrections names nothing"):
        convert_fx(prepared, corrections=Corrections(dynamic={"head"}))
    with pytest.raises(ConfigError, match="keep_float names nothing"):
        convert_fx(prepared, corrections=Corrections(keep_float={"head"}))


def test_values_of_one_group_have_one_range() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.sigmoid(x.flatten(1)))

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 2)

    x = torch.randn(4, 2, 3)
    prepared = prepare_fx(nn.Sequential(nn.Linear(3, 3), Fixed()).eval(), None, (x,))
    calibrate(prepared, [x], progress=False)
    with pytest.raises(ConfigError, match="op fixes"):
        convert_to_reference_fx(prepared, corrections=Corrections(ranges={"sigmoid": (0, 0.5)}))
    with pytest.raises(ConfigError, match="shares its steps"):
        convert_to_reference_fx(prepared, corrections=Corrections(ranges={"_0": (0, 1), "flatten": (0, 2)}))


def test_forms_of_the_call_take_what_is_theirs(data: Tensor) -> None:
    torch.manual_seed(0)
    prepared = prepare_fx(Net().eval(), None, (data[:1],), example_kwargs=[{}, ((data[:1, :, :5, :5],), {})])
    calibrate(prepared, [data, data[:, :, :5, :5]], progress=False)
    bias = torch.arange(4.0)
    made = convert_fx(prepared, corrections=Corrections(biases={"fc": bias}))
    assert all(torch.equal(form.state_dict()["fc.bias"], bias) for form in made.call_forms)
    assert [key for key in made.state_dict() if key.endswith("fc.bias")] == ["fc.bias"]


def test_trained_models_take_none() -> None:
    prepared = prepare_qat_fx(nn.Sequential(nn.Linear(3, 3)).train(), None, (torch.randn(2, 3),))
    prepared(torch.randn(2, 3))
    with pytest.raises(ConfigError, match="trained"):
        convert_fx(prepared, corrections=Corrections(biases={"_0": torch.zeros(3)}))


def test_the_later_wins() -> None:
    one = Corrections(codes={"a": CODES, "b": CODES}, scales={"a": torch.ones(8)}, ranges={"x": (0, 1)}, keep_float={"m"})
    two = Corrections(codes={"b": CODES + 1}, weights={"a": torch.ones(8)}, ranges={"x": (0, 2)}, dynamic={"n"})
    both = one | two
    assert set(both.codes) == {"b"} and bool((both.codes["b"] == 1).all())
    assert not both.scales and both.ranges == {"x": (0, 2)} and both.keep_float == {"m"} and both.dynamic == {"n"}
    assert (Corrections() | one) == one and one != both and bool(one) and not Corrections()


def test_saved_as_data(tmp_path: Path) -> None:
    one = Corrections(codes={"a.weight": CODES}, biases={"op": torch.ones(2)}, ranges={"x": (-0.1, 1)}, keep_float={"m"}, dynamic={"é"})
    one.save(tmp_path / "c.safetensors")
    assert Corrections.load(tmp_path / "c.safetensors") == one
    (tmp_path / "bad").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    for path in (tmp_path / "bad", tmp_path / "none", tmp_path):
        with pytest.raises(ArtifactError):
            Corrections.load(path)


@pytest.mark.parametrize("wrong", [{"codes": [1]}, {"codes": {"a": 1}}, {"biases": {"a": torch.tensor(float("nan"))}},
                                   {"ranges": {"x": (1, 0)}}, {"ranges": {"x": (0, float("inf"))}}, {"keep_float": [1]},
                                   {"ranges": 3}, {"ranges": {"x": 1}}, {"ranges": {"x": (0, 1, 2)}}, {"ranges": {"x": ("a", "b")}},
                                   {"ranges": {3: (0, 1)}}, {"keep_float": None}, {"dynamic": 3},
                                   {"biases": {"a": torch.ones(2, device="meta")}}])  # fmt: skip
def test_entries_of_a_wrong_kind(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Corrections(**wrong)  # type: ignore[arg-type]
