"""Views of traced tensors: the call that made each of another tensor, to make it anew, and what a change of it makes of that tensor.

y = x.transpose(1, 2)                y = y * 2
y.mul_(2)                    ->      x = y.transpose(1, 2)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from qcompiler.trace.memory import Memory, storage
from qcompiler.trace.mode import Training
from qcompiler.trace.proxy import Args, Following, Kwargs, Proxy, View


def again(view: View, recorder: Following) -> Proxy:
    """The view of what its parent is now."""
    if view.piece is not None:
        return _all_pieces(view, recorder)[view.piece]
    return recorder.record(view.op, view.target, (view.parent, *view.args), view.kwargs)  # type: ignore[no-any-return]


def _all_pieces(view: View, recorder: Following) -> Sequence[Proxy]:
    return recorder.record(view.op, view.target, (view.parent, *view.args), view.kwargs)  # type: ignore[no-any-return]


def _name(view: View) -> str:
    return view.target if isinstance(view.target, str) else str(getattr(view.target, "__name__", ""))


def _setting(view: View, *names: str) -> list[Any]:
    """The arguments of these names, in their order; None where one is left out."""
    return [view.args[i] if i < len(view.args) else view.kwargs.get(name) for i, name in enumerate(names)]


def note_views(result: object, op: str, target: str | Callable[..., object], args: Args, kwargs: Kwargs, memory: Memory) -> None:
    """Let the results of a call that lie in the memory of its first argument know it, and those that may lie there at other sizes."""
    parent, args, kwargs = _split_first(args, kwargs)
    if parent is None:
        return
    pieces = enumerate(result) if isinstance(result, (tuple, list)) else [(None, result)]
    for number, piece in pieces:
        if type(piece) is not Proxy or not piece.is_tensor or piece is parent:
            continue
        view = View(parent, op, target, args, kwargs, parent.example.size(), number, piece.example.size())
        if storage(piece.example) == storage(parent.example):
            piece.view_of = view
        elif may_copy(view):
            memory.link(piece, parent)


def _split_first(args: Args, kwargs: Kwargs) -> tuple[Proxy | None, Args, Kwargs]:
    """The tensor that a call is about, and the rest."""
    named = {} if args else {key: value for key, value in kwargs.items() if key != "input"}
    first = args[0] if args else kwargs.get("input")
    return (first, args[1:], kwargs if args else named) if type(first) is Proxy and first.is_tensor else (None, args, kwargs)


def ancestors(proxy: Proxy) -> list[Proxy]:
    """What a variable is a view of, the nearest first, as far as that is still so."""
    found: list[Proxy] = []
    while (view := proxy.view_of) is not None and view.parent.stale is None:
        if storage(view.parent.example) != storage(proxy.example) or view.parent.example.size() != view.size:
            break
        found.append(view.parent)
        proxy = view.parent
    return found


# ---- which variables are one

DROPOUTS = frozenset((
    "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "feature_alpha_dropout",
))  # fmt: skip
_SAME = DROPOUTS | {"detach", "positive", "pos", "resolve_conj", "resolve_neg"}  # where they give a view
_KEEP = _SAME | {"view_as", "contiguous", "to_format"}  # of the reshapes: what leaves all elements where they are
_SIZED = frozenset((
    "expand", "expand_as", "broadcast_to", "broadcast_tensors", "diagonal", "unfold", "as_strided", "atleast_1d", "atleast_2d",
    "atleast_3d", "hsplit", "vsplit", "dsplit", "view_as_real", "view_as_complex", "__getattribute__", "getattr",
))  # fmt: skip


def _moves(view: View) -> bool:
    """Whether a view of other sizes may be something else than its parent, though it lies in the same place here."""
    name = _name(view)
    return name not in _KEEP and (name in _RESHAPES or name in _UNDO or name in _SIZED or index_of(view) is not None or name == "narrow")


def base(proxy: Proxy) -> Proxy:
    """The variable that this one is the same as at all sizes: what a call that leaves all where it is was given."""
    while (above := ancestors(proxy)) and proxy.view_of is not None and not _moves(proxy.view_of):
        proxy = above[0]
    return proxy


def are_one(one: Proxy, other: Proxy) -> bool:
    """Whether two variables that lie in the same place do so at all sizes; of those that are no views it is taken so."""
    a, b = base(one), base(other)
    return a is b or (a.view_of is None and b.view_of is None)


# ---- views at some sizes, copies at others

_PERHAPS = frozenset(("reshape", "reshape_as", "flatten", "ravel", "contiguous", "to_format", "sum_to_size", "meshgrid"))


def may_copy(view: View) -> bool:
    """Whether a call gives a view at some sizes, of some layouts, or in one mode, and a copy at others."""
    return _name(view) in _PERHAPS or drops(view)


def drops(view: View) -> bool:
    """Whether a call is a dropout that looks at each call whether it trains: it gives a copy there, and its argument elsewhere."""
    return _name(view) in DROPOUTS and any(type(value) is Training for value in (*view.args, *view.kwargs.values()))


def chances(proxy: Proxy) -> list[Proxy]:
    """The variable, and what it is a view of, as far as each is a view by a call that may copy."""
    return [one for one in (proxy, *ancestors(proxy)) if one.view_of is not None and may_copy(one.view_of)]


def are_pieces(one: Proxy, other: Proxy) -> bool:
    """Whether two variables lie in different pieces of one tensor, which one call cut: they have nothing in common at any size."""
    a, b = (_pieces(proxy) for proxy in (one, other))
    return any(view.parent is with_.parent and view.piece != with_.piece and _is_same_cut(view, with_) for view in a for with_ in b)


def _pieces(proxy: Proxy) -> list[View]:
    views = [one.view_of for one in (proxy, *ancestors(proxy))]
    return [view for view in views if view is not None and view.piece is not None and _name(view) in CUTS]


CUTS = frozenset(("chunk", "split", "split_with_sizes", "tensor_split", "unbind"))


def _is_same_cut(one: View, other: View) -> bool:
    return one.target == other.target and one.args is other.args and one.kwargs is other.kwargs


# ---- what a changed view makes of its parent

_RESHAPES = _KEEP | {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "reshape_as", "ravel"}


def index_of(view: View) -> object:
    """The index that a view is, None where it is no index."""
    rank = len(view.size)
    if _name(view) == "getitem":
        return view.args[0]
    if _name(view) == "select":
        dim, at = _setting(view, "dim", "index")
        return (*_all_before(dim, rank), at)
    if _name(view) == "unbind":
        (dim,) = _setting(view, "dim")
        return (*_all_before(dim or 0, rank), view.piece)
    if _name(view) == "narrow":
        dim, first, length = _setting(view, "dim", "start", "length")
        if isinstance(first.example if type(first) is Proxy else first, torch.Tensor) or first < 0:
            return None  # from the end, or at a place that depends on data
        return (*_all_before(dim, rank), slice(first, first + length))
    return None


def is_same_index(one: object, other: object) -> bool:
    """Whether two indices are the same at each call. Nothing is recorded: a comparison of traced numbers would be."""
    a, b = _parts_of_index(one), _parts_of_index(other)
    if a is not None and b is not None:
        return type(one) is type(other) and len(a) == len(b) and all(map(is_same_index, a, b))
    if type(one) is Proxy and type(other) is Proxy:
        return one.node is other.node
    return one is other or (type(one) is int and type(other) is int and one == other)


def _parts_of_index(index: object) -> Sequence[object] | None:
    if isinstance(index, slice):
        return index.start, index.stop, index.step
    return index if isinstance(index, (tuple, list)) else None


def _all_before(dim: int, rank: int) -> tuple[slice, ...]:
    return (slice(None),) * (dim % rank)


def parent_of(view: View, changed: Proxy, recorder: Following) -> Proxy | None:
    """What the parent of a view is behind a change of it, where the view has all of it; None where nobody knows."""
    if changed.example.dtype != view.parent.example.dtype:
        return None
    if _name(view) in _RESHAPES and changed.example.numel() == view.size.numel():
        return recorder.record("call_method", "reshape", (changed, *recorder.sizes(view.parent)), {})  # type: ignore[no-any-return]
    undo = _UNDO.get(_name(view))
    return None if undo is None else undo(view, changed, recorder)


def _same_again(view: View, changed: Proxy, recorder: Following) -> Proxy:
    return recorder.record(view.op, view.target, (changed, *view.args), view.kwargs)  # type: ignore[no-any-return]


def _order(view: View, changed: Proxy, recorder: Following) -> Proxy:
    given = view.kwargs.get("dims", view.args[0] if len(view.args) == 1 else view.args)
    dims = [int(dim) % len(view.size) for dim in (given if isinstance(given, (tuple, list)) else (given,))]
    back = [dims.index(dim) for dim in range(len(dims))]
    return recorder.record("call_method", "permute", (changed, back), {})  # type: ignore[no-any-return]


def _moved(view: View, changed: Proxy, recorder: Following) -> Proxy:
    source, destination = _setting(view, "source", "destination")
    return recorder.record("call_method", "movedim", (changed, destination, source), {})  # type: ignore[no-any-return]


def _joined(view: View, changed: Proxy, recorder: Following) -> Proxy:
    dim = view.kwargs.get("dim", view.args[1] if len(view.args) > 1 else 0)
    pieces = list(_all_pieces(view, recorder))
    pieces[view.piece or 0] = changed
    return recorder.record("call_function", torch.cat, (pieces, dim), {})  # type: ignore[no-any-return]


_ORDERS = ("transpose", "swapaxes", "swapdims", "t", "permute", "movedim", "moveaxis")
_UNDO: dict[str, Callable[[View, Proxy, Following], Proxy]] = {
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "t"), _same_again),
    "permute": _order,
    **dict.fromkeys(("movedim", "moveaxis"), _moved),
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), _joined),
}
