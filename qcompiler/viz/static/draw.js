// Boxes, edges and stubs as SVG elements.

const WHAT = { module: "module", run: "alike blocks", chunk: "part of a long list", root: "" };
const SIGNS = { added: "+", removed: "−", replaced: "↻", changed: "~" };
const FONT_1 = "600 12px system-ui, sans-serif",
  FONT_2 = "11px system-ui, sans-serif";
const DTYPES = {
  float32: "f32",
  float16: "f16",
  bfloat16: "bf16",
  float64: "f64",
  int8: "i8",
  uint8: "u8",
  quint8: "qu8",
  qint8: "qi8",
  int32: "i32",
  int64: "i64",
  qint32: "qi32",
  bool: "bool",
};

class Pen {
  /** Draws for one tree in one colouring. */
  constructor(tree, painter, model) {
    Object.assign(this, { tree, painter, model });
  }

  /** The element of a placed box; without `detail`, from so far away that no text can be read. */
  box(box, detail) {
    if (!detail) return this.bare(box);
    return box.open ? this.openBox(box) : box.node ? this.leaf(box) : this.closedBox(box);
  }

  /** From so far that no text can be read. */
  bare(box) {
    return this.frame(
      box,
      box.open ? `open level${box.depth % 2}` : box.node ? "leaf" : "closed",
      s("rect", { class: "back", width: box.size[0], height: box.size[1], rx: 9 }),
    );
  }

  frame(box, kind, ...kids) {
    const change = box.node && this.tree.status && this.tree.status.get(box.node.name);
    const label = box.node
      ? `${box.node.op}, ${box.node.name}`
      : `${box.label}, ${plural(sums(box, this.model, this.tree.status).ops, "op")}`;
    const group = s("g", {
      class: `box ${kind} ${change || ""} ${box.node?.ghost ? "ghost" : ""}`,
      "data-id": box.id,
      css: { "--colour": this.painter.colour(this.painter.value(box)) },
      role: "button",
      "aria-label": clean(change ? `${label}, ${change}` : label),
    });
    group.append(...kids.filter(Boolean));
    if (change) group.append(badge(box.size[0] - 4, 4, change, SIGNS[change]));
    return group;
  }

  leaf(box) {
    const {
        node,
        size: [w, height],
      } = box,
      colour = this.painter.colour(this.painter.value(box));
    const value = this.painter.text(box) || shapeText(node.shape),
      kind = fit(DTYPES[node.dtype] || node.dtype || "", 48, FONT_2);
    const right = fit(value, 92, FONT_2);
    return this.frame(
      box,
      "leaf",
      s("rect", { class: "back", width: w, height, rx: 7, fill: this.painter.tint(colour, this.painter.colouring.numeric ? 0.34 : 0.13) }),
      s("path", { class: "stripe", d: `M7 0.5 H6 A6 6 0 0 0 0.5 7 V${height - 7} A6 6 0 0 0 6 ${height - 0.5} H7 Z`, fill: colour }),
      s("text", { class: "t1", x: 15, y: 19 }, fit(opText(node), w - 36 - ruled(kind), FONT_1)),
      s("text", { class: "t2 end", x: w - 11, y: 19 }, kind),
      s("text", { class: "t2", x: 15, y: 35 }, fit(box.label, w - 34 - ruled(right), FONT_2)),
      s("text", { class: "t2 end strong", x: w - 11, y: 35 }, right),
    );
  }

  closedBox(box) {
    const [w, height] = box.size,
      all = sums(box, this.model, this.tree.status),
      colour = this.painter.colour(this.painter.value(box));
    const times = repeats(box),
      figures = [plural(all.ops, "op"), all.params ? short(all.params) + " par" : "", all.macs ? short(all.macs) + " MAC" : ""]
        .filter(Boolean)
        .join(" · ");
    const right = this.painter.text(box) || (all.sqnr !== undefined ? `${short(all.sqnr)} dB` : "");
    return this.frame(
      box,
      "closed",
      times > 1 && s("rect", { class: "card", x: 8, y: 8, width: w, height, rx: 9 }),
      (times > 1 || box.what === "chunk") && s("rect", { class: "card", x: 4, y: 4, width: w, height, rx: 9 }),
      s("rect", { class: "back", width: w, height, rx: 9, fill: this.painter.tint(colour, this.painter.colouring.numeric ? 0.34 : 0.1) }),
      knob(14, 17, "+"),
      s("text", { class: "t1", x: 28, y: 21 }, fit(box.label, w - (times > 1 ? 78 : 42), FONT_1)),
      times > 1 && s("text", { class: "t1 end", x: w - 12, y: 21 }, "×" + times),
      s("text", { class: "t2", x: 13, y: 38 }, fit(box.cls || WHAT[box.what], w - 36 - ruled(right), FONT_2)),
      s("text", { class: "t2 end strong", x: w - 12, y: 38 }, right),
      s("text", { class: "t2", x: 13, y: 53 }, fit(figures, w - 26, FONT_2)),
      this.shareBar(box, w - 24, height - 9),
      changeMarks(all.changes, w),
    );
  }

  /** What a closed box holds, as a bar of the legend's colours. */
  shareBar(box, width, y) {
    if (this.painter.colouring.numeric) return null;
    const parts = [...this.painter.parts(box)],
      all = parts.reduce((sum, [, n]) => sum + n, 0);
    let x = 12;
    return s(
      "g",
      { class: "share" },
      parts.map(([value, n]) => {
        const part = s("rect", { x, y, width: (width * n) / all, height: 3.5, fill: this.painter.colour(value) });
        x += (width * n) / all;
        return part;
      }),
    );
  }

  openBox(box) {
    const [w, height] = box.size,
      times = repeats(box),
      name = box.label + (times > 1 ? `  ×${times}` : "");
    return this.frame(
      box,
      `open level${box.depth % 2}`,
      s("rect", { class: "back", width: w, height, rx: 10 }),
      knob(16, 17, "−"),
      s("text", { class: "t1", x: 30, y: 21 }, fit(name, (w - 46) * 0.62, FONT_1)),
      s("text", { class: "t2 end", x: w - 14, y: 21 }, fit(box.cls || "", (w - 46) * 0.36, FONT_2)),
    );
  }

  edge(edge) {
    const width = Math.min(3.2, 1.1 + Math.log2(edge.pairs.length) * 0.45);
    const line = s("path", {
      class: `edge ${edge.ghost ? "ghost" : ""}`,
      "stroke-width": width.toFixed(2),
      "marker-end": edge.to === "out" ? null : "url(#arrow)",
    });
    // Its tensors, told when the pointer is on it.
    line.addEventListener("pointerenter", () => line.firstChild || line.append(s("title", {}, edgeText(edge))));
    return line;
  }

  stub({ box, text, edges, low }) {
    const x = box.x + box.size[0] / 2 + (low ? 14 : -14),
      y = low ? box.y + box.size[1] : box.y;
    const jump = edges.length === 1 && edges[0].pairs.length ? edges[0].pairs[0][low ? 1 : 0].id : box.id;
    const group = s(
      "g",
      { class: "stub", "data-jump": jump },
      s("path", { d: `M${x} ${y} v${low ? 11 : -11}` }),
      s("text", { x: x + (low ? 4 : -4), y: y + (low ? 13 : -6), class: low ? "" : "end" }, text),
    );
    group.append(s("title", {}, edges.slice(0, 12).map(edgeText).join("\n")));
    return group;
  }
}

/** The op without an overload's name that tells nothing. */
const opText = (node) => (node.op || "").replace(/\.(default|new)$/, "");

/** How many alike blocks a box gathers; a module all of whose children are alike counts as one such. */
function repeats(box) {
  if (box.what === "run") return box.kids.length;
  const same =
    box.what === "module" &&
    box.kids.length > 2 &&
    bulk(box.kids[0]) >= BLOCK &&
    box.kids.every((kid) => !kid.node && shapeOf(kid) === shapeOf(box.kids[0]));
  return same ? box.kids.length : 1;
}

function holds(box, found) {
  return box.node ? found.has(box.node.name) : box.kids.some((kid) => holds(kid, found));
}

function ruled(text) {
  ruler.font = FONT_2;
  return ruler.measureText(text).width;
}

function edgeText(edge) {
  const lines = edge.pairs.slice(0, 6).map(([a, b]) => `${a.node.name} → ${b.node.name}  ${shapeText(a.node.shape)} ${a.node.dtype || ""}`);
  return lines.join("\n") + (edge.pairs.length > 6 ? `\nand ${edge.pairs.length - 6} more` : "");
}

/** Cut edges, gathered at each end: {box, text, edges, low}. */
function stubMarks(box) {
  const ends = new Map();
  for (const edge of box.stubs) {
    if (box.kids[edge.from]) push(ends, box.kids[edge.from], [edge, true]);
    if (box.kids[edge.to]) push(ends, box.kids[edge.to], [edge, false]);
  }
  const marks = [];
  for (const [kid, list] of ends) {
    for (const low of [true, false]) {
      const edges = list.filter(([, side]) => side === low).map(([edge]) => edge);
      if (!edges.length) continue;
      const far = edges.length === 1 && box.kids[low ? edges[0].to : edges[0].from];
      const name = edges.length > 1 ? `${edges.length} more` : far ? far.label : edges[0].pairs[0][low ? 1 : 0].label;
      marks.push({ box: kid, edges, low, text: low ? `→ ${fit(name, 90, FONT_2)}` : `${fit(name, 90, FONT_2)} →` });
    }
  }
  return marks;
}

/** Through all points, leaving and arriving straight down. */
function curve(points) {
  let d = `M${points[0].map((v) => v.toFixed(1)).join(" ")}`;
  for (let i = 1; i < points.length; i++) {
    const [x0, y0] = points[i - 1],
      [x1, y1] = points[i],
      half = (y0 + y1) / 2;
    if (Math.abs(y1 - y0) < 4 && x0 !== x1) {
      // From one column to the next: out below the first box, and in above the second one.
      const turn = i === 1 ? 26 : -26;
      d += `C${[x0, y0 + turn, x1, y1 + turn, x1, y1].map((v) => v.toFixed(1)).join(" ")}`;
    } else d += x0 === x1 ? `V${y1.toFixed(1)}` : `C${[x0, half, x1, half, x1, y1].map((v) => v.toFixed(1)).join(" ")}`;
  }
  return d;
}

function arrowHeads() {
  return s(
    "defs",
    {},
    s(
      "marker",
      {
        id: "arrow",
        viewBox: "0 0 8 8",
        refX: 6.5,
        refY: 4,
        markerWidth: 7,
        markerHeight: 7,
        markerUnits: "userSpaceOnUse",
        orient: "auto",
      },
      s("path", { class: "arrow", d: "M0.5 0.8 L7 4 L0.5 7.2 Z" }),
    ),
  );
}

function knob(x, y, sign) {
  return s(
    "g",
    { class: "knob" },
    s("rect", { class: "hit", x: x - 14, y: y - 16, width: 28, height: 30 }),
    s("rect", { x: x - 6.5, y: y - 6.5, width: 13, height: 13, rx: 3.5 }),
    s("path", { d: sign === "+" ? `M${x - 3.5} ${y} h7 M${x} ${y - 3.5} v7` : `M${x - 3.5} ${y} h7` }),
  );
}

function badge(x, y, kind, text) {
  return s("g", { class: `badge ${kind}` }, s("circle", { cx: x, cy: y, r: 8 }), s("text", { x, y: y + 4 }, text));
}

function changeMarks(changes, width) {
  const shown = Object.entries(changes).filter(([, n]) => n);
  let x = width - 6;
  return s(
    "g",
    { class: "marks" },
    shown.map(([kind, n]) => {
      const text = `${SIGNS[kind]}${n}`,
        wide = 10 + text.length * 6.4;
      x -= wide + 3;
      return s(
        "g",
        { class: `badge ${kind}` },
        s("rect", { x, y: -8, width: wide, height: 16, rx: 8 }),
        s("text", { x: x + wide / 2, y: 4 }, text),
      );
    }),
  );
}
