// Elements are built from text, not from markup: a sample key, a reason or an author can never become a script.

const SVG = "http://www.w3.org/2000/svg";

/** The element of an id; the page has it. */
export function byId(id) {
  return document.getElementById(id);
}

/** An HTML element with properties, data attributes and children; strings become text. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "data") Object.assign(node.dataset, value);
    else if (name.startsWith("aria-") || name === "role") node.setAttribute(name, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null) node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

/** An SVG element with attributes and children. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** Replace what an element shows, unless it would show the same text. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** A path through points [[x, y], ...]; `step` keeps each y until the next x. */
export function pathOf(points, { step = false } = {}) {
  return points
    .map(([x, y], at) => {
      if (at === 0) return `M${x.toFixed(1)} ${y.toFixed(1)}`;
      return step ? `H${x.toFixed(1)}V${y.toFixed(1)}` : `L${x.toFixed(1)} ${y.toFixed(1)}`;
    })
    .join("");
}

/** Call with the width of an element now and whenever it changes. */
export function onWidth(node, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (node.clientWidth && node.clientWidth !== width) {
      width = node.clientWidth;
      draw(width);
    }
  }).observe(node);
}

/** A function that runs once, some time after its last call. */
export function later(action, milliseconds) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), milliseconds);
  };
}
