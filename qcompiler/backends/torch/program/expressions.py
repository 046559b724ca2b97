"""How the calls of a program are spelled in source: operators, methods, kernels, submodules."""

from __future__ import annotations

from functools import reduce

from qcompiler.backends.torch.program import registry
from qcompiler.backends.torch.program.program import Program
from qcompiler.backends.torch.program.quote import literal
from qcompiler.backends.torch.program.spell import Dialect, Speller
from qcompiler.backends.torch.program.statements import Call, is_name
from qcompiler.ir.nested import Ref, walk

INFIX = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "matmul": "@", "pow": "**", "and_": "&", "or_": "|",
    "xor": "^", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lshift": "<<", "rshift": ">>",
}  # fmt: skip
PREFIX = {"neg": "-", "invert": "~", "not_": "not "}  # TorchScript knows none of these functions on every type
ROOTS = {"torch": "torch", "F": "torch.nn.functional", "special": "torch.special", "linalg": "torch.linalg", "fft": "torch.fft"}
MAX_LINE = 132


class Expressions(Speller):
    """Spells the calls of one program. `kernels`: global -> operation name. `hidden`: names that the module has for itself, which hide a
    submodule's."""

    program: Program
    kernels: dict[str, str]
    hidden: frozenset[str] = frozenset()

    def read(self) -> set[str]:
        """Names of the values that something uses."""
        read = {v.name for c in self.program.calls for v in c.values() if isinstance(v, Ref)}
        return read | {v.name for v in walk(self.program.output) if isinstance(v, Ref)}

    def statement(self, call: Call) -> list[str]:
        if call.op == "operator.setitem" and call.out is None and len(call.args) == 3:
            value = f"{self.atom(call.args[0])}[{self.index(call.args[1])}] = {self.text(call.args[2])}"
        else:
            value = self.expression(call)
        line = f"{call.out} = {value}" if call.out else value
        if not call.comment:
            return [line]
        short = len(line) + len(call.comment) + 8 <= MAX_LINE
        return [f"{line}  # {call.comment}"] if short else [f"# {call.comment}", line]

    def expression(self, call: Call) -> str:
        op, args = call.op, call.args
        if op == registry.LEAF:
            return f"{self.submodule(str(args[0]))}({self.list(args[1:], call.kwargs)})"
        if op == registry.SUBMODULE:
            return self.submodule(str(args[0]))
        if op.startswith(registry.METHOD):
            return f"{self.receiver(args[0])}.{op.removeprefix(registry.METHOD)}({self.list(args[1:], call.kwargs)})"
        if op == "builtins.getattr" and len(args) == 2:
            return f"{self.receiver(args[0])}.{args[1]}"
        if op.startswith(registry.RECORD) and self.dialect is Dialect.FILE:
            kind, names, values = args[:3]
            fields = dict(zip(names, values, strict=False))
            inside = {"named": (values, {}), "tuple": ((values,), {}), "dict": ((fields,), {}), "dataclass": ((), fields)}
            return f"{self.callee(op)}({self.list(*inside[kind])})"
        space, _, name = op.partition(".")
        if space == "operator" and not call.kwargs and len(args) == 2:
            if name in INFIX:
                return f"{self.atom(args[0])} {INFIX[name]} {self.atom(args[1])}"
            if name == "getitem" and args[1] is Ellipsis and self.dialect is Dialect.SCRIPT:  # an index it has no word for
                return f"{self.root('torch')}.ops.aten.alias({self.text(args[0])})"
            if name == "getitem":
                return f"{self.atom(args[0])}[{self.index(args[1])}]"
        if space == "operator" and name in PREFIX and not call.kwargs and len(args) == 1:
            return f"{PREFIX[name]}{self.atom(args[0])}"
        return f"{self.callee(op)}({self.list(args, call.kwargs)})"

    def submodule(self, path: str) -> str:
        parts = path.split(".")
        if all(map(is_name, parts)) and parts[0] not in self.hidden:
            return f"self.{path}"
        if self.dialect is Dialect.SCRIPT:
            return reduce(lambda owner, part: f"getattr({owner}, {literal(part)})", parts, "self")
        if self.dialect is Dialect.BOUND:
            return "self" + "".join(f"._modules[{literal(part)}]" for part in parts)
        return f"self.{self.named(f'leaf {path}', f'leaf_{path}')}"

    def callee(self, op: str) -> str:
        space, _, name = op.partition(".")
        if "::" in op:
            if self.dialect is Dialect.SCRIPT:
                return f"{self.root('torch')}.ops.{op.replace('::', '.').rpartition('.')[0]}"
            preferred = op.replace("::", "_").removesuffix(".default").replace(".", "_")
        elif space in ROOTS:
            return f"{self.root(space)}.{name}"
        elif space in ("operator", "math", "collections"):
            return f"{self.named(f'module {space}', space)}.{name}"
        else:
            preferred = op.rpartition(".")[2]
        found = self.named(f"op {op}", preferred)
        self.kernels[found] = op
        return found
