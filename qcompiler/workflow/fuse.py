"""fuse_fx: a float model as its FUSED graph."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from qcompiler.choices import check_float
from qcompiler.compile.pass_manager import Context, run_passes
from qcompiler.compile.settings import Settings
from qcompiler.config.custom_config import FuseCustomConfig, as_config, check_attributes
from qcompiler.debug.scope import watched
from qcompiler.frontend import traced
from qcompiler.inputs.checks import check_eval, check_named
from qcompiler.inputs.kinds import module_of
from qcompiler.ir.types import Stage
from qcompiler.passes import FUSE
from qcompiler.trace.examples import example_inputs_for


def fuse(
    model: nn.Module, examples: tuple[object, Mapping[str, object] | None], custom: object, settings: Settings, debug: object
) -> fx.GraphModule:
    """The FUSED graph of a copy of the model. `examples`: positional arguments (None: found from its first layers) and keywords."""
    model = module_of(model)
    check_float(model)
    check_eval(model)
    inputs, kwargs = examples
    check_named(kwargs, "example_kwargs")
    if isinstance(inputs, FuseCustomConfig):  # the second argument of torch.ao's
        inputs, custom = None, inputs
    custom = as_config(custom, FuseCustomConfig)
    check_attributes(model, custom.preserved_attributes)
    context = Context(settings)
    gm = traced(model, example_inputs_for(model) if inputs is None and not kwargs else inputs, context, kwargs)
    with watched(debug, "fuse", type(model).__name__, context):
        run_passes(gm, FUSE, Stage.TRACED, context)
    for name in custom.preserved_attributes:
        setattr(gm, name, getattr(model, name))
    return gm
