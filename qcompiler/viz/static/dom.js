// Making elements and texts. Data reaches the page through text nodes and attribute values only, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attrs, kids) {
  for (const [name, value] of Object.entries(attrs || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "css")
      for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v); // CSSOM: the CSP forbids style=""
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const kid of kids.flat(Infinity)) {
    if (kid === null || kid === undefined || kid === false) continue;
    node.append(kid instanceof Node ? kid : document.createTextNode(clean(String(kid))));
  }
  return node;
}

const h = (tag, attrs, ...kids) => fill(document.createElement(tag), attrs, kids);
const s = (tag, attrs, ...kids) => fill(document.createElementNS(SVG, tag), attrs, kids);
const $ = (id) => document.getElementById(id);

/** Control signs and direction marks made visible: a label must not turn the text around it. */
function clean(text) {
  return text
    .replace(/[\u0000-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g, "\ufffd");
}

/** 1234567 -> "1.23 M", 0.0123456 -> "0.01235". */
function short(x) {
  if (x === null || x === undefined) return "";
  if (x === Infinity) return "∞";
  if (typeof x !== "number" || !isFinite(x)) return String(x);
  const size = Math.abs(x);
  for (const [limit, unit] of [
    [1e12, " T"],
    [1e9, " G"],
    [1e6, " M"],
    [1e4, " k"],
  ]) {
    if (size >= limit) return String(+(x / (unit === " k" ? 1e3 : limit)).toPrecision(3)) + unit;
  }
  return String(+x.toPrecision(4));
}

const percent = (x) => (x * 100 >= 10 || x === 0 ? (x * 100).toFixed(0) : (x * 100).toFixed(x < 0.01 ? 2 : 1)) + " %";
const shapeText = (shape) => (shape ? (shape.length ? shape.join("×") : "scalar") : "");
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

const ruler = document.createElement("canvas").getContext("2d");
const fitted = new Map();

/** The text cut in its middle so that it is at most `width` wide: both ends of a long name tell things. */
function fit(text, width, font) {
  const key = `${width} ${font} ${text}`;
  if (!fitted.has(key)) fitted.set(key, cut(clean(text.slice(0, 400)), width, font));
  return fitted.get(key);
}

function cut(text, width, font) {
  ruler.font = font;
  if (ruler.measureText(text).width <= width) return text;
  let low = 1,
    high = text.length;
  const shown = (n) => text.slice(0, Math.ceil(n / 2)) + "…" + text.slice(text.length - Math.floor(n / 2));
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (ruler.measureText(shown(middle)).width <= width) low = middle;
    else high = middle - 1;
  }
  return shown(low);
}
