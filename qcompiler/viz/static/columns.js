// Cuts a tall container into columns beside each other: a network is a long chain, and a screen is wide.

const TALL = 900, // below this height a container stays one column
  SHAPE = 1.6, // width over height that the columns together aim at
  ASIDE = 64, // between two columns, where the edges from one to the next run up
  CROSSING = 3; // edges that a cut may go through

/** The layout of a container in columns, or as it was given where it is not tall or has no narrow place to cut. */
function inColumns(input, layout) {
  const bands = bandsOf(input, layout);
  if (!bands.length) return layout;
  const height = bands.at(-1).low - bands[0].high,
    width = widthOf(input, layout);
  const wanted = Math.min(bands.length, Math.round(Math.sqrt((SHAPE * height) / (width + ASIDE))));
  if (height < TALL || wanted < 2) return layout;
  const starts = cuts(bands, height / wanted);
  return starts.length > 1 ? besideEachOther(input, layout, bands, starts) : layout;
}

/** Rows that no box reaches out of, from above: {high, low, boxes, crossing}, crossing the edges that pass above it. */
function bandsOf({ sizes, ports, kept }, { places, lines }) {
  const isPort = (i) => i === ports.in || i === ports.out,
    boxes = places.map((_, i) => i).filter((i) => !isPort(i));
  boxes.sort((a, b) => places[a][1] - places[b][1]);
  const bands = [];
  for (const i of boxes) {
    const high = places[i][1],
      low = high + sizes[i][1],
      last = bands.at(-1);
    if (last && high < last.low) {
      last.boxes.push(i);
      last.low = Math.max(last.low, low);
    } else bands.push({ high, low, boxes: [i] });
  }
  for (const band of bands)
    band.crossing = kept.filter((_, i) => lines[i][0][1] < band.high && lines[i].at(-1)[1] >= band.high - 1).length;
  return bands;
}

function widthOf({ sizes, kept }, { places, lines }) {
  const x = kept.flatMap((_, i) => lines[i].map((point) => point[0])).concat(...places.map(([left], i) => [left, left + sizes[i][0]]));
  return Math.max(...x) - Math.min(...x);
}

/** The bands that begin a column, each column as near to `due` high as the narrow places allow. */
function cuts(bands, due) {
  const starts = [0];
  for (;;) {
    const from = bands[starts.at(-1)].high,
      rest = bands.at(-1).low - from;
    if (rest < due * 1.35) return starts;
    let best = null,
      least = due * 0.6;
    for (let i = starts.at(-1) + 1; i < bands.length; i++) {
      if (bands[i].crossing > CROSSING) continue;
      const off = Math.abs(bands[i - 1].low - from - due) + due * 0.12 * (bands[i].crossing - 1);
      if (off < least) [best, least] = [i, off];
    }
    if (best === null) return starts;
    starts.push(best);
  }
}

function besideEachOther(input, { places, lines }, bands, starts) {
  const { sizes, ports, kept, edges } = input,
    columnOf = [];
  bands.forEach((band, at) => band.boxes.forEach((i) => (columnOf[i] = starts.findLastIndex((start) => start <= at))));
  if (ports.in >= 0) columnOf[ports.in] = 0;
  if (ports.out >= 0) columnOf[ports.out] = starts.length - 1;
  const inside = (i) => columnOf[edges[i][0]] === columnOf[edges[i][1]],
    moves = movesOf(input, { places, lines }, bands, starts, columnOf, inside),
    move = ([x, y], column) => [x + moves[column][0], y + moves[column][1]];
  const moved = places.map((place, i) => move(place, columnOf[i])),
    bottom = Math.max(...moved.map(([, y], i) => (i === ports.out ? -Infinity : y + sizes[i][1])));
  if (ports.in >= 0) moved[ports.in][1] = places[ports.in][1];
  if (ports.out >= 0) moved[ports.out][1] = bottom + GAP;
  const lanes = starts.map(() => 0),
    above = (i) => [moved[i][0] + sizes[i][0] / 2, moved[i][1]],
    below = (i) => [moved[i][0] + sizes[i][0] / 2, moved[i][1] + sizes[i][1]];
  const laid = lines.map((line, i) => {
    const [a, b] = edges[i];
    if (i >= kept.length) return []; // an anchor is not drawn
    if (b === ports.out) return [below(a), [below(a)[0], bottom], [below(a)[0], bottom + 6], above(b)]; // straight down, past the other columns
    if (inside(i)) return line.map((point) => move(point, columnOf[a]));
    const lane = moves[columnOf[b]].left - ASIDE / 2 + 9 * ((lanes[columnOf[b]]++ % 5) - 2);
    return [below(a), [lane, below(a)[1]], [lane, above(b)[1]], above(b)];
  });
  return { places: moved, lines: laid };
}

/** By column: how far its boxes move, and where it begins. */
function movesOf({ sizes, kept, edges }, { places, lines }, bands, starts, columnOf, inside) {
  const moves = [];
  let at = 0;
  starts.forEach((start, column) => {
    const x = bands.slice(start, starts[column + 1]).flatMap((band) => band.boxes.flatMap((i) => [places[i][0], places[i][0] + sizes[i][0]]));
    kept.forEach((_, i) => inside(i) && columnOf[edges[i][0]] === column && x.push(...lines[i].map((point) => point[0])));
    const left = Math.min(...x);
    moves.push(Object.assign([at - left, bands[0].high - bands[start].high], { left: at }));
    at += Math.max(...x) - left + ASIDE;
  });
  return moves;
}
