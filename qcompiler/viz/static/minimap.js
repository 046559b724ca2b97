// The whole graph in a corner, with the part that is in sight; a click or a drag goes there.

const MAP = [200, 140], // the most that it takes of the canvas
  MARKS = 600; // boxes that it draws

class Minimap {
  constructor(canvas) {
    this.canvas = canvas;
    this.frame = s("rect", { class: "frame", rx: 2 });
    this.marks = s("g", {});
    this.svg = s("svg", { id: "minimap", "aria-label": "Overview of the graph", role: "img" }, this.marks, this.frame);
    canvas.host.append(this.svg);
    this.svg.addEventListener("pointerdown", (e) => {
      this.svg.setPointerCapture(e.pointerId);
      this.go(e);
    });
    this.svg.addEventListener("pointermove", (e) => this.svg.hasPointerCapture(e.pointerId) && this.go(e));
  }

  /** Draws the placed boxes anew: those that are closed, and some of them where there are very many. */
  take(seen, painter) {
    const [w, height] = seen[0].size;
    this.scale = Math.min(MAP[0] / w, MAP[1] / height);
    fill(this.svg, { width: Math.ceil(w * this.scale), height: Math.ceil(height * this.scale) }, []);
    const boxes = seen.filter((box) => !box.open),
      every = Math.ceil(boxes.length / MARKS);
    this.marks.replaceChildren(
      ...boxes
        .filter((_, i) => i % every === 0)
        .map((box) =>
          s("rect", {
            x: box.x * this.scale,
            y: box.y * this.scale,
            width: Math.max(1, box.size[0] * this.scale),
            height: Math.max(1, box.size[1] * this.scale),
            fill: painter.colour(painter.value(box)),
          }),
        ),
    );
  }

  /** Shows what is in sight; hides itself where that is most of it. */
  follow({ x, y, k }, width, height, [w, tall]) {
    const part = (from, size, room) => Math.max(0, Math.min(room, from + size) - Math.max(0, from)) / size;
    const most = part(x, w * k, width) * part(y, tall * k, height) > 0.75;
    this.svg.classList.toggle("needless", most || width < WIDE);
    const at = { x: (-x / k) * this.scale, y: (-y / k) * this.scale, width: (width / k) * this.scale, height: (height / k) * this.scale };
    fill(this.frame, at, []);
  }

  go(e) {
    const { canvas } = this,
      at = this.svg.getBoundingClientRect();
    canvas.view.x = canvas.width / 2 - ((e.clientX - at.left) / this.scale) * canvas.view.k;
    canvas.view.y = canvas.height / 2 - ((e.clientY - at.top) / this.scale) * canvas.view.k;
    canvas.later();
  }
}
