// Histogram of the distances of all images and of the draws: those in force, and those of a drafted change.

import { bottomAxis, leftAxis, scale, ticks } from "./axes.js";
import { byId, onWidth, pathOf, setText, svg } from "./dom.js";
import { percent, size, temperature } from "./format.js";
import { isShown, massAt } from "./temperature.js";

const HEIGHT = 300;
const MARGIN = { left: 44, right: 8, top: 8, bottom: 44 };

export class Distribution {
  constructor(node) {
    this.node = node;
    this.layers = { frame: svg("g"), all: svg("g"), drawn: svg("g") };
    this.root = svg("svg", { role: "img" });
    this.root.append(...Object.values(this.layers));
    node.append(this.root);
    onWidth(node, (width) => {
      this.width = width;
      this.draw();
    });
  }

  /** @param distribution of the API; @param shape of temperature.js; @param draft {policy, temperature}, or null */
  update(distribution, shape, draft) {
    this.facts = { distribution, shape, draft: draft && draft.temperature !== null && isShown(draft.policy) ? draft : null };
    this.draw();
  }

  draw() {
    if (!this.facts?.distribution || !this.width) return;
    const { distribution, shape, draft: drafted } = this.facts;
    byId("legend-draft").hidden = !drafted || !shape;
    if (!shape) {
      this.root.setAttribute("hidden", "");
      setText(byId("distribution-note"), "This run has no distances to prototypes: its draws do not depend on them.");
      return;
    }
    const share = shape.count.map((value) => value / shape.total);
    const draft = drafted && massAt({ ...shape, policy: drafted.policy }, drafted.temperature);
    const highest = Math.max(...share, ...distribution.sampled_mass, ...(draft ?? [])) * 1.06;
    const bottom = HEIGHT - MARGIN.bottom;
    const [from, to] = [MARGIN.left, this.width - MARGIN.right];
    const x = scale([shape.edges[0], shape.edges.at(-1)], [from, to]);
    const y = scale([0, highest], [bottom, MARGIN.top]);
    this.root.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.drawFrame(x, y, { from, to, highest });
    this.layers.all.replaceChildren(...share.map((value, bin) => bar(x, y, shape.edges, bin, value, bottom)));
    const line = outline(x, y, shape.edges, distribution.sampled_mass);
    const area = `${line}V${bottom}H${from}Z`;
    this.layers.drawn.replaceChildren(svg("path", { class: "bar-drawn", d: area }), svg("path", { class: "line-drawn", d: line }));
    if (draft) this.layers.drawn.append(svg("path", { class: "line-draft", d: outline(x, y, shape.edges, draft) }));
    this.note(shape, distribution);
  }

  drawFrame(x, y, { from, to, highest }) {
    const digits = highest > 0.035 ? 0 : 1;
    const title = svg("text", { class: "axis-title", x: to, y: HEIGHT - 8, "text-anchor": "end" });
    title.textContent = "distance to the nearest prototype";
    this.layers.frame.replaceChildren(
      leftAxis(y, ticks(0, highest, 4), { from, to, label: (value) => percent(value, digits) }),
      bottomAxis(x, ticks(0, 1, 5), { at: HEIGHT - 27, from, to, label: (value) => value.toFixed(1) }),
      title,
    );
  }

  note(shape, distribution) {
    const half = shape.edges[quantileBin(distribution.sampled_mass, 0.5) + 1];
    const near = distribution.sampled_mass.slice(0, Math.ceil(shape.count.length / 4)).reduce((sum, value) => sum + value, 0);
    const text = `Half of the draws lie within ${half.toFixed(2)}; ${percent(near, 0)} fall on the nearest quarter of the range.`;
    setText(byId("distribution-note"), text);
    const inForce = `${distribution.policy}, effective size ${size(distribution.effective_size)}, temperature ${temperature(distribution.temperature)}`;
    this.root.setAttribute("aria-label", `Distances of all images and of the draws under ${inForce}. ${text}`);
  }
}

function bar(x, y, edges, bin, value, bottom) {
  const left = x(edges[bin]);
  const width = Math.max(0.5, x(edges[bin + 1]) - left - 1);
  return svg("rect", { class: "bar-all", x: left, y: y(value), width, height: Math.max(0, bottom - y(value)), rx: 1 });
}

function outline(x, y, edges, values) {
  const points = values.map((value, bin) => [x(edges[bin]), y(value)]);
  points.push([x(edges.at(-1)), y(values.at(-1))]);
  return pathOf(points, { step: true });
}

function quantileBin(mass, share) {
  let sum = 0;
  return Math.max(0, mass.findIndex((value) => (sum += value) >= share));
}
