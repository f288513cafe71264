// The effective-size curve: the past, the schedule, and a handle that changes the present value. The handle is a slider:
// it can be dragged, and moved with the arrow keys.

import { bottomAxis, leftAxis, scale, ticks } from "./axes.js";
import { el, onWidth, pathOf, svg } from "./dom.js";
import { count, size, temperature } from "./format.js";

export const SMALLEST = 0.01;
export const LARGEST = 0.632;
const STRIDE = 0.005;
const PAGE = 0.05;
const TOP = 0.7;
const OFF_SCHEDULE = 0.004;
const MARGIN = { left: 40, right: 14, top: 10, bottom: 26 };

/** The nearest size that the handle can have. */
export function snapped(value) {
  return Math.min(LARGEST, Math.max(SMALLEST, Math.round(value / STRIDE) * STRIDE));
}

/** The value of a piecewise constant or linear series at a step; null before its first point. */
function at(series, step, { linear = false } = {}) {
  let low = 0;
  let high = series.length - 1;
  if (high < 0 || step < series[0][0]) return null;
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (series[middle][0] <= step) low = middle;
    else high = middle - 1;
  }
  const next = series[low + 1];
  if (!linear || !next) return series[low][1];
  const share = (step - series[low][0]) / (next[0] - series[low][0]);
  return series[low][1] + share * (next[1] - series[low][1]);
}

export class Curve {
  /** @param node where to draw; @param actions {move(value), apply(), discard()} what the handle does */
  constructor(node, actions) {
    this.node = node;
    this.actions = actions;
    this.view = null;
    this.back = svg("g");
    this.lines = svg("g");
    this.marks = svg("g");
    this.handle = this.makeHandle();
    this.root = svg("svg", { role: "group", "aria-label": "Effective dataset size by optimizer step" });
    this.root.append(this.back, this.lines, this.marks, this.handle);
    this.tip = el("p", { className: "tip", hidden: true });
    node.append(this.root, this.tip);
    this.root.addEventListener("pointermove", (event) => this.hover(event));
    this.root.addEventListener("pointerleave", () => this.endHover());
    onWidth(node, (width) => {
      this.width = width;
      this.draw();
    });
  }

  /** Show a view: {past, scheduled, manual, step, total, nextStep, value, draft, enabled}. */
  update(view) {
    this.view = view;
    this.draw();
  }

  makeHandle() {
    const handle = svg("g", {
      class: "handle",
      role: "slider",
      tabindex: "0",
      "aria-label": "Effective dataset size",
      "aria-orientation": "vertical",
      "aria-valuemin": SMALLEST,
      "aria-valuemax": LARGEST,
      "aria-disabled": "true",
    });
    handle.append(
      svg("circle", { class: "reach", r: 28 }),
      svg("circle", { class: "halo", r: 17 }),
      svg("circle", { class: "knob", r: 10 }),
      svg("path", { class: "arrows", d: "M-3 -2.4L0 -5.2L3 -2.4M-3 2.4L0 5.2L3 2.4" }),
    );
    handle.addEventListener("pointerdown", (event) => this.grab(event));
    handle.addEventListener("keydown", (event) => this.key(event));
    return handle;
  }

  grab(event) {
    if (!this.view?.enabled || event.button > 0) return;
    event.preventDefault();
    this.handle.focus({ preventScroll: true });
    this.handle.setPointerCapture(event.pointerId);
    this.endHover();
    const move = (moved) => {
      const place = moved.clientY - this.root.getBoundingClientRect().top;
      this.actions.move(snapped(this.y.back(place)));
    };
    this.handle.addEventListener("pointermove", move);
    const drop = () => this.handle.removeEventListener("pointermove", move);
    this.handle.addEventListener("lostpointercapture", drop, { once: true });
  }

  key(event) {
    if (!this.view?.enabled) return;
    const now = this.view.draft ?? this.view.value;
    const moves = {
      ArrowUp: now + STRIDE,
      ArrowRight: now + STRIDE,
      ArrowDown: now - STRIDE,
      ArrowLeft: now - STRIDE,
      PageUp: now + PAGE,
      PageDown: now - PAGE,
      Home: SMALLEST,
      End: LARGEST,
    };
    if (event.key in moves) this.actions.move(snapped(moves[event.key]));
    else if (event.key === "Enter") this.actions.apply();
    else if (event.key === "Escape") this.actions.discard();
    else return;
    event.preventDefault();
  }

  draw() {
    if (!this.view || !this.width) return;
    const { total, nextStep, step } = this.view;
    const height = this.height();
    const [from, to] = [MARGIN.left, this.width - MARGIN.right];
    const bottom = height - MARGIN.bottom;
    this.x = scale([0, Math.max(total, nextStep)], [from, to]);
    this.y = scale([0, TOP], [bottom, MARGIN.top]);
    this.root.setAttribute("viewBox", `0 0 ${this.width} ${height}`);
    const lag = { class: "lag", x: this.x(step), width: Math.max(0, this.x(nextStep) - this.x(step)) };
    this.back.replaceChildren(
      svg("rect", { ...lag, y: MARGIN.top, height: bottom - MARGIN.top }),
      leftAxis(this.y, ticks(0, TOP, 7), { from, to, label: (value) => value.toFixed(1) }),
      bottomAxis(this.x, ticks(0, total, this.width / 110), { at: height - 6, from, to, label: count }),
      svg("line", { class: "now", x1: this.x(step), x2: this.x(step), y1: MARGIN.top, y2: bottom }),
    );
    this.drawLines(bottom);
    this.drawHandle();
  }

  /** As tall as the form beside the chart; where the form is below it, by the width alone. */
  height() {
    const beside = this.node.nextElementSibling;
    const level = beside && beside.offsetTop === this.node.offsetTop ? beside.offsetHeight : 0;
    return Math.round(Math.max(Math.min(400, Math.max(240, this.width * 0.44)), Math.min(level, 440)));
  }

  drawLines(bottom) {
    const { past, scheduled, nextStep } = this.view;
    const drawn = past.filter(([, value]) => value !== null);
    const points = drawn.map(([step, value]) => [this.x(step), this.y(Math.min(value, TOP))]);
    this.lines.replaceChildren();
    this.lines.append(svg("path", { class: "curve-planned", d: pathOf(scheduled.map(([step, value]) => [this.x(step), this.y(value)])) }));
    if (!points.length) return;
    points.push([Math.max(points.at(-1)[0], this.x(nextStep)), points.at(-1)[1]]);
    const line = pathOf(points, { step: true });
    const area = `${line}V${bottom}H${points[0][0].toFixed(1)}Z`;
    this.lines.append(svg("path", { class: "curve-area", d: area }), svg("path", { class: "curve-past", d: line }));
    this.lines.append(...this.heldStretches(drawn, nextStep));
  }

  /** The stretches where a person's value, not the schedule's, was in force. */
  heldStretches(drawn, nextStep) {
    const stretches = [];
    let open = null;
    drawn.forEach(([step, value], position) => {
      const planned = at(this.view.scheduled, step, { linear: true });
      const held = planned !== null && Math.abs(planned - value) > OFF_SCHEDULE;
      const end = drawn[position + 1]?.[0] ?? nextStep;
      const stretch = [step, end].map((side) => [this.x(side), this.y(Math.min(value, TOP))]);
      if (held && open) open.push(...stretch);
      else if (held) stretches.push((open = stretch));
      else open = null;
    });
    return stretches.map((points) => svg("path", { class: "curve-hand", d: pathOf(points) }));
  }

  drawHandle() {
    const { value, draft, nextStep, total, manual, enabled } = this.view;
    const shown = draft ?? value;
    const place = this.y(Math.min(shown ?? 0, TOP));
    this.marks.replaceChildren();
    this.handle.toggleAttribute("hidden", shown === null);
    this.handle.setAttribute("aria-disabled", String(!enabled));
    if (shown === null) return;
    const [x, y, end] = [this.x(nextStep), place, this.x(total)];
    if (draft !== null) this.marks.append(svg("line", { class: "curve-draft", x1: x, x2: end, y1: y, y2: y }));
    else if (manual) this.marks.append(svg("line", { class: "curve-held", x1: x, x2: end, y1: y, y2: y }));
    this.handle.setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
    this.handle.dataset.hand = manual || draft !== null ? "yes" : "no";
    this.handle.setAttribute("aria-valuenow", shown.toFixed(3));
    const meaning = draft === null ? "in force" : "not applied yet";
    this.handle.setAttribute("aria-valuetext", `${shown.toFixed(3)} of the data, ${meaning}`);
  }

  hover(event) {
    if (!this.view || event.pointerType === "touch" || event.buttons) return;
    const box = this.root.getBoundingClientRect();
    const step = Math.round(this.x.back(event.clientX - box.left));
    if (step < 0 || step > this.view.total || this.handle.contains(event.target)) return this.endHover();
    const { past, scheduled, nextStep } = this.view;
    const planned = size(at(scheduled, step, { linear: true }));
    const entry = step < nextStep ? past.findLast(([first]) => first <= step) : null;
    const inForce = entry ? `${size(entry[1])}, temperature ${temperature(entry[2])}` : `schedule ${planned}`;
    this.tip.hidden = false;
    this.tip.textContent = `step ${count(step)}: ${inForce}`;
    const left = Math.min(event.clientX - box.left + 12, this.width - this.tip.offsetWidth - 4);
    this.tip.style.left = `${Math.max(0, left)}px`;
    this.tip.style.top = `${Math.max(0, event.clientY - box.top - 36)}px`;
  }

  endHover() {
    this.tip.hidden = true;
  }
}
