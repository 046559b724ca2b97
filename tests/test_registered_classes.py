"""Objects of classes that torch.utils._pytree knows, such as key-value caches: arguments and results like any other."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn

from qcompiler import QConfigMapping, calibrate, convert_fx, export_source, load, prepare_fx, remarks, save
from qcompiler.backends import Stored
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.result_classes import result_classes
from qcompiler.errors import ConfigError, InputError, TraceError
from qcompiler.files.faults import StandInWarning
from tests.flow import randn


class Cache:
    """Keys and values of each layer, and a note; it grows when it is used."""

    def __init__(self, layers: Any = (), note: str = "") -> None:
        self.layers, self.note = [list(layer) for layer in layers], note

    def update(self, index: int, key: Tensor, value: Tensor) -> tuple[Any, Any]:
        if index == len(self.layers):
            self.layers.append([torch.tensor([]), torch.tensor([])])
        kept = self.layers[index]
        kept[0], kept[1] = torch.cat([kept[0], key], -2), torch.cat([kept[1], value], -2)
        return kept[0], kept[1]


class Unknown(Cache):
    pass


def flatten(cache: Cache) -> tuple[list[Any], Any]:
    return [part for layer in cache.layers for part in layer], [len(cache.layers), cache.note]


def unflatten(parts: Any, held: Any) -> Cache:
    parts = list(parts)
    return Cache([parts[2 * i : 2 * i + 2] for i in range(held[0])], held[1])


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    pytree.register_pytree_node(Cache, flatten, unflatten)
    yield
    pytree._deregister_pytree_node(Cache)


class Unfollowed(torch.autograd.Function):
    """A function that no trace follows: the module that calls it is a float leaf."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()


class Decoder(nn.Module):
    """Two layers of attention over what a cache holds."""

    def __init__(self, cache: type = Cache) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = cache
        self.embedding, self.head = nn.Embedding(20, 16), nn.Linear(16, 20)
        self.qkv, self.out = (nn.ModuleList(nn.Linear(16, n) for _ in range(2)) for n in (48, 16))

    def forward(self, ids: Tensor, cache: Any = None) -> Any:
        cache = self.kind() if cache is None else cache
        x = self.embedding(ids)
        for i in range(2):
            q, k, v = self.qkv[i](x).chunk(3, -1)
            x = x + self.out[i](F.scaled_dot_product_attention(q, *cache.update(i, k, v)))
        return self.head(x), cache


IDS = torch.tensor([[3, 7, 1, 9]])


@torch.no_grad()
def generate(first: Any, step: Any, count: int = 10) -> tuple[Tensor, Tensor]:
    logits, cache = first(IDS)
    found = [logits[:, -1]]
    for _ in range(count):
        logits, cache = step(found[-1].argmax(-1, keepdim=True), cache)
        found.append(logits[:, -1])
    return torch.stack(found, 1).argmax(-1), torch.stack(found, 1)


def compiled(mapping: Any) -> tuple[Any, Any]:
    model = Decoder().eval()
    first, step = prepare_fx(model, mapping, (IDS,)), prepare_fx(model, mapping, (IDS[:, :1], model(IDS)[1]))
    generate(lambda ids: (calibrate(first, [(ids,)]), model(ids))[1],
             lambda ids, cache: (calibrate(step, [(ids, cache)]), model(ids, cache))[1])  # fmt: skip
    return convert_fx(first), convert_fx(step)


def test_generation_with_a_cache(tmp_path: Path) -> None:
    model = Decoder().eval()
    tokens, logits = generate(model, model)
    exact, exact_logits = generate(*compiled(QConfigMapping().set_global(None)))
    assert torch.equal(exact, tokens) and torch.equal(exact_logits, logits)
    first, step = compiled(None)
    found, found_logits = generate(first, step)
    # two layers of 8-bit products: about 30 dB as long as the tokens agree, which they do with these weights
    assert torch.equal(found, tokens)
    assert 10 * torch.log10(logits.square().sum() / (logits - found_logits).square().sum()) > 20
    assert type(step(IDS[:, :1], model(IDS)[1])[1]) is Cache
    save(step, tmp_path / "step.qc")
    again = load(tmp_path / "step.qc")
    assert torch.equal(generate(first, again)[1], found_logits) and torch.equal(generate(first, copy.deepcopy(step))[1], found_logits)


def test_the_callers_cache_stays_and_a_remark_says_so() -> None:
    model = Decoder().eval()
    step = compiled(None)[1]
    cache = model(IDS)[1]
    result = step(IDS[:, :1], cache)[1]
    assert cache.layers[0][0].shape[-2] == 4 and result.layers[0][0].shape[-2] == 5
    assert [r.code for r in remarks(step) if "'cache'" in r.text and r.code != "guard"] == ["argument-changed"]


def test_a_cache_of_another_form_is_refused() -> None:
    model = Decoder().eval()
    step = compiled(None)[1]
    cache = model(IDS)[1]
    for other in (Cache(cache.layers[:1]), Cache(cache.layers, "note"), Cache(), None, [cache]):
        with pytest.raises(InputError, match="holds the form of the argument 'cache' fixed"):
            step(IDS[:, :1], other)


def test_a_file_makes_no_class_that_is_not_registered(tmp_path: Path) -> None:
    step = compiled(None)[1]
    save(step, tmp_path / "step.qc")
    pytree._deregister_pytree_node(Cache)
    try:
        with pytest.raises(ConfigError, match=r"Cache, a class that is not registered here"):
            load(tmp_path / "step.qc")
    finally:
        pytree.register_pytree_node(Cache, flatten, unflatten)
    for name in ("os.system", "collections.OrderedDict", "torch.Size", "functools.partial"):
        raw = step.program.to_json().replace("record.tests.test_registered_classes.Cache", f"record.{name}")
        assert raw != step.program.to_json()
        with pytest.raises(ConfigError, match="not registered here"):
            result_classes(Program.from_json(raw), Stored("x", {}, {}, {}))


def test_torchscript_and_plain_files_have_no_word_for_it(tmp_path: Path) -> None:
    step = compiled(None)[1]
    with pytest.raises(ConfigError, match=r"no type for .*Cache"):
        torch.jit.script(step)
    with pytest.raises(ConfigError, match="registered class"):
        export_source(step, tmp_path)


def test_unregistered_objects_are_arguments_but_no_results() -> None:
    model = Decoder(Unknown).eval()
    with pytest.raises(TraceError, match=r"object of type Unknown at `\[1\]` of its result") as caught:
        prepare_fx(model, None, (IDS,))
    assert caught.value.hint and "register_pytree_node" in caught.value.hint
    model.forward = lambda ids, cache: Decoder.forward(model, ids, cache)[0]  # type: ignore[arg-type, method-assign]
    cache = Unknown([[randn(1, 4, 16), randn(1, 4, 16)] for _ in range(2)])
    prepared = prepare_fx(model, QConfigMapping().set_global(None), (IDS[:, :1], cache))
    longer = Unknown([[randn(1, 6, 16), randn(1, 6, 16)] for _ in range(2)])
    found = convert_fx(prepared)(IDS[:, :1], longer)
    assert torch.equal(found, Decoder.forward(model, IDS[:, :1], longer)[0])


def test_a_leaf_that_returns_one(tmp_path: Path) -> None:
    class Leaf(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return Cache([[Unfollowed.apply(x) + 1, x]])  # type: ignore[no-untyped-call]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leaf, self.l = Leaf(), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Any:
            made = self.leaf(x)
            return self.l(made.layers[0][0]), made

    model, x = Net().eval(), randn(2, 8)
    module = convert_fx(prepare_fx(model, QConfigMapping().set_global(None), (x,)))
    other = randn(2, 8, seed=1)
    found, expected = module(other), model(other)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1].layers[0][0], expected[1].layers[0][0])


@dataclasses.dataclass
class Kept:
    key: Tensor
    value: Tensor


class Grown(Kept):
    """Changed in place, as caches of libraries are."""


class Step(nn.Module):
    """Attention over what a dataclass holds, which nobody registered."""

    def __init__(self, kind: type[Kept]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.qkv, self.out = kind, nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor, cache: Any = None) -> Any:
        q, k, v = self.qkv(x).chunk(3, -1)
        if cache is None:
            cache = self.kind(k, v)
        elif self.kind is Grown:
            cache.key, cache.value = torch.cat([cache.key, k], 1), torch.cat([cache.value, v], 1)
        else:
            cache = self.kind(torch.cat([cache.key, k], 1), torch.cat([cache.value, v], 1))
        return self.out(F.scaled_dot_product_attention(q, cache.key, cache.value)), cache


@torch.no_grad()
def decoded(model: Any, x: Tensor) -> Tensor:
    y, cache = model(x)
    for _ in range(4):
        y, cache = model(y[:, -1:], cache)
    return y


@pytest.mark.parametrize("kind", [Kept, Grown])
@pytest.mark.parametrize("mapping", [QConfigMapping().set_global(None), None], ids=["float", "int8"])
def test_a_dataclass_as_cache(kind: type[Kept], mapping: Any, tmp_path: Path) -> None:
    model, x = Step(kind).eval(), randn(2, 5, 16)
    with torch.no_grad():
        cache = model(x)[1]
    prepared = prepare_fx(model, mapping, (x,), example_kwargs=[((x,), {}), ((x[:, :1], cache), {})])
    calibrate(prepared, [(x,), (x[:, :1], cache)])
    module = convert_fx(prepared)
    found, expected = decoded(module, x), decoded(model, x)
    assert type(module(x)[1]) is kind and (expected - found).square().sum() < expected.square().sum() / 100
    if mapping is not None:
        torch.testing.assert_close(found, expected)
    save(module, tmp_path / "m.qc")
    assert torch.equal(decoded(load(tmp_path / "m.qc", modules={f"{__name__}.{kind.__name__}": kind}), x), found)
    with pytest.warns(StandInWarning, match=kind.__name__):
        known = load(tmp_path / "m.qc")
    assert torch.equal(decoded(known, x), found)  # a record goes in as it came out
    with pytest.raises(InputError, match=kind.__name__):
        known(x[:, :1], {"key": x, "value": x})
