// What is shown, kept in the URL's hash, so that a copied address shows the same.

const WIDE = 600; // of the canvas, in pixels: below this the boxes stand in one column

const SETTINGS = {
  // name in the state: [key in the hash, default, how it is read, how it is written]
  stage: ["s", null, Number, String],
  against: ["a", "none", String, String], // "none", "before", or a stage's number
  selected: ["n", "", String, String],
  depth: ["d", null, Number, String],
  opened: ["o", new Set(), readIds, writeIds], // opened below the depth
  closed: ["x", new Set(), readIds, writeIds], // closed above it
  colour: ["c", "kind", String, String],
  query: ["q", "", String, String],
  constants: ["w", false, (text) => text === "1", (on) => (on ? "1" : "0")],
  fold: ["f", true, (text) => text === "1", (on) => (on ? "1" : "0")],
  columns: ["k", true, (text) => text === "1", (on) => (on ? "1" : "0")],
  hideSame: ["h", true, (text) => text === "1", (on) => (on ? "1" : "0")],
  theme: ["t", "", String, String],
  left: ["l", "tree", String, String],
  right: ["r", "details", String, String],
  domain: ["m", null, readNumbers, (ends) => ends.join(",")],
  leftWidth: ["lw", null, Number, String],
  rightWidth: ["rw", null, Number, String],
  view: ["v", null, readNumbers, (view) => view.join(",")],
};

function readIds(text) {
  return new Set(text.split(",").filter(Boolean).map(decodeURIComponent));
}

function writeIds(ids) {
  return [...ids].map(encodeURIComponent).join(",");
}

function readNumbers(text) {
  const numbers = text.split(",").map(Number);
  return numbers.length > 1 && numbers.every(isFinite) ? numbers : null;
}

function readState() {
  const params = new URLSearchParams(location.hash.slice(1)),
    state = {};
  for (const [name, [key, standard, read]] of Object.entries(SETTINGS)) {
    const fresh = standard instanceof Set ? new Set() : standard;
    try {
      state[name] = params.has(key) ? read(params.get(key)) : fresh;
    } catch {
      state[name] = fresh; // a damaged address opens the page as if it had none
    }
  }
  return state;
}

function writeState(state) {
  const params = new URLSearchParams();
  for (const [name, [key, standard, , write]] of Object.entries(SETTINGS)) {
    const value = state[name],
      text = value === null ? "" : write(value),
      plain = standard === null ? "" : write(standard);
    if (text !== plain) params.set(key, text);
  }
  try {
    history.replaceState(null, "", "#" + params);
  } catch {
    // A page inside a sandboxed frame has no address of its own.
  }
}
