"""The public functions. Each runs lists of passes; the logic is in the passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from qcompiler.ambient import in_plain_torch
from qcompiler.artifact.notes import REMARKS, ROWS
from qcompiler.backends import Model, backend_of
from qcompiler.batches import batches, call_examples, check_data
from qcompiler.calibration import calibrate
from qcompiler.checks import MARK, check_eval, check_examples
from qcompiler.converting import chosen_backend, decide, kept_in, names_to_keep, observed_copy
from qcompiler.custom_config import ConvertCustomConfig, FuseCustomConfig, as_config, check_attributes
from qcompiler.debug.explain import rows_of
from qcompiler.debug.parity import require_parity
from qcompiler.debug.scope import watched
from qcompiler.decide_again import Fused
from qcompiler.errors import CalibrationError, QCompilerError
from qcompiler.executable import Executable
from qcompiler.executable.call_forms import CallForms, join
from qcompiler.fingerprint import WEIGHTS, fingerprints
from qcompiler.float_state import FloatState
from qcompiler.ir.check_state import guard_loading
from qcompiler.ir.items import ITEMS, items_of
from qcompiler.ir.names import user_path
from qcompiler.ir.types import Stage
from qcompiler.journal import Remark
from qcompiler.kinds import module_of
from qcompiler.ops.state_nodes import held_names
from qcompiler.ops.table import OPS, Table
from qcompiler.pass_manager import Context, Pass, run_passes, tell_built
from qcompiler.passes import FUSE, pipeline_for
from qcompiler.pipeline import check_float, settings_for, traced
from qcompiler.prepared import STATE, State, as_prepared, user_attributes
from qcompiler.qat.sites import FakeQuantWatch
from qcompiler.report import explain, remarks
from qcompiler.settings import Settings
from qcompiler.trace.examples import example_inputs_for

NOT_SIMULATED = "nothing in the model is fake-quantized, so training was that of the float model: no rounding was learned"


@in_plain_torch
def fuse_fx(
    model: nn.Module, example_inputs: Any = None, fuse_custom_config: Any = None, *, table: Table = OPS, rules: Sequence[Any] = (),
    debug: Any = None, **options: Any
) -> fx.GraphModule:  # fmt: skip
    """The FUSED graph of a float model in eval mode: canonical ops, BatchNorm folded, clamps absorbed; values unchanged to 1e-5.

    `example_inputs`: tuple of the forward's arguments; None: found from the first layers, for a model that torch.fx can follow without
    values, since such a model has one graph for all sizes. Raises TraceError, ConfigError, NumericsError as prepare_fx does.
    """
    model = module_of(model)
    check_float(model)
    check_eval(model)
    if isinstance(example_inputs, FuseCustomConfig):  # the second argument of torch.ao's
        example_inputs, fuse_custom_config = None, example_inputs
    custom = as_config(fuse_custom_config, FuseCustomConfig)
    check_attributes(model, custom.preserved_attributes)
    strict, concrete_args, kwargs = (options.get(name) for name in ("strict", "concrete_args", "example_kwargs"))
    context = Context(Settings(table, rules=tuple(rules), strict=bool(strict), concrete_args=concrete_args))
    gm = traced(model, example_inputs_for(model) if example_inputs is None and not kwargs else example_inputs, context, kwargs)
    with watched(debug, "fuse", type(model).__name__, context):
        run_passes(gm, FUSE, Stage.TRACED, context)
    for name in custom.preserved_attributes:
        setattr(gm, name, getattr(model, name))
    return gm


@in_plain_torch
def prepare_fx(
    model: nn.Module,
    qconfig_mapping: Any = None,
    example_inputs: Any = (),
    prepare_custom_config: Any = None,
    *,
    backend_config: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    concrete_args: Mapping[str, Any] | None = None,
    strict: bool = False,
    table: Table = OPS,
    rules: Sequence[Any] = (),
    passes: Sequence[Pass] = (),
    backend: str = "torch",
    engine: str | None = None,
    isa: str | None = None,
    debug: Any = None,
) -> fx.GraphModule:
    """Traces an unmodified float model, fuses it and inserts observers; call the result with calibration data, then convert_fx.

    `qconfig_mapping`: QConfigMapping, QConfig, qconfig_dict, torch.ao's of these, or None for the default of the engine. A
    module's own `.qconfig` attribute (None: it stays float) wins over the mapping's rule for its name, type or the whole model.
    `example_inputs`, `example_kwargs`: arguments of one forward call; `concrete_args` fixes arguments by name. A list as
    `example_kwargs` gives several forms of the call, each a dict of keywords beside `example_inputs`, or (args, kwargs): with and
    without a mask, a cache, at sizes that the model holds fixed. The result runs each in a graph of its own (`call_forms`). `backend`:
    whose kernels will run it, a name in the registry `qcompiler.backends`. `engine` of the torch back end: x86, fbgemm, onednn or qnnpack
    (default torch.backends.quantized.engine). `isa`: instruction set to compile for, for torch avx512_vnni, avx512, avx2 or default
    (default: this machine's); a model for an older one is right on newer ones. `prepare_custom_config`: a
    PrepareCustomConfig; `backend_config`: a BackendConfig that says which ops and dtypes may be int8; dicts and torch.ao's of both
    are taken. `strict`: what would stay float for want of an int8 form is an error. `table`, `rules`, `passes`: op rows, fusion
    rules and FUSED-stage passes of your own. `debug`: a directory for dumps of all passes, an instrument (qcompiler.debug), or a
    list of these. The model is not changed.
    Raises TraceError, ConfigError, NumericsError, InputError, UnsupportedOpError.
    """
    model = module_of(model)

    def prepared(inputs: Any, kwargs: Mapping[str, Any] | None) -> fx.GraphModule:
        settings = settings_for(model, qconfig_mapping=qconfig_mapping, backend=backend, engine=engine, isa=isa, table=table, rules=rules,
                                strict=strict, prepare_custom_config=prepare_custom_config, backend_config=backend_config,
                                concrete_args=concrete_args)  # fmt: skip
        return _prepare(model, settings, (inputs, kwargs), passes, debug)

    return _of_forms(prepared, example_inputs, example_kwargs)


def _of_forms(prepared: Callable[[Any, Any], fx.GraphModule], example_inputs: Any, example_kwargs: Any) -> fx.GraphModule:
    """What prepare makes of one form of the call, or the module of several."""
    if not isinstance(example_kwargs, (list, tuple)):
        return prepared(example_inputs, example_kwargs)
    forms = [prepared(*example) for example in call_examples(example_inputs, example_kwargs)]
    return join(forms, "prepared", forms[0].meta[STATE].user_attributes)  # type: ignore[return-value]


def _each_form(prepared: CallForms, convert: Callable[[Any], Any], stage: str) -> Any:
    """What `convert` makes of each form, as one module; errors name the form."""
    made = []
    for index, form in enumerate(prepared.call_forms):
        try:
            made.append(convert(form))
        except QCompilerError as error:
            error.message = f"call form {index}, {prepared.spelled(index)}: {error.message}"
            raise
    return join(made, stage, user_attributes(prepared))


def _prepare(model: nn.Module, settings: Settings, examples: tuple[Any, Any], passes: Sequence[Pass], debug: Any) -> fx.GraphModule:
    (inputs, kwargs), context, name = examples, Context(settings), type(model).__name__
    gm = traced(model, inputs, context, kwargs)
    with watched(debug, "prepare", name, context):
        pipeline = pipeline_for(settings).with_passes(passes)
        run_passes(gm, pipeline.fuse, Stage.TRACED, context, recompile=False)
        fused = Fused() if settings.trains else Fused.of(gm, context.journal, settings)
        run_passes(gm, pipeline.observe, Stage.FUSED, context)
    example = (check_examples(inputs), dict(kwargs or {}))
    held = {user_path(gm, path).partition(".")[0] for path in held_names(gm)}  # of these the graph has buffers
    kept = {key: value for key, value in user_attributes(model).items() if key not in held}
    kept |= {key: getattr(model, key) for key in settings.custom.preserved_attributes}
    if items := items_of(model):
        kept[ITEMS] = items
    observed = tuple(settings.custom.observed_classes.values())
    before = FloatState.of(gm, (path for path, _ in model.named_buffers()), settings.trains, observed)
    return as_prepared(gm, State(settings, context.journal, name, kept, example, before, fused, fingerprints(model)))


@in_plain_torch
def prepare_qat_fx(
    model: nn.Module,
    qconfig_mapping: Any = None,
    example_inputs: Any = (),
    prepare_custom_config: Any = None,
    *,
    backend_config: Any = None,
    example_kwargs: Mapping[str, Any] | None = None,
    concrete_args: Mapping[str, Any] | None = None,
    strict: bool = False,
    table: Table = OPS,
    rules: Sequence[Any] = (),
    passes: Sequence[Pass] = (),
    backend: str = "torch",
    engine: str | None = None,
    isa: str | None = None,
    debug: Any = None,
) -> fx.GraphModule:
    """Traces a float model in train mode and inserts fake quantization; train the result, then convert_fx.

    The result trains as the model does: parameters and statistics under the user's names, train() and eval() of it or of its
    submodules as in the model, and values rounded as int8 will round them. Arguments as in prepare_fx: several forms of the call share
    parameters, statistics and the fake quantization of weights. The default qconfigs are
    get_default_qat_qconfig_mapping's, and every qconfig must make fake-quantize modules. The model is not changed.
    Raises TraceError, ConfigError (a model in eval mode among them), NumericsError, InputError, UnsupportedOpError.
    """
    model = module_of(model)

    def prepared(inputs: Any, kwargs: Mapping[str, Any] | None) -> fx.GraphModule:
        settings = settings_for(model, trains=True, qconfig_mapping=qconfig_mapping, backend=backend, engine=engine, isa=isa, table=table,
                                rules=rules, strict=strict, prepare_custom_config=prepare_custom_config, backend_config=backend_config,
                                concrete_args=concrete_args)  # fmt: skip
        return _prepare(model, settings, (inputs, kwargs), passes, debug)

    return _of_forms(prepared, example_inputs, example_kwargs)


@in_plain_torch
def convert_to_reference_fx(
    prepared: Any, *, allow_uncalibrated: str = "error", keep_float: Iterable[str] = (), debug: Any = None
) -> fx.GraphModule:  # fmt: skip
    """The QUANTIZED graph: explicit quantize and dequantize around float ops; runs in plain torch, on plain integer tensors.

    `keep_float`: as in convert_fx.
    """
    names = names_to_keep(prepared, keep_float)
    if isinstance(prepared, CallForms):
        again = partial(convert_to_reference_fx, allow_uncalibrated=allow_uncalibrated, debug=debug)
        each: fx.GraphModule = _each_form(prepared, lambda form: again(form, keep_float=kept_in(form, names)), "reference")
        return each
    gm, state = observed_copy(prepared, allow_uncalibrated)
    context = Context(state.settings, state.journal)
    with watched(debug, "reference", state.name, context):
        setattr(gm, WEIGHTS, state.weights)
        decide(gm, state, context, names)
        made = run_passes(gm, pipeline_for(state.settings).quantize, Stage.OBSERVED, context)
    guard_loading(made)
    return made


@in_plain_torch
def convert_fx(
    prepared: Any, backend: str | None = None, *, convert_custom_config: Any = None, allow_uncalibrated: str = "error",
    check_parity: bool = True, keep_float: Iterable[str] = (), debug: Any = None
) -> Executable:  # fmt: skip
    """Compiles a calibrated module of prepare_fx, or a trained one of prepare_qat_fx, to an int8 module for the CPU.

    `prepared` is not changed, and may be in train or eval mode: eval mode is compiled. `backend`: None for the one that it was
    prepared for; another one, where what was decided for that allows it. `allow_uncalibrated="float"` keeps the
    parts float that no data reached. `convert_custom_config`: a ConvertCustomConfig, a dict, or torch.ao's. `check_parity`:
    compare every int8 value with the simulated one on the example inputs, at the cost of a few forwards. After calibration an op
    whose kernel is off by more than a step takes another one, or floats, with a remark; after training that is an error
    (docs/qat.md). `keep_float`: what stays float after all, as if it had been prepared with a qconfig of None, without tracing or
    calibrating again: paths of modules, patterns of these (globs, or regular expressions as in a QConfigMapping), names of nodes as
    explain has them. Raises CalibrationError where observers saw no data, ConfigError for a module that prepare_fx did not return, and
    for a back end that cannot have what was decided, PassError where parity does not hold.
    """
    if backend is not None:
        backend_of(backend)
    names = names_to_keep(prepared, keep_float)
    if isinstance(prepared, CallForms):
        again = partial(convert_fx, backend=backend, convert_custom_config=convert_custom_config, allow_uncalibrated=allow_uncalibrated,
                        check_parity=check_parity, debug=debug)  # fmt: skip
        made: Executable = _each_form(prepared, lambda form: again(form, keep_float=kept_in(form, names)), "converted")
        return made
    custom = as_config(convert_custom_config, ConvertCustomConfig)
    gm, state = observed_copy(prepared, allow_uncalibrated)
    chosen, target = chosen_backend(gm, state.settings, backend)
    assert chosen.build is not None
    settings = state.settings.with_(quantized_classes=custom.observed_to_quantized_mapping.get("static", {}), target=target)
    context = Context(settings, state.journal, state.example if check_parity and not settings.trains else None)
    pipeline = pipeline_for(settings).with_lowering(chosen.passes)
    check_attributes(prepared, custom.preserved_attributes)
    kept = state.user_attributes | {name: getattr(prepared, name) for name in custom.preserved_attributes}
    with watched(debug, "convert", state.name, context):  # setting the lowered graph makes its code
        decide(gm, state, context, names)
        run_passes(gm, pipeline.quantize, Stage.OBSERVED, context, recompile=False)
        rows, decided = rows_of(gm.graph.nodes, settings.table), len(context.journal.floats)
        run_passes(gm, pipeline.lower, Stage.QUANTIZED, context, recompile=False)
        module = chosen.build(gm, Model(state.name, target, kept))
        tell_built(module, context)
    setattr(module, MARK, "converted")
    setattr(module, WEIGHTS, state.weights)
    setattr(module, ROWS, rows.without(context.journal.floats[decided:]).to_data())
    if check_parity and settings.trains and state.example is not None:
        found = require_parity(prepared, module, state.example)
        context.journal.remarks.append(Remark("parity", "parity", str(found)))
        if not any(isinstance(module, FakeQuantWatch) for module in prepared.modules()):
            context.journal.remarks.append(Remark("parity", "not-simulated", NOT_SIMULATED))
    setattr(module, REMARKS, [remark.to_data() for remark in context.journal.remarks])
    return module


@in_plain_torch
def quantize(
    model: nn.Module, calibration_data: Any, qconfig_mapping: Any = None, *, progress: bool = True, debug: Any = None, **options: Any
) -> Executable:
    """Float model and calibration data in, int8 module out: prepare_fx, calibrate, convert_fx. The first batch is the example.

    `debug` as in prepare_fx, for both steps; the other `options`, `backend` among them, go to prepare_fx. Several forms of the call:
    `example_kwargs`.
    """
    check_data(calibration_data)
    data = [calibration_data] if isinstance(calibration_data, torch.Tensor) else calibration_data
    if iter(data) is data:
        data = list(data)  # a generator is read twice: for the example and for calibration
    first = next(iter(batches(data)), None)
    if first is None:
        raise CalibrationError("0 batches of calibration data", code="no-batches")
    kwargs = options.pop("example_kwargs", None) or first[1] or None
    prepared = prepare_fx(model, qconfig_mapping, first[0], example_kwargs=kwargs, debug=debug, **options)
    calibrate(prepared, data, progress=progress)
    module: Executable = convert_fx(prepared, debug=debug)
    return module


__all__ = [
    "calibrate", "convert_fx", "convert_to_reference_fx", "explain", "fuse_fx", "prepare_fx", "prepare_qat_fx", "quantize", "remarks",
]  # fmt: skip
