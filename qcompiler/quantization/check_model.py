"""What the eager workflow refuses: models at another stage or in the wrong mode, without qconfigs, with weights that disagree."""

from __future__ import annotations

import warnings

from torch import fx, nn

from qcompiler.config.qconfig import QConfig, as_qconfig
from qcompiler.errors import ConfigError, QCompilerWarning, Where, callers_level
from qcompiler.inputs.checks import MARK
from qcompiler.inputs.kinds import check_kinds
from qcompiler.observers.weights import check_axis, check_tied
from qcompiler.quantization.observation import observers_of
from qcompiler.quantization.stubs import QuantStub

BEHAVES = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)  # differ between training and evaluation

HOW_TO_STUB = (
    "Call a QuantStub on the input and a DeQuantStub on the result, or wrap the model: QuantWrapper(model). "
    "qcompiler.prepare_fx needs neither"
)


def check_stage(model: nn.Module) -> None:
    check_kinds(model)
    for path, module in model.named_modules():
        stage = getattr(module, MARK, None)
        if stage is not None:
            raise ConfigError(f"{path or 'this model'} is already {stage}", code=f"already-{stage}", where=Where(module_path=path or None),
                              hint="start from the float model")  # fmt: skip


def check_no_training(model: nn.Module) -> None:
    training = [f"{name} ({type(m).__name__})" for name, m in model.named_modules() if m.training and isinstance(m, BEHAVES)]
    if training:
        more = f" and {len(training) - 5} more" if len(training) > 5 else ""
        raise ConfigError(f"the model is in train mode: {', '.join(training[:5])}{more}", code="train-mode",
                          hint="call model.eval() first; to train with fake quantization: prepare_qat")  # fmt: skip


def check_qconfigs(model: nn.Module) -> None:
    if all(getattr(module, "qconfig", None) is None for module in model.modules()):
        raise ConfigError("no module has a qconfig, so there is nothing to quantize", code="no-qconfig",
                          hint='set it: model.qconfig = qcompiler.quantization.get_default_qconfig("x86")')  # fmt: skip
    if not has_stub(model):
        text = f"this {type(model).__name__} has no QuantStub: once converted, its int8 modules will not take floats. {HOW_TO_STUB}"
        warnings.warn(text, QCompilerWarning, stacklevel=callers_level())


def check_weights(model: nn.Module) -> None:
    users: dict[int, tuple[str, QConfig]] = {}
    for path, module in model.named_modules():
        qconfig, weight = as_qconfig(getattr(module, "qconfig", None)), module._parameters.get("weight")
        if qconfig is None or qconfig.weight is None or weight is None or weight.dim() < 2:
            continue
        check_axis(qconfig.weight(), weight, Where(module_path=path))
        first, known = users.setdefault(id(weight), (path, qconfig))
        check_tied(f"{first}.weight", (first, path), (known.weight, qconfig.weight))


def has_stub(model: nn.Module) -> bool:
    return any(isinstance(module, QuantStub) for module in model.modules())


def check_convert(model: nn.Module, is_reference: bool, allow_uncalibrated: str, mapping: object) -> None:
    if is_reference:
        raise ConfigError("convert makes no reference modules", code="reference", hint="convert_to_reference_fx gives a reference graph")
    if allow_uncalibrated not in ("error", "float"):
        raise ConfigError(f'allow_uncalibrated is "error" or "float", not {allow_uncalibrated!r:.80}', code="allow-uncalibrated")
    if getattr(model, MARK, None) == "converted":
        raise ConfigError("this model is already converted", code="already-converted", hint="start from the float model")
    if isinstance(model, fx.GraphModule) and hasattr(model, MARK):
        raise ConfigError("prepare_fx made this module, not quantization.prepare", code="not-prepared", hint="convert_fx is its convert")
    if mapping is None and not any(True for _ in observers_of(model)):
        raise ConfigError("this model was not prepared: it has no observers", code="not-prepared",
                          hint="prepared = prepare(model); run it on calibration data; convert(prepared)")  # fmt: skip
