"""Records calls on proxies as graph nodes, running each on the example's values to learn what comes out."""

from __future__ import annotations

import keyword
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Target

from qcompiler.errors import TraceError, Where
from qcompiler.ir.types import SOURCE, VALUE, Source, Value
from qcompiler.trace import places
from qcompiler.trace.attributes import Attributes
from qcompiler.trace.calls import Calls
from qcompiler.trace.data_numbers import NUMBERS, depends_on_data
from qcompiler.trace.either_way import EitherWay
from qcompiler.trace.fixed_sizes import FixedSizes
from qcompiler.trace.float_parts import FloatParts
from qcompiler.trace.guards import TraceRemark
from qcompiler.trace.hits import HitList, Hits
from qcompiler.trace.holding import Holding
from qcompiler.trace.leaf_calls import LeafCalls
from qcompiler.trace.memory import Memory
from qcompiler.trace.module_calls import ModuleCalls, TraceOptions
from qcompiler.trace.mutation import Mutations
from qcompiler.trace.nested import has_tensor
from qcompiler.trace.operands import Operands
from qcompiler.trace.proxy import Args, Kwargs, Proxy, Sizes
from qcompiler.trace.questions import Question
from qcompiler.trace.recording import Mark, StandIns
from qcompiler.trace.regions import Regions
from qcompiler.trace.results import Kind, Results
from qcompiler.trace.running import Running
from qcompiler.trace.sharing import Fact
from qcompiler.trace.special_calls import attribute
from qcompiler.trace.truth import Truths

HINT = "make this module a leaf, give the value as concrete_args, or move the line into a function marked with torch.fx.wrap"
# Results that are numbers or flags but do not depend on a tensor's data.
METADATA = frozenset({
    "dim", "ndimension", "is_floating_point", "is_complex", "is_signed", "element_size", "get_device",
    "is_pinned", "is_inference", "is_conj", "is_neg", "is_shared", "is_tensor", "is_storage", "result_type",
    "can_cast", "dense_dim", "sparse_dim", "is_same_size", "is_grad_enabled",
})  # fmt: skip
SIZES = frozenset(("numel", "nelement", "broadcast_shapes"))
MAKERS = frozenset(("zeros", "ones", "empty", "full", "linspace", "logspace", "arange", "eye", "rand", "randn", "tensor", "scalar_tensor"))


def _is_float32(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype is torch.float32


class Tracer(fx.Tracer):
    """The graph under construction (`Recording` says what its parts know of it), and the parts that hold what it is made from."""

    def __init__(self, model: nn.Module, options: TraceOptions) -> None:
        super().__init__()
        self.model, self.options = model, options
        self.graph = fx.Graph()
        self.remarks: list[TraceRemark] = []
        self.scopes: list[tuple[str, str]] = []
        self.paths: Mapping[int, str] = {id(module): path for path, module in reversed(list(model.named_modules()))}
        self.paused = 0
        self.fixed_sizes = FixedSizes(model.get_submodule)
        self.from_data: set[fx.Node] = set()
        self.numbers: dict[fx.Node, str] = {}
        self.undo: list[tuple[Proxy, fx.Node, Any, str | None, Any]] = []
        self.found_state: Callable[[torch.Tensor], object] = lambda tensor: None
        self.promoted: dict[int, tuple[torch.Tensor, Proxy]] = {}
        self.stand_ins: list[StandIns] = []
        self.leaves: list[str] = []
        self.shared: list[Fact] = []
        self.asked: list[Question] = []
        self.of_strides: set[fx.Node] = set()
        self.instead: Mapping[str, torch.Tensor] = {}  # by the name of an argument, what is given in its place
        self.otherwise: Mapping[str, Callable[[Any], Any]] = {}  # by the name of a node, what its example becomes
        self.given: dict[fx.Node, tuple[str, torch.Tensor]] = {}  # tensors among the arguments: how the user calls each, its example
        self.counted: dict[fx.Node, int] = {}  # whole numbers of data, as in the example
        self.strides: dict[fx.Node, tuple[int, ...]] = {}  # of the examples that do not lie in order
        self.free_numbers = True  # else each is held fixed
        self.containers: list[tuple[str, object, list[object]]] = []  # what arguments were opened into, and what each held then
        self.held: dict[str, torch.Tensor] = {}  # states that are carried between calls, by dotted name: an example of each
        self._scalars: dict[object, Proxy] = {}
        self._make_parts()

    def _make_parts(self) -> None:
        self.attributes, self.memory = Attributes(self.model, self.graph, self.source), Memory()
        self.operands, self.holding, self.running = Operands(self), Holding(self), Running(self)
        self.results = Results(self, self.holding)
        self.mutations = Mutations(self, self.running)
        self.regions = Regions(self, self.mutations)
        self.ways = EitherWay(self, self.mutations, self.regions)
        self.loops = Hits(self, self.regions)
        self.truths = Truths(self, self.holding, self.ways)
        self.float_parts = FloatParts(self, self.running, self.mutations, self.ways)
        self.leaf_calls = LeafCalls(self, self.running, self.results, self.mutations, self.options.trains)
        self.modules = ModuleCalls(self, self.options, self.leaf_calls, self.regions, self.float_parts.try_part)
        self.calls = Calls(self, self.options, self.running, self.mutations, self.holding)

    def at_event(self, depth: int | None = None) -> None:
        """What is due before anything else is recorded."""
        self.holding.settle()
        self.regions.close_ended(depth)

    # ---- nodes

    def add_node(self, op: str, target: Target, args: Args, kwargs: Kwargs, example: Any) -> fx.Node:
        """Append a node for a call whose result on the examples is known."""
        self.regions.check(op, target, args, kwargs)
        self.at_event()
        if not all(name.isidentifier() and not keyword.iskeyword(name) for name in kwargs):
            raise self.error("a keyword argument that is no identifier")  # it would be written into code
        node = self.graph.create_node(op, target, self.create_arg(args), self.create_arg(kwargs))
        node.meta[VALUE] = Value.of(example)
        node.meta[SOURCE] = self.source()
        if type(example) is torch.Tensor and not example.is_contiguous():
            self.strides[node] = example.stride()
        if depends_on_data(node, args, kwargs, example, self.from_data, self.fixed_sizes):
            self.from_data.add(node)
            if type(example) is int:
                self.counted[node] = example
        if type(example) in (bool, int, float) and (given := [self.numbers[i] for i in node.all_input_nodes if i in self.numbers]):
            self.numbers[node] = given[0]
        return node

    def source(self) -> Source:
        file, line = places.user_line(sys._getframe(1), places.BOUNDARY)
        path, kind = self.scopes[-1] if self.scopes else ("", "")
        return Source(file, line, path, kind)

    def error(self, message: str, place: tuple[str | None, int | None] | None = None) -> TraceError:
        """A TraceError at a line of the user's code, by default the current one."""
        file, line = place or places.user_line(sys._getframe(1), places.BOUNDARY)
        text = places.text_of(file, line)
        path = self.scopes[-1][0] if self.scopes else None
        where = Where(module_path=path, source=places.spell(file, line))
        return TraceError(message + (f" in `{text}`" if text else ""), where=where, hint=HINT)

    def create_arg(self, a: Any) -> Any:
        """A value as argument of a node."""
        return self.operands.of(a)

    def attribute_node(self, tensor: torch.Tensor) -> fx.Node:
        """The node that stands for a plain tensor."""
        held = self.promoted.get(id(tensor))
        if held is not None and not held[1].node._erased:
            return self.create_arg(held[1])  # type: ignore[no-any-return]
        return self.attributes.node_of_tensor(tensor)

    # ---- calls

    def record(self, op: str, target: Target, args: Args, kwargs: Kwargs) -> Any:
        """Run a call on the examples, append its node, return what stands for the result."""
        self.at_event()
        scalars = not kwargs and all(type(a) in (int, float, bool) or (type(a) is Proxy and not a.is_tensor) for a in args)
        key = (target, *((type(a), a.node if type(a) is Proxy else a) for a in args)) if scalars else None
        if key is not None and (known := self._scalars.get(key)) is not None and not known.node._erased:
            return known
        example = self.running.execute(op, target, args, kwargs)
        if op == "call_function" and getattr(target, "__name__", "") in MAKERS and "dtype" not in kwargs and _is_float32(example):
            kwargs = {**kwargs, "dtype": torch.float32}  # else that of the process at each call
        kind: Kind = "data" if has_tensor((args, kwargs)) else "size"
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if kind == "data" and self._is_plain(name, args, example):
            return example
        kind = "size" if name in SIZES or name in NUMBERS else kind
        result = self.results.wrap(lambda: self.add_node(op, target, args, kwargs, example), example, kind)
        if key is not None and type(result) is Proxy:
            self._scalars[key] = result
        return result

    @staticmethod
    def _is_plain(name: str, args: tuple[object, ...], example: object) -> bool:
        """Whether a result is about the kind of a tensor, not its sizes or data."""
        if name in METADATA or isinstance(example, (torch.dtype, torch.device, torch.layout)):
            return True
        return isinstance(example, bool) and name in ("eq", "ne") and any(a is None or isinstance(a, str) for a in args)

    def bind(self, node: fx.Node, example: object) -> Proxy:
        """A new variable that holds a node's value."""
        proxy = Proxy(node, self, self.seen(node, example))
        if proxy.is_tensor:
            self.memory.remember(proxy)
        return proxy

    def seen(self, node: fx.Node, example: Any) -> Any:
        """The example of a value that is made: another one where the model is traced once more to see what it does there."""
        return self.otherwise[node.name](example) if node.name in self.otherwise else example

    def sizes(self, proxy: Proxy) -> Sizes:
        """The shape of a traced tensor, one `size(dim)` node each."""
        self.at_event()
        if proxy.stale:
            raise self.error(proxy.stale)
        return Sizes(self._size(proxy, dim) for dim in range(proxy.example.dim()))

    def _size(self, proxy: Proxy, dim: int) -> Proxy:
        key = ("size", proxy.node, dim)
        known = self._scalars.get(key)
        if known is None or known.node._erased:
            value = proxy.example.shape[dim]
            known = self._scalars[key] = self.bind(self.add_node("call_method", "size", (proxy, dim), {}, value), value)
        return known

    # ---- what proxies ask

    def create_proxy(self, kind: str, target: Target, *given: Any, **options: Any) -> Any:
        """Where the operators of fx.Proxy end. `given`: the arguments of the call, and what says how fx names its node."""
        return self.calls.call(kind, target, *given[:2])

    def call(self, op: str, target: Target, args: Args, kwargs: Kwargs) -> Any:
        return self.calls.call(op, target, args, kwargs)

    def dispatch(self, func: Any, args: Args, kwargs: Kwargs, frame: FrameType | None) -> object:
        return self.calls.dispatch(func, args, kwargs, frame)

    def attribute(self, owner: Proxy, name: str) -> object:
        return attribute(self, owner, name)

    def update(self, op: str, target: Target, args: Args, kwargs: Kwargs) -> Any:
        return self.mutations.update(op, target, args, kwargs)

    def mutate_to(self, owner: Proxy, value: object) -> None:
        self.mutations.mutate_to(owner, value)

    def set_item(self, target: Target, index: Any, value: Any) -> None:
        self.mutations.set_item(target, index, value)

    def truth(self, proxy: Proxy) -> bool:
        return self.truths.truth(proxy)

    def number(self, proxy: Proxy, how: str) -> Any:
        return self.truths.number(proxy, how)

    def index(self, proxy: Proxy, frame: FrameType) -> Any:
        return self.holding.index(proxy, frame)

    def fix(self, proxy: Proxy, how: str) -> Any:
        return self.holding.fix(proxy, how)

    def word(self, proxy: Proxy, how: str, frame: FrameType | None) -> object:
        return self.holding.word(proxy, how, frame)

    def hits(self, proxy: Proxy) -> Iterator[torch.Tensor] | None:
        return self.loops.hits(proxy)

    def hit_list(self, proxy: Proxy) -> HitList | None:
        return self.loops.hit_list(proxy)

    def explain_failure(self, text: str) -> None:
        self.regions.explain_failure(text)

    # ---- attempts

    def mark(self) -> Mark:
        """A point to which `rollback` can return."""
        return next(iter(reversed(self.graph.nodes)), self.graph._root), len(self.undo), len(self.remarks), len(self.asked)

    def rollback(self, mark: Mark) -> None:
        """Forget all that was recorded since a mark."""
        last, undo, remarks, asked = mark
        while (node := self.graph._root._prev) is not last:
            self.graph.erase_node(node)
        for proxy, node, example, stale, view in reversed(self.undo[undo:]):
            proxy.node, proxy.example, proxy.stale, proxy.view_of = node, example, stale, view
            if proxy.is_tensor:
                self.memory.remember(proxy)
        del self.undo[undo:]
        del self.remarks[remarks:], self.asked[asked:]
        self.holding.forget_index()
        self.mutations.forget_copies()
