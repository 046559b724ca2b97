// The panels round the canvas: tree, results, worst nodes, remarks, changes, passes, legend.

class Panels {
  constructor(app) {
    this.app = app;
    const node = (n) => app.jumpNode(n.name || n);
    this.tree = new List($("tree"), {
      role: "tree",
      rowRole: "treeitem",
      label: "Modules and nodes",
      row: (box) => this.treeRow(box),
      pick: (box) => app.select(box, true),
      keys: { ArrowRight: (box) => this.treeRight(box), ArrowLeft: (box) => this.treeLeft(box), " ": (box) => box.node || app.toggle(box) },
    });
    this.results = new List($("results"), { label: "Search results", height: 40, row: (n) => this.resultRow(n), pick: node });
    this.worst = new List($("worst"), {
      label: "Nodes, worst first",
      height: 28,
      row: (item) => this.worstRow(item),
      pick: (item) => node(item.name),
    });
    this.remarks = new List($("remarks"), { label: "Remarks", height: 58, row: (r) => this.remarkRow(r), pick: (r) => this.openRemarks(r) });
    this.diff = new List($("diff"), {
      label: "Text difference",
      height: 18,
      row: (line) => this.diffRow(line),
      pick: ([, , n]) => n && node(n.name),
    });
    this.sortBy = "sqnr";
    // On a narrow page the legend is folded up to its title.
    $("legend").addEventListener("click", (e) => e.target.tagName === "B" && $("legend").classList.toggle("open"));
    for (const head of document.querySelectorAll("#worst-head button"))
      head.addEventListener("click", () => this.sortWorst(head.dataset.key));
  }

  // --- tree ---

  treeItems() {
    const out = [],
      walk = (box) => {
        for (const kid of box.kids) {
          out.push(kid);
          if (!kid.node && this.app.isOpen(kid)) walk(kid);
        }
      };
    walk(this.app.tree.root);
    return out;
  }

  treeRow(box) {
    const { app } = this,
      open = !box.node && app.isOpen(box),
      painter = app.painter,
      value = painter.value(box);
    const change = box.node && app.tree.status && app.tree.status.get(box.node.name);
    const note = box.node
      ? DTYPES[box.node.dtype] || ""
      : repeats(box) > 1
        ? `×${repeats(box)}`
        : sums(box, app.model, app.tree.status).ops;
    return h(
      "div",
      {
        class: `tree-row ${box.node?.ghost ? "ghost" : ""}`,
        "aria-level": box.depth,
        "aria-expanded": box.node ? null : String(open),
        "aria-selected": String(app.state.selected === box.id),
        css: { "padding-left": `${8 + (box.depth - 1) * 14}px` },
      },
      h("span", {
        class: `twist ${box.node ? "none" : open ? "open" : ""}`,
        "data-own": box.node ? null : "",
        onclick: () => box.node || app.toggle(box),
      }),
      h("i", { class: "dot", css: { background: painter.colour(value) } }),
      change && h("b", { class: `sign ${change}`, title: change }, SIGNS[change]),
      h("span", { class: "name" }, box.node ? opText(box.node) : box.label),
      h("span", { class: "aside" }, box.node ? box.label : box.cls),
      h("span", { class: "note" }, note),
    );
  }

  treeRight(box) {
    if (box.node) return;
    if (!this.app.isOpen(box)) this.app.toggle(box);
    else this.tree.go(this.tree.active + 1);
  }

  treeLeft(box) {
    if (!box.node && this.app.isOpen(box)) this.app.toggle(box);
    else if (box.parent && box.parent.what !== "root") this.tree.go(this.tree.items.indexOf(box.parent));
  }

  drawTree() {
    const items = this.treeItems(),
      at = items.findIndex((box) => box.id === this.app.state.selected);
    this.tree.set(items, at < 0 ? undefined : at);
    if (at >= 0) this.tree.go(at);
  }

  // --- results ---

  resultRow(node) {
    const value = this.app.painter.colouring.numeric ? this.app.painter.colouring.read(node) : undefined;
    return h(
      "div",
      { class: "result-row" },
      h("i", { class: "dot", css: { background: this.app.painter.colour(this.app.painter.colouring.read(node)) } }),
      h(
        "div",
        { class: "two" },
        h("span", { class: "name" }, `${node.op}  `, h("span", { class: "aside" }, node.name)),
        h(
          "span",
          { class: "aside" },
          [node.path, shapeText(node.shape), node.dtype, value !== undefined && short(value)].filter(Boolean).join(" · "),
        ),
      ),
    );
  }

  drawResults(found) {
    const query = this.app.state.query,
      nodes = found ? this.app.tree.graph.nodes.filter((n) => found.has(n.name)) : [];
    $("result-count").textContent = query
      ? queryProblem(query, this.app.model) || `${plural(nodes.length, "node")} of ${this.app.tree.graph.nodes.length}`
      : "Type above: a name, op, module, file, dtype, or sqnr<20, sat>0.01, macs>1e6, kind:float, -op:relu";
    this.results.set(nodes, 0);
  }

  // --- worst first ---

  worstItems() {
    const rows = this.app.tree.graph.nodes
      .filter((n) => !n.ghost && this.app.model.numerics.has(n.name))
      .map((n) => ({ name: n.name, op: n.op, ...this.app.model.numerics.get(n.name) }));
    const key = this.sortBy,
      low = key === "sqnr" || key === "own",
      nothing = low ? Infinity : -Infinity,
      value = (r) => r[key] ?? nothing;
    if (key === "name") return rows;
    return rows.sort((a, b) => (value(a) === value(b) ? 0 : low === value(a) < value(b) ? -1 : 1));
  }

  sortWorst(key) {
    this.sortBy = key;
    this.drawWorst();
  }

  drawWorst() {
    for (const head of document.querySelectorAll("#worst-head button"))
      head.setAttribute("aria-pressed", String(head.dataset.key === this.sortBy));
    const items = this.worstItems();
    $("worst-empty").hidden = items.length > 0;
    this.worst.set(items, 0);
  }

  worstRow(item) {
    const db = (x) => (x === undefined ? "" : x === null ? "∞" : x.toFixed(1)),
      node = this.app.tree.graph.byName.get(item.name),
      colour = this.app.painter.colour(this.app.painter.colouring.read(node)),
      place = node.path ? node.path.split(".").slice(-2).join(".") : item.name; // the end of a path tells layers apart
    return h(
      "div",
      { class: "worst-row", title: clean(`${item.op} ${item.name} ${node.path || ""}`) },
      h("i", { class: "dot", css: { background: colour } }),
      h("span", { class: "name" }, place),
      h("span", {}, db(item.sqnr)),
      h("span", {}, db(item.own)),
      h("span", {}, item.saturation === undefined ? "" : percent(item.saturation)),
    );
  }

  // --- remarks ---

  drawRemarks() {
    this.remarkRows ??= this.remarkItems(); // kept: each row knows which of its places is next
    this.remarks.set(this.remarkRows);
  }

  /** Remarks of one text are one row, those of most places first: {code, text, all}. */
  remarkItems() {
    const groups = new Map();
    for (const remark of this.app.model.remarks) push(groups, `${remark.code} ${remark.text}`, remark);
    return [...groups.values()].map((all) => ({ ...all[0], all, next: 0 })).sort((a, b) => b.all.length - a.all.length);
  }

  remarkRow({ code, text, all }) {
    const place = ({ pass, stage, node, path, location }) =>
      [pass || this.app.model.stages[stage].name, node || path, location].filter(Boolean).join(" · ");
    const places = all.length === 1 ? place(all[0]) : all.map((r) => r.path || r.node || r.location || place(r)).join(", ");
    return h(
      "div",
      { class: "remark-row", title: clean(`${text || ""}\n${places}`.slice(0, 2000)) },
      h("span", { class: "name" }, code || "remark", all.length > 1 && h("span", { class: "count" }, `×${all.length}`)),
      h("span", { class: "two-lines" }, text),
      h("span", { class: "aside" }, places),
    );
  }

  /** Goes to the places of a row in turn. */
  openRemarks(item) {
    this.openRemark(item.all[item.next]);
    item.next = (item.next + 1) % item.all.length;
  }

  openRemark(remark) {
    if (remark.node) this.app.jumpNode(remark.node);
    else if (remark.path && this.app.tree.byId.has("m:" + remark.path)) this.app.jump("m:" + remark.path);
    else this.app.setStage(remark.stage);
  }

  // --- changes ---

  drawChanges() {
    const { app } = this,
      { stage } = app.state,
      from = app.against(),
      info = app.model.stages[stage];
    const remarks = app.model.remarks.filter((r) => r.stage === stage);
    const counts = from === null ? null : Object.entries(tally(app.difference.status)).filter(([, n]) => n);
    $("changes-head").replaceChildren(
      h("h2", {}, info ? `${stage} ${info.name}` : ""),
      h(
        "p",
        { class: "tags" },
        info && info.phase && tag(info.phase),
        info && tag(`${short(info.ms || 0)} ms`),
        info && info.matches ? tag(plural(info.matches, "match").replace("matchs", "matches")) : null,
      ),
      from === null
        ? h("p", { class: "quiet" }, "No comparison chosen. Step with [ and ], or choose one below the graph.")
        : h(
            "p",
            { class: "tags" },
            `against ${from} ${app.model.stages[from].name}: `,
            counts.length ? counts.map(([kind, n]) => tag(`${SIGNS[kind]} ${n} ${kind}`, kind)) : "no difference",
          ),
      remarks.length
        ? h(
            "details",
            { class: "pass-remarks" },
            h("summary", {}, plural(remarks.length, "remark")),
            remarks
              .slice(0, 200)
              .map((r) =>
                h("button", { class: "remark", onclick: () => this.openRemark(r) }, h("b", {}, r.code || "remark"), ` ${r.text}`),
              ),
          )
        : "",
    );
    this.diff.set(from === null ? [] : textDiff(app.difference, app.model), 0);
    // Long lines are read by scrolling sideways: the list is as wide as its longest line.
    const most = this.diff.items.reduce((n, [sign, text]) => Math.max(n, sign === "…" ? 0 : text.length), 0);
    this.diff.inner.style.setProperty("width", `max(100%, ${Math.min(most, 400) + 4}ch)`);
  }

  diffRow([sign, text, node]) {
    if (sign === "…") return h("div", { class: "diff-row gap" }, `  ··· ${plural(text, "unchanged line")}`);
    const kind = { "+": "added", "-": "removed", " ": "" }[sign];
    return h("div", { class: `diff-row ${kind}`, title: node ? clean(node.name) : null }, h("b", {}, sign), h("span", {}, text));
  }

  // --- passes ---

  shownStages() {
    const { state, model } = this.app;
    return model.stages.map((_, i) => i).filter((i) => i === 0 || i === state.stage || !state.hideSame || changed(model.stages[i]));
  }

  drawPasses() {
    const { app } = this,
      shown = this.shownStages(),
      { stage } = app.state,
      info = app.model.stages[stage];
    const most = Math.max(1, ...shown.map((i) => total3(app.model.counts(i))));
    $("slider").max = String(Math.max(0, shown.length - 1));
    $("slider").value = String(shown.indexOf(stage));
    $("slider").setAttribute("aria-valuetext", clean(`${stage} ${info.name}`));
    $("ticks").replaceChildren(...shown.map((i) => this.tick(i, most)));
    const counts = app.model.counts(stage);
    $("pass-name").textContent = clean(`${stage} / ${app.model.last}  ${info.name}`);
    $("pass-counts").replaceChildren(
      ...Object.entries(counts)
        .filter(([, n]) => n)
        .map(([kind, n]) => tag(`${SIGNS[kind]}${n}`, kind)),
      stage > 0 && !changed(info) ? h("span", { class: "quiet" }, "unchanged") : "",
    );
    $("against").value = app.state.against;
  }

  tick(i, most) {
    const counts = this.app.model.counts(i),
      stage = this.app.model.stages[i];
    const bars = ["added", "replaced", "changed", "removed"].map(
      (kind) => counts[kind] > 0 && h("i", { class: kind, css: { height: `${Math.max(2, Math.sqrt(counts[kind] / most) * 22)}px` } }),
    );
    const text =
      Object.entries(counts)
        .filter(([, n]) => n)
        .map(([kind, n]) => `${n} ${kind}`)
        .join(", ") || "no change";
    return h(
      "button",
      {
        class: `tick ${i === this.app.state.stage ? "now" : ""}`,
        tabindex: -1,
        title: clean(`${i} ${stage.name}: ${text}, ${short(stage.ms || 0)} ms`),
        onclick: () => this.app.setStage(i, true),
      },
      h("span", { class: "bars" }, bars),
      h("span", { class: "tick-name" }, stage.name),
    );
  }

  // --- legend and breadcrumb ---

  drawLegend() {
    const { painter, state } = this.app,
      host = $("legend"),
      title = h("b", {}, painter.colouring.title);
    if (!painter.colouring.numeric) {
      const items = [...painter.counts].sort((a, b) => b[1] - a[1]),
        key = painter.colouring.id === "module" ? "path" : painter.colouring.id;
      host.replaceChildren(
        title,
        ...items
          .slice(0, 10)
          .map(([value, n]) =>
            h(
              "button",
              { class: "swatch", title: "Search these", onclick: () => this.app.search(`${key}:${value}`) },
              h("i", { css: { background: painter.colour(value) } }),
              value,
              h("span", {}, n),
            ),
          ),
        items.length > 10 ? h("span", { class: "quiet" }, `+${items.length - 10} more`) : "",
      );
      return;
    }
    const [low, high] = painter.domain,
      unit = painter.colouring.unit;
    const field = (value, label) =>
      h("input", { type: "number", step: "any", value: String(+value.toPrecision(5)), "aria-label": label, disabled: !state.domain });
    const from = field(low, "low end"),
      to = field(high, "high end"),
      fixed = h("input", { type: "checkbox", checked: Boolean(state.domain) });
    const update = () => this.app.setDomain(fixed.checked ? [Number(from.value), Number(to.value)] : null);
    for (const input of [from, to, fixed]) input.addEventListener("change", update);
    host.replaceChildren(
      title,
      h("span", { class: "ramp", css: { background: `linear-gradient(to right, ${SCALE.join(", ")})` } }),
      h("span", { class: "ends" }, from, unit && h("span", {}, unit), to),
      h("label", { class: "check" }, fixed, "fixed scale"),
    );
  }

  drawCrumbs() {
    const { app } = this,
      chain = [];
    for (let box = app.tree.byId.get(app.state.selected); box && box.parent; box = box.parent) chain.unshift(box);
    const parts = chain.map((box, i) => [
      h("span", { class: "sep" }, "›"),
      h(
        "button",
        { "aria-current": i === chain.length - 1 ? "true" : null, onclick: () => app.jump(box.id) },
        box.node ? box.node.name : box.label,
      ),
    ]);
    $("crumbs").replaceChildren(h("button", { onclick: () => app.select(null) }, app.model.title), ...parts.flat());
  }

  show(group, name) {
    for (const button of document.querySelectorAll(`[data-${group}]`)) {
      const on = button.dataset[group] === name;
      button.setAttribute("aria-selected", String(on));
      button.tabIndex = on ? 0 : -1;
      $(`${group}-${button.dataset[group]}`).hidden = !on;
    }
  }
}

const changed = (stage) => stage.changed ?? Boolean((stage.put || []).length || (stage.drop || []).length);
const total3 = (counts) => Math.max(counts.added, counts.removed, counts.replaced, counts.changed);
