// The control log with its authors, and the bad samples with their reasons.

import { get } from "./api.js";
import { byId, el, setText } from "./dom.js";
import { clock, count, short, size, temperature } from "./format.js";

const PAGE = 40;
const SENTENCES = {
  effective_size: (entry) => `holds the effective size at ${size(entry.value)}`,
  temperature: (entry) => `holds the temperature at ${short(entry.value)}`,
  policy: (entry) => `draws by ${entry.value}`,
  release: () => "gives the effective size back to the schedule",
  schedule: (entry) => `scheduled ${size(entry.value)}`,
  round: (entry) => `selects by ${entry.value}`,
  scale: (entry) => `sets the loaders to ${count(entry.value)}`,
  pause: () => "pauses training",
  resume: () => "resumes training",
  stop: () => "asks the run to stop",
  loader_started: () => "started a loader",
  loader_lost: () => "lost a loader",
  loader_removed: () => "removed a loader",
  bad_sample: () => "substituted a bad sample",
  control_latency: (entry) => `measured a change: first batch after ${short(entry.value)} s`,
};

/** An entry of the log as a phrase that follows its author. */
export function sentence(entry) {
  const known = SENTENCES[entry.kind];
  if (known) return known(entry);
  const value = typeof entry.value === "number" ? short(entry.value) : entry.value;
  return `${entry.kind.replaceAll("_", " ")}${value === null ? "" : ` ${value}`}`;
}

export class Log {
  constructor() {
    this.older = [];
    byId("log-all").addEventListener("change", () => {
      this.older = [];
      this.refresh();
    });
    byId("log-more").addEventListener("click", () => this.more());
  }

  async fetch(extra = {}) {
    return get("log", { limit: PAGE, changes: !byId("log-all").checked, ...extra });
  }

  async refresh() {
    const { entries, more } = await this.fetch();
    const first = entries[0]?.sequence ?? Infinity;
    this.older = this.older.filter((entry) => entry.sequence < first);
    this.newest = entries;
    if (!this.older.length) byId("log-more").hidden = !more;
    this.render();
  }

  async more() {
    const first = (this.older[0] ?? this.newest[0])?.sequence;
    if (first === undefined) return;
    const { entries, more } = await this.fetch({ before: first });
    this.older = [...entries, ...this.older];
    byId("log-more").hidden = !more;
    this.render();
  }

  render() {
    const entries = [...this.older, ...this.newest].reverse();
    const rows = entries.length ? entries.map(logRow) : [el("li", { className: "empty" }, "Nobody has changed anything yet.")];
    byId("log").replaceChildren(...rows);
  }
}

function logRow(entry) {
  const inForce = entry.effective_size === null || entry.kind === "effective_size" ? "" : `, now ${size(entry.effective_size)} at temperature ${temperature(entry.temperature)}`;
  const idle = entry.in_force ? "" : " (a person's value holds)";
  const place = `window ${count(entry.window)}, step ${count(entry.step)}`;
  return el(
    "li",
    {},
    el(
      "p",
      { className: "row-line" },
      el("span", { className: "who" }, entry.author),
      el("span", {}, `${sentence(entry)}${inForce}${idle}`),
      el("time", {}, clock(entry.time)),
    ),
    el("p", { className: "row-why" }, entry.reason ? `${place}: ${entry.reason}` : place),
  );
}

/** Show the newest bad samples and their number. */
export async function refreshBadSamples() {
  const { total, samples } = await get("bad-samples", { limit: PAGE });
  setText(byId("bad-about"), total ? `${count(total)} substituted` : "");
  const none = el("li", { className: "empty" }, "None so far. A sample that fails its checks is replaced by a spare and listed here.");
  byId("bad").replaceChildren(...(samples.length ? samples.map(badRow) : [none]));
}

function badRow(sample) {
  return el(
    "li",
    {},
    el(
      "p",
      { className: "row-line" },
      el("span", { className: "row-key" }, sample.key ?? `sample ${sample.sample_id}`),
      el("time", {}, clock(sample.time)),
    ),
    el("p", { className: "row-why" }, `step ${count(sample.step)}${sample.times > 1 ? `, ${count(sample.times)} times` : ""}: ${sample.reason}`),
  );
}
