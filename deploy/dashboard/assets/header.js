// The head of the page: name, progress, speed, and whether the run still answers.

import { byId, el, pathOf, setText, svg } from "./dom.js";
import { count, duration, percent, short } from "./format.js";

const TREND = 120;
const FACTS = [
  { name: "Step", of: (progress) => [count(progress.step), `of ${count(progress.total_steps)}`] },
  { name: "Time left", of: (progress) => [duration(progress.eta_s), ""] },
  { name: "Images per second", of: (progress) => [count(progress.images_per_s), ""], trend: "images_per_s" },
  { name: "Waiting for data", of: (progress) => [percent(progress.data_wait), ""], trend: "data_wait" },
  { name: "Loss", of: (progress) => [short(progress.loss), ""], trend: "loss" },
];
const LINK = { live: "live", stale: "stale", connecting: "connecting", refused: "token refused", over: "over", paused: "paused", stopping: "stopping" };

export class Header {
  constructor() {
    this.values = FACTS.map((fact) => {
      const [value, note] = [el("span"), el("small")];
      const line = fact.trend ? svg("path") : null;
      const spark = line ? svg("svg", { class: "spark", viewBox: "0 0 100 26", preserveAspectRatio: "none", "aria-hidden": "true" }, line) : null;
      byId("facts").append(el("div", { className: "fact" }, el("dt", {}, fact.name), el("dd", {}, value, note), spark));
      return { fact, value, note, line };
    });
  }

  /** @param state of the API; @param rows the newest lines of metrics */
  update(state, rows) {
    const { run, progress, selection } = state;
    setText(byId("run-name"), run.name);
    setText(byId("run-about"), `${run.method}, ${selection.policy}, ${count(selection.num_samples)} images`);
    document.title = `${run.name} \u00b7 ${count(progress.step)} of ${count(progress.total_steps)} \u00b7 Tempera`;
    const share = progress.total_steps ? progress.step / progress.total_steps : 0;
    byId("progress-done").style.width = `${(100 * share).toFixed(2)}%`;
    byId("progress").setAttribute("aria-valuenow", (100 * share).toFixed(0));
    for (const { fact, value, note, line } of this.values) {
      const [shown, more] = fact.of(progress);
      setText(value, shown);
      setText(note, more);
      if (line) line.setAttribute("d", sparkline(rows, fact.trend));
    }
  }

  /** @param link one of LINK; @param age seconds since the last answer; @param ended whether the run was about to end */
  connection(link, age, ended) {
    const pill = byId("link");
    pill.dataset.state = link;
    setText(byId("link-text"), LINK[link]);
    const stale = link === "stale";
    document.body.classList.toggle("stale", stale);
    byId("stale").hidden = !stale;
    const end = "The run has ended, or its process has. `tempera dashboard RUN_DIR` shows it for reading.";
    const silence = `No answer for ${duration(age)}. The page shows the last state and keeps trying.`;
    if (stale) setText(byId("stale"), ended ? end : silence);
  }
}

function sparkline(rows, name) {
  const values = rows.map((row) => row[name]).filter((value) => typeof value === "number").slice(-TREND);
  if (values.length < 2) return "";
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const span = high - low || 1;
  return pathOf(values.map((value, at) => [(100 * at) / (values.length - 1), 25 - (24 * (value - low)) / span]));
}
