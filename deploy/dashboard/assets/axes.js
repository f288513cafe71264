// The frame of a chart: scales, round ticks, grid lines, labels.

import { svg } from "./dom.js";

/** A linear scale from [low, high] to [from, to], with its inverse. */
export function scale([low, high], [from, to]) {
  const span = high - low || 1;
  const map = (value) => from + ((value - low) / span) * (to - from);
  map.back = (place) => low + ((place - from) / (to - from)) * span;
  return map;
}

/** About `wanted` round values in [low, high]. */
export function ticks(low, high, wanted) {
  const raw = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(raw || 1));
  const stride = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((value) => value >= raw) || raw;
  const values = [];
  for (let value = Math.ceil(low / stride - 1e-9) * stride || 0; value <= high + stride * 1e-6; value += stride) values.push(value);
  return values;
}

/** Horizontal grid lines with their labels. */
export function leftAxis(y, values, { from, to, label }) {
  const group = svg("g", { "aria-hidden": "true" });
  for (const value of values) {
    const place = Math.round(y(value)) + 0.5;
    const text = svg("text", { x: from - 8, y: place + 4, "text-anchor": "end" });
    text.textContent = label(value);
    group.append(svg("line", { class: "grid", x1: from, x2: to, y1: place, y2: place }), text);
  }
  return group;
}

/** Labels below the chart; those at the ends stay inside. */
export function bottomAxis(x, values, { at, from, to, label }) {
  const group = svg("g", { "aria-hidden": "true" });
  for (const value of values) {
    const place = x(value);
    const anchor = place > to - 24 ? "end" : place < from + 12 ? "start" : "middle";
    const text = svg("text", { x: place, y: at, "text-anchor": anchor });
    text.textContent = label(value);
    group.append(text);
  }
  return group;
}
