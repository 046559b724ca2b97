"""export_source: a compiled module as a Python file that a person can read and edit, its weights beside it."""

from __future__ import annotations

import builtins
import hashlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.emit import Emitted, Emitter
from qcompiler.backends.torch.program.module import CompiledModule, own_names
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.quote import docstring, literal
from qcompiler.backends.torch.program.spell import Dialect
from qcompiler.backends.torch.program.statements import Call, is_name
from qcompiler.backends.torch.program.surroundings import CALL, is_touched
from qcompiler.backends.torch.program.values import Const
from qcompiler.backends.torch.runtime import by_shape
from qcompiler.errors import ArtifactWriteError, ConfigError
from qcompiler.executable import Executable
from qcompiler.executable.tensors import find
from qcompiler.files.atomic import atomic_write
from qcompiler.files.safetensors import SAFETENSORS, safetensors
from qcompiler.inputs.door import door
from qcompiler.ir.nested import rewrite

RESERVED = (
    "DTYPES", "ENGINE", "WEIGHTS_SHA256", "hashlib", "json", "load", "os", "read_safetensors", "tensors", "modules", "warnings",
    "InputError", "Any", "Tensor",
)  # fmt: skip
SOURCE = "model.py"
WEIGHTS = "model.safetensors"
BY_SHAPE = ("unpacked", "prepacked", "shapes_of", "PackSet", "PacksByShape")
READER = '''
DTYPES = {DTYPES}  # fmt: skip


def read_safetensors(path):
    """Tensors of a safetensors file: a little-endian u64, that many bytes of JSON, then raw data."""
    with open(path, "rb") as file:
        data = bytearray(file.read())
    if WEIGHTS_SHA256 is not None and hashlib.sha256(data).hexdigest() != WEIGHTS_SHA256:
        raise ValueError(f"{path}: these are not the weights that this file was written with; for other ones set WEIGHTS_SHA256 = None")
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            raw = torch.empty(0, dtype=torch.uint8)
            if end > start:
                raw = torch.frombuffer(data, dtype=torch.uint8, offset=8 + size + start, count=end - start)
            # a copy: kernels want aligned memory
            tensors[name] = raw.clone().view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors
'''

LOAD = """
def load(path=None, modules=None):
    {DOC}
    path = path or os.path.join(os.path.dirname(os.path.abspath(__file__)), "{WEIGHTS}")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = ENGINE  # weights are packed for it
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor, torch.quantize_per_channel and other quantized")
            return {CLASS}(read_safetensors(path), modules or {}).eval()
    finally:
        torch.backends.quantized.engine = before
"""


@door
def export_source(module: Executable, directory: str | Path) -> Path:
    """Writes model.py and model.safetensors into `directory` and returns the path of model.py.

    The file needs torch alone; `load()` in it gives a module of bit-equal results. Float submodules and functions of the
    user's are arguments of that `load(modules={name: module})`. Raises ConfigError, ArtifactWriteError.
    """
    if not isinstance(module, CompiledModule):
        raise ConfigError(f"export_source takes a converted module of the torch back end, not {type(module).__qualname__}",
                          code="export", hint="convert_fx first")  # fmt: skip
    if module.program.is_native:
        raise ConfigError("a module of the native back end is no Python program that needs torch alone", code="export",
                          hint="export_c writes it as C")  # fmt: skip
    if any(c.op in ("trees.children", "guard.guard_tree") or (c.op.startswith(registry.RECORD) and c.args[0] == "tree")
           for c in module.program.calls):  # fmt: skip
        raise ConfigError("an argument or a result is an object of a registered class, which a file that needs torch alone cannot take",
                          code="export", hint="use save and load")  # fmt: skip
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactWriteError(f"{folder}: cannot make the folder: {error.strerror or error}") from error
    program = module.program
    tensors = {path: find(module, path) for path in program.constants if not path.startswith(tuple(f"{leaf}." for leaf in program.leaves))}
    weights = b"".join(safetensors(tensors))
    text = source_of_file(module, hashlib.sha256(weights).hexdigest()).encode("utf-8")
    atomic_write(folder / WEIGHTS, [weights])
    atomic_write(folder / SOURCE, [text])
    return folder / SOURCE


def source_of_file(module: CompiledModule, sha256: str) -> str:
    """The text of model.py. `sha256`: of the weights file that goes with it."""
    program = module.program
    emitter = Emitter(program, *module._qparams(), Dialect.FILE, program.by_shape(module.engine))
    emitter.hidden = own_names()
    shapes = emitter.named("op shapes_of", "shapes_of") if emitter.by_shape else ""
    emitter.taken |= {*RESERVED, *BY_SHAPE, _class_name(program)}
    for name in ("torch", "F", "math", "operator", "collections"):
        emitter.named(f"module {name}", name)
    emitted = emitter.emit()
    clashes = {i.name for i in program.inputs} & {"torch"}
    if clashes:
        raise ConfigError(f"an argument of the model is called {clashes.pop()!r}, which its source needs for itself", code="export")
    parts = [
        _functions(program),
        _by_shape(shapes),
        _kernels(emitted),
        READER.replace("{DTYPES}", _dtype_table()).strip("\n"),
        _class(program, emitter, emitted),
        _load(program),
    ]
    body = "\n\n\n".join(p.strip("\n") for p in parts if p.strip()) + "\n"
    return f"{_head(module, body, sha256)}\n\n\n{body}"


def _class_name(program: Program) -> str:
    """The model's own name, where nothing else in the file is called so."""
    functions = {c.op.rpartition(".")[2] for c in program.statements}
    free = is_name(program.name) and program.name not in (*RESERVED, *BY_SHAPE, "torch", "F", "math", "operator", "collections", *functions)
    return program.name if free and not hasattr(builtins, program.name) else "Model"


def _head(module: CompiledModule, body: str, sha256: str) -> str:
    """Docstring, the imports that the rest uses, the engine, and what binds the weights to this file."""
    used = ("collections", "itertools", "math", "operator", "threading")
    plain = ["hashlib", "json", "os", "warnings", *(name for name in used if f"{name}." in body)]
    lines = [f"import {name}" for name in sorted(plain)] + ["", "import torch"]
    lines += ["import torch.nn.functional as F"] if re.search(r"\bF\.", body) else []
    lines += ["from torch import Tensor"] if re.search(r"(?<![.\w])Tensor\b", body) else []
    if re.search(r"\bAny\b", body):
        lines.insert(len(plain), "from typing import Any")
    made_for = f" Compiled for {module.program.isa}." if module.program.isa else ""
    title = f"{module.program.name}: an int8 program made by qcompiler. Needs torch; `load()` reads {WEIGHTS}.{made_for}"
    return "\n".join(
        [
            docstring(title),
            "",
            *lines,
            "",
            f"ENGINE = {literal(module.engine)}",
            f"WEIGHTS_SHA256 = {literal(sha256)}  # None: take any weights of these names",
        ]
    )


def _functions(program: Program) -> str:
    """Source of the compiler's own functions that the program calls; each names nothing but torch, and helpers of its own file."""
    names = sorted({c.op for c in program.statements if c.op.partition(".")[0] in ("runtime", "ops", "guard")})
    functions = [registry.resolve(name) for name in names]
    functions = [*dict.fromkeys(helper for function in functions for helper in registry.helpers(function)), *functions]
    texts = []
    if any(n.startswith("guard.") for n in names):
        texts.append('class InputError(Exception):\n    """An input is not what the program was made for."""')
    for function in functions:
        source = textwrap.dedent(inspect.getsource(function))
        texts.append(source.rstrip().replace("  # type: ignore[name-defined]", "").replace("  # type: ignore[no-any-return]", ""))
    return "\n\n\n".join(texts)


def _by_shape(shapes_of: str) -> str:
    """Source of what chooses packs by the shapes of a call, with the name that forward has for one of its functions; empty: not used."""
    if not shapes_of:
        return ""
    parts = (inspect.getsource(getattr(by_shape, name)).rstrip() for name in BY_SHAPE)
    renamed = [] if shapes_of == "shapes_of" else [f"{shapes_of} = shapes_of"]
    return "\n\n\n".join(["ENGINE_LOCK = threading.RLock()", *parts, *renamed])


def _kernels(emitted: Emitted) -> str:
    lines = ["# bound once: looking an overload up at each call costs more than many a kernel"]
    for alias, op in sorted(emitted.kernels.items()):
        if "::" in op:
            lines.append(f"{alias} = torch.ops.{op.replace('::', '.')}._op")
        elif op.rpartition(".")[2] != alias and not op.startswith((registry.EXTERNAL, registry.RECORD)):
            lines.append(f"{alias} = {op.rpartition('.')[2]}")
    return "\n".join(lines) if len(lines) > 1 else ""


def _dtype_table() -> str:
    return "{" + ", ".join(f'"{short}": torch.{name}' for name, short in SAFETENSORS.items()) + "}"


def _class(program: Program, emitter: Emitter, emitted: Emitted) -> str:
    lines = ["def __init__(self, tensors, modules):", "    super().__init__()"]
    named = [registry.EXTERNAL + n for n in program.externals] + [registry.RECORD + n for n in program.records]
    if named:
        aliases = {op: alias for alias, op in emitted.kernels.items()}
        used = [f"{aliases[op]} = modules[{literal(op.partition('.')[2])}]" for op in named]
        names = ", ".join(line.partition(" ")[0] for line in used)
        lines += [f"    global {names}", *(f"    {line}" for line in used)]
    lines += [f"    {line}" for line in _leaves(program, emitter)]
    lines += [f"    self.{alias} = tensors[{literal(path)}]" for path, alias in emitted.tensors.items() if not _owned(program, path)]
    for path, alias in emitted.tensors.items():
        if owner := _owner(program, path):
            lines.append(f"    self.{alias} = modules[{literal(owner)}].get_parameter({literal(path[len(owner) + 1 :])})")
    lines += [f"    {emitter.chosen} = {{}}"] if emitter.by_shape else []
    lines += [f"    {_once(c, emitter)}" for c in program.once]
    lines += [f"    self.{emitter.choice} = PacksByShape({emitter.chosen}, ENGINE)"] if emitter.by_shape else []
    called = CALL.splitlines() if is_touched(program) else []
    body = "\n".join(f"    {line}" if line else "" for line in [*lines, *called, "", *emitted.source.splitlines()])
    return f"class {_class_name(program)}(torch.nn.Module):\n{body}"


def _owner(program: Program, path: str) -> str:
    return next((leaf for leaf in program.leaves if path.startswith(f"{leaf}.")), "")


def _owned(program: Program, path: str) -> bool:
    return bool(_owner(program, path))


def _leaves(program: Program, emitter: Emitter) -> Iterator[str]:
    """Nested paths get plain holders on the way."""
    made: set[str] = set()
    for path in program.leaves:
        spelled = emitter.submodule(path).removeprefix("self.")
        parts = spelled.split(".")
        for n in range(1, len(parts)):
            holder = ".".join(parts[:n])
            if holder not in made and holder not in program.leaves:
                made.add(holder)
                yield f"self.{holder} = torch.nn.Module()"
        yield f"self.{spelled} = modules[{literal(path)}]"


def _once(call: Call, emitter: Emitter) -> str:
    """The statement of __init__ that runs one once call."""
    text = emitter.text

    class Literal:
        def __init__(self, source: str) -> None:
            self.source = source

    def spell(value: object) -> str:
        value = rewrite(value, lambda v: Literal(f"tensors[{literal(v.name)}]") if isinstance(v, Const) else v)
        if isinstance(value, Literal):
            return value.source
        if isinstance(value, list):
            return f"[{', '.join(map(spell, value))}]"
        return text(value)

    arguments = [*map(spell, call.args), *(f"{k}={spell(v)}" for k, v in sorted(call.kwargs.items()))]
    assert call.out is not None
    alias = emitter.packs[call.out]
    owner = f'{emitter.chosen}["{alias}"]' if call.out in emitter.by_shape else f"self.{alias}"
    return f"{owner} = {call.op.rpartition('.')[2]}({', '.join(arguments)})"


def _load(program: Program) -> str:
    needed = program.leaves + program.externals + program.records
    words = f" `modules`: {{name: module}} for {', '.join(needed)}." if needed else ""
    doc = docstring(f"The model with the weights of `path` (default: {WEIGHTS} beside this file).{words}")
    return LOAD.replace("{DOC}", doc).replace("{WEIGHTS}", WEIGHTS).replace("{CLASS}", _class_name(program))
