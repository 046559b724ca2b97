"""QConfigMapping: which part of a model gets which QConfig.

Of the rules that apply to a call the most specific wins: module name and object type and order > module name (the longest) >
regular expression (the first that was set) > object type (the module's, then the call's) > global.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from qcompiler.config.qconfig import QConfig, as_qconfig, get_default_qat_qconfig, get_default_qconfig
from qcompiler.errors import ConfigError
from qcompiler.inputs.door import door
from qcompiler.inputs.near_names import no_module

ObjectType = Callable[..., Any] | str  # a module class, a function, or a name: a method's, or one as type_name gives it

NO_QCONFIG = object()
_KINDS = ("object_type", "module_name_regex", "module_name", "module_name_object_type_order")


@dataclass(frozen=True)
class Rule:
    """One line of a mapping: its kind ("global" or one of the dict's keys), what it matches, and what that gets."""

    kind: str
    key: tuple[str | int, ...]
    qconfig: QConfig | None = field(compare=False)

    @property
    def names_modules(self) -> bool:
        """Whether it is for modules by their names, not for all of a type or for all there is."""
        return self.kind in _KINDS[1:]

    def __str__(self) -> str:
        return f"{self.kind} {', '.join(map(str, self.key))}".strip()


def type_name(thing: ObjectType) -> str:
    """The name that stands for a class or function in files: "torch.nn.modules.conv.Conv2d", "torch.conv2d" (also F.conv2d)."""
    if isinstance(thing, str):
        return thing
    module = getattr(thing, "__module__", None)
    name = getattr(thing, "__qualname__", getattr(thing, "__name__", repr(thing))).removeprefix("_VariableFunctionsClass.")
    return f"{module}.{name}" if module and module != "builtins" else str(name)


def _names(things: ObjectType | Sequence[ObjectType] | None) -> set[str]:
    """The names of all these things."""
    if things is None:
        return set()
    listed: Sequence[ObjectType] = [things] if isinstance(things, str) or callable(things) else things
    return {type_name(thing) for thing in listed}


class QConfigMapping:
    """Rules from parts of a model to QConfigs; None leaves a part in float. Setters return the mapping.

    ConfigError for values that are no QConfig and for bad regular expressions.
    """

    def __init__(self) -> None:
        self.global_qconfig: QConfig | None = None
        self.object_type_qconfigs: dict[ObjectType, QConfig | None] = {}
        self.module_name_regex_qconfigs: dict[str, QConfig | None] = {}
        self.module_name_qconfigs: dict[str, QConfig | None] = {}
        self.module_name_object_type_order_qconfigs: dict[tuple[str, ObjectType, int], QConfig | None] = {}
        self._from_attributes: set[str] = set()  # module names whose rule is the module's own `.qconfig`

    def set_global(self, global_qconfig: object) -> QConfigMapping:
        """What holds where no other rule does. None: float."""
        self.global_qconfig = as_qconfig(global_qconfig)
        return self

    def set_object_type(self, object_type: ObjectType, qconfig: object) -> QConfigMapping:
        """For every module of a type, or every call of a function or of a method named by a string. None: these stay float."""
        self.object_type_qconfigs[object_type] = as_qconfig(qconfig)
        return self

    def set_module_name_regex(self, module_name_regex: str, qconfig: object) -> QConfigMapping:
        """For modules whose path begins with a match of a regular expression; of several, the first. Raises ConfigError for a bad one."""
        try:
            re.compile(module_name_regex)
        except re.error as error:
            raise ConfigError(f"{module_name_regex!r} is not a regular expression: {error}", code="qconfig-regex") from error
        self.module_name_regex_qconfigs[module_name_regex] = as_qconfig(qconfig)
        return self

    def set_module_name(self, module_name: str, qconfig: object) -> QConfigMapping:
        """For the module at a path and all in it; a longer path wins. prepare refuses a path that the model does not have."""
        self.module_name_qconfigs[module_name] = as_qconfig(qconfig)
        return self

    def set_module_name_object_type_order(self, module_name: str, object_type: ObjectType, index: int, qconfig: object) -> QConfigMapping:
        """For the call number `index`, from 0, of a type or function in the forward of the module at a path: the most specific rule."""
        self.module_name_object_type_order_qconfigs[module_name, object_type, index] = as_qconfig(qconfig)
        return self

    def rules(self) -> list[Rule]:
        """All rules, the most specific first."""
        order = [
            Rule(_KINDS[3], (name, type_name(kind), index), q)
            for (name, kind, index), q in self.module_name_object_type_order_qconfigs.items()
        ]
        named = sorted(self.module_name_qconfigs.items(), key=lambda item: -len(item[0]))
        names = [Rule(_KINDS[2], (name,), q) for name, q in named]
        regexes = [Rule(_KINDS[1], (text,), q) for text, q in self.module_name_regex_qconfigs.items()]
        types = [Rule(_KINDS[0], (type_name(kind),), q) for kind, q in self.object_type_qconfigs.items()]
        return [*order, *names, *regexes, *types, Rule("global", (), self.global_qconfig)]

    def matches(
        self,
        module_path: str,
        module_type: ObjectType | None = None,
        op: ObjectType | Sequence[ObjectType] | None = None,
        call_index: int = 0,
    ) -> list[Rule]:
        """The rules that apply to one call, the one that wins first (the last is the global one).

        `module_path`, `module_type`: the module that is called, or the one whose forward makes the call. `op`: the function
        or method name that is called, in any of its spellings. `call_index`: how many calls of this type came before in the
        same module.
        """
        kinds, ops = _names(module_type), _names(op)
        found = [rule for rule in self.rules() if _applies(rule, module_path, kinds | ops, call_index)]
        return sorted(found, key=lambda rule: _rank(rule, kinds))

    def resolve(
        self,
        module_path: str,
        module_type: ObjectType | None = None,
        op: ObjectType | Sequence[ObjectType] | None = None,
        call_index: int = 0,
    ) -> QConfig | None:
        """The QConfig of one call (see `matches`); None: it stays float."""
        return self.matches(module_path, module_type, op, call_index)[0].qconfig

    def unmatched(self, used: Iterable[Rule]) -> list[Rule]:
        """The rules, other than the global one, that are not among those that `matches` gave."""
        seen, quiet = set(used), self._from_attributes
        return [r for r in self.rules() if r not in seen and r.kind != "global" and not (r.kind == _KINDS[2] and r.key[0] in quiet)]

    def with_attributes(self, model: nn.Module) -> QConfigMapping:
        """The mapping with every module's own `.qconfig` (a QConfig or None) as a rule for its name, in place of one for that name.

        So an attribute wins over the mapping's type, regular expression and global rules, and rules or attributes of modules
        inside it win over it. That of the model itself becomes the global rule.
        """
        found: dict[str, QConfig | None] = {}
        for path, module in model.named_modules():
            value = getattr(module, "qconfig", NO_QCONFIG)
            if value is None or (hasattr(value, "activation") and hasattr(value, "weight")):
                found[path] = as_qconfig(value)
        if not found:
            return self
        result = copy.copy(self)
        result.global_qconfig = found.get("", self.global_qconfig)
        own = {path: q for path, q in found.items() if path and not _inherits(self.module_name_qconfigs | found, path)}
        result.module_name_qconfigs = self.module_name_qconfigs | own
        result._from_attributes = set(own)
        return result

    def check_names(self, known_paths: Iterable[str]) -> None:
        """ConfigError, with close matches, where a rule names a module that the model does not have."""
        known = list(known_paths)
        for rule in self.rules():
            name = str(rule.key[0]) if rule.kind in _KINDS[2:] else ""
            if name and name not in known:
                raise no_module(name, known, "qconfig-module-name", f"qconfig rule: {rule}")

    def to_dict(self) -> dict[str, object]:
        """A qconfig_dict as torch.ao has them: "", "object_type": [(type, qconfig), ...] and so on."""
        return {
            "": self.global_qconfig,
            _KINDS[0]: list(self.object_type_qconfigs.items()),
            _KINDS[1]: list(self.module_name_regex_qconfigs.items()),
            _KINDS[2]: list(self.module_name_qconfigs.items()),
            _KINDS[3]: [(*key, q) for key, q in self.module_name_object_type_order_qconfigs.items()],
        }

    @classmethod
    def from_dict(cls, qconfig_dict: Mapping[str, Any]) -> QConfigMapping:
        """From a qconfig_dict; ConfigError for unknown keys and for values that are no QConfig."""
        unknown = sorted(str(key) for key in qconfig_dict if key not in ("", *_KINDS))
        if unknown:
            hint = f"known keys: '' and {', '.join(_KINDS)}"
            raise ConfigError(f"unknown key in a qconfig_dict: {', '.join(unknown)}", code="config-format", hint=hint)
        mapping = cls().set_global(qconfig_dict.get(""))
        setters: tuple[Callable[..., QConfigMapping], ...] = (
            mapping.set_object_type,
            mapping.set_module_name_regex,
            mapping.set_module_name,
            mapping.set_module_name_object_type_order,
        )
        for kind, setter in zip(_KINDS, setters, strict=True):
            entries = qconfig_dict.get(kind, [])
            for entry in entries.items() if isinstance(entries, Mapping) else entries:
                if len(entry) != (4 if kind == _KINDS[3] else 2):
                    raise ConfigError(f"{kind}: unexpected entry {entry!r:.200}", code="config-format")
                setter(*entry)
        return mapping

    def to_json(self) -> str:
        """The mapping as JSON: types by name, observers by registered name. ConfigError for unregistered observers."""
        plain: dict[str, Any] = {"": _plain(self.global_qconfig)}
        for kind in _KINDS:
            plain[kind] = [[*rule.key, _plain(rule.qconfig)] for rule in self.rules() if rule.kind == kind]
        return json.dumps(plain, indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> QConfigMapping:
        """What `to_json` wrote; ConfigError for anything else. Nothing is imported: types stay names, and match by name."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"not JSON: {error}", code="config-format") from error
        if not isinstance(data, dict) or not all(isinstance(data.get(kind, []), list) for kind in _KINDS):
            raise ConfigError("expected a JSON object with lists of rules", code="config-format")
        for kind in _KINDS:
            for entry in data.get(kind, []):
                if not isinstance(entry, list) or not all(isinstance(part, str) for part in entry[: 2 if kind == _KINDS[3] else 1]):
                    raise ConfigError(f"{kind}: unexpected entry {entry!r:.200}", code="config-format")
        return cls.from_dict(data)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QConfigMapping):
            return NotImplemented
        return [(r, r.qconfig) for r in self.rules()] == [(r, r.qconfig) for r in other.rules()]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        lines = [f"  {rule}: {rule.qconfig}" for rule in self.rules()]
        return "\n".join(["QConfigMapping(", *lines, ")"])


def _plain(qconfig: QConfig | None) -> dict[str, object] | None:
    return None if qconfig is None else qconfig.to_plain()


def _inherits(found: Mapping[str, QConfig | None], path: str) -> bool:
    """Whether a module's attribute says what the rule or attribute of the module around it says already."""
    parents = (path.rsplit(".", n)[0] for n in range(1, path.count(".") + 1))
    around = next((parent for parent in parents if parent in found), None)
    return around is not None and found[around] == found[path]


def _applies(rule: Rule, path: str, names: set[str], call_index: int) -> bool:
    if rule.kind == "global":
        return True
    first = str(rule.key[0])
    if rule.kind == _KINDS[0]:
        return first in names
    if rule.kind == _KINDS[1]:
        return re.match(first, path) is not None
    if rule.kind == _KINDS[2]:
        return bool(first) and (path == first or path.startswith(first + "."))
    parent = path.rpartition(".")[0]
    return first in (path, parent) and rule.key[1] in names and rule.key[2] == call_index


def _rank(rule: Rule, module_names: set[str]) -> tuple[int, int]:
    """Rules keep their order, except that the module's type goes before the call's."""
    order = ("global", *_KINDS)
    return -order.index(rule.kind), int(rule.kind == _KINDS[0] and rule.key[0] not in module_names)


def as_mapping(value: object) -> QConfigMapping:
    """A mapping from: a QConfigMapping, a QConfig or None (for all of the model), a qconfig_dict, or torch.ao's of these."""
    if isinstance(value, QConfigMapping):
        return value
    if isinstance(value, Mapping):
        return QConfigMapping.from_dict(value)
    if hasattr(value, "object_type_qconfigs") and hasattr(value, "to_dict"):
        return QConfigMapping.from_dict(value.to_dict())
    return QConfigMapping().set_global(value)


@door
def get_default_qconfig_mapping(backend: str = "x86", version: int = 0) -> QConfigMapping:
    """The mapping for post-training quantization on a back end (x86, fbgemm, onednn, qnnpack)."""
    return QConfigMapping().set_global(get_default_qconfig(backend, version))


@door
def get_default_qat_qconfig_mapping(backend: str = "x86", version: int = 1) -> QConfigMapping:
    """The mapping for quantization-aware training on a back end."""
    return QConfigMapping().set_global(get_default_qat_qconfig(backend, version))
