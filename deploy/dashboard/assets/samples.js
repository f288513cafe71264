// Thumbnails of the prototypes and of the images that are likely now, drawn most, or hardest. Pictures are fetched with
// the token and stay in this page's memory.

import { get, imageUrl } from "./api.js";
import { byId, el, setText } from "./dom.js";
import { count, percent, short } from "./format.js";

const SHOWN = 24;
const SIDE = 96;
const LARGE_SIDE = 256;
const MOST_PICTURES = 160;
const ORDERS = {
  prototypes: { name: "Prototypes", note: (sample) => `cluster ${sample.cluster}` },
  probability: { name: "Likely now", note: (sample) => percent(sample.probability, 3) },
  times_drawn: { name: "Drawn most", note: (sample) => `${count(sample.times_drawn)} times` },
  score: { name: "Highest score", note: (sample) => short(sample.score) },
};

export class Samples {
  constructor() {
    this.order = "prototypes";
    this.pictures = new Map();
    this.nodes = new Map();
    this.tabs = Object.entries(ORDERS).map(([order, { name }]) => el("button", { type: "button", data: { order }, onclick: () => this.choose(order) }, name));
    byId("samples-tabs").append(...this.tabs);
    this.mark();
  }

  mark() {
    for (const tab of this.tabs) tab.setAttribute("aria-pressed", String(tab.dataset.order === this.order));
  }

  choose(order) {
    this.order = order;
    this.mark();
    this.refresh();
  }

  async refresh() {
    const order = this.order;
    let answer;
    try {
      answer = await get("samples/top", { by: order, k: SHOWN });
    } catch (error) {
      byId("samples").replaceChildren(el("li", { className: "quiet" }, error.message));
      return;
    }
    // Another tab was chosen while this answer was under way.
    if (order !== this.order) return;
    const empty = el("li", { className: "quiet" }, "Nothing to show yet.");
    byId("samples").replaceChildren(...(answer.samples.length ? answer.samples.map((sample) => this.thumb(sample)) : [empty]));
  }

  thumb(sample) {
    const image = el("img", { alt: "", width: SIDE, height: SIDE, loading: "lazy" });
    this.fill(image, sample.sample_id, SIDE);
    const name = `${sample.key}: ${ORDERS[this.order].note(sample)}`;
    const button = el("button", { type: "button", className: "thumb", title: name, "aria-label": name, onclick: () => this.open(sample) }, image, el("span", {}, ORDERS[this.order].note(sample)));
    return el("li", {}, button);
  }

  async fill(image, id, side) {
    const name = `${id}/${side}`;
    try {
      if (!this.pictures.has(name)) this.pictures.set(name, imageUrl(id, side));
      image.src = await this.pictures.get(name);
      await image.decode().catch(() => {});
      if (image.naturalWidth < 64) image.dataset.small = "yes";
      this.forgetOldest();
    } catch {
      this.pictures.delete(name);
      image.replaceWith(el("div", { className: "blank", title: "This image cannot be shown." }));
    }
  }

  async forgetOldest() {
    while (this.pictures.size > MOST_PICTURES) {
      const [name, url] = this.pictures.entries().next().value;
      this.pictures.delete(name);
      URL.revokeObjectURL(await url.catch(() => ""));
    }
  }

  open(sample) {
    setText(byId("sample-title"), sample.key);
    const facts = {
      "Sample": count(sample.sample_id),
      "Label": sample.label ?? "none",
      "Cluster": sample.cluster ?? "\u2013",
      "Distance": short(sample.distance),
      "Probability of a draw": short(sample.probability),
      "Times drawn": count(sample.times_drawn),
      "Score": short(sample.score),
    };
    const rows = Object.entries(facts).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, `${value}`)));
    byId("sample-facts").replaceChildren(...rows);
    const image = byId("sample-image");
    image.removeAttribute("src");
    image.alt = sample.key;
    this.fill(image, sample.sample_id, LARGE_SIDE);
    byId("sample-dialog").showModal();
  }
}
