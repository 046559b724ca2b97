"""What torch raises where a quantized tensor meets float code, in the words of the eager flow: module, line, missing stub.

Only the model's own call sees what its forward raises, so it is called through a function of ours. That costs one Python call more, and
nothing else while nothing is raised.
"""

from __future__ import annotations

import re
import weakref
from traceback import walk_tb
from typing import Any

from torch import nn

from qcompiler.errors import InputError, QCompilerError, Where
from qcompiler.inputs.input_text import first_sentence, how_to_mend, refuses_inputs
from qcompiler.nn.quantized.base import QuantizedModule
from qcompiler.trace.places import is_user_file, raised_at, spell, text_of

# in torch's messages: a backend, a tensor or number, a dtype, a scalar type
QUANTIZED = re.compile(r"Quantized|quantized (tensor|number|dtype)|c10::qu?int|torch\.qu?int|QU?Int\d")
OPERATION = re.compile(r"'aten::_?(\w+?)_?(?:\.\w+)?'")
HAVE_SCALES = ("add", "mul", "bmm", "mm", "cat", "")  # what FloatFunctional has; torch names no operation for numbers
FUNCTIONAL = "its result needs a scale: self.f = FloatFunctional() in __init__, self.f.add(a, b), add_scalar(a, 1.0), mul, cat, ... here"
LEAVE = "a DeQuantStub before this takes it out of int8, a QuantStub behind it back"


def explain_calls_(model: nn.Module) -> None:
    """Has `model(...)` raise InputError where quantized tensors meet float modules and operators, and for inputs that layers refuse.

    Copies and files of the model go without.
    """
    held = weakref.ref(model)

    def call(*args: object, **kwargs: object) -> Any:
        called: Any = held()
        try:
            return called._call_impl(*args, **kwargs)
        except QCompilerError as error:
            if error.where.source is None:
                error.where = Where(error.where.node, error.where.module_path, spell(*raised_at(error.__traceback__)))
            raise
        except Exception as error:
            found = explained(called, error, (args, kwargs)) if refuses_inputs(error) else None
            if found is None:
                raise
            raise found from error

    # torch's own hook of calls, which is neither copied nor pickled; a function, since torch.jit refuses other objects there
    model._compiled_call_impl = call


def explained(model: nn.Module, error: Exception, inputs: object) -> InputError | None:
    """torch's error as one that names the innermost module, the user's line and what is missing there; None for the user's own."""
    path, module = innermost(model, error)
    file, line = raised_at(error.__traceback__)
    place = Where(module_path=path or None, source=spell(file, line))
    kind = type(module).__name__
    if not QUANTIZED.search(first_sentence(error)):
        hint = how_to_mend(inputs, error) or "does the float model take this input?"
        text = f"{kind}: {first_sentence(error)}"
        own = not is_layer(module) or is_user_file([frame for frame, _ in walk_tb(error.__traceback__)][-1].f_code.co_filename)  # a hook
        return None if own else InputError(text, code="input-shape", where=place, hint=hint)
    if is_layer(module):
        text, hint = f"this {kind} is float, and was given a quantized tensor", f"{LEAVE}; or give it a qconfig and prepare again"
        return InputError(text, code="quantized-input", where=place, hint=hint)
    found, code = OPERATION.search(str(error)), text_of(file, line)
    operation = found[1] if found else ""
    text = f"{operation or 'this'} takes no quantized tensors" + (f": {code}" if code else "")
    if isinstance(module, QuantizedModule):
        text = f"{kind}: {first_sentence(error):.200}"
    hint = f"{FUNCTIONAL}; or {LEAVE}" if operation in HAVE_SCALES else LEAVE
    return InputError(text, code="quantized-input", where=place, hint=hint)


def innermost(model: nn.Module, error: Exception) -> tuple[str, nn.Module]:
    """(path, module) of the last submodule whose code was running."""
    paths = {id(module): path for path, module in model.named_modules()}
    running = [frame.f_locals.get(frame.f_code.co_varnames[0]) for frame, _ in walk_tb(error.__traceback__) if frame.f_code.co_argcount]
    found = next((m for m in reversed(running) if isinstance(m, nn.Module) and id(m) in paths), model)
    return paths[id(found)], found


def is_layer(module: nn.Module) -> bool:
    """Whether it is one of torch's float modules, whose code is not the user's to change."""
    return type(module).__module__.startswith("torch.nn.") and not isinstance(module, (nn.Sequential, nn.ModuleList))
