// What colours mean. The tables KINDS, CATEGORIES, SCALE and NONE are those of viz/colors.py, which the page puts before this.

const number = (id, title, unit, read, worst) => ({ id, title, unit, read, worst, numeric: true });
const lowest = (a, b) => Math.min(a, b),
  highest = (a, b) => Math.max(a, b),
  total = (a, b) => a + b;

/** All colourings that this document has values for. `read` gives a node's value, `worst` joins two for a closed box. */
function colourings(model) {
  const num = (key) => (node) => {
    const entry = model.numerics.get(node.name),
      value = entry ? entry[key] : undefined;
    return value === null && (key === "sqnr" || key === "own") ? Infinity : (value ?? undefined);
  };
  const has = (key) => [...model.numerics.values()].some((entry) => entry[key] !== undefined);
  const list = [
    { id: "kind", title: "int8 / float", read: (n) => n.kind || "other" },
    { id: "dtype", title: "dtype", read: (n) => n.dtype || "none" },
    { id: "module", title: "module", read: (n) => (n.path || "").split(".").slice(0, 2).join(".") || "(top)" },
  ];
  if (has("sqnr")) list.push(number("sqnr", "SQNR", "dB", num("sqnr"), lowest));
  if (has("own")) list.push(number("own", "SQNR, own share", "dB", num("own"), lowest));
  if (has("saturation")) list.push(number("saturation", "saturation", "", num("saturation"), highest));
  if (has("ms")) list.push(number("ms", "time", "ms", num("ms"), total));
  for (const [title, values] of model.overlays) list.push(number("o:" + title, title, "", (n) => values.get(n.name), highest));
  return list;
}

/** One colouring over one tree: the colour and the text of each box, and what the legend shows. */
class Painter {
  constructor(colouring, tree, domain) {
    this.colouring = colouring;
    this.values = new Map();
    this.dark = isDark();
    if (colouring.numeric) this.setDomain(tree, domain);
    else this.setCategories(tree);
  }

  setDomain(tree, domain) {
    this.found = extent(tree.graph.nodes.map(this.colouring.read));
    this.domain = domain || this.found;
  }

  setCategories(tree) {
    this.counts = new Map();
    for (const node of tree.graph.nodes) {
      if (node.ghost || !tree.byNode.has(node.name)) continue;
      const value = this.colouring.read(node);
      this.counts.set(value, (this.counts.get(value) || 0) + 1);
    }
    const names = [...this.counts.keys()];
    if (this.colouring.id !== "module") names.sort();
    this.palette = new Map(
      names.map((name, i) => [
        name,
        this.colouring.id === "kind" ? KINDS[name] || NONE : name === "none" ? NONE : CATEGORIES[i % CATEGORIES.length],
      ]),
    );
  }

  /** The node's value, or for a container the worst (numbers) or the most frequent one (categories). */
  value(box) {
    if (!this.values.has(box)) this.values.set(box, box.node ? this.colouring.read(box.node) : this.combined(box));
    return this.values.get(box);
  }

  combined(box) {
    const values = box.kids.map((kid) => this.value(kid)).filter((v) => v !== undefined);
    if (!values.length) return undefined;
    if (this.colouring.numeric) return values.reduce(this.colouring.worst);
    const parts = [...this.parts(box)],
      computing = this.colouring.id === "kind" ? parts.filter(([kind]) => kind === "int8" || kind === "float") : [];
    const [first] = (computing.length ? computing : parts).sort((a, b) => b[1] - a[1]);
    return first && first[0];
  }

  /** How often each category occurs inside. */
  parts(box) {
    if (box.parts && box.parts.by === this) return box.parts.map;
    const map = new Map();
    if (box.node && !box.node.ghost) map.set(this.value(box), 1);
    else for (const kid of box.kids) for (const [value, n] of this.parts(kid)) map.set(value, (map.get(value) || 0) + n);
    box.parts = { by: this, map };
    return map;
  }

  colour(value) {
    if (value === undefined) return NONE;
    if (!this.colouring.numeric) return this.palette.get(value) || NONE;
    const [low, high] = this.domain,
      at = high > low ? (Math.min(value, high) - low) / (high - low) : 0.5;
    return ramp(Math.min(1, Math.max(0, at)));
  }

  /** A quiet tint of the colour to write on. */
  tint(colour, share) {
    return mix(colour, this.dark ? PAPER.dark : PAPER.light, share);
  }

  text(box) {
    const value = this.value(box);
    return this.colouring.numeric && value !== undefined ? `${short(value)}${this.colouring.unit && " " + this.colouring.unit}` : "";
  }
}

function extent(values) {
  const real = values.filter((v) => typeof v === "number" && isFinite(v));
  return real.length ? [real.reduce(lowest), real.reduce(highest)] : [0, 1];
}

const bytes = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

function mix(a, b, share) {
  const [p, q] = [bytes(a), bytes(b)];
  return (
    "#" +
    p
      .map((v, i) =>
        Math.round(v * share + q[i] * (1 - share))
          .toString(16)
          .padStart(2, "0"),
      )
      .join("")
  );
}

function ramp(at) {
  const place = at * (SCALE.length - 1),
    i = Math.min(SCALE.length - 2, Math.floor(place));
  return mix(SCALE[i + 1], SCALE[i], place - i);
}

const isDark = () => document.documentElement.dataset.theme === "dark";

/** "light", "dark", or "" for what the system prefers. */
function applyTheme(theme) {
  document.documentElement.dataset.theme = theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}
