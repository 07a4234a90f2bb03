// SPDX-License-Identifier: Apache-2.0
// All nodes, the worst first, and how many are how.

import { el, say } from "./dom.js";
import { HEALTHS, why, worse } from "./words.js";

export function badge(health) {
  const [sign, words] = HEALTHS[health];
  return el("span", { class: `badge ${health}`, role: "img", "aria-label": words }, sign);
}

/** Return whether a node has the words of a search. */
export function found(node, search) {
  const text = [
    node.label, node.host, node.name, node.address, node.place, node.note, node.state,
    node.health, HEALTHS[node.health][1], node.figures.version, why(node),
    ...(node.figures.applications ?? []).map((one) => one.name),
  ].join("\n").toLowerCase();
  return search.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

export class List {
  constructor(root, none, choose) {
    [this.root, this.none, this.choose] = [root, none, choose];
    this.items = new Map();
  }

  /** Show these nodes. */
  take(nodes, chosen) {
    const wanted = new Set(nodes.map((node) => node.name));
    for (const [name, item] of this.items) {
      if (!wanted.has(name)) {
        item.root.remove();
        this.items.delete(name);
      }
    }
    let before = null;
    for (const node of [...nodes].sort(worse)) {
      const item = this.#item(node.name);
      this.#dress(item, node, chosen === node.name);
      const place = before ? before.nextSibling : this.root.firstChild;
      if (item.root !== place) this.root.insertBefore(item.root, place);
      before = item.root;
    }
    this.none.hidden = nodes.length > 0;
  }

  #item(name) {
    if (!this.items.has(name)) {
      const parts = {
        badge: el("span"), name: el("span", { class: "name" }), side: el("span", { class: "side" }),
        why: el("span", { class: "why" }),
      };
      const button = el("button", { type: "button", onclick: () => this.choose({ node: name }) },
        ...Object.values(parts));
      this.items.set(name, { root: el("li", {}, button), button, ...parts, health: "" });
    }
    return this.items.get(name);
  }

  #dress(item, node, chosen) {
    if (item.health !== node.health) {
      item.health = node.health;
      const made = badge(node.health);
      item.badge.replaceWith(made);
      item.badge = made;
    }
    say(item.name, node.label);
    say(item.side, node.asked ? "asked here"
      : node.hops ? `${node.hops} hop${node.hops > 1 ? "s" : ""}` : "");
    say(item.why, why(node));
    item.why.hidden = !why(node);
    item.button.setAttribute("aria-current", String(chosen));
  }
}

/** Counts that filter. */
export class Counts {
  constructor(root, changed) {
    [this.root, this.changed, this.only, this.shape] = [root, changed, null, ""];
  }

  take(nodes) {
    const counted = Object.keys(HEALTHS)
      .map((health) => [health, nodes.filter((node) => node.health === health).length])
      .filter(([health, count]) => count || health === this.only);
    const shape = JSON.stringify([counted, this.only]);
    if (shape === this.shape) return;
    this.shape = shape;
    const focused = document.activeElement?.getAttribute("data-health");
    this.root.replaceChildren(...counted.map(([health, count]) => el("button", {
      type: "button", "data-health": health, "aria-pressed": String(this.only === health),
      onclick: () => {
        this.only = this.only === health ? null : health;
        this.changed();
      },
    }, badge(health), `${count} ${HEALTHS[health][1]}`)));
    if (focused) this.root.querySelector(`[data-health="${focused}"]`)?.focus();
  }
}
