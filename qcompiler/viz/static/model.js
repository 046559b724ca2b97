// The document: its stages, and the difference between two of them.

async function readDocument() {
  const packed = Uint8Array.from(atob($("document").textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

/** The nodes of one stage in graph order. Ghosts are nodes of the stage that it is compared with. */
class Graph {
  constructor(nodes, ghostEdges = []) {
    this.nodes = nodes;
    this.byName = new Map(nodes.map((n) => [n.name, n]));
    this.ghostEdges = ghostEdges;
    this.userLists = null;
  }

  get users() {
    if (!this.userLists) {
      this.userLists = new Map();
      for (const node of this.nodes) for (const name of node.in || []) push(this.userLists, name, node.name);
    }
    return this.userLists;
  }
}

function push(map, key, value) {
  const list = map.get(key);
  if (list) list.push(value);
  else map.set(key, [value]);
}

/** What stays keeps its order; a put node stands directly behind the one that it names. */
function applyStage(nodes, stage) {
  const put = stage.put || [],
    drop = new Set(stage.drop || []);
  if (!put.length && !drop.size) return nodes;
  for (const node of put) drop.add(node.name);
  const follows = new Map(put.map((n) => [n.after ?? null, n]));
  const out = [],
    done = new Set();
  const behind = (name) => {
    for (let node = follows.get(name); node && !done.has(node); node = follows.get(node.name)) {
      done.add(node);
      out.push(node);
    }
  };
  behind(null);
  for (const node of nodes) {
    if (drop.has(node.name)) continue;
    out.push(node);
    behind(node.name);
  }
  return out.concat(put.filter((n) => !done.has(n)));
}

/** Nodes hold what a call with the example inputs multiplies; shown is one sample of these. */
function perSample(stages, count) {
  for (const stage of stages) for (const node of stage.put || []) if (node.macs) node.macs /= count;
}

class Model {
  constructor(data) {
    this.data = data;
    this.sample = data.sample || { count: 1, shape: "" };
    perSample(data.stages, this.sample.count);
    this.unit = this.sample.shape && !this.sample.shape.startsWith("(") ? "per sample" : "per call";
    this.times = data.times || {};
    this.title = String(data.title || "graph");
    this.stages = data.stages || [];
    // Maps, since a node may be named "constructor".
    this.numerics = new Map(Object.entries(data.numerics || {}));
    this.overlays = new Map(Object.entries(data.overlays || {}).map(([title, values]) => [title, new Map(Object.entries(values))]));
    this.graphs = [];
    this.history = new Map();
    this.stages.forEach((stage, i) => {
      this.graphs.push(new Graph(applyStage(i ? this.graphs[i - 1].nodes : [], stage)));
      for (const node of stage.put || []) push(this.history, node.name, { stage: i, what: "put" });
      for (const name of stage.drop || []) push(this.history, name, { stage: i, what: "drop" });
    });
    this.last = this.stages.length - 1;
    this.remarks = this.stages.flatMap((stage, i) => (stage.remarks || []).map((r) => ({ ...r, stage: i })));
  }

  /** Names that nodes of stage `to` stand for, in terms of the nodes of stage `from`. */
  replaced(from, to) {
    const found = new Map(),
      known = this.graphs[from].byName;
    for (const stage of this.stages.slice(from + 1, to + 1)) {
      for (const [name, olds] of Object.entries(stage.replaced || {})) {
        const origin = olds.flatMap((old) => (known.has(old) ? [old] : found.get(old) || []));
        if (origin.length) found.set(name, [...new Set(origin)]);
      }
    }
    return found;
  }

  /** {graph: `to` joined with the nodes gone since `from`, status by name, counts, ghosts' replacements}. */
  difference(from, to) {
    const before = this.graphs[from],
      after = this.graphs[to];
    const replaced = from < to ? this.replaced(from, to) : new Map();
    const status = new Map();
    for (const node of after.nodes) {
      const old = before.byName.get(node.name);
      if (!old) status.set(node.name, replaced.has(node.name) ? "replaced" : "added");
      else if (old !== node && !sameNode(old, node)) status.set(node.name, "changed");
    }
    const gone = before.nodes.filter((n) => !after.byName.has(n.name));
    for (const node of gone) status.set(node.name, "removed");
    return { graph: joined(before, after, gone), status, replaced, from, to };
  }

  /** How many nodes stage i added, removed, replaced and changed. */
  counts(i) {
    if (!this.countCache) this.countCache = this.stages.map(() => null);
    return (this.countCache[i] ??= i ? tally(this.difference(i - 1, i).status) : tally(new Map()));
  }
}

function tally(status) {
  const counts = { added: 0, removed: 0, replaced: 0, changed: 0 };
  for (const kind of status.values()) counts[kind]++;
  return counts;
}

/** A new place in the order alone is no change. */
const sameNode = (a, b) => JSON.stringify({ ...a, after: 0 }) === JSON.stringify({ ...b, after: 0 });

/** `after` with the gone nodes of `before` as ghosts, each behind the last node before it that stayed. */
function joined(before, after, gone) {
  if (!gone.length) return after;
  const ghosts = new Map(gone.map((n) => [n.name, { ...n, ghost: true }]));
  const behind = new Map();
  let anchor = null;
  for (const node of before.nodes) {
    if (ghosts.has(node.name)) push(behind, anchor, ghosts.get(node.name));
    else anchor = node.name;
  }
  const nodes = [...(behind.get(null) || [])];
  for (const node of after.nodes) nodes.push(node, ...(behind.get(node.name) || []));
  const edges = before.nodes
    .filter((n) => !ghosts.has(n.name))
    .flatMap((n) => (n.in || []).filter((name) => ghosts.has(name)).map((name) => [name, n.name]));
  return new Graph(nodes, edges);
}

/** The lines of a text diff: [sign, text, node]; lines far from any change are folded into one of sign "…". */
function textDiff(difference, model, context = 3) {
  const before = model.graphs[difference.from].byName,
    lines = [];
  for (const node of difference.graph.nodes) {
    const kind = difference.status.get(node.name);
    if (kind === "removed") lines.push(["-", irText(node), node]);
    else if (kind === "changed") lines.push(["-", irText(before.get(node.name)), node], ["+", irText(node), node]);
    else lines.push([kind ? "+" : " ", irText(node), node]);
  }
  return folded(lines, context);
}

function folded(lines, context) {
  const near = new Uint8Array(lines.length);
  lines.forEach(([sign], i) => {
    if (sign !== " ") near.fill(1, Math.max(0, i - context), i + context + 1);
  });
  const out = [];
  for (let i = 0; i < lines.length; i++) {
    if (near[i]) out.push(lines[i]);
    else if (out.length && out[out.length - 1][0] === "…") out[out.length - 1][1]++;
    else out.push(["…", 1, null]);
  }
  return out;
}

/** The node's IR line. */
function irText(node) {
  if (node.text) return node.text;
  const args = [...(node.in || []).map((n) => "%" + n), ...(node.attrs ? [node.attrs] : [])];
  return `%${node.name} = ${node.op}(${args.join(", ")})`;
}
