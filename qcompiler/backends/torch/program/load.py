"""A CompiledModule of what its payload in a file says: engine and program, which anybody may have written."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qcompiler.backends import Stored
from qcompiler.backends.torch.program.assemble import assemble
from qcompiler.backends.torch.program.build import Built
from qcompiler.backends.torch.program.check_load import recurrent_fault
from qcompiler.backends.torch.program.module import CompiledModule
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.registry import RetiredOpError, UnknownOpError
from qcompiler.backends.torch.program.result_classes import result_classes
from qcompiler.backends.torch.program.statements import ProgramError
from qcompiler.errors import ArtifactError, ArtifactUnsafeError, ArtifactVersionError, ConfigError, QCompilerError
from qcompiler.files.faults import corrupt
from qcompiler.ir.check_qparams import scale_fault, zero_point_fault


def load(stored: Stored) -> CompiledModule:
    """Raises ArtifactError for a program that cannot be, ArtifactUnsafeError for operations that none may call, ArtifactVersionError for
    those of an older version that are run no more, ConfigError for `modules` that do not fit and for an engine that this torch lacks."""
    engine, program = stored.data.get("engine"), _program(stored.data.get("program"))
    if not isinstance(engine, str):
        raise corrupt("header", "no engine")
    leaves, externals = _given(program, stored)
    tensors = _of_program(program, stored.tensors) if stored.shared else stored.tensors
    try:
        return _assembled(program, engine, tensors, leaves, externals | result_classes(program, stored))
    except ProgramError as error:
        raise ArtifactError(error.message, code="artifact-program") from error
    except QCompilerError:
        raise
    except Exception as error:  # a kernel refuses the tensors of a file that was made by hand
        raise ArtifactError(f"the program cannot be built: {error!s:.400}", code="artifact-program") from error


def _program(data: object) -> Program:
    try:
        return Program.from_data(data)
    except RetiredOpError as error:
        raise ArtifactVersionError(error.message, code="artifact-retired", hint="compile the model anew") from None
    except UnknownOpError as error:
        raise ArtifactUnsafeError(error.message, hint="saved by a newer qcompiler, or not by qcompiler") from None
    except ProgramError as error:
        raise corrupt("program", error.message) from None


def _given(program: Program, stored: Stored) -> tuple[dict[str, nn.Module], dict[str, object]]:
    """The user's float submodules and functions, by name."""
    needed, modules = program.leaves + program.externals, stored.modules
    missing = [name for name in needed if name not in modules]
    unknown = [name for name in modules if name not in needed + program.records and not stored.shared]
    if missing or unknown:
        text = f"needs modules= for {', '.join(missing)}" if missing else f"has no submodule or function {', '.join(unknown)}"
        raise ConfigError(f"the saved module {text:.2000}", code="load-modules")
    leaves = {name: modules[name] for name in program.leaves}
    if wrong := [name for name, module in leaves.items() if not isinstance(module, nn.Module)]:
        raise ConfigError(f"{', '.join(wrong)} must be nn.Module instances", code="load-modules")
    return leaves, {name: modules[name] for name in program.externals}


def _of_program(program: Program, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that the program reads, and those of its float submodules."""
    wanted = {*program.constants, program.scales_name, program.zero_points_name}
    leaves = tuple(f"{leaf}." for leaf in program.leaves)
    return {name: tensor for name, tensor in tensors.items() if name in wanted or name.startswith(leaves)}


def _assembled(program: Program, engine: str, tensors: Mapping[str, Tensor], leaves: dict[str, nn.Module],
               externals: dict[str, object]) -> CompiledModule:  # fmt: skip
    own = {program.scales_name, program.zero_points_name}
    owned = tuple(f"{leaf}." for leaf in leaves)
    held = {name: tensor for name, tensor in tensors.items() if name not in own and not name.startswith(owned)}
    scales, zero_points = (tensors.get(name) for name in (program.scales_name, program.zero_points_name))
    if scales is None or zero_points is None or not scales.shape == zero_points.shape == (program.qparams,):
        raise corrupt("tensor table", "activation parameters are missing")
    if fault := scale_fault(scales) or zero_point_fault(zero_points, torch.uint8):
        raise corrupt("activation parameters", fault)
    if fault := recurrent_fault(program, held.get):
        raise corrupt("program", fault)
    module = assemble(Built(program, held, scales.tolist(), zero_points.tolist(), leaves, externals), engine)
    if owned:
        module.load_state_dict(tensors)
    return module
