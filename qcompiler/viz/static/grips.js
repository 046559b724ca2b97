// The borders of the side panels, which can be dragged: names are longer than any width that we could choose.

const LEAST = 200,
  MOST = 0.45; // of the page

function bindGrips(app) {
  for (const side of ["left", "right"]) {
    const grip = h("div", { class: `grip ${side}`, role: "separator", "aria-orientation": "vertical", tabindex: 0, "aria-label": `Width of the ${side} panel` });
    $(side).append(grip);
    const widen = (width) => app.setWidth(side, Math.round(Math.min(innerWidth * MOST, Math.max(LEAST, width))));
    grip.addEventListener("pointerdown", (e) => {
      grip.setPointerCapture(e.pointerId);
      e.preventDefault();
    });
    grip.addEventListener("pointermove", (e) => grip.hasPointerCapture(e.pointerId) && widen(side === "left" ? e.clientX : innerWidth - e.clientX));
    grip.addEventListener("dblclick", () => app.setWidth(side, null));
    grip.addEventListener("keydown", (e) => {
      const by = { ArrowLeft: -24, ArrowRight: 24 }[e.key];
      if (!by) return;
      widen($(side).offsetWidth + (side === "left" ? by : -by));
      e.preventDefault();
      e.stopPropagation();
    });
  }
}
