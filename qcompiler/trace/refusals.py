"""What forward keeps between calls and no graph can carry: the modules that keep it have to stay leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from qcompiler.ir.types import source_of
from qcompiler.trace.attempt import Attempt
from qcompiler.trace.places import assigned_at
from qcompiler.trace.same import UNKNOWN, equal, same_leaf
from qcompiler.trace.slots import leaves
from qcompiler.trace.state import Place, Places

HINT = "give forward the value as an argument and return the new one, or make the part that keeps it a submodule, which then stays float"


@dataclass
class Refused(Exception):
    """What cannot be carried: paths of modules, which have to stay leaves, each with the reason and the user's line."""

    reasons: dict[str, tuple[str, str | None]] = field(default_factory=dict)


class Refusals:
    """The checks of what the attempts of one model left in its places."""

    def __init__(self, places: Places) -> None:
        self.places = places

    def refusal(self, places: Mapping[Place, str], made: Attempt | None) -> Refused:
        reasons: dict[str, tuple[str, str | None]] = {}
        for place, reason in places.items():
            owner, name = self.places.owner(place), self.places.name(place)
            text = f"forward keeps `{name}` between calls, which {reason}"
            reasons.setdefault(owner, (text, self._line(place, made)))
        return Refused(reasons)

    def _line(self, place: Place, made: Attempt | None) -> str | None:
        """The line that made what stands at a place; where that is no traced value, one that assigns to its name."""
        ends = [end for held, end in (made.ends if made else {}).items() if self.is_at(held, place)]
        line = next((source_of(end).location for end in ends if isinstance(end, fx.Node)), None)
        return line or assigned_at(type(self.places.model.get_submodule(self.places.owner(place))), str(place[1]))

    def check_things(self, made: Attempt) -> None:
        """What no graph can carry: its module goes on changing it; the root's, or what no trace can put back, is an error."""
        reasons: dict[str, tuple[str, str | None]] = {}
        for thing in made.things:
            text = f"forward changes `{thing.name}` ({thing.what}) at each call, which no graph can hold"
            reasons.setdefault(thing.owner if thing.write is not None else "", (text, None))
        if reasons:
            raise Refused(reasons)

    def check_parameters(self, made: Attempt) -> None:
        for name in made.parameters:
            owner, _, last = name.rpartition(".")
            text = f"forward gives the parameter `{name}` another value"
            raise Refused({owner: (text, assigned_at(type(self.places.model.get_submodule(owner)), last))})

    def check_modes(self, made: Attempt) -> None:
        """State that is written in training alone: a graph has one branch."""
        branched = {remark.where.module_path for remark in made.tracer.remarks if remark.kind == "training-branch"}
        places = {p: "it changes where a branch on `training` says so" for p in made.left if self.places.owner(p) in branched}
        if places:
            raise self.refusal(places, made)

    def check_leaves(self, first: Attempt, later: Attempt) -> None:
        """A module that can be followed at its first call alone stays a leaf."""
        known = set(first.tracer.leaves)
        reasons = {path: next((r.reason for r in later.tracer.remarks if r.kind == "leaf" and r.where.module_path == path), "")
                   for path in later.tracer.leaves if path not in known}  # fmt: skip
        if reasons:
            raise Refused({path: (f"at its second call it cannot be followed: {reason}", None) for path, reason in reasons.items()})

    def check_kinds(self, new: Mapping[Place, object], known: Mapping[Place, object]) -> None:
        """Texts, members of enums and numbers of numpy that change with each call: they are no values of a graph."""
        for place, value in new.items():
            before = leaves(known.get(place), "")
            for path, leaf in leaves(value, "").items():
                if isinstance(leaf, UNKNOWN) and not same_leaf(leaf, before.get(path, leaf)):
                    raise self.refusal({place: f"is another {type(leaf).__name__} after each call"}, None)

    def check_stable(self, later: Attempt, live: list[str]) -> None:
        bad = {p: reason for p, reason in later.unstable.items() if any(self.is_at(name, p) for name in live)}
        if bad:
            raise self.refusal(bad, later)

    def is_at(self, name: str, place: Place) -> bool:
        own = self.places.name(place)
        return name == own or name.startswith(f"{own}.")

    def check_equal(self, first: Attempt, later: Attempt, known: Mapping[Place, object]) -> None:
        if not equal(first.results, later.results):
            raise self.refusal(dict.fromkeys(known, "makes its second call compute something else than its first"), first)
