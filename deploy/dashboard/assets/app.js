// The page: keeps the state of the run, requests what changes, and shows when the run has stopped answering.
//
// 1. The token comes from the address or from a dialog.
// 2. One stream brings the state every second and new metrics; when it ends, it is opened again after a growing pause.
// 3. Curve and distribution belong to a window: they are requested when the next window changes, the rest by a timer.
// 4. After SILENCE_S without an answer the page is marked stale, and its buttons are disabled until the next answer.

import { follow, get, keepToken, post, rememberedToken } from "./api.js";
import { Curve } from "./curve.js";
import { Distribution } from "./distribution.js";
import { byId, later, setText } from "./dom.js";
import { Header } from "./header.js";
import { shapeOf } from "./temperature.js";
import { Log, refreshBadSamples } from "./lists.js";
import { Loaders } from "./loaders.js";
import { Samples } from "./samples.js";
import { Scores } from "./scores.js";
import { Steer } from "./steer.js";

const SILENCE_S = 5;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 8000;
const METRIC_ROWS = 400;
const EVERY_MS = { samples: 15000, scores: 10000 };
const AUTHOR = "tempera-author";
const THEME = "tempera-theme";

// Many draws meet bad samples at once; one request shows them all.
const badLater = later(() => refreshBadSamples().catch(() => {}), 700);

const run = { state: null, curve: null, distribution: null, shape: null, rows: [], live: false };
const lastSeen = { at: performance.now(), link: "connecting" };
const header = new Header();
const log = new Log();
const samples = new Samples();
const scores = new Scores(byId("scores-plot"));
const distribution = new Distribution(byId("distribution-plot"));
const loaders = new Loaders({ author, say: toast, enabled: () => run.live && !run.state?.read_only });
const steer = new Steer(run, {
  author,
  changed: render,
  solve: (change) => get("solve", change),
  applied: () => Promise.allSettled([refreshWindow(), log.refresh()]),
});
const curve = new Curve(byId("curve-plot"), {
  move: (value) => steer.move(value),
  apply: () => steer.apply(),
  discard: () => steer.discard(),
});

function author() {
  return byId("author").value.trim() || "dashboard";
}

function render() {
  const { state } = run;
  if (!state) return;
  header.update(state, run.rows);
  steer.render();
  loaders.update(state.fleet);
  renderButtons(state);
  const { selection, progress, control } = state;
  if (run.curve) {
    curve.update({
      ...run.curve,
      step: progress.step,
      total: progress.total_steps,
      nextStep: control.next_step,
      value: steer.hasTemperature ? selection.effective_size : null,
      manual: selection.manual,
      draft: steer.draft?.size ?? null,
      enabled: steer.enabled && steer.hasTemperature,
    });
  }
  distribution.update(run.distribution, run.shape, steer.draft);
}

function renderButtons(state) {
  const open = run.live && !state.read_only && state.run.status !== "over";
  byId("pause").disabled = !open || state.run.status === "stopping";
  setText(byId("pause"), state.paused || state.pausing ? "Resume" : "Pause");
  byId("stop").disabled = !open || state.run.status === "stopping";
}

async function refreshWindow() {
  const [newCurve, newDistribution] = await Promise.all([get("curve"), get("distribution", { bins: 64 })]);
  run.curve = newCurve;
  run.distribution = newDistribution;
  run.shape = shapeOf(newDistribution);
  render();
}

function take(event, data) {
  if (event === "metrics") {
    run.rows = [...run.rows, ...data.rows].slice(-METRIC_ROWS);
  } else if (event === "state") {
    const before = run.state?.control;
    if (run.state && run.state.bad_samples !== data.bad_samples) badLater();
    run.state = data;
    // What is drawn changes only with a window or a control, so only then are these worth a request.
    if (before?.next_window !== data.control.next_window || before?.version !== data.control.version) {
      refreshWindow().catch(() => {});
      log.refresh().catch(() => {});
    }
  }
  render();
}

function linkOf() {
  if (lastSeen.link === "refused") return "refused";
  if (performance.now() - lastSeen.at > SILENCE_S * 1000) return "stale";
  if (!run.state) return "connecting";
  return { over: "over", paused: "paused", stopping: "stopping" }[run.state.run.status] ?? "live";
}

/** Whether the run was stopping, or at its last steps, at its last answer. */
function ending() {
  if (!run.state) return false;
  const { run: about, progress, control } = run.state;
  return about.status === "stopping" || progress.step + control.bound_steps >= progress.total_steps;
}

function watchConnection() {
  const link = linkOf();
  header.connection(link, (performance.now() - lastSeen.at) / 1000, ending());
  const live = ["live", "paused", "stopping", "over"].includes(link);
  if (live !== run.live) {
    run.live = live;
    render();
  }
}

async function load() {
  const [state, metrics] = await Promise.all([get("state"), get("metrics", { points: METRIC_ROWS }), refreshWindow()]);
  run.rows = metrics.rows;
  alive();
  take("state", state);
  await Promise.allSettled([samples.refresh(), log.refresh(), refreshBadSamples(), get("scores").then((found) => scores.update(found))]);
}

function alive() {
  lastSeen.at = performance.now();
  lastSeen.link = "live";
  watchConnection();
}

async function connect() {
  let pause = FIRST_PAUSE_MS;
  for (;;) {
    const silent = new AbortController();
    let guard = 0;
    try {
      await load();
      pause = FIRST_PAUSE_MS;
      // A connection that is cut without a word would be read forever: give it up and open another.
      guard = setInterval(() => performance.now() - lastSeen.at > 2000 * SILENCE_S && silent.abort(), 1000);
      await follow(take, alive, silent.signal);
    } catch (error) {
      if (error.status === 401) await askToken();
      else if (error.status === 429) toast(error.message);
    } finally {
      clearInterval(guard);
    }
    await new Promise((resume) => setTimeout(resume, pause));
    pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
  }
}

function askToken() {
  lastSeen.link = "refused";
  watchConnection();
  const dialog = byId("token-dialog");
  const known = sessionStorage.getItem("tempera-token");
  setText(byId("token-message"), known ? "The run refused the token that this page has." : "");
  if (!dialog.open) dialog.showModal();
  return new Promise((resume) => {
    dialog.addEventListener("close", () => {
      keepToken(byId("token").value);
      byId("token").value = "";
      lastSeen.at = performance.now();
      lastSeen.link = "connecting";
      resume();
    }, { once: true });
  });
}

function toast(text) {
  const node = byId("toast");
  setText(node, text);
  node.hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => (node.hidden = true), 5000);
}

function confirmed({ title, text, yes }) {
  const dialog = byId("confirm-dialog");
  setText(byId("confirm-title"), title);
  setText(byId("confirm-text"), text);
  setText(byId("confirm-yes"), yes);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resume) => dialog.addEventListener("close", () => resume(dialog.returnValue === "yes"), { once: true }));
}

async function command(name, said) {
  try {
    await post(name, { author: author(), reason: "" });
    toast(said);
  } catch (error) {
    toast(error.message);
  }
}

byId("pause").addEventListener("click", () => {
  const paused = run.state.paused || run.state.pausing;
  command(paused ? "resume" : "pause", paused ? "Training continues." : "The trainers pause after their present step.");
});
byId("stop").addEventListener("click", async () => {
  const text = "It writes a checkpoint first; `tempera resume` continues from there with the same sequence.";
  if (await confirmed({ title: "Stop this run?", text, yes: "Stop the run" })) command("stop", "The run was asked to stop.");
});
byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem(THEME, root.dataset.theme);
});
byId("author").value = localStorage.getItem(AUTHOR) ?? "";
byId("author").addEventListener("change", () => localStorage.setItem(AUTHOR, byId("author").value.trim()));
byId("token-dialog").addEventListener("cancel", (event) => event.preventDefault());
const theme = localStorage.getItem(THEME);
if (theme) document.documentElement.dataset.theme = theme;

rememberedToken();
setInterval(watchConnection, 500);
const clocks = { samples: () => samples.refresh(), scores: () => get("scores").then((found) => scores.update(found)) };
for (const [name, action] of Object.entries(clocks)) {
  // A page that nobody looks at costs the run nothing but the stream.
  setInterval(() => run.live && !document.hidden && action().catch(() => {}), EVERY_MS[name]);
}
connect();
