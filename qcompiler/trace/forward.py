"""Functions and forwards that are followed as a whole."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from qcompiler.errors import QCompilerError, TraceError, Where, out_of_memory
from qcompiler.trace.asking import laid_out
from qcompiler.trace.borrowed import Borrowed
from qcompiler.trace.module_calls import NO_PART, is_hooked
from qcompiler.trace.nested import map_nested
from qcompiler.trace.proxy import first_proxy
from qcompiler.trace.reasons import origin, reason
from qcompiler.trace.tracer import Tracer
from qcompiler.trace.watch import Watch


def call_wrapped(tracer: Tracer, function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    """A function marked with torch.fx.wrap: followed, or one call where that fails."""
    if first_proxy((args, kwargs)) is None:
        return function(*args, **kwargs)
    mark = tracer.mark()
    try:
        return function(*args, **kwargs)
    except Exception as error:
        if getattr(error, "qc_final", False):
            raise
        tracer.modules.give_up(error, tracer.scopes[-1][0] if tracer.scopes else "", mark)
    watch, borrowed = Watch(), Borrowed(tracer, tracer.running, tracer.mutations)
    example = tracer.running.on_examples(watch.over(function), *borrowed.copies((args, kwargs)))
    args, kwargs = borrowed.changed((args, kwargs))
    if watch.asked:
        args, kwargs = (map_nested(lambda value: laid_out(tracer, value, watch.asked), part) for part in (args, kwargs))
    result = tracer.results.wrap(lambda: tracer.add_node("call_function", function, args, kwargs, example), example, "boundary")
    borrowed.note_lent(result)
    return result


def run_forward(tracer: Tracer, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    """Follow the root's forward; the frames inside this call are the model's."""
    tracer.scopes.append(("", type(module).__name__))
    flagged = tracer.modules.enter(module, "")
    try:
        function: Callable[..., object] = module._wrapped_call_impl if is_hooked(module) else module.forward
        result = function(*args, **kwargs)
        tracer.at_event(0)
        tracer.float_parts.check_parts()
        return result
    except Exception as error:
        if out_of_memory(error) is not None:
            raise
        no_part = tracer.float_parts.try_part(error) if not tracer.options.strict else ""
        if isinstance(error, QCompilerError):
            error.message += NO_PART + no_part if no_part else ""
            raise
        where, text = Where(module_path="", source=origin(error)), reason(error) + (NO_PART + no_part if no_part else "")
        raise TraceError(text, where=where, hint="make the part that cannot be followed a submodule") from error
    finally:
        tracer.regions.open.clear()  # where it failed: what is called to take things back is no event of theirs
        if flagged:
            tracer.modules.modes.leave(module)
        tracer.scopes.pop()
