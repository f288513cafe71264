// Steering: a draft of the effective size, what it would mean, and the three answers to it: apply, discard, release.

import { post } from "./api.js";
import { byId, later, setText } from "./dom.js";
import { count, duration, size, temperature } from "./format.js";
import { LARGEST, SMALLEST } from "./curve.js";
import { temperatureFor } from "./law.js";

export class Steer {
  /** @param run what the page knows; @param hooks {changed(), solve(size), author(), applied()} */
  constructor(run, hooks) {
    this.run = run;
    this.hooks = hooks;
    this.draft = null;
    this.meaning = null;
    this.seenVersion = null;
    this.busy = false;
    this.solveLater = later((value) => this.solve(value), 140);
    this.number = byId("steer-number");
    this.number.addEventListener("input", () => this.typed());
    this.number.addEventListener("keydown", (event) => event.key === "Escape" && this.discard());
    byId("steer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.apply();
    });
    byId("discard").addEventListener("click", () => this.discard());
    byId("release").addEventListener("click", () => this.send("release", null));
  }

  /** Whether the run takes changes of its effective size now. */
  get enabled() {
    const { state, live } = this.run;
    return Boolean(live && state && !state.read_only && !this.busy && state.selection.effective_size !== null);
  }

  typed() {
    const value = this.number.valueAsNumber;
    if (Number.isFinite(value) && value >= SMALLEST && value <= LARGEST) this.move(value);
  }

  /** Draft a value. */
  move(value) {
    if (!this.enabled) return;
    if (this.draft === null) this.seenVersion = this.run.state.control.version;
    this.draft = value;
    this.say("");
    this.meaning = this.run.shape ? { value, temperature: temperatureFor(this.run.shape, value) } : null;
    this.solveLater(value);
    this.hooks.changed();
  }

  async solve(value) {
    try {
      const exact = await this.hooks.solve(value);
      if (this.draft !== value) return;
      this.meaning = { value, temperature: exact.temperature };
      this.hooks.changed();
    } catch (error) {
      if (this.draft === value) this.say(error.message, "bad");
    }
  }

  discard() {
    this.draft = this.meaning = null;
    this.say("");
    this.hooks.changed();
  }

  apply() {
    if (this.draft !== null) this.send("effective_size", Number(this.draft.toFixed(4)));
  }

  async send(kind, value) {
    if (!this.enabled) return;
    const expected = this.draft === null ? this.run.state.control.version : this.seenVersion;
    const reason = byId("steer-reason").value.trim();
    this.busy = true;
    this.hooks.changed();
    try {
      const request = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
      const body = { kind, value, author: this.hooks.author(), reason, expected_version: expected, request };
      const reply = await post("controls", body);
      this.draft = this.meaning = null;
      byId("steer-reason").value = "";
      this.say(`In force from window ${count(reply.window)}, step ${count(reply.step)}.`, "good");
      this.hooks.applied(reply);
    } catch (error) {
      this.refused(error);
    } finally {
      this.busy = false;
      this.hooks.changed();
    }
  }

  refused(error) {
    const winner = error.answer?.winner;
    if (error.status !== 409 || !winner) return this.say(error.message, "bad");
    this.seenVersion = error.answer.version;
    const what = winner.kind === "release" ? "released it" : `set ${winner.kind.replaceAll("_", " ")} to ${winner.value}`;
    this.say(`${winner.author} was faster and ${what}. Nothing changed here; apply again if you still want to.`, "bad");
    this.hooks.applied(null);
  }

  say(text, tone = "") {
    const node = byId("steer-message");
    node.className = `message ${tone}`;
    setText(node, text);
  }

  /** Show the present value, or the draft and what it means. */
  render() {
    const { state } = this.run;
    if (!state) return;
    const { selection, control } = state;
    const drafting = this.draft !== null;
    const value = drafting ? this.draft : selection.effective_size;
    const label = drafting ? "not applied yet" : selection.manual ? "held by hand" : "in force, on schedule";
    byId("steer").dataset.hand = drafting || selection.manual ? "yes" : "no";
    setText(byId("steer-label"), label);
    if (document.activeElement !== this.number || !drafting) this.number.value = value === null ? "" : size(value);
    this.number.disabled = !this.enabled;
    const images = value === null ? "this policy sets no effective size" : `about ${count(value * selection.num_samples)} of ${count(selection.num_samples)} images`;
    setText(byId("steer-meaning"), images);
    const means = drafting ? this.meaning?.temperature : selection.temperature;
    setText(byId("steer-temperature"), drafting && !this.meaning ? "\u2026" : temperature(means));
    setText(byId("steer-when"), `step ${count(control.next_step)}`);
    setText(byId("steer-bound"), boundText(state));
    byId("apply").disabled = !this.enabled || !drafting;
    byId("discard").disabled = !drafting || this.busy;
    byId("release").disabled = !this.enabled || !selection.manual;
  }
}

function boundText({ control, latency, read_only }) {
  if (read_only) return "This run is over and shown for reading; `tempera resume` continues it.";
  const seconds = control.bound_s === null ? "" : `, about ${duration(control.bound_s)}`;
  const so = latency.count ? ` The last took ${duration(latency.last_s)}.` : "";
  return `That is window ${count(control.next_window)}; batches drawn under it come after at most ${count(control.bound_steps)} steps${seconds}.${so}`;
}
