// Joins the parts: what a click or a key does to the state, and what is drawn anew for it.

class App {
  constructor(model) {
    this.model = model;
    this.colourings = colourings(model);
    this.layouter = new Layouter();
    this.drawn = Promise.resolve();
    this.turn = 0;
    this.loadState();
    this.canvas = new Canvas($("canvas"), {
      toggle: (box) => this.toggle(box),
      select: (box) => this.select(box),
      jump: (id) => this.jump(id),
      covered: () =>
        document.body.classList.contains("right") && getComputedStyle($("right")).position === "absolute" ? $("right").offsetHeight : 0,
      moved: ({ x, y, k }) => this.keep({ view: [Math.round(x), Math.round(y), +k.toFixed(3)] }),
    });
    this.panels = new Panels(this);
    this.fillChoices();
    bindControls(this);
  }

  loadState() {
    this.state = readState();
    const { state, model } = this;
    if (state.stage === null || !model.stages[state.stage]) state.stage = model.last;
    if (!this.colourings.some((c) => c.id === state.colour)) state.colour = "kind";
    if (!$(`left-${state.left}`)) state.left = "tree";
    if (!$(`right-${state.right}`)) state.right = "details";
    if (state.depth !== null) state.depth = Math.max(1, Math.trunc(state.depth) || 1);
    if (!["none", "before"].includes(state.against) && !model.stages[state.against]) state.against = "none";
    applyTheme(state.theme);
    for (const side of ["left", "right"]) this.setWidth(side, state[`${side}Width`]);
  }

  fillChoices() {
    $("title").textContent = document.title = clean(this.model.title);
    $("colour").replaceChildren(...this.colourings.map((c) => h("option", { value: c.id }, c.title)));
    $("against").replaceChildren(
      h("option", { value: "none" }, "nothing"),
      h("option", { value: "before" }, "the stage before"),
      ...this.model.stages.map((stage, i) => h("option", { value: i }, `${i} ${stage.name}`)),
    );
    $("passes").hidden = this.model.stages.length < 2;
    $("tab-worst").hidden = this.model.numerics.size === 0;
    $("remark-count").textContent = this.model.remarks.length ? String(this.model.remarks.length) : "";
  }

  /** Notes a change of the state; the address follows a little later. */
  keep(change) {
    Object.assign(this.state, change);
    clearTimeout(this.writing);
    this.writing = setTimeout(() => writeState(this.state), 150);
  }

  against() {
    const { stage, against } = this.state;
    if (against === "none") return null;
    return against === "before" ? Math.max(0, stage - 1) : Number(against);
  }

  // --- drawing ---

  /** Makes the tree of the present stage anew. */
  rebuild() {
    const { state, model } = this,
      from = this.against();
    this.difference = from === null ? null : model.difference(from, state.stage);
    const graph = this.difference ? this.difference.graph : model.graphs[state.stage];
    this.tree = buildTree(graph, {
      constants: state.constants,
      fold: state.fold,
      title: model.title,
      status: this.difference && this.difference.status,
    });
    if (state.depth === null) this.keep({ depth: startDepth(this.tree.root) });
    this.repaint();
  }

  repaint() {
    const { state } = this,
      colouring = this.colourings.find((c) => c.id === state.colour);
    this.painter = new Painter(colouring, this.tree, state.domain);
  }

  isOpen(box) {
    if (box.node) return false;
    if (box.what === "root") return true;
    const { opened, closed, depth } = this.state;
    if (box.ids.some((id) => opened.has(id))) return true;
    return box.depth < depth && !box.ids.some((id) => closed.has(id));
  }

  /** Lays out and draws; one at a time, and only the latest of those that wait. Resolves when what was asked is seen. */
  refresh({ anchor, fit: fitting, show, toChange } = {}) {
    const turn = ++this.turn;
    this.drawn = this.drawn.then(async () => {
      if (turn !== this.turn) return;
      const { tree } = this,
        old = anchor && this.canvas.tree && this.canvas.tree.byId.get(anchor);
      const place = old && this.canvas.seen.includes(old) ? [old.x, old.y] : null;
      this.layouter.columns = this.state.columns && this.canvas.width >= WIDE;
      await this.layouter.arrange(tree.root, tree, (box) => this.isOpen(box));
      const seen = placeAll(tree.root),
        now = anchor && tree.byId.get(anchor),
        { view } = this.canvas;
      if (place && now && seen.includes(now)) {
        view.x += (place[0] - now.x) * view.k;
        view.y += (place[1] - now.y) * view.k;
      }
      this.canvas.take(tree, seen, this.painter, this.model);
      if (fitting) this.canvas.fit(fitting === "readable");
      if (show) this.canvas.show(tree.byId.get(show));
      if (toChange) this.showChange();
      this.canvas.apply();
      this.drawPanels();
    });
    return this.drawn;
  }

  drawPanels() {
    this.search(this.state.query, true);
    this.panels.drawTree();
    this.panels.drawWorst();
    this.panels.drawRemarks();
    this.panels.drawPasses();
    this.panels.drawLegend();
    $("depth").textContent = String(this.state.depth);
    $("colour").value = this.state.colour;
    $("constants").checked = this.state.constants;
    $("fold").checked = this.state.fold;
    $("columns").checked = this.state.columns;
    $("hide-same").checked = this.state.hideSame;
    $("query").value = this.state.query;
    this.panels.show("left", this.state.left);
    this.panels.show("right", this.state.right);
    this.drawSelected();
    if (this.state.right === "changes") this.panels.drawChanges();
  }

  drawSelected() {
    const box = this.tree.byId.get(this.state.selected);
    this.canvas.mark(box, this.found);
    this.panels.drawCrumbs();
    $("details").replaceChildren(...detailsOf(this, box).flat().filter(Boolean));
  }

  // --- what one can do ---

  select(box, show) {
    this.keep({ selected: box ? box.id : "" });
    document.body.classList.toggle("right", Boolean(box) && this.state.right === "details");
    if (box && show && this.canvas.seen.includes(box)) this.canvas.show(box);
    else if (box && show) return this.jump(box.id);
    this.drawSelected();
    this.panels.drawTree();
    $("right-details").scrollTop = 0;
    return this.drawn;
  }

  setOpen(box, open) {
    const opened = new Set(this.state.opened),
      closed = new Set(this.state.closed);
    for (const id of box.ids) {
      opened.delete(id);
      closed.delete(id);
      if (open && box.depth >= this.state.depth) opened.add(id);
      if (!open && box.depth < this.state.depth) closed.add(id);
    }
    this.keep({ opened, closed });
  }

  toggle(box) {
    this.setOpen(box, !this.isOpen(box));
    return this.refresh({ anchor: box.id });
  }

  setDepth(depth) {
    const most = Math.max(1, deepest(this.tree.root));
    this.keep({ depth: Math.min(most, Math.max(1, depth)), opened: new Set(), closed: new Set() });
    return this.refresh({ fit: "readable" });
  }

  /** Opens all above a box, selects it and brings it into sight. */
  jump(id) {
    const box = this.tree.byId.get(id);
    if (!box) return this.drawn;
    for (let up = box.parent; up && up.what !== "root"; up = up.parent) if (!this.isOpen(up)) this.setOpen(up, true);
    this.keep({ selected: box.id });
    document.body.classList.remove("left");
    document.body.classList.toggle("right", this.state.right === "details");
    return this.refresh({ show: box.id });
  }

  jumpNode(name) {
    const present = this.tree.graph.byName.get(name);
    if (!present) {
      const stage = this.model.graphs.findLastIndex((graph) => graph.byName.has(name));
      if (stage < 0) return this.drawn;
      this.keep({ stage });
    }
    if (!present) this.rebuild();
    if (!this.tree.byNode.has(name)) {
      this.keep({ constants: true }); // it is a weight, or made of weights
      this.rebuild();
    }
    return this.jump("n:" + name);
  }

  setStage(stage, comparing) {
    if (!this.model.stages[stage]) return this.drawn;
    this.keep({ stage });
    // Whoever steps through passes wants to see what they did.
    if (comparing && this.state.against === "none") this.keep({ against: "before", right: "changes" });
    this.rebuild();
    return this.refresh({ anchor: this.anchor(), toChange: comparing });
  }

  /** Brings the first box that changed into sight, where none of those that did is seen. */
  showChange() {
    const { canvas, tree, model } = this;
    const changed = canvas.seen.filter((box) =>
      box.node ? tree.status?.has(box.node.name) : !box.open && Object.values(sums(box, model, tree.status).changes).some(Boolean),
    );
    if (changed.length && !changed.some((box) => canvas.sees(box))) canvas.show(changed[0]);
  }

  /** The id of a box to keep in its place: the selected one, else one in the middle of the view. */
  anchor() {
    const chosen = this.tree.byId.get(this.state.selected),
      { view, width, height, seen } = this.canvas;
    if (chosen || !seen) return this.state.selected;
    const x = (width / 2 - view.x) / view.k,
      y = (height / 2 - view.y) / view.k;
    const distance = (box) => Math.hypot(box.x + box.size[0] / 2 - x, box.y + box.size[1] / 2 - y);
    const known = seen.filter((box) => !box.open && this.tree.byId.has(box.id));
    return known.length ? known.reduce((a, b) => (distance(b) < distance(a) ? b : a)).id : "";
  }

  step(by) {
    const shown = this.panels.shownStages(),
      at = shown.indexOf(this.state.stage) + by;
    return at >= 0 && at < shown.length ? this.setStage(shown[at], true) : this.drawn;
  }

  setAgainst(against) {
    this.keep({ against, right: against === "none" ? this.state.right : "changes" });
    this.rebuild();
    return this.refresh({ anchor: this.anchor() });
  }

  setOption(name, value) {
    this.keep({ [name]: value });
    if (name === "hideSame") return this.panels.drawPasses();
    this.rebuild();
    return this.refresh({ anchor: this.anchor() });
  }

  /** The width of a side panel in pixels; null for what it is by default. */
  setWidth(side, width) {
    this.keep({ [`${side}Width`]: width });
    const { style } = document.documentElement;
    if (width > 0) style.setProperty(`--${side}`, `${width}px`);
    else style.removeProperty(`--${side}`);
  }

  setColumns(columns) {
    this.keep({ columns });
    return this.refresh({ fit: "readable" });
  }

  setColour(colour) {
    this.keep({ colour, domain: null });
    return this.redraw();
  }

  setDomain(domain) {
    this.keep({ domain: domain && domain.every(isFinite) ? domain : null });
    return this.redraw();
  }

  redraw() {
    this.repaint();
    return this.refresh();
  }

  setTheme() {
    const theme = isDark() ? "light" : "dark";
    applyTheme(theme);
    this.keep({ theme });
    return this.redraw();
  }

  search(query, quiet) {
    this.keep({ query });
    const test = parseQuery(query, this.model),
      { nodes } = this.tree.graph;
    this.found = test ? new Set(nodes.filter(test).map((n) => n.name)) : null;
    this.panels.drawResults(this.found);
    if (quiet) return;
    if ($("query").value !== query) $("query").value = query;
    this.showTab("left", query ? "results" : "tree");
    this.canvas.mark(this.tree.byId.get(this.state.selected), this.found);
  }

  showTab(group, name) {
    this.keep({ [group]: name });
    this.panels.show(group, name);
    if (name === "changes") this.panels.drawChanges();
  }

  async copy(text, button) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = h("textarea", {}); // no clipboard in a sandboxed frame
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    const old = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = old), 1200);
  }

  export(kind) {
    const name = fileName(this.model, this.state.stage, kind);
    if (kind === "svg") save(name, new Blob([svgText(this.canvas)], { type: "image/svg+xml" }));
    else if (kind === "json") save(name, new Blob([JSON.stringify(this.model.data)], { type: "application/json" }));
    else return savePng(this.canvas, name);
  }
}

async function main() {
  const model = new Model(await readDocument());
  if (!model.stages.length) throw new Error("the document holds no stage");
  const app = new App(model),
    { view } = app.state;
  app.rebuild();
  if (view) [app.canvas.view.x, app.canvas.view.y, app.canvas.view.k] = view;
  await app.refresh({ fit: view ? null : "readable" });
  document.body.classList.add("ready");
  window.qcompilerPage = app; // for tests and for the console
}

main().catch((error) => {
  $("failure").hidden = false;
  $("failure").textContent = `This page could not be shown: ${error.message}`;
  throw error;
});
