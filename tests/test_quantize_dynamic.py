"""quantize_dynamic: one call, no data."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.api import explain, remarks
from qcompiler.config.qconfig import (
    default_dynamic_qconfig,
    float16_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    per_channel_dynamic_qconfig,
)
from qcompiler.errors import ConfigError
from qcompiler.nn.quantized import Embedding, EmbeddingBag, dynamic
from qcompiler.quantization import UnusedRequestWarning, quantize_dynamic
from tests.flow import fingerprint, randn


class Speech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(20, 8), nn.LSTM(8, 12, batch_first=True)
        self.head = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 20))
        self.title = "speech"

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.head(self.lstm(self.table(ids))[0])
        return result


def speech() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    return Speech().eval(), torch.arange(12).reshape(2, 6)


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", UnusedRequestWarning)
        yield


def test_the_default_takes_layers_and_leaves_the_rest() -> None:
    model, ids = speech()
    before = fingerprint(model)
    made: Any = quantize_dynamic(model)
    assert isinstance(made.lstm, dynamic.LSTM) and isinstance(made.head[0], dynamic.Linear) and type(made.table) is nn.Embedding
    assert fingerprint(model) == before and made.title == "speech" and type(made) is Speech
    assert (made(ids) - model(ids)).abs().max() < 0.02
    assert {row.kind for row in explain(made).rows} == {"int8 dynamic"} and {row.module_path for row in explain(made).rows} == {
        "lstm", "head.0", "head.2"}  # fmt: skip


@pytest.mark.parametrize(("dtype", "bound"), [(torch.qint8, 0.02), (torch.float16, 1e-3)])
def test_dtypes(dtype: torch.dtype, bound: float) -> None:
    model, ids = speech()
    made: Any = quantize_dynamic(model, {nn.Linear, nn.LSTM}, dtype=dtype)
    assert made.lstm.dtype is dtype and (made(ids) - model(ids)).abs().max() < bound


@pytest.mark.parametrize(("dtype", "bits"), [(torch.quint8, 8), (torch.quint4x2, 4)])
def test_tables(dtype: torch.dtype, bits: int) -> None:
    model, ids = speech()
    made: Any = quantize_dynamic(model, dtype=dtype)
    assert isinstance(made.table, Embedding) and made.table.bits == bits and type(made.lstm) is nn.LSTM
    assert (made(ids) - model(ids)).abs().max() < 0.05
    bag = quantize_dynamic(nn.Sequential(nn.EmbeddingBag(9, 4)), dtype=dtype)
    assert isinstance(bag[0], EmbeddingBag)  # type: ignore[index]


def test_names_and_rules_of_parents() -> None:
    model, _ = speech()
    by_name: Any = quantize_dynamic(model, {"head.2"})
    assert type(by_name.head[0]) is nn.Linear and isinstance(by_name.head[2], dynamic.Linear) and type(by_name.lstm) is nn.LSTM
    inside: Any = quantize_dynamic(model, {"head": per_channel_dynamic_qconfig, "head.0": None})
    assert type(inside.head[0]) is nn.Linear and inside.head[2]._part("weight_scale").dim() == 1
    spec = {nn.Linear: default_dynamic_qconfig, "lstm": None, nn.Embedding: float_qparams_weight_only_qconfig}
    mixed: Any = quantize_dynamic(model, spec)
    assert type(mixed.lstm) is nn.LSTM and isinstance(mixed.table, Embedding) and isinstance(mixed.head[0], dynamic.Linear)


def test_a_qconfig_of_its_own_goes_before_the_class() -> None:
    model, _ = speech()
    model.head[0].qconfig = per_channel_dynamic_qconfig
    made: Any = quantize_dynamic(model, {nn.Linear})
    assert made.head[0]._part("weight_scale").dim() == 1 and made.head[2]._part("weight_scale").dim() == 0


def test_what_did_nothing_is_named() -> None:
    model, _ = speech()
    with pytest.warns(UnusedRequestWarning, match="GRU") as caught:
        quantize_dynamic(model, {nn.Linear, nn.GRU, nn.Conv2d})
    assert set(caught[0].message.names) == {"GRU", "Conv2d"}  # type: ignore[union-attr]
    with pytest.warns(UnusedRequestWarning, match=r"head\.1: neither this ReLU"):
        quantize_dynamic(model, {"head.1", "lstm"})
    with pytest.warns(UnusedRequestWarning, match="no dynamic form is known for that class"):
        quantize_dynamic(model, {nn.ReLU, nn.Linear})
    with pytest.warns(UnusedRequestWarning, match="Linear"):
        quantize_dynamic(nn.Sequential(nn.ReLU()))
    done = quantize_dynamic(model)
    with pytest.warns(UnusedRequestWarning, match="quantized already"):
        quantize_dynamic(done, {nn.Linear})
    with pytest.warns(UnusedRequestWarning, match="quantized already"):
        quantize_dynamic(done, {"lstm"})


def test_what_has_no_dynamic_form_is_named() -> None:
    with pytest.warns(UnusedRequestWarning, match="proj_size") as caught:
        made = quantize_dynamic(nn.Sequential(nn.LSTM(4, 6, proj_size=2), nn.Linear(2, 2)))
    assert caught[0].message.names == ("0",)  # type: ignore[union-attr]
    assert "proj_size" in remarks(made)[0].text


@pytest.mark.parametrize(("spec", "text"), [({"heads"}, "head"), ({3}, "or texts or None, got 3 in it"), (nn.Linear, "set of classes")])
def test_wrong_requests(spec: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        quantize_dynamic(speech()[0], spec)
    assert caught.value.hint or text == "neither"


def test_wrong_dtypes() -> None:
    with pytest.raises(ConfigError, match="bfloat16"):
        quantize_dynamic(speech()[0], dtype=torch.bfloat16)


def test_in_place_shared_and_tied() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = nn.Linear(8, 8)
            self.table, self.decoder = nn.Embedding(8, 8), nn.Linear(8, 8)
            self.decoder.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            result: Tensor = self.decoder(self.second(self.first(self.table(ids))))
            return result

    torch.manual_seed(0)
    model: Any = Shared().eval()
    ids = torch.arange(8)
    want = model(ids)
    made: Any = quantize_dynamic(model, {nn.Linear, nn.Embedding}, inplace=True)
    assert made is model and made.first is made.second and isinstance(made.decoder, dynamic.Linear)
    assert (made(ids) - want).abs().max() < 0.1


def test_the_model_itself() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(6, 4).eval(), randn(3, 6)
    made = quantize_dynamic(linear)
    assert isinstance(made, dynamic.Linear) and (made(x) - linear(x)).abs().max() < 0.05


def test_hooks_and_weight_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.Linear(4, 2)).eval()
    seen: list[Any] = []
    model[1].register_forward_hook(lambda module, args, result: seen.append(type(module)))
    made, x = quantize_dynamic(model), randn(3, 6)
    assert (made(x) - model(x)).abs().max() < 0.05 and dynamic.Linear in seen


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")  # the float model's own path
@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_layers_leave_their_fused_path(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).eval()
    x, padding = randn(3, 5, 16), torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    made: Any = quantize_dynamic(model, {nn.Linear})
    for mask in (None, padding):
        with torch.inference_mode():
            got, want = made(x, src_key_padding_mask=mask), model(x, src_key_padding_mask=mask)
        valid = torch.ones(3, 5, dtype=torch.bool) if mask is None else ~mask
        assert (got - want)[valid].abs().max() < 0.1 and not torch.equal(got, want)
    assert isinstance(made.layers[0].linear1, dynamic.Linear)
    assert type(made.layers[0].self_attn.out_proj) is not dynamic.Linear  # the attention reads its weight itself
    with pytest.warns(UnusedRequestWarning, match="MultiheadAttention reads"):
        quantize_dynamic(model, {"layers.0": default_dynamic_qconfig})


def test_the_result_is_a_normal_module() -> None:
    model, ids = speech()
    made: Any = quantize_dynamic(model)
    want = made(ids)
    assert torch.equal(copy.deepcopy(made)(ids), want) and torch.equal(torch.jit.script(made)(ids), want)
    assert isinstance(made.lstm, dynamic.LSTM)  # scripting left the model as it was
    assert torch.equal(torch.jit.trace(made, (ids,))(ids), want) and torch.equal(made.to("cpu")(ids), want)
    fresh: Any = quantize_dynamic(Speech().eval())
    fresh.load_state_dict(made.state_dict())
    assert torch.equal(fresh(ids), want)
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))


def test_the_same_values_as_the_graph_flow() -> None:
    from qcompiler import convert_fx, prepare_fx
    from qcompiler.config.qconfig_mapping import QConfigMapping

    model, ids = speech()
    mapping = QConfigMapping().set_global(default_dynamic_qconfig).set_object_type(nn.Embedding, None)
    assert torch.equal(convert_fx(prepare_fx(model, mapping, (ids,)))(ids), quantize_dynamic(model)(ids))


def test_a_qconfig_attribute_goes_before_a_class_and_behind_a_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    model[0].qconfig, model[1].qconfig, model[2].qconfig = None, None, float16_dynamic_qconfig
    made: Any = quantize_dynamic(model, {nn.Linear: default_dynamic_qconfig, "1": default_dynamic_qconfig})
    assert type(made[0]) is nn.Linear and model[1].qconfig is None  # None keeps it float
    assert [made[i].weight().dtype for i in (1, 2)] == [torch.qint8, torch.float16]
