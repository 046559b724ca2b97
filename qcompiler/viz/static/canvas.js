// The canvas: which boxes are drawn, and moving about among them.

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
    this.svg = s(
      "svg",
      {
        class: "canvas",
        tabindex: 0,
        role: "application",
        "aria-label": "Graph. Arrow keys move between boxes, Enter opens or closes a box.",
      },
      arrowHeads(),
      this.scene,
    );
    host.prepend(this.svg);
    // Noted once and at each change: to ask for them in every frame would make the browser lay out the page in between.
    [this.width, this.height] = [this.svg.clientWidth, this.svg.clientHeight];
    new ResizeObserver(([entry]) => {
      [this.width, this.height] = [entry.contentRect.width, entry.contentRect.height];
      if (this.seen) this.later();
    }).observe(this.svg);
    this.minimap = new Minimap(this);
    this.view = { x: 0, y: 0, k: 1 };
    this.dragged = 0;
    this.tree = this.pen = null;
    this.listen();
  }

  /** Takes over the placed boxes `seen`; `apply` then draws those near the view. */
  take(tree, seen, painter, model) {
    if (this.tree !== tree || this.pen.painter !== painter) this.forget();
    this.pen = new Pen(tree, painter, model);
    Object.assign(this, { tree, seen });
    this.routes = seen.filter((box) => box.open).flatMap((box) => box.lines.map((line) => this.route(box, line)));
    this.drawnArea = null;
    this.minimap.take(seen, painter);
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
    const shown = this.whole
      ? [-Infinity, -Infinity, Infinity, Infinity]
      : [-view.x / view.k, -view.y / view.k, (W - view.x) / view.k, (H - view.y) / view.k];
    const detail = this.whole || view.k >= BARE,
      old = this.drawnArea;
    if (old && old.detail === detail && view.k < old.k * 2 && within(shown, old.area)) return;
    const [mx, my] = this.whole ? [0, 0] : [(W * MARGIN) / view.k, (H * MARGIN) / view.k];
    const area = [shown[0] - mx, shown[1] - my, shown[2] + mx, shown[3] + my];
    this.drawnArea = { area, detail, k: view.k };
    const before = this.kept;
    this.kept = new Map();
    const stubs = [];
    for (const box of this.seen) {
      if (box.what !== "root" && meets(extentOf(box), area))
        this.keep(box, `${box.open} ${box.size} ${detail}`, `translate(${box.x},${box.y})`, "transform", before, () =>
          this.drawBox(box, detail),
        );
      if (box.open && detail)
        stubs.push(
          ...stubMarks(box)
            .filter((mark) => meets(extentOf(mark.box), area))
            .map((mark) => this.pen.stub(mark)),
        );
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
    const old = before.get(key),
      same = old && old.form === form,
      element = same ? old.element : make();
    if (!same || old.place !== place) element.setAttribute(attribute, place);
    this.kept.set(key, { form, place, element });
    if (!same) this.markOne(key, element);
  }

  drawBox(box, detail) {
    const element = this.pen.box(box, detail);
    (box.open ? this.level(box.depth) : this.boxes).append(element);
    return element;
  }

  drawEdge(edge) {
    const element = this.pen.edge(edge);
    this.edges.append(element);
    return element;
  }

  level(depth) {
    while (this.frames.childElementCount <= depth) this.frames.append(s("g"));
    return this.frames.children[depth];
  }

  route(box, { edge, points }) {
    const from = box.kids[edge.from],
      to = box.kids[edge.to],
      at = points.map(([x, y]) => [x + box.x, y + box.y]);
    if (at.length === 3) at.splice(1, 1); // next rank: dagre's bend stands for a label that we do not have
    const last = at.length - 1;
    if (!from) at[0] = [box.x + box.size[0] / 2, box.y + HEAD - 8];
    else if (at[1][1] >= from.y + from.size[1] - 1) at[0] = [from.x + from.size[0] / 2, from.y + from.size[1]];
    if (!to) at[last] = [box.x + box.size[0] / 2, box.y + box.size[1]];
    else if (at[last - 1][1] <= to.y + 1) at[last] = [to.x + to.size[0] / 2, to.y - 2];
    const x = at.map((point) => point[0]),
      y = at.map((point) => point[1]);
    return { edge, d: curve(at), extent: [Math.min(...x), Math.min(...y), Math.max(...x), Math.max(...y)] };
  }

  /** Marks what is selected, its edges, and what a search found. */
  mark(selected, found) {
    Object.assign(this, { selected, found });
    this.svg.classList.toggle("searching", Boolean(found && found.size));
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
    if (this.tree) this.minimap.follow(this.view, this.width, this.height, this.tree.root.size);
    if (this.seen) this.cull();
  }

  later() {
    this.pending ??= requestAnimationFrame(() => {
      this.pending = null;
      this.apply();
    });
  }

  zoom(factor, cx = this.width / 2, cy = this.height / 2) {
    const { view } = this,
      k = Math.min(3, Math.max(0.03, view.k * factor));
    view.x = cx - ((cx - view.x) * k) / view.k;
    view.y = cy - ((cy - view.y) * k) / view.k;
    view.k = k;
    this.later();
  }

  /** Fits all; a `readable` fit may start at the top of a tall graph instead. */
  fit(readable) {
    const [w, height] = this.tree.root.size,
      W = this.width,
      H = this.height;
    const across = (W - 32) / w,
      whole = Math.min(across, (H - 32) / height, 1.1);
    const k = readable ? Math.min(1, Math.max(whole, Math.min(across, 0.8), 0.3)) : whole;
    this.view = { k, x: (W - w * k) / 2, y: height * k > H ? 16 : (H - height * k) / 2 };
    this.apply();
  }

  /** Whether a box is wholly in sight. */
  sees({ x, y, size: [w, height] }) {
    const { view } = this,
      left = x * view.k + view.x,
      top = y * view.k + view.y;
    return left > 8 && top > 8 && left + w * view.k < this.width - 8 && top + height * view.k < this.height - this.hooks.covered() - 8;
  }

  /** Brings a box into sight; leaves the view alone where it is seen well already. */
  show(box) {
    const { view } = this,
      W = this.width,
      H = this.height - this.hooks.covered(),
      [w, height] = box.size;
    if (view.k > 0.5 && this.sees(box)) return;
    view.k = Math.min(1, Math.max(view.k, 0.75));
    view.x = W / 2 - (box.x + w / 2) * view.k;
    view.y = height * view.k > H ? 24 - box.y * view.k : H / 2 - (box.y + height / 2) * view.k;
    this.apply();
  }

  listen() {
    const { svg } = this,
      fingers = new Map();
    svg.addEventListener(
      "wheel",
      (e) => {
        e.preventDefault();
        const at = svg.getBoundingClientRect();
        this.zoom(Math.exp(-e.deltaY * (e.ctrlKey ? 0.01 : 0.0016)), e.clientX - at.left, e.clientY - at.top);
      },
      { passive: false },
    );
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
    const old = fingers.get(e.pointerId),
      now = [e.clientX, e.clientY];
    const other = [...fingers].find(([id]) => id !== e.pointerId);
    if (other) {
      const apart = ([x, y]) => Math.hypot(x - other[1][0], y - other[1][1]),
        at = this.svg.getBoundingClientRect();
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
    const stub = e.target.closest(".stub"),
      box = this.boxOf(e.target);
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
    const middle = (b) => [b.x + b.size[0] / 2, b.y + (b.open ? 10 : b.size[1] / 2)],
      [x, y] = middle(box);
    let best = null,
      least = Infinity;
    for (const other of this.seen) {
      if (other === box || other.what === "root") continue;
      const [ox, oy] = middle(other),
        along = (ox - x) * dx + (oy - y) * dy,
        aside = Math.abs((ox - x) * dy) + Math.abs((oy - y) * dx);
      if (along > 4 && along + 2 * aside < least) [best, least] = [other, along + 2 * aside];
    }
    return best;
  }
}

function isIn(leaf, box) {
  for (let up = leaf; up; up = up.parent) if (up === box) return true;
  return false;
}

const extentOf = ({ x, y, size: [w, h] }) => [x - 8, y - 14, x + w + 8, y + h + 14]; // with its badges and stubs
const meets = (a, b) => a[0] <= b[2] && a[2] >= b[0] && a[1] <= b[3] && a[3] >= b[1];
const within = (a, b) => a[0] >= b[0] && a[2] <= b[2] && a[1] >= b[1] && a[3] <= b[3];
