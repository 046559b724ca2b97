"""The public functions: what they take and promise. What they do is in `workflow`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from torch import fx, nn

from qcompiler.ambient import in_plain_torch
from qcompiler.choices import BenchOptions, Choices, FuseOptions, QuantizeOptions, TuneOptions
from qcompiler.compile.pass_manager import Pass
from qcompiler.compile.rewrite import Rule
from qcompiler.compile.settings import Settings
from qcompiler.config.corrections import Corrections
from qcompiler.executable import Executable
from qcompiler.inputs.checks import check_named
from qcompiler.inputs.door import door
from qcompiler.ops.table import OPS, Table
from qcompiler.tune.autotune import Task, search
from qcompiler.tune.goal import Goal, check_numbers
from qcompiler.tune.result import Tuned
from qcompiler.tune.score import Metric
from qcompiler.workflow.bench import Bench, Run, timed, variants
from qcompiler.workflow.calibrate import calibrate
from qcompiler.workflow.convert import Conversion, convert, reference
from qcompiler.workflow.explain import explain, remarks, scales
from qcompiler.workflow.first_batch import first_batch
from qcompiler.workflow.fuse import fuse
from qcompiler.workflow.prepare import prepare

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@in_plain_torch
@door
def fuse_fx(
    model: nn.Module, example_inputs: Any = None, fuse_custom_config: Any = None, *, table: Table = OPS, rules: Sequence[Rule] = (),
    debug: object = None, **options: Unpack[FuseOptions]
) -> fx.GraphModule:  # fmt: skip
    """The FUSED graph of a float model in eval mode: canonical ops, BatchNorm folded, clamps absorbed; values unchanged to 1e-5.

    `example_inputs`: tuple of the forward's arguments; None: found from the first layers, for a model that torch.fx can follow without
    values, since such a model has one graph for all sizes. Raises TraceError, ConfigError, NumericsError as prepare_fx does.
    """
    settings = Settings(table, rules=tuple(rules), strict=options.get("strict", False), concrete_args=options.get("concrete_args"))
    return fuse(model, (example_inputs, options.get("example_kwargs")), fuse_custom_config, settings, debug)


@in_plain_torch
@door
def prepare_fx(
    model: nn.Module,
    qconfig_mapping: Any = None,
    example_inputs: Any = (),
    prepare_custom_config: Any = None,
    *,
    backend_config: Any = None,
    example_kwargs: Mapping[str, object] | Sequence[object] | None = None,
    concrete_args: Mapping[str, Any] | None = None,
    strict: bool = False,
    table: Table = OPS,
    rules: Sequence[Rule] = (),
    passes: Sequence[Pass] = (),
    backend: str = "torch",
    engine: str | None = None,
    isa: str | None = None,
    debug: object = None,
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
    choices = Choices(qconfig_mapping=qconfig_mapping, prepare_custom_config=prepare_custom_config, backend_config=backend_config,
                      concrete_args=concrete_args, strict=strict, table=table, rules=rules, backend=backend, engine=engine,
                      isa=isa)  # fmt: skip
    return prepare(model, (example_inputs, example_kwargs), choices, passes, debug)


@in_plain_torch
@door
def prepare_qat_fx(
    model: nn.Module,
    qconfig_mapping: Any = None,
    example_inputs: Any = (),
    prepare_custom_config: Any = None,
    *,
    backend_config: Any = None,
    example_kwargs: Mapping[str, object] | Sequence[object] | None = None,
    concrete_args: Mapping[str, Any] | None = None,
    strict: bool = False,
    table: Table = OPS,
    rules: Sequence[Rule] = (),
    passes: Sequence[Pass] = (),
    backend: str = "torch",
    engine: str | None = None,
    isa: str | None = None,
    debug: object = None,
) -> fx.GraphModule:
    """Traces a float model in train mode and inserts fake quantization; train the result, then convert_fx.

    The result trains as the model does: parameters and statistics under the user's names, train() and eval() of it or of its
    submodules as in the model, and values rounded as int8 will round them. Arguments as in prepare_fx: several forms of the call share
    parameters, statistics and the fake quantization of weights. The default qconfigs are
    get_default_qat_qconfig_mapping's, and every qconfig must make fake-quantize modules. The model is not changed.
    Raises TraceError, ConfigError (a model in eval mode among them), NumericsError, InputError, UnsupportedOpError.
    """
    choices = Choices(qconfig_mapping=qconfig_mapping, prepare_custom_config=prepare_custom_config, backend_config=backend_config,
                      concrete_args=concrete_args, strict=strict, table=table, rules=rules, backend=backend, engine=engine,
                      isa=isa)  # fmt: skip
    return prepare(model, (example_inputs, example_kwargs), choices, passes, debug, trains=True)


@in_plain_torch
@door
def convert_to_reference_fx(
    prepared: object, *, allow_uncalibrated: str = "error", keep_float: str | Iterable[str] = (),
    corrections: Corrections | None = None, debug: object = None
) -> fx.GraphModule:  # fmt: skip
    """The QUANTIZED graph: explicit quantize and dequantize around float ops; runs in plain torch, on plain integer tensors.

    `keep_float`, `corrections`: as in convert_fx.
    """
    return reference(prepared, keep_float, Conversion(allow_uncalibrated, debug), corrections)


@in_plain_torch
@door
def convert_fx(
    prepared: Any, backend: str | None = None, *, convert_custom_config: Any = None, allow_uncalibrated: str = "error",
    check_parity: bool = True, keep_float: str | Iterable[str] = (), corrections: Corrections | None = None, debug: object = None
) -> Executable:  # fmt: skip
    """Compiles a calibrated module of prepare_fx, or a trained one of prepare_qat_fx, to an int8 module for the CPU.

    `prepared` is not changed, and may be in train or eval mode: eval mode is compiled. `backend`: None for the one that it was
    prepared for; another one, where what was decided for that allows it. `allow_uncalibrated="float"` keeps the
    parts float that no data reached. `convert_custom_config`: a ConvertCustomConfig, a dict, or torch.ao's. `check_parity`:
    compare every int8 value with the simulated one on the example inputs, at the cost of a few forwards. After calibration an op
    whose kernel is off by more than a step takes another one, or floats, with a remark; after training that is an error
    (docs/qat.md). `keep_float`: what stays float after all, as if it had been prepared with a qconfig of None, without tracing or
    calibrating again: paths of modules, patterns of these (globs, or regular expressions as in a QConfigMapping), names of nodes as
    explain has them. `corrections`: codes, scales, biases, ranges and weights in place of those that convert finds (qcompiler.tune).
    Raises CalibrationError where observers saw no data, ConfigError for a module that prepare_fx did not return, for corrections that
    do not fit, and for a back end that cannot have what was decided, PassError where parity does not hold.
    """
    return convert(prepared, keep_float, Conversion(allow_uncalibrated, debug, backend, convert_custom_config, check_parity), corrections)


@in_plain_torch
@door
def quantize(
    model: nn.Module,
    calibration_data: Any,
    qconfig_mapping: Any = None,
    *,
    progress: bool = True,
    debug: object = None,
    **options: Unpack[QuantizeOptions],
) -> Executable:
    """Float model and calibration data in, int8 module out: prepare_fx, calibrate, convert_fx. The first batch is the example.

    `debug` as in prepare_fx, for both steps; the other `options`, `backend` among them, go to prepare_fx. Several forms of the call:
    `example_kwargs`.
    """
    data, inputs, kwargs = first_batch(calibration_data)
    forms = options.get("example_kwargs")
    options["example_kwargs"] = kwargs or None if forms is None or (isinstance(forms, Mapping) and not forms) else forms
    prepared = prepare_fx(model, qconfig_mapping, inputs, debug=debug, **options)
    calibrate(prepared, data, progress=progress)
    return convert_fx(prepared, debug=debug)


@in_plain_torch
@door
def bench(
    model: nn.Module, data: Any, *, modules: Mapping[str, nn.Module] | None = None, backends: Sequence[str] | None = None,
    scripted: bool = True, rounds: int = 50, warmup: int = 5, threads: int | None = None,
    **options: Unpack[BenchOptions]
) -> Bench:  # fmt: skip
    """Times a float model, what each back end makes of it, and their scripts, in turn in one run, on the first batch of `data`.

    `data`: as calibrate takes it; all of it calibrates. `backends`: None for torch and native, the latter where a C compiler is. A
    converted or loaded model is timed as it is, with its script. `modules`: more to time, by name. `scripted`: whether torch.jit.script's
    are timed. `rounds`: calls of each that count, behind `warmup`; `threads` of torch, None for those that are set. `options` go to
    quantize. Medians, 5 % and 95 % quantiles in milliseconds, of wall time and of the processor time of all threads; a note where other
    processes kept the machine busy. Raises ConfigError, InputError as quantize does.
    """
    how = Run(rounds, warmup, threads)
    check_named(modules, "modules")
    kept, _, _ = first_batch(data)
    quiet = {"progress": False} | options

    def make(backend: str) -> nn.Module:
        return quantize(model, kept, backend=backend, **quiet)

    found, left_out = variants(model, make, backends, scripted)
    return timed({**found, **(modules or {})}, kept, how, left_out)


@in_plain_torch
@door
def autotune(
    model: nn.Module,
    data: object,
    *,
    metric: Metric | None = None,
    target: float | str | None = None,
    latency: float | str | None = None,
    seconds: float = 120.0,
    holdout: float = 0.25,
    seed: int = 0,
    backend: str = "torch",
    log: str | Path | None = None,
    progress: bool = True,
    example_kwargs: Mapping[str, object] | Sequence[object] | None = None,
    group: ProcessGroup | None = None,
    timeout: float = 1800.0,
    **options: Unpack[TuneOptions],
) -> Tuned:
    """The most accurate int8 module of a float model that a search finds, without labels: `print` shows what it tried and what helped.

    The model is traced and calibrated once. Corrections of it are tried in turn, each where it can help, and taken where data that was
    kept out gains 0.3 dB at least and the answers do not change beyond their standard error. What `quantize` gives is the fallback.
    `data`: batches as `calibrate` takes them, two at least; `holdout`, a share of them drawn with `seed`, is kept out of ranges and
    corrections. `metric(outputs, batch)` gives a number, larger is better; batches are then pairs of inputs and labels. `target`: what
    is enough, in the metric's unit, without one in dB ("25dB": in dB in any case); the search ends there. `latency`: what a held-out
    batch may take at most, in ms, or "0.5x", in parts of the float model's time; what is too near to it to tell does not count as fast
    enough. `seconds`: a bound on all of it: a step that cannot end in time is not begun, or done on less data; what `quantize` does is done
    in any case. `log`: a file from which an interrupted search goes on. An interrupt (Ctrl-C) ends the search with the best so far.
    `group`: of torch.distributed, whose processes call this together, each with its share of the data; all get the same corrections, and
    rank 0 keeps the log. `options`: those of prepare_fx.
    Raises ConfigError before the work for arguments that mean nothing, CalibrationError for fewer than two batches and for a rank that
    fails or does not answer for `timeout` seconds, and what prepare_fx and convert_fx raise.
    """
    check_numbers(seconds, holdout, seed)
    goal = Goal.of(target, latency, metric is not None)
    task = Task(goal, metric, seconds, holdout, seed, log, progress, group, timeout)
    return search(model, data, task, {**options, "backend": backend}, example_kwargs)


__all__ = [
    "autotune", "bench", "calibrate", "convert_fx", "convert_to_reference_fx", "explain", "fuse_fx",
    "prepare_fx", "prepare_qat_fx", "quantize", "remarks", "scales",
]  # fmt: skip
