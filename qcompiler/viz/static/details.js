// The details of one box: a node's figures, a module's sums.

function detailsOf(app, box) {
  if (!box) return overview(app);
  return box.node ? nodeDetails(app, box) : moduleDetails(app, box);
}

const section = (title, ...body) => h("section", {}, h("h3", {}, title), body);

function table(rows) {
  const shown = rows.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return shown.length
    ? h(
        "dl",
        {},
        shown.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
      )
    : null;
}

function overview(app) {
  const all = sums(app.tree.root, app.model, app.tree.status);
  return [
    h("h2", {}, app.model.title),
    h("p", { class: "quiet" }, "Select a box to see what it is made of. Press ? for the keys."),
    sumSection(app, all, app.tree.root),
    opsSection(app, app.tree.root),
  ];
}

function moduleDetails(app, box) {
  const all = sums(box, app.model, app.tree.status),
    times = repeats(box);
  return [
    h("h2", {}, box.label),
    h("p", { class: "tags" }, tag(box.cls || WHAT[box.what]), times > 1 && tag(`×${times}`)),
    h("p", { class: "buttons" }, h("button", { onclick: () => app.toggle(box) }, app.isOpen(box) ? "Close" : "Open")),
    section("Module", table([["path", box.what === "module" ? box.id.slice(2) : box.label]])),
    sumSection(app, all, box),
    opsSection(app, box),
    remarkSection(
      app,
      app.model.remarks.filter((r) => r.path && box.ids.some((id) => id === "m:" + r.path)),
    ),
  ];
}

/** What the times of steps are parts of: one by one they take longer than in a call. */
function wholeTime(times) {
  return times.call_ms ? ` of ${short(times.steps_ms)} ms step by step; a call takes ${short(times.call_ms)} ms` : "";
}

function sumSection(app, all, box) {
  const share = int8Share(all);
  return section(
    "Sum",
    table([
      ["ops", all.ops.toLocaleString("en")],
      ["parameters", all.params ? `${all.params.toLocaleString("en")}` : ""],
      ["multiply-accumulates", all.macs ? `${short(all.macs)} ${app.model.unit}` : ""],
      [
        all.macs ? "of these in int8" : "ops in int8",
        share === null ? "" : h("span", { class: "meter" }, h("i", { css: { width: `${share * 100}%` } }), h("b", {}, percent(share))),
      ],
      ["worst SQNR", all.sqnr === undefined ? "" : [`${short(all.sqnr)} dB `, all.worst && nodeLink(app, all.worst)]],
      ["worst saturation", all.saturation === undefined ? "" : percent(all.saturation)],
      ["time", all.ms ? `${short(all.ms)} ms${wholeTime(app.model.times)}` : ""],
      [
        "changes",
        Object.values(all.changes).some(Boolean)
          ? Object.entries(all.changes)
              .filter(([, n]) => n)
              .map(([kind, n]) => `${SIGNS[kind]}${n} ${kind} `)
          : "",
      ],
    ]),
  );
}

function opsSection(app, box) {
  const counts = new Map();
  for (const inner of every(box)) if (inner.node && !inner.node.ghost) counts.set(inner.node.op, (counts.get(inner.node.op) || 0) + 1);
  const rows = [...counts].sort((a, b) => b[1] - a[1]),
    most = rows.length ? rows[0][1] : 1;
  return section(
    "Ops",
    h(
      "ul",
      { class: "bars" },
      rows
        .slice(0, 20)
        .map(([op, n]) =>
          h(
            "li",
            {},
            h("button", { class: "link", title: "Search this op", onclick: () => app.search(`op:${op}`) }, op),
            h("i", { css: { width: `${(n / most) * 72}px` } }),
            h("b", {}, n),
          ),
        ),
    ),
  );
}

const tag = (text, kind = "") => h("span", { class: `tag ${kind}` }, text);

/** A link to a node; to the stage where it was last seen if this one has it no more. */
function nodeLink(app, name) {
  const here = app.tree.graph.byName.has(name);
  return h(
    "button",
    { class: `link ${here ? "" : "gone"}`, title: here ? `Go to ${name}` : "Not in this stage", onclick: () => app.jumpNode(name) },
    name,
  );
}

function nodeDetails(app, box) {
  const { node } = box,
    num = app.model.numerics.get(node.name),
    change = app.tree.status && app.tree.status.get(node.name);
  const parameters = sums(box, app.model, app.tree.status).params;
  return [
    h("h2", {}, node.op),
    h(
      "p",
      { class: "tags" },
      tag(node.kind, node.kind),
      node.dtype && tag(node.dtype),
      change && tag(`${SIGNS[change]} ${change}`, change),
    ),
    h(
      "p",
      { class: "buttons" },
      h("button", { onclick: (e) => app.copy(irText(node), e.target) }, "Copy IR line"),
      node.path && h("button", { onclick: () => app.search(`path:${node.path}`) }, "Search module"),
    ),
    node.reason && h("p", { class: "reason" }, h("b", {}, "Why float: "), node.reason, node.reason_code && ` [${node.reason_code}]`),
    section(
      "Node",
      table([
        ["name", node.name],
        ["step of", node.step_of && nodeLink(app, node.step_of)],
        ["module", node.path],
        ["class", node.cls],
        ["shape", shapeText(node.shape)],
        ["dtype", node.dtype],
        ["arguments", node.attrs],
        ["source", node.file && [h("code", {}, `${node.file}:${node.line ?? "?"}`), node.code && h("pre", { class: "line" }, node.code)]],
        ["parameters", parameters && parameters.toLocaleString("en")],
        ["MACs", node.macs && `${short(node.macs)} ${app.model.unit}`],
      ]),
    ),
    node.plan && planSection(app, node),
    node.q && quantSection(node.q),
    node.observer &&
      section(
        "Observer",
        table([
          ["type", node.observer.type],
          ["range", `${short(node.observer.low)} … ${short(node.observer.high)}`],
        ]),
      ),
    num && numericSection(num),
    num && num.act && section("Activations", histogram(num.act)),
    num && num.weight && section("Weights", histogram(num.weight)),
    overlaySection(app, node),
    section("Inputs", linkList(app, node.in || [])),
    section("Users", linkList(app, app.tree.graph.users.get(node.name) || [])),
    provenance(app, node),
    remarkSection(
      app,
      app.model.remarks.filter((r) => r.node === node.name),
    ),
    section("IR", h("pre", {}, irText(node))),
  ];
}

const linkList = (app, names) =>
  names.length
    ? h(
        "ul",
        { class: "links" },
        names.slice(0, 60).map((n) => h("li", {}, nodeLink(app, n))),
        names.length > 60 && h("li", {}, `and ${names.length - 60} more`),
      )
    : h("p", { class: "quiet" }, "none");

function quantSection(q) {
  const many = Array.isArray(q.scale);
  const zero = Array.isArray(q.zero_point)
    ? q.zero_point.every((z) => z === q.zero_point[0])
      ? q.zero_point[0]
      : `${Math.min(...q.zero_point)} … ${Math.max(...q.zero_point)}`
    : q.zero_point;
  return section(
    "Quantization",
    table([
      ["scale", many ? `${short(q.scale.reduce(lowest))} … ${short(q.scale.reduce(highest))}` : q.scale],
      ["zero point", zero === undefined ? "" : String(zero)],
      ["integers", q.min !== undefined ? `${q.min} … ${q.max}` : ""],
      [
        "reals",
        !many && typeof zero === "number" && q.min !== undefined
          ? `${short((q.min - zero) * q.scale)} … ${short((q.max - zero) * q.scale)}`
          : "",
      ],
      ["type", q.dtype],
      ["axis", q.axis ?? ""],
    ]),
    many && [h("p", { class: "quiet" }, `scale of ${plural(q.scale.length, "channel")}`), sparkline(q.scale)],
  );
}

/** How a back end runs the node: its kernels, and where its result lies. */
function planSection(app, node) {
  const { plan } = node,
    num = app.model.numerics.get(node.name);
  return section(
    "Plan",
    table([
      ["function", plan.layer],
      ["kernels", (plan.kernels || []).join(", ")],
      ["buffer", plan.buffer === undefined ? plan.place : `#${plan.buffer}`],
      ["arena offset", plan.offset === undefined ? "" : plan.offset.toLocaleString("en")],
      ["bytes", plan.bytes === undefined ? "" : plan.bytes.toLocaleString("en")],
      ["halo", plan.halo],
      ["part of", plan.within && nodeLink(app, plan.within)],
      ["time", num && num.ms !== undefined ? `${short(num.ms)} ms` : ""],
    ]),
  );
}

function numericSection(num) {
  const db = (x) => (x === undefined ? "" : `${x === null ? "∞" : short(x)} dB`);
  return section(
    "Numerics",
    table([
      ["SQNR", db(num.sqnr)],
      ["of its own", db(num.own)],
      ["inherited", db(num.inherited)],
      ["max. abs. error", num.max_abs !== undefined ? short(num.max_abs) : ""],
      ["saturation", num.saturation !== undefined ? percent(num.saturation) : ""],
      ["dead channels", num.dead_channels],
      ["time", num.ms !== undefined ? `${short(num.ms)} ms` : ""],
    ]),
  );
}

function overlaySection(app, node) {
  const rows = [...app.model.overlays]
    .filter(([, values]) => values.has(node.name))
    .map(([title, values]) => [title, short(values.get(node.name))]);
  return rows.length ? section("Overlays", table(rows)) : null;
}

/** Where the node comes from: the chain of names it stands for, and the passes that touched it. */
function provenance(app, node) {
  const origin = node.origin || [],
    steps = app.model.history.get(node.name) || [];
  let seen = false;
  const lines = steps.map(({ stage, what }) => {
    const old = new Map(Object.entries(app.model.stages[stage].replaced || {})).get(node.name);
    const word = what === "drop" ? "removed" : seen ? "changed" : old ? `made from ${old.join(", ")}` : stage ? "added" : "in the input";
    seen = what === "put";
    return h(
      "li",
      {},
      h("button", { class: "link", onclick: () => app.setStage(stage) }, `${stage} ${app.model.stages[stage].name}`),
      ` ${word}`,
    );
  });
  return section(
    "Provenance",
    origin.length > 0 &&
      h(
        "p",
        { class: "chain" },
        origin.map((n, i) => [i > 0 && h("span", { class: "arrow" }, " + "), nodeLink(app, n)]),
        h("span", { class: "arrow" }, " → "),
        node.name,
      ),
    h("ul", { class: "steps" }, lines),
  );
}

function remarkSection(app, remarks) {
  return remarks.length
    ? section(
        "Remarks",
        remarks.map((r) =>
          h(
            "div",
            { class: "remark" },
            h("b", {}, r.code || "remark"),
            ` ${r.text} `,
            h("span", { class: "quiet" }, `(${r.pass || app.model.stages[r.stage].name})`),
          ),
        ),
      )
    : null;
}
