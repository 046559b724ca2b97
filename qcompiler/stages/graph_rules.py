"""Rules of every stage: which targets it has, what is noted at a node, which observers there are."""

from __future__ import annotations

from functools import cache

import torch
from torch import fx

from qcompiler.ir.text import format_target
from qcompiler.ir.types import VALUE, QParams, Stage, quant_of, value_of
from qcompiler.ops import reference
from qcompiler.ops.signature import NO_DEFAULT, parse_signature
from qcompiler.ops.table import bind
from qcompiler.stages.rule import ALL, DECIDED, EARLY, PLAIN, Breach, Place, Rule, Seen, flat

CONVERSIONS = (reference.quantize, reference.dequantize)
QUANTIZED_PARTS = (*CONVERSIONS, reference.dequantize_weight, reference.dynamic_quantize_dequantize, reference.widen, reference.unpack_4bit)
HOLDERS = ("observers.", "weight_fake_quants.")
OVERLOADS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)


def is_call(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method", "call_module")


def watches(node: fx.Node) -> bool:
    """Whether the node calls an observer or a fake-quantize module."""
    return node.op == "call_module" and str(node.target).startswith(HOLDERS)


def conversion(at: Place) -> str | None:
    if at.node.target in QUANTIZED_PARTS and not (at.stage is Stage.LOWERED and at.node.target not in CONVERSIONS):
        return f"%{at.node.name} calls {format_target(at.node.target)}, which belongs to QUANTIZED"
    return None


def backend_target(at: Place) -> str | None:
    if at.node.op != "call_function":
        return None
    if str(getattr(at.node.target, "__module__", "")).startswith("qcompiler.backends."):
        return f"%{at.node.name} calls {format_target(at.node.target)}, a function of a back end"
    unknown = isinstance(at.node.target, OVERLOADS) and at.stage in DECIDED and at.quant.reason is None
    return (
        f"%{at.node.name} calls the overload {format_target(at.node.target)}: a quantized op is a call of its row's fn" if unknown else None
    )


def int8_target(at: Place) -> str | None:
    if not at.quant.int8 and at.quant.mode is None:
        return None
    if at.row is None and not (at.quant.int8 and at.node.op == "call_module"):
        return f"%{at.node.name} is quantized, but {format_target(at.node.target)} is no op of the table"
    return None


def own_int8_module(at: Place) -> str | None:
    if at.node.op != "call_module" or not at.quant.int8:
        return None
    kind = type(at.gm.get_submodule(str(at.node.target)))
    torchs = kind.__module__.startswith("torch.nn.modules.")
    return f"%{at.node.name} is quantized, but calls a {kind.__name__} of torch.nn, which takes floats" if torchs else None


def canonical(at: Place) -> str | None:
    if at.row is not None:
        extra = len(at.node.args) - len(at.row.params)
        return f"%{at.node.name} has {extra} positional arguments more than {at.row.name} has tensors" if extra > 0 else None
    found = at.table.spelled(at.node.target) if at.node.op in ("call_function", "call_method") else None  # type: ignore[arg-type]
    if found is None:
        return None
    row, spelling = found
    bound = bind(spelling.signature or row.signature, at.node.args, at.node.kwargs) or {}
    tensors = any(isinstance(t, fx.Node) and value_of(t).shape is not None for p in row.params for t in flat(bound.get(p.name)))
    return f"%{at.node.name} is a spelling of {row.name} that is not canonical" if tensors else None


@cache
def _names(signature: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """The arguments of a signature, and those without a default."""
    entries = parse_signature(signature)
    return frozenset(name for _, _, name, _ in entries), tuple(name for _, _, name, default in entries if default is NO_DEFAULT)


def settings(at: Place) -> str | None:
    """The keywords of a canonical call. `bounds` have a rule of their own."""
    if at.row is None:
        return None
    names, needed = _names(at.row.signature)
    for name in at.node.kwargs:
        if any(name == param.name for param in at.row.params):
            return f"%{at.node.name} gives the tensor {name} as a keyword"
        if name not in names and name != "bounds" and name not in at.row.given_by_passes:
            return f"%{at.node.name}: {at.row.name} has no setting {name}"
    given = {param.name for param in at.row.params[: len(at.node.args)]}
    lost = next((name for name in needed if name not in given and name not in at.node.kwargs), None)
    return f"%{at.node.name} gives no {lost}, which {at.row.name} needs" if lost is not None else None


def module_with_a_row(at: Place) -> str | None:
    """A module that the table spells as a call, and that nothing keeps from being one."""
    if at.node.op != "call_module" or watches(at.node):
        return None
    module = at.gm.get_submodule(str(at.node.target))
    found = at.table.module_form(module)
    if found is None or found[1].signature or len(at.node.args) + len(at.node.kwargs) != 1 or module.training or at.quant.int8:
        return None
    hooked = module._forward_hooks or module._forward_pre_hooks
    return None if hooked or found[1].refuse(module) else f"%{at.node.name} calls a {type(module).__name__}, which the table has as an op"


def runs_once(at: Place) -> str | None:
    if not getattr(at.node.target, "once", False):
        return None
    other = next((n for n in at.node.all_input_nodes if n.op != "get_attr" and not getattr(n.target, "once", False)), None)
    return None if other is None else f"%{at.node.name} is run once, and takes %{other.name}, which is no constant"


def noted(at: Place) -> str | None:
    if at.node.op == "output" or VALUE in at.node.meta:
        return None
    return f"%{at.node.name} has no note of its shape and dtype"


def shaped(at: Place) -> str | None:
    if (at.value.shape is None) != (at.value.dtype is None):
        return f"%{at.node.name} has a shape without a dtype, or a dtype without a shape"
    return None


def undecided(at: Place) -> str | None:
    quant = at.quant
    if quant.int8 or quant.mode is not None or quant.float_output:
        return f"%{at.node.name} is decided before anything was"
    return None


def decided(at: Place) -> str | None:
    quant = at.quant
    mode = quant.mode.value if quant.mode is not None else ""
    said = [*(["int8"] if quant.int8 else []), *([mode] if mode else []), *(["float"] if quant.reason else [])]
    if len(said) > 1:
        return f"%{at.node.name} is said to be {' and '.join(said)}"
    if quant.float_output and not quant.int8:
        return f"%{at.node.name} hands out floats, but is not int8"
    own = at.node.target in QUANTIZED_PARTS or watches(at.node) or hasattr(at.node.target, "simulates")
    return f"%{at.node.name} is neither quantized nor said to be float" if not said and is_call(at.node) and not own else None


def has_qparams(at: Place) -> str | None:
    return f"%{at.node.name} has qparams before anything was observed" if at.quant.qparams is not None else None


def qparams(at: Place) -> str | None:
    p = at.quant.qparams
    if p is None:
        return None
    if not isinstance(p.scale, float) or not isinstance(p.zero_point, int):
        return f"%{at.node.name} has qparams per channel; those of an activation are one scale and one zero point"
    return _fault(p)


def _fault(p: QParams) -> str | None:
    assert isinstance(p.scale, float) and isinstance(p.zero_point, int)
    if not 0 < p.scale < float("inf"):
        return f"a scale must be finite and positive, here {p.scale}"
    low, high = {torch.uint8: (0, 255), torch.int8: (-128, 127)}.get(p.dtype, (0, -1))
    if not low <= p.quant_min < p.quant_max <= high:
        return f"no {p.dtype} has the range {p.quant_min}..{p.quant_max}"
    if not p.quant_min <= p.zero_point <= p.quant_max:
        return f"a zero point must lie in {p.quant_min}..{p.quant_max}, here {p.zero_point}"
    return None


def no_observer(at: Place) -> str | None:
    return f"%{at.node.name} calls {at.node.target}: observers are gone at this stage" if watches(at.node) else None


def observed_once(at: Place) -> str | None:
    if at.node.op != "call_module" or not str(at.node.target).startswith("observers."):
        return None
    if str(at.node.target) in at.seen.observers:
        return f"observer {at.node.target} watches two values"
    at.seen.observers[str(at.node.target)] = at.node
    if not getattr(at.gm.get_submodule(str(at.node.target)), "of_its_group", True):
        return None
    value = at.node.args[0]
    group = quant_of(value).group if isinstance(value, fx.Node) else None
    other = at.node if group is None else at.seen.watched.setdefault(group, at.node)
    return None if other is at.node else f"observers {other.target} and {at.node.target} watch values of one group"


def all_observe(gm: fx.GraphModule, seen: Seen) -> Breach | None:
    held = gm._modules.get("observers")
    names = held._modules if held is not None else ()
    orphan = next((name for name in names if f"observers.{name}" not in seen.observers), None)
    return None if orphan is None else Breach(f"observer {orphan} watches nothing")


RULES = (
    Rule("ir-conversion", "Only QUANTIZED has quantize, dequantize and the functions that stand before weights.",
         (*EARLY, Stage.OBSERVED, Stage.LOWERED), conversion),
    Rule("ir-target", "Before LOWERED no node calls a function of a back end, and no quantized op is an operator overload.", PLAIN,
         backend_target),
    Rule("ir-target", "What is quantized is a call of the fn of a row, or a module of the user's own int8 classes.", DECIDED, int8_target),
    Rule("ir-target", "A module that is called in int8 is none of torch.nn.", (Stage.QUANTIZED,), own_int8_module),
    Rule("ir-call", "An op of the table is called by its row's fn: tensors in the order of its params, the rest as keywords.",
         (Stage.FUSED, *DECIDED), canonical),
    Rule("ir-call", "An op's keywords are settings of its row's signature, and no argument that it needs is missing.",
         (Stage.FUSED, *DECIDED), settings),
    Rule("ir-call", "A module that the table has as an op is a call of it.", (Stage.FUSED, *DECIDED), module_with_a_row),
    Rule("ir-once", "What is run once, when the module is built, takes constants alone.", (Stage.LOWERED,), runs_once),
    Rule("ir-value", "Every node has a note of its result's shape and dtype, both empty where it is no tensor.",
         (Stage.FUSED, *DECIDED), noted),
    Rule("ir-value", "A shape and a dtype are noted together.", ALL, shaped),
    Rule("ir-decision", "Before OBSERVED nothing is decided.", EARLY, undecided),
    Rule("ir-decision", "Every call is one of three: int8, with a mode, or float for a reason.", DECIDED, decided),
    Rule("ir-qparams", "Before OBSERVED no node has qparams.", EARLY, has_qparams),
    Rule("ir-qparams", "Qparams of activations: one finite scale above 0, a zero point and a range within its dtype.",
         (*DECIDED, Stage.LOWERED), qparams),
    Rule("ir-observer", "Observers and fake quantization are called in OBSERVED alone.", (*EARLY, Stage.QUANTIZED, Stage.LOWERED),
         no_observer),
    Rule("ir-observer", "Each observer watches one value, and no other its group.", (Stage.OBSERVED,), observed_once, all_observe),
)  # fmt: skip
