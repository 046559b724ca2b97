"""Weights and values of two graphs in pairs, as torch.ao.ns._numeric_suite_fx gives them.

    prepared = prepare_fx(model, mapping, inputs)
    quantized = convert_fx(prepared)
    a, b = add_loggers("float", prepared, "int8", quantized, OutputLogger)
    a(x), b(x)
    results = extract_logger_info(a, b, OutputLogger, "int8")
    extend_logger_results_with_comparison(results, "float", "int8", compute_sqnr, "sqnr")

`results[layer][kind][model]` is a list of entries; layers have the user's names, kinds are "weight", "node_output" and
"node_input". Model a is what prepare_fx or fuse_fx returned, model b what convert_fx, load or convert_to_reference_fx did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from qcompiler.ambient import in_plain_torch
from qcompiler.debug.metrics import compute_cosine_similarity, compute_normalized_l2_error, compute_sqnr, tensors
from qcompiler.debug.walk import Seen, Walk
from qcompiler.errors import ConfigError
from qcompiler.executable.steps import Env, Step, Steps
from qcompiler.inputs.door import door
from qcompiler.ir.nested import Ref, rewrite
from qcompiler.quantization.ns.graph import computed, key_of, match_graphs
from qcompiler.quantization.ns.loggers import kept
from qcompiler.quantization.ns.weights import pair_weights

Results = dict[str, dict[str, dict[str, list[dict[str, Any]]]]]
WEIGHT, OUTPUT, INPUT = "weight", "node_output", "node_input"
FIELDS = ("prev_node_name", "ref_node_name", "prev_node_target_type", "ref_node_target_type", "index_within_arg", "index_of_arg", "fqn")


class OutputLogger(nn.Module):
    """Keeps the tensors that it is called with in `stats`, and says of which value and model they are.

    `ref_node_name`: the node that it was added for; `prev_node_name`: the node whose value it keeps; `..._target_type`: what
    these call. `model_name`: as given to add_loggers; `ref_name`: the layer's key in the results; `results_type`: "node_output"
    or "node_input". `index_of_arg`: which input of the node. `fqn`: the module's path. `enabled` and `save_activations` can be
    set to False to pass data without keeping it.
    """

    def __init__(
        self,
        ref_node_name: str,
        prev_node_name: str,
        model_name: str,
        ref_name: str,
        prev_node_target_type: str,
        ref_node_target_type: str,
        results_type: str,
        index_within_arg: int,
        index_of_arg: int,
        fqn: str | None,
        qconfig_str: str | None = "",
    ) -> None:
        super().__init__()
        self.stats: list[Any] = []
        self.ref_node_name, self.prev_node_name = ref_node_name, prev_node_name
        self.model_name, self.ref_name = model_name, ref_name
        self.prev_node_target_type, self.ref_node_target_type = prev_node_target_type, ref_node_target_type
        self.results_type = results_type
        self.index_within_arg, self.index_of_arg = index_within_arg, index_of_arg
        self.fqn, self.qconfig_str = fqn, qconfig_str
        self.enabled = self.save_activations = True

    def forward(self, x: Any) -> object:
        """Keeps a copy of `x`; returns `x` itself."""
        if self.enabled and self.save_activations and any(True for _ in tensors(x)):
            self.stats.append(kept(x))
        return x

    def extra_repr(self) -> str:
        return f"{self.model_name} {self.ref_name} {self.results_type}, {len(self.stats)} kept"


class _Logged(nn.Module):
    """A model as steps, with loggers behind some of them."""

    def __init__(self, steps: Steps, loggers: list[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self._steps = steps
        self.loggers = nn.ModuleList(logger for _, logger in loggers)
        self._behind: dict[str, list[nn.Module]] = {}
        for name, logger in loggers:
            self._behind.setdefault(name, []).append(logger)

    @in_plain_torch
    def forward(self, *args: Any, **kwargs: Any) -> object:
        """The model's result; every value passes its loggers."""
        env: Env = self._steps.bind(args, kwargs)
        for step in self._steps.steps:
            env[step.name] = step.run(env)
            for logger in self._behind.get(step.name, ()):
                logger(env[step.name])
        return rewrite(self._steps.output, lambda v: env[v.name] if isinstance(v, Ref) else v)


class _Shadowed(nn.Module):
    """Both models side by side: each pair of values is computed from the same inputs, rounded as model b holds them."""

    def __init__(self, walk: Walk, loggers: dict[str, tuple[nn.Module, nn.Module]]) -> None:
        super().__init__()
        self._walk, self._pairs = walk, loggers
        self.loggers = nn.ModuleList(logger for pair in loggers.values() for logger in pair)

    @in_plain_torch
    def forward(self, *args: Any, **kwargs: Any) -> object:
        """Model b's result; every pair of values passes its loggers."""
        return self._walk.run(args, kwargs, self._visit)[1]

    def _visit(self, seen: Seen) -> None:
        for logger, value in zip(self._pairs.get(seen.site.step.name, ()), (seen.own_reference, seen.own_value)):
            logger(value)


@in_plain_torch
@door
def extract_weights(model_name_a: str, model_a: nn.Module, model_name_b: str, model_b: nn.Module) -> Results:
    """The weights of two models in pairs: results[layer]["weight"][model name] is a list of one entry. Models of either flow."""
    results: Results = {}
    for key, pair in pair_weights(model_a.state_dict(), model_b.state_dict()).items():
        layer, _, leaf = key.rpartition(".")
        entry = {"type": WEIGHT, **dict.fromkeys(FIELDS, leaf), "index_within_arg": 0, "index_of_arg": 0, "fqn": layer}
        entry |= {"prev_node_name": layer, "ref_node_name": layer}
        layer = layer if leaf == "weight" else key  # weight_ih_l0 and the like: several of one module
        named = {model_name_a: pair["float"], model_name_b: pair["quantized"]}
        results[layer] = {WEIGHT: {name: [{**entry, "values": [weight]}] for name, weight in named.items()}}
    return results


@in_plain_torch
@door
def add_loggers(
    name_a: str, model_a: nn.Module, name_b: str, model_b: nn.Module, logger_cls: Callable[..., nn.Module], should_log_inputs: bool = False
) -> tuple[nn.Module, nn.Module]:
    """Both models with loggers behind each pair of values; call them on the same data, then extract_logger_info.

    The models given stay as they are. `should_log_inputs`: logs what each layer reads, too. Raises ConfigError where model_a is
    no graph of prepare_fx or fuse_fx, or model_b not quantized.
    """
    floats, quantized, matching = match_graphs(model_a, model_b)
    loggers: tuple[list[tuple[str, nn.Module]], list[tuple[str, nn.Module]]] = ([], [])
    for site in computed(floats, matching):
        own = (site.float_step, site.step)
        bounds = [(matching.sites[name].float_step, matching.sites[name].step) for name in site.bounds] if should_log_inputs else []
        for kind, index, read in [(OUTPUT, 0, own), *((INPUT, i, bound) for i, bound in enumerate(bounds))]:
            for side, name in enumerate((name_a, name_b)):
                made = _logger(logger_cls, name, key_of(site.step), (kind, index), (own[side], read[side]))
                loggers[side].append((read[side].name, made))
    return _Logged(floats, loggers[0]), _Logged(quantized, loggers[1])


def _logger(logger_cls: Callable[..., nn.Module], model: str, layer: str, at: tuple[str, int], steps: tuple[Step, Step]) -> nn.Module:
    """`at`: output, or which input; `steps`: the layer's own, and the one whose value is kept."""
    (kind, index), (own, read) = at, steps
    return logger_cls(own.name, read.name, model, layer, read.op, own.op, kind, 0, index, own.module_path or None)


@door
def extract_logger_info(
    model_a: nn.Module, model_b: nn.Module, logger_cls: Callable[..., nn.Module], model_name_to_use_for_layer_names: str
) -> Results:
    """What the loggers of two models kept: results[layer][kind][model name] is a list of entries with "values".

    Layers are named by the user's module paths, for either model; `model_name_to_use_for_layer_names` must be one of the two.
    """
    return _extract((model_a, model_b), logger_cls, model_name_to_use_for_layer_names)


def _extract(models: tuple[nn.Module, ...], logger_cls: object, layer_names: str) -> Results:
    results: Results = {}
    names = set()
    for logger in _loggers(models, logger_cls):
        names.add(logger.model_name)
        entry = {"type": logger.results_type, "values": logger.stats, **{field: getattr(logger, field) for field in FIELDS}}
        layer = results.setdefault(logger.ref_name, {}).setdefault(logger.results_type, {})
        layer.setdefault(logger.model_name, []).append(entry)
    if layer_names not in names:
        raise ConfigError(f"no logger is of a model named {layer_names!r:.80}; there are {sorted(names)}", code="model-name")
    return results


def _loggers(models: tuple[nn.Module, ...], logger_cls: object) -> Iterator[Any]:
    kind = logger_cls if isinstance(logger_cls, type) else OutputLogger
    return (module for model in models for module in model.modules() if isinstance(module, kind))


@in_plain_torch
@door
def add_shadow_loggers(name_a: str, model_a: nn.Module, name_b: str, model_b: nn.Module, logger_cls: Callable[..., nn.Module]) -> nn.Module:
    """One module that runs each layer of model a beside that of model b on the same inputs; then extract_shadow_logger_info.

    Returns model b's result. Raises ConfigError as add_loggers does.
    """
    floats, quantized, matching = match_graphs(model_a, model_b)
    loggers = {}
    for site in computed(floats, matching):
        sides = ((name_a, site.float_step), (name_b, site.step))
        made = [_logger(logger_cls, model, key_of(site.step), (OUTPUT, 0), (step, step)) for model, step in sides]
        loggers[site.step.name] = (made[0], made[1])
    return _Shadowed(Walk(floats, quantized, matching), loggers)


@door
def extract_shadow_logger_info(
    model_a_shadows_b: nn.Module, logger_cls: Callable[..., nn.Module], model_name_to_use_for_layer_names: str
) -> Results:
    """What the loggers of add_shadow_loggers kept, as extract_logger_info gives it."""
    return _extract((model_a_shadows_b,), logger_cls, model_name_to_use_for_layer_names)


@door
def extend_logger_results_with_comparison(
    results: Results, model_name_1: str, model_name_2: str, comparison_fn: Callable[[Tensor, Tensor], object], comparison_name: str
) -> None:
    """Adds comparison_fn(value of model 1, value of model 2) to the entries of model 2, as a list under `comparison_name`.

    Changes `results`. Raises ConfigError where a layer has no value of one of the models.
    """
    for layer, kinds in results.items():
        for models in kinds.values():
            missing = [name for name in (model_name_1, model_name_2) if name not in models]
            if missing:
                raise ConfigError(f"{layer} has no values of {missing[0]!r:.80}; there are {sorted(models)}", code="model-name")
            for one, two in zip(models[model_name_1], models[model_name_2], strict=True):
                two[comparison_name] = [comparison_fn(a, b) for a, b in zip(one["values"], two["values"], strict=True)]


__all__ = [
    "OutputLogger", "add_loggers", "add_shadow_loggers", "compute_cosine_similarity", "compute_normalized_l2_error", "compute_sqnr",
    "extend_logger_results_with_comparison", "extract_logger_info", "extract_shadow_logger_info", "extract_weights",
]  # fmt: skip
