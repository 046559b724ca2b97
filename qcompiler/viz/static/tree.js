// The tree of boxes: one per module, one per node, with repeated blocks and very long lists gathered in boxes of their own.

const ROOT_LIMIT = 60; // boxes that the page may open with
const BLOCK = 4; // nodes that make a block worth folding
const LIMIT = 150; // boxes that one layout may get

function newBox(id, label, what) {
  return { id, ids: [id], label, what, cls: "", kids: [], hidden: [], node: null, parent: null, depth: 0, index: 0 };
}

/** Weights and what is made of them alone, such as packs: the parts of a graph that do not depend on its input. */
function constantsOf(graph) {
  const found = new Set();
  for (const { name, kind, in: inputs = [] } of graph.nodes) {
    if (kind === "attr" || (inputs.length && kind !== "output" && inputs.every((input) => found.has(input)))) found.add(name);
  }
  return found;
}

function buildTree(graph, options) {
  const root = newBox("", options.title, "root"),
    modules = new Map([["", root]]);
  const constants = options.constants ? new Set() : constantsOf(graph);
  for (const node of graph.nodes) {
    const home = moduleBox(modules, node.path || "");
    if (constants.has(node.name)) {
      home.hidden.push(node);
      continue;
    }
    const leaf = newBox("n:" + node.name, shortName(node), "node");
    leaf.node = node;
    if (node.cls && node.path) home.cls = home.cls || node.cls;
    home.kids.push(leaf);
  }
  root.kids = root.kids.flatMap((kid) => simplified(kid, root));
  arrange(root, options.fold);
  link(root, null, 0);
  return { root, graph, byId: indexed(root), byNode: leaves(root), status: options.status };
}

/** "layer1_0_add" inside layer1.0 is "add". */
function shortName({ name, path }) {
  const prefix = (path || "").replaceAll(".", "_") + "_";
  return path && name.startsWith(prefix) && name.length > prefix.length ? name.slice(prefix.length) : name;
}

function moduleBox(modules, path) {
  let box = modules.get(path);
  if (!box) {
    const cutAt = path.lastIndexOf(".");
    box = newBox("m:" + path, path.slice(cutAt + 1), "module");
    modules.set(path, box);
    moduleBox(modules, cutAt < 0 ? "" : path.slice(0, cutAt)).kids.push(box);
  }
  return box;
}

/** A module of one node is that node; a module of one module is both in one box. */
function simplified(box, parent) {
  if (box.node) return [box];
  box.kids = box.kids.flatMap((kid) => simplified(kid, box));
  if (!box.kids.length) parent.hidden.push(...box.hidden);
  if (box.kids.length !== 1) return box.kids.length ? [box] : [];
  const only = box.kids[0];
  only.hidden.push(...box.hidden);
  if (only.node) only.label = box.label;
  else {
    only.label = `${box.label}.${only.label}`;
    only.ids.push(...box.ids);
  }
  return [only];
}

function arrange(box, fold) {
  for (const kid of box.kids) if (!kid.node) arrange(kid, fold);
  if (fold) box.kids = foldRuns(box);
  const limit = box.id ? LIMIT : ROOT_LIMIT;
  while (box.kids.length > limit) box.kids = chunks(box, Math.floor((limit * 2) / 3));
}

/** Same ops in the same nesting: blocks that look alike to a reader, whatever their sizes. */
function shapeOf(box) {
  box.form ??= box.node ? `${box.node.op}/${box.node.kind}${box.node.ghost ? "!" : ""}` : `${box.cls}(${box.kids.map(shapeOf).join()})`;
  return box.form;
}

/** How many nodes, weights and ghosts left out: a run of plain layers is no run of blocks. */
function bulk(box) {
  return box.node ? Number(box.node.kind !== "attr" && !box.node.ghost) : box.kids.reduce((sum, kid) => sum + bulk(kid), 0);
}

function foldRuns(box) {
  const out = [];
  for (let i = 0, end; i < box.kids.length; i = end) {
    const first = box.kids[i];
    for (end = i + 1; end < box.kids.length && !first.node && !box.kids[end].node && shapeOf(box.kids[end]) === shapeOf(first);) end++;
    if (end - i < 3 || end - i === box.kids.length || bulk(first) < BLOCK) out.push(...box.kids.slice(i, end));
    else out.push(gathered("r:" + first.id, `${first.label} – ${box.kids[end - 1].label}`, "run", box.kids.slice(i, end)));
  }
  return out;
}

function chunks(box, size) {
  const out = [];
  let done = 0;
  for (let i = 0; i < box.kids.length; i += size) {
    const kids = box.kids.slice(i, i + size),
      count = kids.reduce((sum, k) => sum + (k.items || 1), 0);
    const chunk = gathered(`c:${kids[0].id}`, `items ${done + 1}–${done + count}`, "chunk", kids);
    chunk.items = count;
    done += count;
    out.push(chunk);
  }
  return out;
}

function gathered(id, label, what, kids) {
  const box = newBox(id, label, what);
  box.kids = kids;
  box.cls = what === "run" ? kids[0].cls : "";
  return box;
}

function link(box, parent, depth) {
  box.parent = parent;
  box.depth = depth;
  box.kids.forEach((kid, i) => {
    kid.index = i;
    link(kid, box, depth + 1);
  });
}

function* every(box) {
  yield box;
  for (const kid of box.kids) yield* every(kid);
}

function indexed(root) {
  const map = new Map();
  for (const box of every(root)) if (box !== root) for (const id of box.ids) map.set(id, box);
  return map;
}

function leaves(root) {
  const map = new Map();
  for (const box of every(root)) if (box.node) map.set(box.node.name, box);
  return map;
}

/** How many boxes are seen when all above `depth` is open. */
function boxesAt(box, depth) {
  return box.node || box.depth >= depth ? 1 : box.kids.reduce((sum, kid) => sum + boxesAt(kid, depth), 0);
}

function deepest(box) {
  return box.kids.reduce((most, kid) => Math.max(most, deepest(kid)), box.depth);
}

function startDepth(root) {
  let depth = 1;
  while (depth < deepest(root) && boxesAt(root, depth + 1) <= ROOT_LIMIT) depth++;
  return depth;
}

/** Sums over all nodes inside; for a leaf, the node's own figures. */
function sums(box, model, status) {
  if (box.sums) return box.sums;
  const total = {
    ops: 0,
    params: 0,
    macs: 0,
    int8: 0,
    float: 0,
    int8Macs: 0,
    kinds: {},
    ms: 0,
    sqnr: undefined,
    saturation: undefined,
    worst: null,
    changes: tally(new Map()),
  };
  if (box.node) addNode(total, box.node, model.numerics.get(box.node.name), status && status.get(box.node.name));
  else for (const kid of box.kids) addSums(total, sums(kid, model, status));
  for (const node of box.hidden) total.params += node.ghost ? 0 : node.params || 0;
  return (box.sums = total);
}

function addNode(total, node, num, change) {
  if (change) total.changes[change]++;
  if (node.ghost) return;
  total.kinds[node.kind] = 1;
  total.params = node.params || 0;
  total.macs = node.macs || 0;
  const op = !node.step_of; // as op_steps.py counts
  total.int8 = op && node.kind === "int8" ? 1 : 0;
  total.float = op && node.kind === "float" ? 1 : 0;
  total.ops = total.int8 + total.float;
  total.int8Macs = node.kind === "int8" ? total.macs : 0;
  if (!num) return;
  total.ms = num.ms || 0;
  total.saturation = num.saturation;
  total.sqnr = num.sqnr === null ? Infinity : num.sqnr;
  total.worst = total.sqnr === undefined ? null : node.name;
}

function addSums(total, part) {
  for (const key of ["ops", "params", "macs", "int8", "float", "int8Macs", "ms"]) total[key] += part[key];
  for (const [kind, n] of Object.entries(part.kinds)) total.kinds[kind] = (total.kinds[kind] || 0) + n;
  for (const [kind, n] of Object.entries(part.changes)) total.changes[kind] += n;
  if (part.saturation !== undefined) total.saturation = Math.max(total.saturation ?? 0, part.saturation);
  if (part.sqnr !== undefined && (total.sqnr === undefined || part.sqnr < total.sqnr)) {
    total.sqnr = part.sqnr;
    total.worst = part.worst;
  }
}

/** Share of the multiply-accumulates in int8; of the compute nodes where no counts are known. */
function int8Share(total) {
  if (total.macs) return total.int8Macs / total.macs;
  return total.int8 + total.float ? total.int8 / (total.int8 + total.float) : null;
}

/**
 * Per container, the edges between its children. An edge that leaves a container goes to its "out" port, one that comes
 * in starts at its "in" port, so that each container can be laid out on its own.
 */
function localEdges(tree) {
  if (tree.edges) return tree.edges;
  tree.edges = new Map();
  const all = tree.graph.nodes.flatMap((node) => (node.in || []).map((name) => [name, node.name, Boolean(node.ghost)]));
  for (const [from, to, ghost] of [...all, ...tree.graph.ghostEdges.map((e) => [...e, true])]) {
    const a = tree.byNode.get(from),
      b = tree.byNode.get(to);
    if (a && b) addEdge(tree.edges, a, b, ghost);
  }
  return tree.edges;
}

function addEdge(edges, source, target, ghost) {
  let a = source,
    b = target;
  while (a.parent !== b.parent) {
    if (a.depth >= b.depth) {
      count(edges, a.parent, a.index, "out", source, target, ghost);
      a = a.parent;
    } else {
      count(edges, b.parent, "in", b.index, source, target, ghost);
      b = b.parent;
    }
  }
  if (a !== b) count(edges, a.parent, a.index, b.index, source, target, ghost);
}

function count(edges, box, from, to, source, target, ghost) {
  if (!edges.has(box)) edges.set(box, new Map());
  const key = `${from}>${to}`,
    inside = edges.get(box);
  const edge = inside.get(key) || { from, to, pairs: [], ghost: true };
  edge.pairs.push([source, target]);
  edge.ghost = edge.ghost && ghost;
  inside.set(key, edge);
}
