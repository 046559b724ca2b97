// The canvas: boxes and edges as SVG, and moving about in it.

const WHAT = { module: "module", run: "alike blocks", chunk: "part of a long list", root: "" };
const SIGNS = { added: "+", removed: "−", replaced: "↻", changed: "~" };
const FONT_1 = "600 12px system-ui, sans-serif", FONT_2 = "11px system-ui, sans-serif";
const DTYPES = { float32: "f32", float16: "f16", bfloat16: "bf16", float64: "f64", int8: "i8", uint8: "u8", quint8: "qu8", qint8: "qi8", int32: "i32", int64: "i64", qint32: "qi32", bool: "bool" };

const BARE = 0.2; // the scale below which boxes are drawn without text
const MARGIN = 0.4; // what is drawn round the view, as a share of it

class Canvas {
  constructor(host, hooks) {
    this.host = host;
    this.hooks = hooks;
    this.frames = s("g", { class: "frames" }); // open containers, one group per depth
    this.edges = s("g", { class: "edges" });
    this.stubs = s("g", { class: "stubs" });
    this.boxes = s("g", { class: "boxes" });
    this.scene = s("g", {}, this.frames, this.edges, this.stubs, this.boxes);
    this.kept = new Map();
    this.svg = s("svg", { class: "canvas", tabindex: 0, role: "application", "aria-label": "Graph. Arrow keys move between boxes, Enter opens or closes a box." }, arrowHeads(), this.scene);
    host.prepend(this.svg);
    // Noted once and at each change: to ask for them in every frame would make the browser lay out the page in between.
    [this.width, this.height] = [this.svg.clientWidth, this.svg.clientHeight];
    new ResizeObserver(([entry]) => {
      [this.width, this.height] = [entry.contentRect.width, entry.contentRect.height];
      if (this.seen) this.later();
    }).observe(this.svg);
    this.view = { x: 0, y: 0, k: 1 };
    this.dragged = 0;
    this.listen();
  }

  /** Draws the placed boxes `seen`. */
  draw(tree, seen, painter, model) {
    if (this.tree !== tree || this.painter !== painter) this.forget();
    Object.assign(this, { tree, seen, painter, model });
    this.routes = seen.filter((box) => box.open).flatMap((box) => box.lines.map((line) => this.route(box, line)));
    this.drawnArea = null;
    this.apply();
  }

  forget() {
    for (const { element } of this.kept.values()) element.remove();
    this.kept = new Map();
  }

  /**
   * Makes what is near the view, and takes away what is far from it: a browser lays out all of an SVG, seen or not.
   * What was drawn before is moved, not made anew.
   */
  cull() {
    const { view, width: W, height: H } = this;
    const shown = this.whole ? [-Infinity, -Infinity, Infinity, Infinity] : [-view.x / view.k, -view.y / view.k, (W - view.x) / view.k, (H - view.y) / view.k];
    const detail = this.whole || view.k >= BARE, old = this.drawnArea;
    if (old && old.detail === detail && view.k < old.k * 2 && within(shown, old.area)) return;
    const [mx, my] = this.whole ? [0, 0] : [(W * MARGIN) / view.k, (H * MARGIN) / view.k];
    const area = [shown[0] - mx, shown[1] - my, shown[2] + mx, shown[3] + my];
    this.drawnArea = { area, detail, k: view.k };
    const before = this.kept;
    this.kept = new Map();
    const stubs = [];
    for (const box of this.seen) {
      if (box.what !== "root" && meets(extentOf(box), area)) this.keep(box, `${box.open} ${box.size} ${detail}`, `translate(${box.x},${box.y})`, "transform", before, () => this.drawBox(box, detail));
      if (box.open && detail) stubs.push(...stubMarks(box).filter((mark) => meets(extentOf(mark.box), area)).map((mark) => this.stub(mark)));
    }
    for (const { edge, d, extent } of this.routes) {
      if (meets(extent, area)) this.keep(edge, "", d, "d", before, () => this.drawEdge(edge));
    }
    for (const [key, { element }] of before) if (this.kept.get(key)?.element !== element) element.remove();
    this.stubs.replaceChildren(...stubs);
  }

  /** Draws all there is, for an export; or what is seen again. */
  wholly(on) {
    this.whole = on;
    this.drawnArea = null;
    this.cull();
  }

  /** Takes the element of a box or edge over, or makes it; `place` is the attribute's value that puts it where it belongs. */
  keep(key, form, place, attribute, before, make) {
    const old = before.get(key), same = old && old.form === form, element = same ? old.element : make();
    if (!same || old.place !== place) element.setAttribute(attribute, place);
    this.kept.set(key, { form, place, element });
    if (!same) this.markOne(key, element);
  }

  drawBox(box, detail) {
    const element = !detail ? this.bare(box) : box.open ? this.openBox(box) : box.node ? this.leaf(box) : this.closedBox(box);
    (box.open ? this.level(box.depth) : this.boxes).append(element);
    return element;
  }

  drawEdge(edge) {
    const element = this.edge(edge);
    this.edges.append(element);
    return element;
  }

  level(depth) {
    while (this.frames.childElementCount <= depth) this.frames.append(s("g"));
    return this.frames.children[depth];
  }

  /** From so far that no text can be read. */
  bare(box) {
    return this.frame(box, box.open ? `open level${box.depth % 2}` : box.node ? "leaf" : "closed", s("rect", { class: "back", width: box.size[0], height: box.size[1], rx: 9 }));
  }

  frame(box, kind, ...kids) {
    const change = box.node && this.tree.status && this.tree.status.get(box.node.name);
    const label = box.node ? `${box.node.op}, ${box.node.name}` : `${box.label}, ${plural(sums(box, this.model, this.tree.status).ops, "op")}`;
    const group = s("g", { class: `box ${kind} ${change || ""} ${box.node?.ghost ? "ghost" : ""}`, "data-id": box.id, css: { "--colour": this.painter.colour(this.painter.value(box)) }, role: "button", "aria-label": clean(change ? `${label}, ${change}` : label) });
    group.append(...kids.filter(Boolean));
    if (change) group.append(badge(box.size[0] - 4, 4, change, SIGNS[change]));
    return group;
  }

  leaf(box) {
    const { node, size: [w, height] } = box, colour = this.painter.colour(this.painter.value(box));
    const value = this.painter.text(box) || shapeText(node.shape), kind = fit(DTYPES[node.dtype] || node.dtype || "", 48, FONT_2);
    const right = fit(value, 92, FONT_2);
    return this.frame(box, "leaf",
      s("rect", { class: "back", width: w, height, rx: 7, fill: this.painter.tint(colour, this.painter.colouring.numeric ? 0.34 : 0.13) }),
      s("path", { class: "stripe", d: `M7 0.5 H6 A6 6 0 0 0 0.5 7 V${height - 7} A6 6 0 0 0 6 ${height - 0.5} H7 Z`, fill: colour }),
      s("text", { class: "t1", x: 15, y: 19 }, fit(opText(node), w - 36 - ruled(kind), FONT_1)),
      s("text", { class: "t2 end", x: w - 11, y: 19 }, kind),
      s("text", { class: "t2", x: 15, y: 35 }, fit(box.label, w - 34 - ruled(right), FONT_2)),
      s("text", { class: "t2 end strong", x: w - 11, y: 35 }, right));
  }

  closedBox(box) {
    const [w, height] = box.size, all = sums(box, this.model, this.tree.status), colour = this.painter.colour(this.painter.value(box));
    const times = repeats(box), figures = [plural(all.ops, "op"), all.params ? short(all.params) + " par" : "", all.macs ? short(all.macs) + " MAC" : ""].filter(Boolean).join(" · ");
    const right = this.painter.text(box) || (all.sqnr !== undefined ? `${short(all.sqnr)} dB` : "");
    return this.frame(box, "closed",
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
      changeMarks(all.changes, w));
  }

  /** What a closed box holds, as a bar of the legend's colours. */
  shareBar(box, width, y) {
    if (this.painter.colouring.numeric) return null;
    const parts = [...this.painter.parts(box)], all = parts.reduce((sum, [, n]) => sum + n, 0);
    let x = 12;
    return s("g", { class: "share" }, parts.map(([value, n]) => {
      const part = s("rect", { x, y, width: (width * n) / all, height: 3.5, fill: this.painter.colour(value) });
      x += (width * n) / all;
      return part;
    }));
  }

  openBox(box) {
    const [w, height] = box.size, times = repeats(box), name = box.label + (times > 1 ? `  ×${times}` : "");
    return this.frame(box, `open level${box.depth % 2}`,
      s("rect", { class: "back", width: w, height, rx: 10 }),
      knob(16, 17, "−"),
      s("text", { class: "t1", x: 30, y: 21 }, fit(name, (w - 46) * 0.62, FONT_1)),
      s("text", { class: "t2 end", x: w - 14, y: 21 }, fit(box.cls || "", (w - 46) * 0.36, FONT_2)));
  }

  edge(edge) {
    const width = Math.min(3.2, 1.1 + Math.log2(edge.pairs.length) * 0.45);
    const line = s("path", { class: `edge ${edge.ghost ? "ghost" : ""}`, "stroke-width": width.toFixed(2), "marker-end": edge.to === "out" ? null : "url(#arrow)" });
    // Its tensors, told when the pointer is on it.
    line.addEventListener("pointerenter", () => line.firstChild || line.append(s("title", {}, edgeText(edge))));
    return line;
  }

  route(box, { edge, points }) {
    const from = box.kids[edge.from], to = box.kids[edge.to], at = points.map(([x, y]) => [x + box.x, y + box.y]);
    if (at.length === 3) at.splice(1, 1); // next rank: dagre's bend stands for a label that we do not have
    const last = at.length - 1;
    if (!from) at[0] = [box.x + box.size[0] / 2, box.y + HEAD - 8];
    else if (at[1][1] >= from.y + from.size[1] - 1) at[0] = [from.x + from.size[0] / 2, from.y + from.size[1]];
    if (!to) at[last] = [box.x + box.size[0] / 2, box.y + box.size[1]];
    else if (at[last - 1][1] <= to.y + 1) at[last] = [to.x + to.size[0] / 2, to.y - 2];
    const x = at.map((point) => point[0]), y = at.map((point) => point[1]);
    return { edge, d: curve(at), extent: [Math.min(...x), Math.min(...y), Math.max(...x), Math.max(...y)] };
  }

  stub({ box, text, edges, low }) {
    const x = box.x + box.size[0] / 2 + (low ? 14 : -14), y = low ? box.y + box.size[1] : box.y;
    const jump = edges.length === 1 && edges[0].pairs.length ? edges[0].pairs[0][low ? 1 : 0].id : box.id;
    const group = s("g", { class: "stub", "data-jump": jump },
      s("path", { d: `M${x} ${y} v${low ? 11 : -11}` }),
      s("text", { x: x + (low ? 4 : -4), y: y + (low ? 13 : -6), class: low ? "" : "end" }, text));
    group.append(s("title", {}, edges.slice(0, 12).map(edgeText).join("\n")));
    return group;
  }

  /** Marks what is selected, its edges, and what a search found. */
  mark(selected, found) {
    Object.assign(this, { selected, found });
    for (const [key, { element }] of this.kept) this.markOne(key, element);
  }

  markOne(key, element) {
    const { selected, found } = this;
    if (key.pairs) {
      element.classList.toggle("near", Boolean(selected) && key.pairs.some(([a, b]) => isIn(a, selected) !== isIn(b, selected)));
      return;
    }
    element.classList.toggle("selected", key === selected);
    element.classList.toggle("found", Boolean(found && (key.node ? found.has(key.node.name) : !key.open && holds(key, found))));
  }

  // --- moving about ---

  apply() {
    const { x, y, k } = this.view;
    this.scene.setAttribute("transform", `translate(${x.toFixed(2)},${y.toFixed(2)}) scale(${k.toFixed(4)})`);
    this.svg.classList.toggle("far", k < 0.45);
    this.svg.classList.toggle("farther", k < 0.2);
    this.hooks.moved(this.view);
    if (this.seen) this.cull();
  }

  later() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      this.apply();
    });
  }

  zoom(factor, cx = this.width / 2, cy = this.height / 2) {
    const { view } = this, k = Math.min(3, Math.max(0.03, view.k * factor));
    view.x = cx - ((cx - view.x) * k) / view.k;
    view.y = cy - ((cy - view.y) * k) / view.k;
    view.k = k;
    this.later();
  }

  /** Fits all; a `readable` fit may start at the top of a tall graph instead. */
  fit(readable) {
    const [w, height] = this.tree.root.size, W = this.width, H = this.height;
    const across = (W - 32) / w, whole = Math.min(across, (H - 32) / height, 1.1);
    const k = readable ? Math.min(1, Math.max(whole, Math.min(across, 0.8), 0.3)) : whole;
    this.view = { k, x: (W - w * k) / 2, y: height * k > H ? 16 : (H - height * k) / 2 };
    this.later();
  }

  /** Brings a box into sight; leaves the view alone where it is seen well already. */
  show(box) {
    const { view } = this, W = this.width, H = this.height - this.hooks.covered(), [w, height] = box.size;
    const left = box.x * view.k + view.x, top = box.y * view.k + view.y;
    if (view.k > 0.5 && left > 8 && top > 8 && left + w * view.k < W - 8 && top + height * view.k < H - 8) return;
    view.k = Math.min(1, Math.max(view.k, 0.75));
    view.x = W / 2 - (box.x + w / 2) * view.k;
    view.y = height * view.k > H ? 24 - box.y * view.k : H / 2 - (box.y + height / 2) * view.k;
    this.later();
  }

  listen() {
    const { svg } = this, fingers = new Map();
    svg.addEventListener("wheel", (e) => {
      e.preventDefault();
      const at = svg.getBoundingClientRect();
      this.zoom(Math.exp(-e.deltaY * (e.ctrlKey ? 0.01 : 0.0016)), e.clientX - at.left, e.clientY - at.top);
    }, { passive: false });
    svg.addEventListener("pointerdown", (e) => {
      if (e.button) return;
      fingers.set(e.pointerId, [e.clientX, e.clientY]);
      this.dragged = 0;
    });
    svg.addEventListener("pointermove", (e) => fingers.has(e.pointerId) && this.drag(e, fingers));
    for (const end of ["pointerup", "pointercancel", "pointerleave"]) svg.addEventListener(end, (e) => fingers.delete(e.pointerId));
    svg.addEventListener("click", (e) => this.dragged < 5 && this.click(e));
    svg.addEventListener("dblclick", (e) => {
      const box = this.boxOf(e.target);
      if (box && !box.node && !e.target.closest(".knob")) this.hooks.toggle(box);
    });
  }

  drag(e, fingers) {
    const old = fingers.get(e.pointerId), now = [e.clientX, e.clientY];
    const other = [...fingers].find(([id]) => id !== e.pointerId);
    if (other) {
      const apart = ([x, y]) => Math.hypot(x - other[1][0], y - other[1][1]), at = this.svg.getBoundingClientRect();
      this.zoom(apart(now) / Math.max(1, apart(old)), (now[0] + other[1][0]) / 2 - at.left, (now[1] + other[1][1]) / 2 - at.top);
    } else {
      this.view.x += now[0] - old[0];
      this.view.y += now[1] - old[1];
    }
    this.dragged += Math.abs(now[0] - old[0]) + Math.abs(now[1] - old[1]);
    // Captured only once it is a drag: a captured pointer sends its click to the canvas instead of the box.
    if (this.dragged >= 5 && !this.svg.hasPointerCapture(e.pointerId)) this.svg.setPointerCapture(e.pointerId);
    fingers.set(e.pointerId, now);
    this.later();
  }

  click(e) {
    const stub = e.target.closest(".stub"), box = this.boxOf(e.target);
    if (stub) this.hooks.jump(stub.dataset.jump);
    else if (box && e.target.closest(".knob")) this.hooks.toggle(box);
    else this.hooks.select(box);
  }

  boxOf(target) {
    const group = target.closest("[data-id]");
    return group ? this.tree.byId.get(group.dataset.id) : null;
  }

  /** The nearest seen box in a direction, for the arrow keys. */
  neighbour(box, dx, dy) {
    const middle = (b) => [b.x + b.size[0] / 2, b.y + (b.open ? 10 : b.size[1] / 2)], [x, y] = middle(box);
    let best = null, least = Infinity;
    for (const other of this.seen) {
      if (other === box || other.what === "root") continue;
      const [ox, oy] = middle(other), along = (ox - x) * dx + (oy - y) * dy, aside = Math.abs((ox - x) * dy) + Math.abs((oy - y) * dx);
      if (along > 4 && along + 2 * aside < least) [best, least] = [other, along + 2 * aside];
    }
    return best;
  }
}


/** The op without an overload's name that tells nothing. */
const opText = (node) => (node.op || "").replace(/\.(default|new)$/, "");

/** How many alike blocks a box gathers; a module all of whose children are alike counts as one such. */
function repeats(box) {
  if (box.what === "run") return box.kids.length;
  const same = box.what === "module" && box.kids.length > 2 && bulk(box.kids[0]) >= BLOCK && box.kids.every((kid) => !kid.node && shapeOf(kid) === shapeOf(box.kids[0]));
  return same ? box.kids.length : 1;
}

function isIn(leaf, box) {
  for (let up = leaf; up; up = up.parent) if (up === box) return true;
  return false;
}

const extentOf = ({ x, y, size: [w, h] }) => [x - 8, y - 14, x + w + 8, y + h + 14]; // with its badges and stubs
const meets = (a, b) => a[0] <= b[2] && a[2] >= b[0] && a[1] <= b[3] && a[3] >= b[1];
const within = (a, b) => a[0] >= b[0] && a[2] <= b[2] && a[1] >= b[1] && a[3] <= b[3];

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
    const [x0, y0] = points[i - 1], [x1, y1] = points[i], half = (y0 + y1) / 2;
    d += x0 === x1 ? `V${y1.toFixed(1)}` : `C${[x0, half, x1, half, x1, y1].map((v) => v.toFixed(1)).join(" ")}`;
  }
  return d;
}

function arrowHeads() {
  return s("defs", {}, s("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 6.5, refY: 4, markerWidth: 7, markerHeight: 7, markerUnits: "userSpaceOnUse", orient: "auto" }, s("path", { class: "arrow", d: "M0.5 0.8 L7 4 L0.5 7.2 Z" })));
}

function knob(x, y, sign) {
  return s("g", { class: "knob" }, s("rect", { class: "hit", x: x - 14, y: y - 16, width: 28, height: 30 }), s("rect", { x: x - 6.5, y: y - 6.5, width: 13, height: 13, rx: 3.5 }), s("path", { d: sign === "+" ? `M${x - 3.5} ${y} h7 M${x} ${y - 3.5} v7` : `M${x - 3.5} ${y} h7` }));
}

function badge(x, y, kind, text) {
  return s("g", { class: `badge ${kind}` }, s("circle", { cx: x, cy: y, r: 8 }), s("text", { x, y: y + 4 }, text));
}

function changeMarks(changes, width) {
  const shown = Object.entries(changes).filter(([, n]) => n);
  let x = width - 6;
  return s("g", { class: "marks" }, shown.map(([kind, n]) => {
    const text = `${SIGNS[kind]}${n}`, wide = 10 + text.length * 6.4;
    x -= wide + 3;
    return s("g", { class: `badge ${kind}` }, s("rect", { x, y: -8, width: wide, height: 16, rx: 8 }), s("text", { x: x + wide / 2, y: 4 }, text));
  }));
}
