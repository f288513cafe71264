// Quantiles of the scores, one strip a kind: the middle half, the middle 98 %, the median; and the selection rounds.

import { bottomAxis, scale, ticks } from "./axes.js";
import { byId, el, onWidth, setText, svg } from "./dom.js";
import { clock, count, percent, short } from "./format.js";

const STRIP = 66;
const BAND = 20;
const AXIS = 24;

export class Scores {
  constructor(node) {
    this.node = node;
    this.root = svg("svg", { role: "img", "aria-label": "Quantiles of the scores" });
    node.append(this.root);
    onWidth(node, (width) => {
      this.width = width;
      this.draw();
    });
  }

  /** @param scores of the API */
  update(scores) {
    this.scores = scores;
    this.draw();
    const rounds = [...scores.rounds].reverse().map(roundRow);
    const none = el("li", { className: "empty" }, "No selection rounds: this run weighs every image by its policy.");
    byId("rounds").replaceChildren(...(rounds.length ? rounds : [none]));
  }

  draw() {
    if (!this.scores || !this.width) return;
    const kinds = Object.entries(this.scores.kinds);
    setText(byId("scores-about"), kinds.length ? "" : "none reported yet");
    this.root.toggleAttribute("hidden", !kinds.length);
    const height = kinds.length * (STRIP + AXIS);
    this.root.setAttribute("viewBox", `0 0 ${this.width} ${Math.max(height, 1)}`);
    this.root.replaceChildren(...kinds.map(([kind, facts], at) => this.strip(kind, facts, at * (STRIP + AXIS))));
  }

  strip(kind, { scored, quantiles }, top) {
    const values = new Map(Object.entries(quantiles).map(([share, value]) => [Number(share), value]));
    const of = (share) => values.get(share) ?? NaN;
    const [low, high] = [of(0), of(1)];
    const [from, to] = [2, this.width - 2];
    const x = scale([Math.min(0, low), high || 1], [from, to]);
    const middle = top + STRIP - BAND;
    const box = (name, first, last) => svg("rect", { class: name, x: x(of(first)), y: middle, width: Math.max(1, x(of(last)) - x(of(first))), height: BAND, rx: 5 });
    const name = svg("text", { x: 0, y: top + 12 });
    name.textContent = `${kind.toUpperCase()} of ${count(scored)} images (${percent(scored / this.scores.num_samples, 0)})`;
    const middles = svg("text", { x: 0, y: top + 28 });
    middles.textContent = `median ${short(of(0.5))}, middle half ${short(of(0.25))} to ${short(of(0.75))}`;
    return svg(
      "g",
      {},
      name,
      middles,
      svg("line", { class: "grid", x1: x(low), x2: x(high), y1: middle + BAND / 2, y2: middle + BAND / 2 }),
      box("range-wide", 0.01, 0.99),
      box("range-mid", 0.25, 0.75),
      svg("line", { class: "median", x1: x(of(0.5)), x2: x(of(0.5)), y1: middle - 3, y2: middle + BAND + 3 }),
      bottomAxis(x, ticks(Math.min(0, low), high, 5), { at: middle + BAND + 17, from, to, label: short }),
    );
  }
}

function roundRow(round) {
  return el(
    "li",
    {},
    el(
      "p",
      { className: "row-line" },
      el("span", {}, `keeps the ${count(round.kept)} hardest by ${round.kind}, from ${short(round.threshold)} up`),
      el("time", {}, clock(round.time)),
    ),
    el("p", { className: "row-why" }, `from step ${count(round.step)} on`),
  );
}
