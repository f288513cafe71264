// Steering: a draft of one change (effective size, temperature or policy), its effect, and the buttons apply, discard,
// release.

import { post } from "./api.js";
import { byId, el, later, setText } from "./dom.js";
import { count, duration, short, size } from "./format.js";
import { LARGEST, SMALLEST } from "./curve.js";
import { effectiveSizeAt, temperatureFor } from "./temperature.js";

export class Steer {
  /** @param run the page's state; @param hooks {changed(), solve(change), author(), applied()} */
  constructor(run, hooks) {
    this.run = run;
    this.hooks = hooks;
    /** {kind, value} and its effect {size, temperature (Infinity for uniform draws), policy}, null where unknown. */
    this.draft = null;
    this.seenVersion = null;
    this.busy = false;
    this.solveLater = later((draft) => this.solve(draft), 140);
    this.number = byId("steer-number");
    this.temperature = byId("steer-temperature");
    this.policy = byId("steer-policy");
    for (const field of [this.number, this.temperature]) {
      field.addEventListener("keydown", (event) => event.key === "Escape" && this.discard());
    }
    this.number.addEventListener("input", () => this.move(this.number.valueAsNumber));
    this.temperature.addEventListener("input", () => this.heat(this.temperature.valueAsNumber));
    this.policy.addEventListener("change", () => this.choose(this.policy.value));
    byId("steer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.apply();
    });
    byId("discard").addEventListener("click", () => this.discard());
    byId("release").addEventListener("click", () => this.send("release", null));
  }

  /** Whether the run accepts changes now. */
  get enabled() {
    const { state, live } = this.run;
    return Boolean(live && state && !state.read_only && !this.busy);
  }

  /** Whether the policy in force has a temperature, and so an effective size to set. */
  get hasTemperature() {
    const { selection, control } = this.run.state;
    return control.policies[selection.policy] ?? selection.temperature !== null;
  }

  /** Draft an effective size. */
  move(value) {
    if (!(value >= SMALLEST && value <= LARGEST)) return;
    const { shape } = this.run;
    this.start({ kind: "effective_size", value, size: value, temperature: shape && temperatureFor(shape, value) });
  }

  /** Draft a temperature. */
  heat(value) {
    if (!(value > 0)) return;
    const { shape } = this.run;
    this.start({ kind: "temperature", value, size: shape && effectiveSizeAt(shape, value), temperature: value });
  }

  /** Draft a policy. */
  choose(value) {
    if (value === this.run.state.selection.policy) return this.discard();
    this.start({ kind: "policy", value, size: null, temperature: null });
  }

  start(draft) {
    if (!this.enabled) return;
    // The version from when the draft began: a change since then is a conflict to be decided by the person.
    if (this.draft === null) this.seenVersion = this.run.state.control.version;
    const policy = draft.kind === "policy" ? draft.value : this.run.state.selection.policy;
    this.draft = { ...draft, policy };
    this.say("");
    this.solveLater(this.draft);
    this.hooks.changed();
  }

  async solve(draft) {
    try {
      const exact = await this.hooks.solve({ [draft.kind]: draft.value });
      // The person has moved on; this answer is for an older draft.
      if (this.draft !== draft) return;
      this.draft = { ...draft, size: exact.effective_size, temperature: exact.temperature ?? Infinity };
      this.hooks.changed();
    } catch (error) {
      if (this.draft === draft) this.say(error.message, "bad");
    }
  }

  discard() {
    this.draft = null;
    this.say("");
    this.hooks.changed();
  }

  apply() {
    if (this.draft === null) return;
    const { kind, value } = this.draft;
    this.send(kind, kind === "effective_size" ? Number(value.toFixed(4)) : value);
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
      this.draft = null;
      const { control: known } = this.run.state;
      known.version = Math.max(known.version, reply.version); // the stream brings it only with its next state
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

  /** Show what is in force, or the draft and its effect. */
  render() {
    const { state } = this.run;
    if (!state) return;
    const { selection, control } = state;
    const drafting = this.draft !== null;
    const shown = this.draft ?? { ...selection, size: selection.effective_size };
    const label = drafting ? "not applied yet" : selection.manual ? "held by hand" : "in force, on schedule";
    byId("steer").dataset.hand = drafting || selection.manual ? "yes" : "no";
    setText(byId("steer-label"), label);
    this.show(this.number, "effective_size", shown.size === null ? "" : size(shown.size));
    this.show(this.temperature, "temperature", Number.isFinite(shown.temperature) ? short(shown.temperature) : "");
    this.showPolicies(control.policies, shown.policy);
    setText(byId("steer-meaning"), this.about(shown));
    setText(byId("steer-when"), `step ${count(control.next_step)}`);
    setText(byId("steer-bound"), boundText(state));
    byId("apply").disabled = !this.enabled || !drafting;
    byId("discard").disabled = !drafting || this.busy;
    byId("release").disabled = !this.enabled || !selection.manual;
  }

  /** Set a field's value, unless a person is typing in it. */
  show(field, kind, text) {
    const typing = document.activeElement === field && this.draft?.kind === kind;
    if (!typing && field.value !== text) field.value = text;
    field.dataset.drafted = this.draft?.kind === kind ? "yes" : "no";
    field.disabled = !this.enabled || !this.hasTemperature;
  }

  showPolicies(policies, chosen) {
    const names = [...new Set([...Object.keys(policies), chosen])];
    if (names.join() !== this.names) {
      this.names = names.join();
      this.policy.replaceChildren(...names.map((name) => el("option", { value: name }, name.replaceAll("_", " "))));
    }
    if (this.policy.value !== chosen) this.policy.value = chosen;
    this.policy.dataset.drafted = this.draft?.kind === "policy" ? "yes" : "no";
    this.policy.disabled = !this.enabled;
  }

  about({ size: share }) {
    if (share === null) return this.draft ? "" : "the effective size of this policy is not known";
    const { num_samples: images } = this.run.state.selection;
    return `about ${count(share * images)} of ${count(images)} images`;
  }
}

function boundText({ control, latency, read_only }) {
  if (read_only) return "This run is over and shown for reading; `tempera resume` continues it.";
  const seconds = control.bound_s === null ? "" : `, about ${duration(control.bound_s)}`;
  const so = latency.count ? ` The last took ${duration(latency.last_s)}.` : "";
  return `That is window ${count(control.next_window)}; batches drawn under it come after at most ${count(control.bound_steps)} steps${seconds}.${so}`;
}
