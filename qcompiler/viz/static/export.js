// The present view as SVG, PNG or JSON.

// What the stylesheet says has to stand in the file itself.
const DRAWN = [
  "fill",
  "stroke",
  "stroke-width",
  "stroke-dasharray",
  "font-family",
  "font-size",
  "font-weight",
  "text-anchor",
  "opacity",
  "fill-opacity",
  "paint-order",
  "visibility",
];

const DRAWN_PARTS = "defs *, .frames *, .edges *, .stubs *, .boxes *";

/** A free-standing SVG of all boxes as they are open now. */
function svgText(canvas) {
  const [w, height] = canvas.tree.root.size,
    classes = canvas.svg.getAttribute("class");
  canvas.svg.setAttribute("class", "canvas"); // all of it, at full detail, however far away it is seen
  canvas.wholly(true);
  const copy = s("svg", {
    xmlns: SVG,
    viewBox: `0 0 ${Math.ceil(w)} ${Math.ceil(height)}`,
    width: Math.ceil(w),
    height: Math.ceil(height),
  });
  copy.append(
    s("rect", { width: "100%", height: "100%", fill: getComputedStyle(document.body).backgroundColor }),
    canvas.svg.querySelector("defs").cloneNode(true),
    ...canvas.scene.cloneNode(true).children,
  );
  const sources = canvas.svg.querySelectorAll(DRAWN_PARTS),
    targets = copy.querySelectorAll(DRAWN_PARTS);
  sources.forEach((source, i) => inlineStyle(source, targets[i]));
  canvas.wholly(false);
  canvas.svg.setAttribute("class", classes);
  for (const hit of copy.querySelectorAll(".hit")) hit.remove();
  return new XMLSerializer().serializeToString(copy);
}

function inlineStyle(source, target) {
  const style = getComputedStyle(source);
  if (style.display === "none") target.setAttribute("display", "none");
  for (const name of DRAWN) {
    const value = style.getPropertyValue(name);
    if (value && value !== "normal") target.setAttribute(name, value);
  }
  for (const name of ["class", "data-id", "data-jump", "role", "aria-label"]) target.removeAttribute(name);
}

function save(name, blob) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const fileName = (model, stage, ending) => `${model.title.replace(/[^\w.-]+/g, "_").slice(0, 60) || "graph"}-${stage}.${ending}`;

async function savePng(canvas, name) {
  const image = new Image(),
    [w, height] = canvas.tree.root.size;
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(svgText(canvas));
  await image.decode();
  const scale = Math.min(2, 12000 / w, 12000 / height, Math.sqrt(1e8 / (w * height))); // larger canvases come out empty
  const bitmap = h("canvas", { width: Math.ceil(w * scale), height: Math.ceil(height * scale) });
  bitmap.getContext("2d").drawImage(image, 0, 0, bitmap.width, bitmap.height);
  save(name, await new Promise((done) => bitmap.toBlob(done, "image/png")));
}
