// The search language: words, key:value, comparisons; all must hold, a leading "-" turns one round.

const TEXT_KEYS = {
  name: (n) => n.name,
  op: (n) => n.op,
  path: (n) => n.path,
  file: (n) => n.file,
  dtype: (n) => n.dtype,
  kind: (n) => n.kind,
  cls: (n) => n.cls,
  class: (n) => n.cls,
  module: (n) => n.path,
  origin: (n) => (n.origin || []).join(" "),
  reason: (n) => n.reason && `${n.reason} ${n.reason_code || ""}`,
  shape: (n) => shapeText(n.shape).replaceAll("×", "x"),
  attrs: (n) => n.attrs,
};
const NUMBER_ALIASES = { sat: "saturation", time: "ms", dead: "dead_channels", max: "max_abs" };
const COMPARE = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b };

/** The words of a query; what stands in quotes is of one word. */
const wordsOf = (query) => query.match(/(?:[^\s"]|"[^"]*")+/g) || [];

/** A function that tells whether a node matches; null for an empty query. */
function parseQuery(query, model) {
  const tests = wordsOf(query).map((word) => parseWord(word.replaceAll('"', ""), model));
  return tests.length ? (node) => tests.every((test) => test(node)) : null;
}

/** What keeps a word of the query from filtering, in words; "" where all of them do. */
function queryProblem(query, model) {
  for (const raw of wordsOf(query)) {
    const word = raw.replace(/^-(?=.)/, ""),
      [, key, sign, value] = /^([a-z_ ]+)(<=|>=|<|>|=|:)(.*)$/i.exec(word) || [];
    if (!key) continue;
    if (!value) return `${word} is not finished: it wants ${sign === ":" ? "a text" : "a number"}`;
    if (sign === ":" && !Object.hasOwn(TEXT_KEYS, key.toLowerCase())) return `no ${key}: there is ${Object.keys(TEXT_KEYS).join(", ")}`;
    if (sign !== ":" && !isFinite(value)) return `${value} is no number`;
    if (sign !== ":" && !knownFigures(model).has((NUMBER_ALIASES[key.toLowerCase()] || key).toLowerCase())) return `no node has a number called ${key}`;
  }
  return "";
}

/** The names of numbers that a query may compare: those of nodes, of what was measured, and of overlays. */
function knownFigures(model) {
  const names = new Set(["macs", "params", "line", "scale", "zero_point"]);
  for (const figures of model.numerics.values()) for (const key of Object.keys(figures)) names.add(key);
  for (const [title] of model.overlays) names.add(title.toLowerCase());
  return names;
}

function parseWord(word, model) {
  if (word.length > 1 && word[0] === "-") {
    const inner = parseWord(word.slice(1), model);
    return (node) => !inner(node);
  }
  const compared = /^([^<>=:]+)(<=|>=|<|>|=)(-?[\d.]+(?:e[+-]?\d+)?)$/i.exec(word);
  if (compared) return numberTest(compared, model);
  const [key, ...rest] = word.split(":");
  if (rest.length && Object.hasOwn(TEXT_KEYS, key.toLowerCase())) {
    const read = TEXT_KEYS[key.toLowerCase()],
      wanted = rest.join(":").toLowerCase();
    return (node) =>
      String(read(node) ?? "")
        .toLowerCase()
        .includes(wanted);
  }
  const wanted = word.toLowerCase();
  return (node) => haystack(node).includes(wanted);
}

function numberTest([, key, sign, text], model) {
  const limit = Number(text),
    name = NUMBER_ALIASES[key.toLowerCase()] || key,
    holds = COMPARE[sign];
  return (node) => {
    const value = figure(node, name, model);
    return typeof value === "number" && holds(value, limit);
  };
}

/** A node's number of that name, wherever it stands: the node, its qparams, its numerics, an overlay. */
function figure(node, name, model) {
  const num = model.numerics.get(node.name),
    key = name.toLowerCase();
  if (num && Object.hasOwn(num, key)) return num[key] === null ? Infinity : num[key];
  if (["macs", "params", "line"].includes(key)) return node[key];
  if (node.q && ["scale", "zero_point"].includes(key)) return Array.isArray(node.q[key]) ? Math.max(...node.q[key]) : node.q[key];
  const overlay = [...model.overlays].find(([title]) => title.toLowerCase() === key);
  return overlay ? overlay[1].get(node.name) : undefined;
}

const haystacks = new WeakMap(); // a query runs on every key press

function haystack(node) {
  let text = haystacks.get(node);
  if (text === undefined) {
    text = [node.name, node.op, node.path, node.file, node.dtype, node.cls, ...(node.origin || [])].join(" ").toLowerCase();
    haystacks.set(node, text);
  }
  return text;
}
