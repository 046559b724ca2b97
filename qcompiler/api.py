"""The public functions. Each runs lists of passes; the logic is in the passes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from qcompiler.ambient import in_plain_torch
from qcompiler.artifact.notes import REMARKS, ROWS
from qcompiler.backends import Backend, Model, backend_of
from qcompiler.batches import batches, call_examples, check_data
from qcompiler.checks import MARK, check_eval, check_examples
from qcompiler.custom_config import ConvertCustomConfig, FuseCustomConfig, as_config, check_attributes
from qcompiler.debug.explain import Explanation, rows_of
from qcompiler.debug.parity import require_parity
from qcompiler.debug.scope import watched
from qcompiler.decide_again import Fused, decide_again
from qcompiler.decisions import Narrowed, check_decisions, refused
from qcompiler.errors import CalibrationError, ConfigError, InputError, QCompilerError
from qcompiler.executable import Executable
from qcompiler.executable.call_forms import CallForms, forms_of, join
from qcompiler.fingerprint import WEIGHTS, fingerprints
from qcompiler.float_state import FloatState
from qcompiler.input_text import first_sentence, refuses_inputs
from qcompiler.ir.check_state import guard_loading
from qcompiler.ir.items import ITEMS, items_of
from qcompiler.ir.names import user_path
from qcompiler.ir.types import Stage
from qcompiler.journal import Remark
from qcompiler.kept_names import check_known, named_nodes
from qcompiler.kinds import module_of
from qcompiler.observers.watch import Batch, Watch
from qcompiler.ops.state_nodes import held_names
from qcompiler.ops.table import OPS, Table
from qcompiler.pass_manager import Context, Pass, run_passes
from qcompiler.passes import FUSE, pipeline_for
from qcompiler.pipeline import check_float, settings_for, traced
from qcompiler.prepared import KEPT, STATE, State, as_prepared, state_of, user_attributes
from qcompiler.qat.sites import FakeQuantWatch
from qcompiler.settings import Settings
from qcompiler.stages.verify import verify
from qcompiler.target import Target
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


def _state(prepared: Any) -> State:
    state = state_of(prepared)
    if state is not None and getattr(prepared, MARK, None) == "prepared":
        return state
    if getattr(prepared, MARK, None) == "converted":
        raise ConfigError("this model is already converted", code="already-converted")
    if getattr(prepared, MARK, None) == "prepared" and not isinstance(prepared, fx.GraphModule):
        raise ConfigError("quantization.prepare made this module, not prepare_fx", code="not-prepared",
                          hint="qcompiler.quantization.convert(prepared) is its convert")  # fmt: skip
    raise ConfigError("convert_fx needs the module that prepare_fx returned", code="not-prepared",
                      hint="prepared = prepare_fx(model, mapping, inputs); calibrate(prepared, data); convert_fx(prepared)")  # fmt: skip


def _observed(prepared: Any, allow_uncalibrated: str) -> tuple[fx.GraphModule, State]:
    """A copy of a prepared module for convert to work on."""
    state = _state(prepared)
    if allow_uncalibrated not in ("error", "float"):
        raise ConfigError(f'allow_uncalibrated is "error" or "float", not {allow_uncalibrated!r:.80}', code="allow-uncalibrated")
    verify(prepared, Stage.OBSERVED, table=state.settings.table)
    observers: dict[int, Any] = {id(module): module for module in prepared.modules() if isinstance(module, Watch)}
    try:
        gm = copy.deepcopy(prepared, {} if state.settings.trains else observers)  # observers are read, and dropped from the copy
    except Exception as error:  # torch.fx writes the code of the copy anew
        raise ConfigError(f"invalid IR in the graph given: {type(error).__name__}: {error!s:.400}", code="invalid-ir") from error
    for key in (STATE, KEPT):
        gm.meta.pop(key, None)
    setattr(gm, MARK, "reference")
    if state.settings.trains:
        gm.cpu()  # int8 kernels run there
    state.before.put_back(gm)
    gm._forward_pre_hooks.clear()
    gm._forward_pre_hooks_with_kwargs.clear()
    gm._load_state_dict_post_hooks.clear()
    settings = state.settings.with_(allow_uncalibrated=allow_uncalibrated)
    weights = fingerprints(prepared) if settings.trains else state.weights
    return gm, replace(state, settings=settings, journal=state.journal.continued(), weights=weights)


def _listed(prepared: Any, keep_float: Iterable[str]) -> list[str]:
    """The names of `keep_float`. ConfigError for names that mean nothing in any form of the call, and for a model that was trained."""
    names = [keep_float] if isinstance(keep_float, str) else list(keep_float)
    states = [_state(form) for form in forms_of(prepared)] if names else []
    if any(state.settings.trains for state in states):
        raise ConfigError("keep_float is for calibrated models: this one was trained with its values rounded", code="keep-float",
                          hint="give those modules a qconfig of None, prepare_qat_fx and train again")  # fmt: skip
    meant = [name for state in states for name in _meant(state, names)]
    check_known(names, meant, [name for state in states for name in (*state.settings.module_types, *state.fused.sources)])
    return names


def _meant(state: State, names: Iterable[str]) -> dict[str, frozenset[str]]:
    return named_nodes(names, state.fused.sources, state.settings.module_types)


def _decide(gm: fx.GraphModule, state: State, context: Context, names: list[str]) -> None:
    """Takes the decisions again where ops are to stay float: for the user, or since another back end has no form of them.

    Names that mean something in other forms of the call alone are left out.
    """
    meant, target = _meant(state, names), context.settings.target
    other = not context.settings.trains and target != state.settings.target and refused(gm, state.settings, target)
    if not meant and not other:
        return
    decides = Narrowed(state.settings.target, target) if other else state.settings.target
    context.settings = context.settings.with_(keep_float=frozenset().union(*meant.values()), target=decides)
    context.journal = state.fused.journal.continued()
    for name, nodes in meant.items():
        if not nodes:
            context.remark("convert", "keep-float-unused", f"keep_float {name!r} names no op: what it names was fused into others")
    decide_again(gm, state.fused, pipeline_for(context.settings), context)
    context.settings = context.settings.with_(target=target)


@in_plain_torch
def convert_to_reference_fx(
    prepared: Any, *, allow_uncalibrated: str = "error", keep_float: Iterable[str] = (), debug: Any = None
) -> fx.GraphModule:  # fmt: skip
    """The QUANTIZED graph: explicit quantize and dequantize around float ops; runs in plain torch, on plain integer tensors.

    `keep_float`: as in convert_fx.
    """
    names = _listed(prepared, keep_float)
    if isinstance(prepared, CallForms):
        options = {"allow_uncalibrated": allow_uncalibrated, "debug": debug}
        each: fx.GraphModule = _each_form(
            prepared, lambda form: convert_to_reference_fx(form, keep_float=_meant(_state(form), names), **options), "reference"
        )
        return each
    gm, state = _observed(prepared, allow_uncalibrated)
    context = Context(state.settings, state.journal)
    with watched(debug, "reference", state.name, context):
        setattr(gm, WEIGHTS, state.weights)
        _decide(gm, state, context, names)
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
    names = _listed(prepared, keep_float)
    if isinstance(prepared, CallForms):
        options = {"convert_custom_config": convert_custom_config, "allow_uncalibrated": allow_uncalibrated, "debug": debug,
                   "check_parity": check_parity}  # fmt: skip
        return _each_form(prepared, lambda form: convert_fx(form, backend, keep_float=_meant(_state(form), names), **options), "converted")  # type: ignore
    custom = as_config(convert_custom_config, ConvertCustomConfig)
    gm, state = _observed(prepared, allow_uncalibrated)
    chosen, target = _chosen(gm, state.settings, backend)
    assert chosen.build is not None
    settings = state.settings.with_(quantized_classes=custom.observed_to_quantized_mapping.get("static", {}), target=target)
    context = Context(settings, state.journal, state.example if check_parity and not settings.trains else None)
    pipeline = pipeline_for(settings).with_lowering(chosen.passes)
    check_attributes(prepared, custom.preserved_attributes)
    kept = state.user_attributes | {name: getattr(prepared, name) for name in custom.preserved_attributes}
    with watched(debug, "convert", state.name, context):  # setting the lowered graph makes its code
        _decide(gm, state, context, names)
        run_passes(gm, pipeline.quantize, Stage.OBSERVED, context, recompile=False)
        rows, decided = rows_of(gm.graph.nodes, settings.table), len(context.journal.floats)
        run_passes(gm, pipeline.lower, Stage.QUANTIZED, context, recompile=False)
    module = chosen.build(gm, Model(state.name, target, kept))
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


def _chosen(gm: fx.GraphModule, settings: Settings, name: str | None) -> tuple[Backend, Target]:
    """The back end to build for, and its target. Raises ConfigError for one that builds nothing, or cannot have what was decided."""
    chosen = backend_of(name or settings.target.backend)
    if chosen.build is None:
        raise ConfigError(f"the back end {chosen.name} builds no modules", code="backend",
                          hint="convert_to_reference_fx(prepared) gives its graph; backend= names another one")  # fmt: skip
    if chosen.name == settings.target.backend:
        return chosen, settings.target
    target = chosen.target(None, None)
    check_decisions(gm, settings, target)
    return chosen, target


@in_plain_torch
def calibrate(prepared: nn.Module, data: Any, *, progress: bool = False, skip_nonfinite: bool = False) -> int:
    """Runs calibration data through a prepared module, of prepare_fx or of quantization.prepare, and returns the number of batches.

    `data`: iterable of inputs (a tensor, a tuple of arguments, a dict of keywords), or a DataLoader of (inputs, labels), or one
    tensor (one batch). May be called again with more data. A batch that fails or is interrupted leaves no trace in the observers:
    an exception's note says how many batches they hold, and calibration can go on with the next. Raises CalibrationError for no
    batches and, naming the batch, for NaN or inf (`skip_nonfinite` skips such).
    """
    for form in forms_of(prepared):
        if isinstance(form, fx.GraphModule) or getattr(form, MARK, None) != "prepared":  # else quantization.prepare's
            verify(form, Stage.OBSERVED, table=_state(form).settings.table)  # type: ignore[arg-type]
    check_data(data)
    items = [data] if isinstance(data, torch.Tensor) else data
    batch, count = Batch(prepared), 0
    try:
        with _evaluating(prepared):
            for index, (args, kwargs) in enumerate(_tracked(batches(items), progress, items)):
                batch.begin()
                try:
                    _observe(prepared, index, args, kwargs)
                    count += 1
                except BaseException as error:
                    batch.take_back()
                    if not (skip_nonfinite and isinstance(error, CalibrationError)):
                        raise
    except BaseException as error:
        error.add_note(f"calibration stopped; the observers hold {count} batches of this call, whole ones alone")
        raise
    if count == 0:
        raise CalibrationError(
            "0 batches of calibration data", code="no-batches", hint="an iterator can be read only once; is the loader empty?"
        )
    return count


@contextmanager
def _evaluating(prepared: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; what was in train mode is again, after. Tensors that training will use are no inference tensors."""
    training = [module for module in prepared.modules() if module.training]
    prepared.eval()
    try:
        with torch.no_grad() if training or _state(forms_of(prepared)[0]).settings.trains else torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _observe(prepared: nn.Module, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """One batch; errors name it."""
    try:
        prepared(*args, **kwargs)
    except (CalibrationError, InputError) as error:
        raise type(error)(f"batch {index}: {error.message}", code=error.code, where=error.where, hint=error.hint) from error
    except Exception as error:  # of a hand-prepared model: a graph's are InputErrors
        if not refuses_inputs(error):
            raise
        text = f"batch {index}: {type(error).__name__}: {first_sentence(error)}"
        hint = "does the float model take it? a tuple is the arguments of forward: without labels"
        raise InputError(text, code="input-shape", hint=hint) from error


def _tracked(items: Iterable[Any], progress: bool, data: Any) -> Iterable[Any]:
    if not progress:
        return items
    from rich.progress import track

    return track(items, description="calibrating", total=len(data) if hasattr(data, "__len__") else None)


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


def _compiled_state(model: Any, what: str) -> State:
    """The state of a prepared module; the ConfigError for any other names `what` was called."""
    if getattr(model, MARK, None) is None:
        text = f"{what} takes a prepared, converted or loaded model; nothing has been done to this {type(model).__name__}"
        raise ConfigError(text, code="not-prepared", hint="pass what prepare_fx, convert_fx, quantize or load returned")
    if getattr(model, MARK, None) == "converted":
        raise ConfigError(f"this module has lost the notes that {what} reads", code="no-notes", hint="convert the model anew")
    return _state(model)


def explain(model: Any) -> Explanation:
    """Which ops run in int8 and which in float, with the reason, for a prepared, converted or loaded module."""
    if isinstance(model, CallForms):
        found = [replace(row, node=f"{i}.{row.node}") for i, form in enumerate(model.call_forms) for row in explain(form).rows]
        return Explanation(tuple(found))
    rows = getattr(model, ROWS, None)
    if rows is not None:
        return Explanation.from_data(rows)
    state = _compiled_state(model, "explain")
    return rows_of(model.graph.nodes, state.settings.table)


def remarks(model: Any) -> list[Remark]:
    """What the compiler noted of a prepared, converted or loaded module: not fused, kept float, made concrete, and why."""
    if isinstance(model, CallForms):
        return list({str(remark.to_data()): remark for form in model.call_forms for remark in remarks(form)}.values())
    data = getattr(model, REMARKS, None)
    return list(_compiled_state(model, "remarks").journal.remarks) if data is None else [Remark.from_data(entry) for entry in data]
