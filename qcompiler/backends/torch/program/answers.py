"""What a compiled module answers where a call does not fit it: the user's terms for what kernels and generated source raise."""

from __future__ import annotations

import dis
import inspect
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from qcompiler.backends.torch.program.bind import Bound
from qcompiler.backends.torch.program.program import Program
from qcompiler.errors import ConfigError, InputError, Where
from qcompiler.files.dtypes import DTYPES
from qcompiler.inputs.input_text import described, first_sentence, how_to_give, refuses_inputs, signature
from qcompiler.inputs.kinds import refuse_kinds
from qcompiler.ir.form import as_number, misfit

NONSENSE = (AttributeError, LookupError, NameError, ArithmeticError)  # from a statement of a program that nobody compiled


class AnswersCalls(nn.Module):
    """A module that runs a program: generated source checks its inputs by these methods, and `_call` explains what a kernel raised."""

    if TYPE_CHECKING:  # torch.jit would take annotations for its own
        _bound: Bound

        @property
        def program(self) -> Program: ...

        @property
        def engine(self) -> str: ...

        @property
        def code(self) -> str: ...

    def _call(self, *args: object, **kwargs: object) -> Any:
        if torch._C._get_tracing_state() is not None and self.program.states:
            raise ConfigError("torch.jit.trace would fix what this module keeps between calls: " + ", ".join(self.program.states),
                              code="jit-trace", hint="torch.jit.script(module) keeps it")  # fmt: skip
        try:
            return super().__call__(*args, **kwargs)
        except Exception as error:
            if isinstance(error, AssertionError):  # torch's own, for a fake tensor among real ones
                refuse_kinds((args, kwargs), "an input")
            if isinstance(error, TypeError):
                self._check_arguments(args, kwargs)
            place, is_users = self._failed_at(error)
            if place is None or not (refuses_inputs(error) or isinstance(error, NONSENSE)):
                raise
            if is_users and (_raises_itself(error) or not self._has_other_sizes(self._given(args, kwargs))):
                raise
            if "quantized.engine is" in str(error):  # said by kernels that look at the engine of the moment
                hint = f'set torch.backends.quantized.engine = "{self.engine}" before the call'
                raise ConfigError(str(error), code="engine", where=place, hint=hint) from error
            raise self._misfit(error, place, args, kwargs) from error

    def _misfit(self, error: Exception, place: Where, args: tuple[object, ...], kwargs: Mapping[str, object]) -> InputError:
        """What a kernel raised, in terms of the inputs: their sizes are to blame unless they are the example's."""
        refuse_kinds((args, kwargs), "an input")
        inputs, given = self.program.inputs, self._given(args, kwargs)
        text, hint = f"{type(error).__name__}: {first_sentence(error)}", "does the float model take this input?"
        if self._has_other_sizes(given):
            got = signature((name, described(value)) for name, value in given.items())
            text = f"the inputs {got} do not fit; the model was made with {signature((i.name, str(i)) for i in inputs)}"
            hint = "give the sizes of the example, or, where the float model takes these inputs, prepare it with them"
        return InputError(text, code="input-shape", where=place, hint=hint)

    def _given(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        return dict(zip((i.name for i in self.program.inputs), args, strict=False)) | dict(kwargs)

    def _has_other_sizes(self, given: Mapping[str, object]) -> bool:
        """Whether a size behind the batch is not the example's."""
        sizes = {name: tuple(value.shape) for name, value in given.items() if isinstance(value, Tensor)}
        return any(i.shape is not None and sizes.get(i.name, i.shape)[1:] != i.shape[1:] for i in self.program.inputs)

    def _check_arguments(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        try:
            inspect.signature(type(self).forward).bind(self, *args, **kwargs)
        except TypeError as error:
            signature = f"{self.program.name}{self.program.signature()}"
            raise InputError(f"{signature}: {error}", code="input-arguments", hint="call it as the float model is called") from None

    def _failed_at(self, error: BaseException) -> tuple[Where | None, bool]:
        """The statement of forward that raised, with the module and line it comes from, and whether code of the user's that it runs as it
        stands did."""
        forward = self._bound.forward.__code__
        last, is_users = None, False
        for frame, line in traceback.walk_tb(error.__traceback__):
            if frame.f_code is forward:
                last = self.code.splitlines()[line - 1].strip()
            elif last is not None and "qcompiler" not in frame.f_code.co_filename and "torch" not in frame.f_code.co_filename:
                is_users = True
        return Where(node=last) if last is not None else None, is_users

    def _reject(self, name: str, value: object) -> NoReturn:
        """Called by generated source when an input has not the type or rank of the example."""
        refuse_kinds(value, f"input {name}")
        i = next(i for i in self.program.inputs if i.name == name)
        text = f"input {name!r} must be a torch.{i.dtype} tensor of {i.rank} dimensions, as {i}, got {described(value)}"
        raise InputError(text, code="input-type", hint=how_to_give(value, DTYPES.get(str(i.dtype))))

    def _number(self, name: str, value: object) -> int | float:
        """Called by generated source for an argument that the example gave as a number."""
        i = next(i for i in self.program.inputs if i.name == name)
        found = as_number(value, i.number or float)
        if found is None:
            raise InputError(f"input {name!r} must be a number ({i}), got {described(value)}", code="input-type")
        return found

    def _check_parts(self, name: str, value: object) -> None:
        """Called by generated source for an argument that is a container: InputError naming the part that is not as in the example."""
        i = next(i for i in self.program.inputs if i.name == name)
        if i.form is not None and (text := misfit(i.form, value, name)) is not None:
            raise InputError(f"input {text}", code="input-type")


def _raises_itself(error: BaseException) -> bool:
    """Whether a `raise` in code that is not torch's made an error: its author chose what the caller shall get."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    if at is None:
        return False
    code = at.tb_frame.f_code
    return "torch" not in code.co_filename and code.co_code[at.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def no_script() -> ConfigError:
    return ConfigError("torch.jit knows no native regions", code="native-script", hint='export_c writes C; backend="torch" can be scripted')
