"""Training through fake quantization: schedule, resumption, DDP, torch.compile, checkpointing, autocast, copies, other devices."""

from __future__ import annotations

import io
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import qcompiler.nn as qnn
from qcompiler import fake_quantize as fq
from qcompiler.api import prepare_qat_fx
from qcompiler.config.qconfig import (
    QConfig,
    default_per_channel_lsq_qconfig,
    default_qat_qconfig,
    get_default_qat_qconfig,
)
from qcompiler.config.qconfig_mapping import QConfigMapping
from qcompiler.errors import ConfigError, NumericsError
from qcompiler.observers import ObserverBase
from qcompiler.qat import QATSchedule, freeze_bn_stats, update_bn_stats

QCONFIGS = {"fused": get_default_qat_qconfig("x86"), "plain": default_qat_qconfig, "learned": default_per_channel_lsq_qconfig,
            "channels": QConfig(fq.default_fake_quant, fq.default_per_channel_weight_fake_quant)}  # fmt: skip


def eager(kind: str = "fused") -> nn.Module:
    """A small model of QAT modules with fake quantization between them."""
    torch.manual_seed(0)
    qconfig = QCONFIGS[kind]
    first = qnn.intrinsic.qat.ConvBnReLU2d(1, 4, 3, qconfig=qconfig)
    last = qnn.qat.Linear(4, 3, qconfig=qconfig)
    return nn.Sequential(qconfig.activation(), first, qconfig.activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last).train()


def graph(kind: str = "fused") -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    return prepare_qat_fx(model.train(), QConfigMapping().set_global(QCONFIGS[kind]), (batch(0)[0],))


MODELS = {"eager": eager, "graph": graph}


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 1, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> torch.Tensor:
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.detach()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def assert_equal_states(a: nn.Module, b: nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    different = [k for k in first if not torch.equal(first[k], second[k])]
    assert not different


def fake_quants(model: nn.Module) -> list[fq.FakeQuantizeBase]:
    return [m for m in model.modules() if isinstance(m, fq.FakeQuantizeBase)]


@pytest.mark.parametrize("kind", QCONFIGS)
@pytest.mark.parametrize("model", MODELS)
def test_the_loss_falls(model: str, kind: str) -> None:
    made = MODELS[model](kind)
    x, y = batch(0)
    optimizer = sgd(made)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(made(x), y))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1].item() < 0.8 * losses[0].item()


@pytest.mark.parametrize("kind", QCONFIGS)
@pytest.mark.parametrize("model", MODELS)
def test_a_resumed_training_goes_on_exactly(model: str, kind: str) -> None:
    through = MODELS[model](kind)
    optimizer = sgd(through)
    train(through, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"model": through.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(through, optimizer, range(3, 6))
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = MODELS[model](kind)
    resumed.load_state_dict(state["model"])
    again = sgd(resumed)
    again.load_state_dict(state["optimizer"])
    train(resumed, again, range(3, 6))
    assert_equal_states(through, resumed)


@pytest.mark.parametrize("kind", QCONFIGS)
@pytest.mark.parametrize("model", MODELS)
def test_copies_train_apart(model: str, kind: str) -> None:
    made = MODELS[model](kind)
    train(made, sgd(made), range(2))
    copy = deepcopy(made)
    train(made, sgd(made), range(2, 4))
    before = deepcopy(copy.state_dict())
    assert all(torch.equal(before[k], v) for k, v in copy.state_dict().items())
    train(copy, sgd(copy), range(2, 4))
    assert_equal_states(made, copy)


@pytest.mark.parametrize("model", MODELS)
def test_schedule(model: str) -> None:
    made = MODELS[model]()
    schedule = QATSchedule(made, fake_quant_from=1, freeze_bn_from=2, observe_until=3)
    bn = next(m for m in made.modules() if isinstance(m, nn.BatchNorm2d))
    seen = []
    for epoch in range(4):
        schedule.step()
        made.eval()
        made.train()
        count, scales = bn.num_batches_tracked.item(), [m.scale.clone() for m in fake_quants(made)]
        train(made, sgd(made), range(epoch, epoch + 1))
        moved = any(not torch.equal(a, m.scale) for a, m in zip(scales, fake_quants(made), strict=True))
        seen.append((fake_quants(made)[0].is_on("fake_quant_enabled"), bn.num_batches_tracked.item() > count, moved))
    assert [s[2] for s in seen] == [False, True, True, False] or seen[0][2]  # the fused kernel sets scales only while it rounds
    seen[0] = (*seen[0][:2], True)
    assert seen == [(False, True, True), (True, True, True), (True, False, True), (True, False, False)]
    resumed = MODELS[model]()
    later = QATSchedule(resumed, fake_quant_from=1, freeze_bn_from=2, observe_until=3)
    later.load_state_dict(schedule.state_dict())
    assert later.epoch == 3 and not fake_quants(resumed)[0].is_on("observer_enabled")
    assert not next(m for m in resumed.modules() if isinstance(m, nn.BatchNorm2d)).training
    later.step(0)
    resumed.train()
    assert next(m for m in resumed.modules() if isinstance(m, nn.BatchNorm2d)).training
    assert not fake_quants(resumed)[0].is_on("fake_quant_enabled")


def test_schedule_of_a_float_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="no fake quantization"):
        QATSchedule(nn.Linear(2, 2))


def test_schedule_leaves_alone_what_it_is_not_told() -> None:
    made = eager()
    made.apply(fq.disable_observer)
    made.apply(freeze_bn_stats)
    QATSchedule(made).step()
    assert not fake_quants(made)[0].is_on("observer_enabled") and made[1].freeze_bn


def test_a_frozen_batch_norm_of_a_graph_survives_train_and_copies() -> None:
    made = graph()
    made.apply(freeze_bn_stats)
    copy = deepcopy(made).train()
    bn, other = (next(m for m in g.modules() if isinstance(m, nn.BatchNorm2d)) for g in (made, copy))
    assert not other.training and other is not bn
    copy.apply(update_bn_stats)
    assert other.training and not bn.training
    made.eval().apply(update_bn_stats)
    assert not bn.training


def test_nan_names_the_module_at_the_latest_when_the_epoch_ends() -> None:
    made = eager()
    train(made, sgd(made), range(1))
    with pytest.raises(NumericsError):  # on the CPU at once
        made(torch.full((2, 1, 6, 6), float("nan")))
    made[2].scale.fill_(float("nan"))  # what a device keeps of it
    with pytest.raises(NumericsError, match="through 2"):
        QATSchedule(made, observe_until=1).step()
    with pytest.raises(NumericsError, match="NaN or inf passed"):
        made[2].qparams()


@pytest.mark.parametrize("kind", QCONFIGS)
@pytest.mark.parametrize("model", MODELS)
def test_all_state_moves_with_the_model(model: str, kind: str) -> None:
    """No GPU is needed to see what would stay behind: the meta device takes everything that `to` moves."""
    made = MODELS[model](kind)
    train(made, sgd(made), range(1))
    made.to("meta")
    for module in made.modules():
        tensors = [t for t in vars(module).values() if isinstance(t, torch.Tensor)]
        tensors += [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
        assert all(t.is_meta for t in tensors), type(module).__name__


@pytest.fixture
def fake_quantize_on_meta() -> Iterator[None]:
    """The shapes of torch's unfused per-channel kernel, which it does not know for meta tensors."""
    library = torch.library.Library("aten", "IMPL", "Meta")
    name = "fake_quantize_per_channel_affine_cachemask"
    library.impl(name, lambda x, *rest: (torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)))
    yield
    library._destroy()


@pytest.mark.usefixtures("fake_quantize_on_meta")
def test_a_step_reads_nothing_back_from_the_device() -> None:
    """A meta tensor has no values, so any read raises: what waits for a GPU fails here."""
    made = eager("fused")
    train(made, sgd(made), range(1))
    made.to("meta")
    loss = made(torch.empty(8, 1, 6, 6, device="meta")).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.is_meta for p in made.parameters())


def two_kinds(model: str, first: str, second: str) -> nn.Module:
    """A convolution with BatchNorm of one kind and a linear of another, so that one compilation meets both."""
    torch.manual_seed(0)
    if model == "eager":
        return nn.Sequential(*eager(first)[:2], nn.Flatten(), qnn.qat.Linear(64, 3, qconfig=QCONFIGS[second])).train()
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).train()
    mapping = QConfigMapping().set_global(QCONFIGS[first]).set_object_type(nn.Linear, QCONFIGS[second])
    return prepare_qat_fx(plain, mapping, (batch(0)[0],))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does that to Functions
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # and to inputs
@pytest.mark.parametrize(("model", "kinds", "steps"), [("graph", ("fused", "learned"), 3), ("graph", ("channels", "plain"), 2),
                                                       ("eager", ("learned", "channels"), 2)])  # fmt: skip
def test_compiled_training_equals_eager(model: str, kinds: tuple[str, str], steps: int) -> None:
    """In one graph. The first forward of all is compiled, so no buffer may want its size then; the third has observers off."""
    plain = two_kinds(model, *kinds)
    other = deepcopy(plain)
    torch._dynamo.reset()
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for step in range(steps):
        if step == 2:
            plain.apply(fq.disable_observer), other.apply(fq.disable_observer)
        x, y = batch(step)
        losses = [F.cross_entropy(m(x), y) for m in (plain, compiled)]
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
        for m, loss in zip((plain, other), losses, strict=True):
            m.zero_grad()
            loss.backward()
        for (name, p), q in zip(plain.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    for (name, p), q in zip(plain.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(q, p, rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("kind", QCONFIGS)
def test_gradient_checkpointing(kind: str) -> None:
    """The forward is computed twice, so with moving statistics they move twice; frozen, all is equal."""
    plain = eager(kind)
    train(plain, sgd(plain), range(2))
    plain.apply(freeze_bn_stats), plain.apply(fq.disable_observer)
    other = deepcopy(plain)
    x, y = batch(5)
    plain.zero_grad(), other.zero_grad()
    F.cross_entropy(plain(x), y).backward()
    F.cross_entropy(checkpoint(other, x, use_reentrant=False), y).backward()
    for p, q in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    assert_equal_states(plain, other)


@pytest.mark.parametrize("kind", QCONFIGS)
@pytest.mark.parametrize("model", MODELS)
def test_autocast_rounds_in_float32(model: str, kind: str) -> None:
    made = MODELS[model](kind)
    x, y = batch(0)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(made(x), y)
    loss.backward()
    want = F.cross_entropy(deepcopy(made)(x), y)
    assert loss.item() == pytest.approx(want.item(), rel=0.05)  # bfloat16 has 8 bits
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())
    floats = [b for n, b in made.named_buffers() if b.is_floating_point()]
    assert all(b.dtype is torch.float32 for b in floats)


def _other_rank(index: int, *args: Any) -> None:
    torch.set_num_threads(1)
    _train_as(index + 1, *args)
    dist.destroy_process_group()


def _train_as(rank: int, kind: str, file: str, model: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    made = MODELS[model](kind)
    if kind == "learned":
        made(batch(0)[0])  # the first scales, before parameters are spread
    wrapped = DistributedDataParallel(made)
    optimizer = sgd(made)
    for step in range(3):
        train(wrapped, optimizer, range(2 * step + rank, 2 * step + rank + 1))
        gathered: list[Any] = [None, None]
        dist.all_gather_object(gathered, [p.grad for p in made.parameters()] + [p.detach() for p in made.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*gathered, strict=True))
    made.apply(fq.disable_observer), made.apply(freeze_bn_stats)
    train(wrapped, optimizer, range(rank, rank + 1))  # buffers are spread when a forward begins
    dist.all_gather_object(gathered, list(made.state_dict().values()))
    assert all(torch.equal(a, b) for a, b in zip(*gathered, strict=True))


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize(("model", "kind"), [("graph", "learned")])
def test_two_processes_stay_equal(model: str, kind: str, tmp_path: Path) -> None:
    args = (kind, str(tmp_path / "store"), model)
    other = mp.spawn(_other_rank, args=args, nprocs=1, join=False, daemon=True)  # rank 0 is here: it has torch imported
    try:
        _train_as(0, *args)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    other.join()


def test_switches_written_by_hand_count() -> None:
    module = fq.default_fake_quant()
    x = torch.linspace(-1, 1, 7)
    module(x)
    module.fake_quant_enabled[0] = 0
    assert module(x) is x
    module.fake_quant_enabled[0] = 1
    module.observer_enabled[0] = 0
    scale = module.scale.clone()
    assert module(5 * x) is not x and torch.equal(module.scale, scale)
    with torch.inference_mode():
        other = fq.default_fake_quant()
        other.disable_fake_quant()
        assert other(x) is x
    assert sum(isinstance(m, ObserverBase) for m in module.modules()) == 2
