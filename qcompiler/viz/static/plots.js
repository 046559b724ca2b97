// Small plots of the details: channel scales and histograms.

/** One bar per channel: uneven scales are seen at once. */
function sparkline(values) {
  const most = values.reduce(highest),
    width = 296,
    height = 40,
    n = Math.min(values.length, width);
  const bars = Array.from({ length: n }, (_, i) =>
    values
      .slice(
        Math.floor((i * values.length) / n),
        Math.max(Math.floor((i * values.length) / n) + 1, Math.floor(((i + 1) * values.length) / n)),
      )
      .reduce(highest),
  );
  const d = bars
    .map((v, i) => `M${(((i + 0.5) * width) / n).toFixed(1)} ${height}V${(height - (most ? v / most : 0) * (height - 2)).toFixed(1)}`)
    .join("");
  return s(
    "svg",
    { class: "plot", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${values.length} scales, largest ${short(most)}` },
    s("path", { class: "spark", d, "stroke-width": Math.max(0.8, (width / n) * 0.7).toFixed(2) }),
  );
}

/** Counts on a log scale, with the quantization grid below and the clip lines across. */
function histogram({ low, high, counts, clip, step }) {
  const width = 296,
    height = 92,
    base = 74,
    top = Math.max(...counts, 1);
  const from = Math.min(low, clip ? clip[0] : low),
    to = Math.max(high, clip ? clip[1] : high),
    range = to - from || 1;
  const x = (value) => 4 + ((value - from) / range) * (width - 8);
  const bars = counts.map((n, i) => {
    const left = x(low + ((high - low) * i) / counts.length),
      right = x(low + ((high - low) * (i + 1)) / counts.length),
      tall = n ? 2 + (Math.log1p(n) / Math.log1p(top)) * (base - 10) : 0;
    return s("rect", {
      class: "bin",
      x: left.toFixed(2),
      y: (base - tall).toFixed(2),
      width: Math.max(0.6, right - left - 0.5).toFixed(2),
      height: tall.toFixed(2),
    });
  });
  const grid = gridMarks(step, clip, x, base);
  const lines = (clip || []).map((v) =>
    s("g", { class: "clip" }, s("path", { d: `M${x(v).toFixed(1)} 4V${base + 6}` }), s("title", {}, `clipped at ${short(v)}`)),
  );
  const label = (value, anchor) => s("text", { x: anchor === "end" ? width - 2 : 2, y: height - 3, class: anchor }, short(value));
  return [
    s(
      "svg",
      {
        class: "plot",
        viewBox: `0 0 ${width} ${height}`,
        role: "img",
        "aria-label": `histogram from ${short(low)} to ${short(high)}${clip ? `, clipped at ${short(clip[0])} and ${short(clip[1])}` : ""}`,
      },
      clip && s("rect", { class: "inside", x: x(clip[0]), y: 4, width: Math.max(0, x(clip[1]) - x(clip[0])), height: base - 4 }),
      bars,
      s("path", { class: "axis", d: `M2 ${base}H${width - 2}` }),
      grid,
      lines,
      label(from, ""),
      label(to, "end"),
    ),
    h(
      "p",
      { class: "quiet" },
      [clip && `clip ${short(clip[0])} … ${short(clip[1])}`, step && `step ${short(step)}`, "counts on a log scale"]
        .filter(Boolean)
        .join(" · "),
    ),
  ];
}

function gridMarks(step, clip, x, base) {
  if (!step || !clip) return null;
  const steps = Math.round((clip[1] - clip[0]) / step);
  if (!(steps > 0 && steps < 1e6)) return null;
  const stride = Math.max(1, Math.ceil(steps / 128)); // finer than this is a grey band
  let d = "";
  for (let i = 0; i <= steps; i += stride) d += `M${x(clip[0] + i * step).toFixed(1)} ${base}v${i % (stride * 8) ? 3 : 5}`;
  return s("path", { class: "grid", d });
}
