"""Graph documents made without a compiler: of any size, and as hostile as one likes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

Node = dict[str, Any]
Stage = tuple[str, list[Node], dict[str, list[str]], list[dict[str, Any]]]

HOSTILE = [
    *("</script>", "</script><script>window.pwned=1</script>", "<script>window.pwned=1</script>", "<img src=x onerror=window.pwned=1>"),
    *("<svg onload=window.pwned=1>", '"><img src=x onerror=window.pwned=1>', "'><svg/onload=window.pwned=1>", "<!--", "-->", "<![CDATA["),
    *("]]>", "javascript:window.pwned=1", "<iframe srcdoc='<script>parent.pwned=1</script>'>", "<style>*{display:none}</style>"),
    *("</style>",),
    *("</title>", "</svg>", "<math><mi xlink:href=javascript:pwned=1>", "&lt;script&gt;", "&#x3c;script&#x3e;", "\\u003cscript\\u003e"),
    *("'", '"', "`${window.pwned=1}`", "'; window.pwned=1; //", '"; window.pwned=1; //', "\\", "\\\\'", "a\nb", "a\r\nb", "a\tb"),
    *("\x00\x01\x1b[31m",),
    *("\u202eevil\u202c", "\u2066iso\u2069", "\u200fright", "\u061cmark", "\u2028line\u2029", "\ufeffbom", "\ud800", "a" * 3000, "", " "),
    *(".",),
    *("..", "a..b", "%00", "#s=1&n=2", "@CSP@", "@DOCUMENT@", "{{x}}", "__proto__", "constructor", "toString", "hasOwnProperty"),
    *("url(#x)", "<a href=javascript:window.pwned=1>x</a>", "🙂👩‍👩‍👧", "日本語", "\u0645\u0631\u062d\u0628\u0627"),
]  # fmt: skip


def document(title: str, stages: Iterable[Stage], **more: Any) -> dict[str, Any]:
    """A document from whole node lists, one per stage, stored as differences."""
    out: list[dict[str, Any]] = []
    before: list[Node] = []
    for number, (name, nodes, replaced, remarks) in enumerate(stages):
        placed = [{**node, "after": nodes[i - 1]["name"] if i else None} for i, node in enumerate(nodes)]
        known, names = {node["name"]: node for node in before}, {node["name"] for node in placed}
        kept = unmoved(before, placed)
        put = [node for node in placed if node["name"] not in kept or {**known[node["name"]], "after": 0} != {**node, "after": 0}]
        drop = [node["name"] for node in before if node["name"] not in names]
        changed = bool(put or drop)
        phase = "prepare" if number < 6 else "convert"
        head = {"name": name, "phase": phase, "changed": changed, "ms": 1.25 * number, "matches": len(replaced)}
        out.append({**head, "put": put, "drop": drop, "replaced": replaced, "remarks": remarks})
        before = placed
    return {"format": "qcompiler-graph", "version": 1, "title": title, "stages": out, **more}


def unmoved(before: list[Node], after: list[Node]) -> set[str]:
    """Names in both lists that may stay where they are; what moved is put anew."""
    place = {node["name"]: i for i, node in enumerate(before)}
    kept, last = set(), -1
    for node in after:
        if place.get(node["name"], -1) > last:
            last = place[node["name"]]
            kept.add(node["name"])
    return kept


class Net:
    """Grows a list of nodes."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(self, name: str, op: str, inputs: list[str], path: str = "", cls: str = "", **more: Any) -> str:
        node = {"name": name, "op": op, "kind": "float", "in": inputs, "path": path, "cls": cls, "dtype": "float32", **more}
        node |= {"file": "model.py", "line": len(self.nodes) + 10, "origin": [name]}
        args = ", ".join(f"%{i}" for i in inputs)
        node["text"] = f"%{name} : {node['dtype']}{more.get('shape', '')} = {op}({args})  # {path} at model.py:{node['line']}"
        self.nodes.append({k: v for k, v in node.items() if v not in ("", None)})
        return name

    def conv(self, path: str, x: str, channels: int, size: int) -> str:
        name = path.replace(".", "_")
        self.add(f"{path}.weight", "get_attr", [], path, "Conv2d", kind="attr", shape=[channels, channels, 3, 3])
        shape = [1, channels, size, size]
        macs, params = channels * channels * 9 * size * size, channels * channels * 9
        return self.add(
            name,
            "conv2d",
            [x, f"{path}.weight"],
            path,
            "Conv2d",
            shape=shape,
            attrs="stride=(1, 1), padding=(1, 1)",
            macs=macs,
            params=params,
        )

    def unit(self, path: str, op: str, cls: str, inputs: list[str], channels: int, size: int) -> str:
        return self.add(path.replace(".", "_") or op, op, inputs, path, cls, shape=[1, channels, size, size])


def resnet_nodes(blocks: tuple[int, int, int, int]) -> list[Node]:
    net = Net()
    x = net.add("x", "placeholder", [], kind="input", shape=[1, 3, 224, 224])
    x = net.unit("relu", "relu", "ReLU", [net.unit("bn1", "batch_norm", "BatchNorm2d", [net.conv("conv1", x, 64, 112)], 64, 112)], 64, 112)
    x = net.unit("maxpool", "max_pool2d", "MaxPool2d", [x], 64, 56)
    for layer, count in enumerate(blocks, 1):
        channels, size = 32 << layer, 112 >> layer
        for block in range(count):
            path, skip = f"layer{layer}.{block}", x
            for i in (1, 2, 3):
                x = net.unit(f"{path}.bn{i}", "batch_norm", "BatchNorm2d", [net.conv(f"{path}.conv{i}", x, channels, size)], channels, size)
                if i < 3:
                    x = net.add(f"{path}.relu_{i}".replace(".", "_"), "relu", [x], f"{path}.relu", "ReLU", shape=[1, channels, size, size])
            if not block:
                skip = net.conv(f"{path}.downsample.0", skip, channels, size)
                skip = net.unit(f"{path}.downsample.1", "batch_norm", "BatchNorm2d", [skip], channels, size)
            x = net.add(f"{path}.add".replace(".", "_"), "add", [x, skip], path, "Bottleneck", shape=[1, channels, size, size])
            x = net.add(f"{path}.relu_3".replace(".", "_"), "relu", [x], f"{path}.relu", "ReLU", shape=[1, channels, size, size])
    x = net.unit("avgpool", "adaptive_avg_pool2d", "AdaptiveAvgPool2d", [x], 512, 1)
    net.add("fc.weight", "get_attr", [], "fc", "Linear", kind="attr", shape=[1000, 512])
    x = net.add(
        "fc",
        "linear",
        [net.add("flatten", "flatten", [x], shape=[1, 512]), "fc.weight"],
        "fc",
        "Linear",
        shape=[1, 1000],
        macs=512_000,
        params=513_000,
    )
    net.add("output", "output", [x], kind="output")
    return net.nodes


def fused(nodes: list[Node]) -> tuple[list[Node], dict[str, list[str]]]:
    """Convolution, batch norm and a following relu become one node named after the convolution, as a pass would make it."""
    by_name = {n["name"]: n for n in nodes}
    users: dict[str, list[str]] = {}
    for node in nodes:
        for name in node["in"]:
            users.setdefault(name, []).append(node["name"])
    stands_for: dict[str, str] = {}
    replaced: dict[str, list[str]] = {}
    new: dict[str, Node] = {}
    for node in nodes:
        if node["op"] != "conv2d":
            continue
        chain = [node["name"]]
        for op in ("batch_norm", "relu"):
            following = users.get(chain[-1], [])
            if len(following) == 1 and by_name[following[0]]["op"] == op:
                chain.append(following[0])
        if len(chain) > 1:
            name = f"{node['name']}_fused"
            replaced[name] = chain
            stands_for |= dict.fromkeys(chain, name)
            op = "conv2d_relu" if len(chain) > 2 else "conv2d"
            text = node["text"].replace(f"%{node['name']} ", f"%{name} ").replace("conv2d", op)
            new[node["name"]] = {**node, "name": name, "op": op, "origin": chain, "text": text}
    kept = [new.get(n["name"], n) for n in nodes if n["name"] in new or n["name"] not in stands_for]
    return [renamed(n, stands_for) for n in kept], replaced


def renamed(node: Node, names: dict[str, str]) -> Node:
    text = node["text"]
    for name in node["in"]:
        text = text.replace(f"%{name}", f"%{names.get(name, name)}")
    return {**node, "in": [names.get(i, i) for i in node["in"]], "text": text}


def observed(nodes: list[Node]) -> list[Node]:
    out: list[Node] = []
    for node in nodes:
        out.append(node)
        if "conv2d" in node["op"]:
            observer = {"type": "MinMaxObserver", "low": -1.5, "high": 2.25}
            text = f"%observers.{node['name']} = observe(%{node['name']})"
            out.append(
                {
                    **node,
                    "name": f"observers.{node['name']}",
                    "op": "observe",
                    "kind": "observer",
                    "in": [node["name"]],
                    "observer": observer,
                    "text": text,
                    "origin": [],
                }
            )
            out[-1].pop("macs")
            out[-1].pop("params")
    return out


def edited(nodes: list[Node], wanted: Callable[[Node], bool], **more: Any) -> list[Node]:
    return [{**n, **more, "text": f"{n['text']} {sorted(more)}"} if wanted(n) else n for n in nodes]


def quantized(nodes: list[Node]) -> list[Node]:
    q = {"scale": 0.0184, "zero_point": 114, "min": 0, "max": 255, "dtype": "uint8"}
    nodes = [n for n in nodes if n["kind"] != "observer"]
    nodes = edited(nodes, lambda n: "conv2d" in n["op"] or n["op"] == "add", kind="int8", dtype="quint8", q=q)
    weight = {
        "scale": [round(0.001 * (1 + i % 17), 5) for i in range(64)],
        "zero_point": [0] * 64,
        "min": -127,
        "max": 127,
        "dtype": "int8",
        "axis": 0,
    }
    nodes = edited(nodes, lambda n: n["name"].endswith("layer1.0.conv1.weight"), dtype="int8", q=weight)
    return edited(nodes, lambda n: n["op"] in ("adaptive_avg_pool2d", "flatten"), reason="no int8 kernel for this op on engine x86")


def numerics(nodes: list[Node]) -> dict[str, Any]:
    rng = random.Random(0)
    out: dict[str, Any] = {}
    for i, node in enumerate(nodes):
        if node["kind"] in ("attr", "input", "output"):
            continue
        counts = [int(4000 * 2.718 ** (-((b - 30) ** 2) / 60)) for b in range(64)]
        sqnr = round(48 - 30 * i / len(nodes) + rng.uniform(-5, 5), 2)
        out[node["name"]] = {
            "sqnr": sqnr,
            "own": round(sqnr + 6, 2),
            "inherited": round(sqnr + 2, 2),
            "max_abs": 0.125,
            "ms": round(rng.uniform(0.01, 1), 4),
        }
        out[node["name"]] |= {"saturation": round(rng.uniform(0, 0.02), 5), "dead_channels": i % 3}
        if i % 9 == 0:  # histograms are large: a document holds them for the worst nodes
            out[node["name"]]["act"] = {"low": -2.4, "high": 3.1, "counts": counts, "clip": [-2.09, 2.6], "step": 0.0184}
            out[node["name"]]["weight"] = {"low": -0.4, "high": 0.4, "counts": counts[::-1], "clip": [-0.35, 0.35], "step": 0.0027}
    return out


def multi_pass(title: str, nodes: list[Node], figures: bool = True) -> dict[str, Any]:
    """Eleven stages, some of which change nothing."""
    folded, replaced = fused(nodes)
    watched = observed(folded)
    reals = edited(watched, lambda n: n["op"] == "max_pool2d", attrs="kernel_size=3, stride=2")
    ints = quantized(reals)
    packed = edited(ints, lambda n: n["kind"] == "int8", op="quantized.conv2d")
    remark = {"pass": "fuse", "code": "not-fused", "text": "relu has two users", "node": "maxpool", "location": "model.py:12"}
    float_remark = {
        "pass": "lower",
        "code": "no-kernel",
        "text": "no int8 kernel for adaptive_avg_pool2d",
        "node": "avgpool",
        "path": "avgpool",
    }
    stages: list[Stage] = [
        ("input", nodes, {}, []),
        ("canonicalize", nodes, {}, []),
        ("fuse", folded, replaced, [remark]),
        ("annotate", folded, {}, []),
        ("insert_observers", watched, {}, []),
        ("resolve_padding", reals, {}, []),
        ("share_qparams", reals, {}, []),
        ("insert_quantize_dequantize", ints, {}, []),
        ("cancel", ints, {}, []),
        ("lower", packed, {}, [float_remark]),
        ("separate", packed, {}, []),
    ]
    more = {"numerics": numerics(packed), "overlays": {"energy": {n["name"]: i % 97 for i, n in enumerate(packed)}}} if figures else {}
    return document(title, stages, **more)


def small(blocks: tuple[int, int, int, int] = (3, 4, 6, 3)) -> dict[str, Any]:
    return multi_pass("ResNet50", resnet_nodes(blocks))


def resnet(nodes: int = 2000, passes: bool = False) -> dict[str, Any]:
    """About `nodes` nodes in residual blocks of 13."""
    count = nodes // (4 * 13)
    made = resnet_nodes((count, count, count, count))
    return multi_pass("ResNet-like", made) if passes else document("ResNet-like", [("input", made, {}, [])])


def densenet(blocks: tuple[int, ...] = (6, 12, 48, 32)) -> dict[str, Any]:
    """DenseNet-201: each layer takes all layers before it."""
    net = Net()
    x = net.conv("features.conv0", net.add("x", "placeholder", [], kind="input"), 64, 112)
    for number, layers in enumerate(blocks, 1):
        parts = [x]
        for layer in range(1, layers + 1):
            path = f"features.denseblock{number}.denselayer{layer}"
            y = net.unit(f"{path}.cat", "cat", "_DenseLayer", list(parts), 64, 56)
            for i in (1, 2):
                y = net.unit(f"{path}.norm{i}", "batch_norm", "BatchNorm2d", [y], 64, 56)
                y = net.conv(f"{path}.conv{i}", net.unit(f"{path}.relu{i}", "relu", "ReLU", [y], 64, 56), 64, 56)
            parts.append(y)
        x = net.unit(f"features.denseblock{number}.cat", "cat", "_DenseBlock", parts, 64, 56)
        if number < len(blocks):
            path = f"features.transition{number}"
            x = net.conv(f"{path}.conv", net.unit(f"{path}.norm", "batch_norm", "BatchNorm2d", [x], 64, 56), 64, 56)
    net.add("output", "output", [x], kind="output")
    return document("DenseNet-201", [("input", net.nodes, {}, [])])


def hostile() -> dict[str, Any]:
    """Every hostile label as name, op, path, class, file, text, remark, overlay and stage name."""
    net = Net()
    before = net.add("x", "placeholder", [], kind="input")
    for i, label in enumerate(HOSTILE):
        before = net.add(f"{i}{label}", f"{label}", [before], f"{label}.inner{i % 3}.{label}", label or "C", attrs=label, shape=[1, 2])
        net.nodes[-1] |= {
            "file": label,
            "reason": label,
            "text": label,
            "origin": [label, "x"],
            "observer": {"type": label, "low": 0, "high": 1},
        }
        net.nodes[-1]["q"] = {"scale": 0.5, "zero_point": 0, "min": 0, "max": 255, "dtype": label}
    remarks = [
        {"pass": label, "code": label, "text": label, "node": f"{i}{label}", "path": label, "location": label}
        for i, label in enumerate(HOSTILE)
    ]
    renamed = [{**n, "name": n["name"] + "'", "in": [f"{i}'" for i in n["in"]]} for n in net.nodes]
    replaced = {f"{n['name']}'": [n["name"]] for n in net.nodes}
    names = {f"{n['name']}'": {"sqnr": None if i % 2 else float(i), "saturation": 0.5} for i, n in enumerate(net.nodes)}
    overlays = {label or "empty": {"x": 1} for label in HOSTILE}
    stages: list[Stage] = [("</script>", net.nodes, {}, remarks), ("<img src=x onerror=window.pwned=1>", renamed, replaced, remarks)]
    return document("</title><script>window.pwned=1</script>", stages, numerics=names, overlays=overlays)


def flat(nodes: int) -> dict[str, Any]:
    """No module paths at all, every node with a skip: the shape that a layout likes least."""
    net = Net()
    net.add("n0", "placeholder", [], kind="input")
    for i in range(1, nodes):
        net.add(f"n{i}", "add", [f"n{i - 1}", f"n{max(0, i - 37)}"], shape=[1, 8])
    return document("flat", [("input", net.nodes, {}, [])])


def wide(towers: int = 14, height: int = 22) -> dict[str, Any]:
    """Many chains side by side: the most boxes that a screen can show."""
    net = Net()
    x = net.add("x", "placeholder", [], kind="input")
    ends = []
    for i in range(towers):
        y = x
        for j in range(height):
            y = net.add(f"tower{i}_{j}", "conv2d", [y], f"tower{i}.{j}", "Conv2d", shape=[1, 64, 28, 28])
        ends.append(y)
    net.add("output", "output", [net.add("cat", "cat", ends)], kind="output")
    return document("wide", [("input", net.nodes, {}, [])])
