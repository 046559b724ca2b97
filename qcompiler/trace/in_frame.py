"""Statements of a function that run with the variables of one of its frames, as code of the same lines."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Sequence
from types import CodeType, FrameType
from typing import Any

_CLASS = "__class__"
Compiled = Callable[[ast.FunctionDef, ast.Module], CodeType]


def run(frame: FrameType, statements: Sequence[ast.stmt]) -> dict[str, Any]:
    """Run statements with a frame's variables, as code of the same lines; return the variables behind them."""

    def compiled(function: ast.FunctionDef, module: ast.Module) -> CodeType:
        function.body.append(ast.copy_location(ast.parse("return locals()").body[0], statements[-1]))
        return compile(ast.fix_missing_locations(module), frame.f_code.co_filename, "exec", dont_inherit=True)

    variables: dict[str, Any] = call_in_frame(frame, statements, compiled)
    return {name: value for name, value in variables.items() if name != _CLASS}


def call_in_frame(frame: FrameType, statements: Sequence[ast.stmt], compiled: Compiled) -> Any:
    """Call a function of these statements with a frame's variables, as code of the same lines. `compiled`: makes the code of the module
    that defines it. (`super()` asks the function around it for the class.)"""
    module = ast.parse(f"def around({_CLASS}):\n def way(): pass\n return way")
    around = module.body[0]
    assert isinstance(around, ast.FunctionDef) and isinstance(around.body[0], ast.FunctionDef)
    function, variables = around.body[0], frame.f_locals
    names = [name for name in variables if name.isidentifier() and name != _CLASS]
    function.args.args = [ast.copy_location(ast.arg(name), statements[0]) for name in names]
    function.body = copy.deepcopy(list(statements))
    made: dict[str, Any] = {}
    exec(compiled(function, module), frame.f_globals, made)
    return made["around"](variables.get(_CLASS))(*(variables[name] for name in names))
