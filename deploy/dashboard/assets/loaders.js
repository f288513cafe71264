// The loader fleet: a tile for each loader, the desired number with + and -, and who asked for it and why.

import { post } from "./api.js";
import { byId, el, setText } from "./dom.js";
import { count, percent } from "./format.js";

export class Loaders {
  /** @param hooks {author(), say(text), enabled()} */
  constructor(hooks) {
    this.hooks = hooks;
    this.tiles = new Map();
    this.desired = null;
    byId("fewer").addEventListener("click", () => this.scale(-1));
    byId("more").addEventListener("click", () => this.scale(1));
  }

  async scale(by) {
    const desired = (this.desired ?? this.fleet.desired) + by;
    this.desired = desired;
    this.update(this.fleet);
    try {
      await post("scale", { loaders: desired, author: this.hooks.author(), reason: "" });
      this.hooks.say(`Loaders: ${desired} desired.`);
    } catch (error) {
      this.hooks.say(error.message);
    } finally {
      this.desired = null;
    }
  }

  /** @param fleet of the API */
  update(fleet) {
    this.fleet = fleet;
    const desired = this.desired ?? fleet.desired;
    const open = this.hooks.enabled() && fleet.scalable !== false;
    setText(byId("desired"), count(desired));
    byId("fewer").disabled = !open || desired <= 1;
    byId("more").disabled = !open;
    const ready = fleet.members.filter((member) => member.state === "ready").length;
    const fixed = fleet.scalable === false ? " Their number is fixed in this run." : "";
    const about = `${count(ready)} of ${count(fleet.desired)} ready. ${because(fleet)}${fixed}`;
    setText(byId("fleet-reason"), fleet.desired ? about : `There are none: ${fleet.reason || "the run is over"}.`);
    const names = new Set(fleet.members.map((member) => member.name));
    for (const [name, tile] of this.tiles) {
      if (names.has(name)) continue;
      tile.root.remove();
      this.tiles.delete(name);
    }
    for (const member of fleet.members) this.tile(member.name).show(member);
  }

  tile(name) {
    if (!this.tiles.has(name)) {
      const tile = new Tile(name);
      this.tiles.set(name, tile);
      byId("loaders").append(tile.root);
    }
    return this.tiles.get(name);
  }
}

class Tile {
  constructor(name) {
    this.dot = el("span", { className: "dot", "aria-hidden": "true" });
    this.node = el("small");
    this.speed = el("span");
    this.hits = el("span");
    this.meter = el("span");
    this.restarts = el("span");
    this.root = el(
      "li",
      { className: "tile" },
      el("p", { className: "tile-head" }, this.dot, el("span", {}, name), this.node),
      el("p", { className: "tile-speed" }, this.speed, el("small", {}, "images/s")),
      el("div", { className: "meter", "aria-hidden": "true" }, this.meter),
      el("p", { className: "tile-foot" }, this.hits, this.restarts),
    );
  }

  show(member) {
    this.dot.dataset.state = member.state;
    setText(this.node, member.state === "ready" ? nodeName(member.node) : member.state);
    this.node.title = `node ${member.node ?? "unknown"}, pid ${member.pid ?? "unknown"}`;
    setText(this.speed, count(member.images_per_s));
    this.hits.title = "share of its images found decoded in the cache";
    setText(this.hits, `${percent(member.hit_rate, 0)} cached`);
    this.meter.style.width = `${100 * (member.hit_rate ?? 0)}%`;
    setText(this.restarts, member.restarts ? `${member.restarts} restart${member.restarts > 1 ? "s" : ""}` : "");
    this.restarts.className = "restarts";
    this.restarts.title = member.reason || "";
  }
}

/** Ray's node ids are long; their first characters differ. */
function nodeName(node) {
  return /^[0-9a-f]{32,}$/.test(node ?? "") ? node.slice(0, 8) : `${node ?? ""}`;
}

function because({ author, reason }) {
  if (!author) return "";
  return `${author}: ${reason || "no reason given"}.`;
}
