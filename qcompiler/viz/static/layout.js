// Places boxes: dagre for the inside of each open container, innermost first, never for the flat graph.

const LEAF = [196, 46],
  CLOSED = [212, 68],
  PORT = [8, 1];
const PAD = 18,
  HEAD = 34;
const GAP = 38; // between two rows, also in worker.js
const LONG = 12; // ranks that an edge may span before it is cut into two stubs
const BENDS = 4; // bends per box that one layout may get: they make dagre slow and push the boxes apart
const PATIENCE = 5000; // milliseconds before a layout is given up

class Layouter {
  constructor() {
    this.known = new Map(); // by the whole input: identical blocks are laid out once, and an opened box costs its ancestors only
    this.queue = Promise.resolve();
    this.columns = true;
    this.timeouts = 0;
    this.patience = PATIENCE;
    this.start();
  }

  start() {
    try {
      this.worker = new Worker(URL.createObjectURL(new Blob([$("worker").textContent], { type: "text/javascript" })));
    } catch {
      this.worker = null; // a viewer that forbids workers still gets columns
    }
  }

  /** Gives `box` and all open boxes in it .size, .places, .lines and .stubs. */
  async arrange(box, tree, isOpen) {
    if (box.node || !isOpen(box)) {
      box.open = false;
      box.size = box.node ? LEAF : CLOSED;
      return;
    }
    for (const kid of box.kids) await this.arrange(kid, tree, isOpen);
    const input = containerInput(box, localEdges(tree).get(box));
    const key = JSON.stringify([input.sizes, input.edges]);
    if (!this.known.has(key)) this.known.set(key, await this.layOut(input));
    const layout = this.known.get(key);
    finish(box, input, this.columns ? inColumns(input, layout) : layout);
  }

  layOut(input) {
    const next = this.queue.then(() => this.ask(input));
    this.queue = next.catch(() => {});
    return next;
  }

  ask(input) {
    if (!this.worker || isChain(input)) return column(input);
    return new Promise((resolve) => {
      const giveUp = () => {
        clearTimeout(timer);
        this.timeouts++;
        this.worker.terminate();
        this.start();
        resolve(column(input));
      };
      const timer = setTimeout(giveUp, this.patience);
      this.worker.onerror = giveUp;
      this.worker.onmessage = ({ data }) => {
        clearTimeout(timer);
        resolve(data);
      };
      this.worker.postMessage({ sizes: input.sizes, edges: input.edges });
    });
  }
}

/** Whether one path runs through all boxes: then there is nothing to arrange, and a column is what one expects to see. */
function isChain(input) {
  return (
    new Set(
      ranksOf(
        input.edges.map(([a, b]) => ({ a, b })),
        input.order,
      ),
    ).size === input.sizes.length
  );
}

/** Boxes one below the other in graph order; edges past a box run in lanes at the sides. */
function column(input) {
  const { sizes, order, edges } = input,
    places = [],
    rows = sizes.map((_, i) => i).sort((a, b) => order[a] - order[b]),
    row = [];
  let y = 0;
  rows.forEach((i, at) => {
    row[i] = at;
    places[i] = [-sizes[i][0] / 2, y];
    y += sizes[i][1] + GAP;
  });
  const lanes = [];
  return { centred: true, places, lines: edges.map(([from, to]) => besides(from, to, { sizes, places, rows, row, lanes })) };
}

function besides(from, to, { sizes, places, rows, row, lanes }) {
  const low = places[from][1] + sizes[from][1],
    high = places[to][1];
  if (row[to] === row[from] + 1)
    return [
      [0, low],
      [0, high],
    ];
  const [first, last] = [row[from], row[to]].sort((a, b) => a - b);
  let lane = lanes.findIndex((taken) => taken.every(([a, b]) => last <= a || first >= b));
  if (lane < 0) lane = lanes.push([]) - 1;
  lanes[lane].push([first, last]);
  const half = rows.slice(first, last + 1).reduce((most, i) => Math.max(most, sizes[i][0] / 2), 0);
  const x = (lane % 2 ? -1 : 1) * (half + 14 * (1 + (lane >> 1)));
  return [
    [0, low],
    [x, low + GAP / 2],
    [x, high - GAP / 2],
    [0, high],
  ];
}

/** What the worker needs: sizes and edges by number, the ports behind the children. */
function containerInput(box, edges) {
  const list = edges ? [...edges.values()] : [];
  const n = box.kids.length,
    sizes = box.kids.map((kid) => kid.size),
    order = box.kids.map((_, i) => i);
  const ports = { in: -1, out: -1 };
  for (const side of ["in", "out"]) {
    if (!list.some((e) => (side === "in" ? e.from : e.to) === side)) continue;
    ports[side] = sizes.length;
    sizes.push(PORT);
    order.push(side === "in" ? -1 : n);
  }
  const numbered = list.map((edge) => ({ edge, a: edge.from === "in" ? ports.in : edge.from, b: edge.to === "out" ? ports.out : edge.to }));
  const [kept, cut] = cutLong(numbered, order);
  const all = kept.map(({ a, b, edge }) => [a, b, edge.from === "in" || edge.to === "out" ? 1 : 2]);
  return { sizes, order, kept, cut, ports, edges: all.concat(anchors(kept, ports, n)) };
}

/** Weightless edges that keep the ports at the top and at the bottom. */
function anchors(kept, ports, n) {
  const fed = new Set(kept.map((e) => e.b)),
    feeds = new Set(kept.map((e) => e.a)),
    out = [];
  for (let i = 0; i < n; i++) {
    if (ports.in >= 0 && !fed.has(i)) out.push([ports.in, i, 0]);
    if (ports.out >= 0 && !feeds.has(i)) out.push([i, ports.out, 0]);
  }
  return out;
}

function ranksOf(numbered, order) {
  const rank = order.map(() => 0);
  const forward = numbered.filter((e) => order[e.a] < order[e.b]).sort((x, y) => order[x.a] - order[y.a]);
  for (const { a, b } of forward) rank[b] = Math.max(rank[b], rank[a] + 1);
  return rank;
}

/** [kept, cut]: edges too long to draw go; the limit shrinks until dagre has few enough bends to place. */
function cutLong(numbered, order) {
  const rank = ranksOf(numbered, order);
  const span = ({ a, b }) => Math.abs(rank[b] - rank[a]);
  let limit = LONG;
  const bends = () => numbered.reduce((sum, e) => sum + (span(e) <= limit ? Math.max(0, span(e) - 1) : 0), 0);
  while (limit > 1 && bends() > BENDS * Math.max(30, order.length)) limit--;
  return [numbered.filter((e) => span(e) <= limit), numbered.filter((e) => span(e) > limit)];
}

/** Takes the result over into the box: its size, and places relative to its own corner. */
function finish(box, input, { places, lines, centred }) {
  const n = box.kids.length,
    x = n ? [] : [0],
    y = n ? [] : [0];
  input.sizes.forEach(([width, height], i) => {
    x.push(places[i][0], places[i][0] + width);
    y.push(places[i][1], places[i][1] + height);
  });
  for (const line of lines) for (const point of line) x.push(point[0]);
  if (centred) x.push(...x.map((value) => -value)); // so that the way through runs straight
  // A port is a row of its own: the room round it is saved at the border.
  const left = Math.min(...x) - PAD,
    top = Math.min(...y) - (input.ports.in < 0 ? HEAD : HEAD - 18),
    bottom = Math.max(...y) + (input.ports.out < 0 ? PAD : 0);
  box.open = true;
  box.size = [Math.max(CLOSED[0], Math.max(...x) + PAD - left), bottom - top];
  const shift = ([px, py]) => [px - left, py - top];
  box.places = places.slice(0, n).map(shift);
  box.lines = input.kept.map(({ edge }, i) => ({ edge, points: lines[i].map(shift) }));
  box.stubs = input.cut.map(({ edge }) => edge);
}

/** Absolute places for all boxes that are seen; returns them, containers before what they hold. */
function placeAll(box, x = 0, y = 0, seen = []) {
  [box.x, box.y] = [x, y];
  seen.push(box);
  if (box.open) box.kids.forEach((kid, i) => placeAll(kid, x + box.places[i][0], y + box.places[i][1], seen));
  return seen;
}
