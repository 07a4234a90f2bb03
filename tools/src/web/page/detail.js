// SPDX-License-Identifier: Apache-2.0
// What is known of the chosen node or link; of the fleet where nothing is chosen.

import { act, curvesOf, detailOf } from "./api.js";
import { figure } from "./curves.js";
import { el, refill } from "./dom.js";
import { badge } from "./list.js";
import { clock, metricWords, share, signalWords, span, why } from "./words.js";

/** Milliseconds until what a node knows is asked again, and its curves. */
const AGAIN = 5000;

export class Detail {
  constructor(root, choose) {
    [this.root, this.choose] = [root, choose];
    this.chosen = undefined;
    this.seconds = 3600;
    this.message = null;
    this.known = null;
    this.curves = null;
    this.failure = "";
    this.turn = 0;
    this.asked = -Infinity;
  }

  /** Show what is chosen, of the newest message. */
  show(message, chosen) {
    this.message = message;
    if (JSON.stringify(chosen) !== JSON.stringify(this.chosen)) {
      this.chosen = chosen;
      [this.known, this.curves, this.failure, this.asked] = [null, null, "", -Infinity];
      this.turn += 1;
      this.asking = false;
      this.#build();
    }
    if (this.chosen?.node && !this.asking && performance.now() - this.asked > AGAIN) this.#ask();
    this.#fill();
  }

  async #ask() {
    this.asking = true;
    const [turn, { node }] = [this.turn, this.chosen];
    const curves = curvesOf(node, this.seconds).then((found) => {
      if (turn !== this.turn) return;
      this.curves = found; // this program has them: a node that is slow holds nothing up
      this.#fill();
    }, () => {});
    const [known, failure] = await detailOf(node).then((found) => [found, ""],
      (error) => [null, error.message]);
    await curves;
    if (turn !== this.turn) return;
    [this.asking, this.asked] = [false, performance.now()];
    [this.known, this.failure] = [known, failure];
    this.#fill();
  }

  #label(name) {
    return this.message.picture?.nodes.find((one) => one.name === name)?.label ?? name;
  }

  // -- the frame, made anew for each choice: what a hand may be on stays

  #build() {
    this.parts = Object.fromEntries(
      ["head", "body", "deeds", "mesh", "tools", "curves"].map((name) => [name, el("div")]));
    this.deedsShape = "";
    const spans = [[3600, "Hour"], [86400, "Day"]].map(([seconds, words]) => el("button", {
      type: "button", "aria-pressed": String(this.seconds === seconds), "data-seconds": seconds,
      onclick: () => {
        this.seconds = seconds;
        for (const one of spans) {
          one.setAttribute("aria-pressed", String(one.dataset.seconds === String(seconds)));
        }
        this.#ask();
      },
    }, words));
    if (this.chosen?.node) {
      this.parts.tools.append(el("h3", {}, "The last"),
        el("div", { class: "switch", role: "group", "aria-label": "Span of the curves" }, ...spans));
    }
    refill(this.root, ...Object.values(this.parts));
    this.root.scrollTop = 0;
  }

  #fill() {
    const { picture } = this.message;
    if (!picture) return;
    const node = picture.nodes.find((one) => one.name === this.chosen?.node);
    const link = this.chosen?.link && picture.links.find((one) => one.one === this.chosen.link[0]
      && one.other === this.chosen.link[1]);
    if (node) this.#node(node, picture);
    else if (link) this.#link(link);
    else this.#fleet(picture);
  }

  #head(...inside) {
    if (!this.parts.title) {
      this.parts.title = el("h2");
      this.parts.head.append(this.parts.title);
      if (this.chosen) {
        this.parts.close = el("button", { type: "button", "aria-label": "Close the details",
          onclick: () => this.choose(null) }, "×");
      }
    }
    const { title, close } = this.parts;
    if (close && close.parentNode !== title) title.append(close);
    while (title.firstChild && title.firstChild !== close) title.firstChild.remove();
    title.prepend(...inside);
  }

  // -- nothing is chosen

  #fleet(picture) {
    this.#head("The fleet");
    const bad = picture.nodes.filter((node) => node.problems.length);
    const events = [...this.message.events].reverse();
    refill(this.parts.body, 
      el("p", { class: "dim" }, "Choose a node or a link on the map, or a node of the list."),
      ...(bad.length ? [el("h3", {}, "Problems"), ...bad.map((node) => el("div", {},
        el("p", {}, el("strong", {}, node.label)), problems(node)))] : []),
      ...updates(picture.updates, picture.nodes),
    );
    refill(this.parts.mesh, el("h3", {}, "What happened"),
      events.length ? el("ul", { class: "events" }, ...events.map((one) => el("li", {
        class: one.what }, el("time", {}, clock(one.at)), el("span", {}, one.words))))
        : el("p", { class: "dim" }, "Nothing since this page is served."));
  }

  // -- a link

  #link(link) {
    const [one, other] = [this.#label(link.one), this.#label(link.other)];
    this.#head(`${one} – ${other}`);
    const states = { up: "up", cut: "cut", "one-way": "known to one end alone", forming: "forming" };
    refill(this.parts.body, 
      el("p", {}, `The link is ${states[link.state]}, since ${clock(link.since)}.`),
      link.state === "cut" && !this.message.source.deeds.length ? el("p", { class: "dim" },
        "Look at power, antenna and place of both nodes, and what stands between them.") : null,
      el("div", { class: "table" }, el("table", {}, el("thead", {}, row("th", ["Direction",
        "Airtime", "Signal there"])), el("tbody", {},
        row("td", [`${one} → ${other}`, metricWords(link.there?.metric),
          signalWords(link.back?.signal)]),
        row("td", [`${other} → ${one}`, metricWords(link.back?.metric),
          signalWords(link.there?.signal)])))),
    );
    this.#deeds(link.state, () => [["cut", "Cut the link", "bad"], ["restore", "Restore it", ""]]
      .map(([kind, words, style]) => this.#deed(words, style,
        () => ({ kind, node: link.one, other: link.other }))));
  }

  // -- a node

  #node(node, picture) {
    this.#head(badge(node.health), node.label);
    const { figures } = node;
    const facts = [
      ["State", node.state || node.health], ["Up for", span(figures.uptime)],
      ["Version", [figures.version, figures.slot].filter(Boolean).join(" ")],
      ["Heard", node.heard === null ? "" : `${span(node.heard)} ago`],
      ["Hops", node.asked ? "asked here" : node.hops], ["Load", figures.load],
      ["Temperature", figures.temperature === null ? "" : `${Math.round(figures.temperature)} °C`],
      ["Memory used", figures.memory === null ? "" : share(figures.memory)],
      ["/data used", figures.data === null ? "" : share(figures.data)],
      ["Applications", (figures.applications ?? []).map((one) => `${one.name}: ${one.state}`)
        .join(", ")],
    ].filter(([, value]) => value !== "" && value !== null && value !== undefined && value !== "–");
    const words = [node.host === node.label ? "" : node.host, node.address, node.place, node.note];
    refill(this.parts.body, 
      ...words.filter(Boolean).map((text) => el("p", { class: "dim small" }, text)),
      !node.problems.length && why(node) ? el("p", {}, why(node)) : null,
      problems(node, this.known?.problems),
      el("dl", { class: "facts" }, ...facts.map(([name, value]) => el("div", {},
        el("dt", {}, name), el("dd", {}, String(value))))),
    );
    this.#deeds(`${node.on}`, () => this.#nodeDeeds(node));
    this.#mesh(node, picture);
    this.#curvesOf();
  }

  /** The radio's view beside the cluster's. */
  #mesh(node, picture) {
    const { mesh } = this.parts;
    if (this.failure) {
      refill(mesh, el("h3", {}, "What it knows of the others"),
        el("p", { class: "dim" }, this.failure));
      return;
    }
    if (!this.known) {
      refill(mesh, el("p", { class: "dim" }, "Asking it …"));
      return;
    }
    const peers = new Map(this.known.peers.map((one) => [one.node, one]));
    const paths = new Map(this.known.paths.map((one) => [one.node, one]));
    const cluster = new Map(this.known.cluster.map((one) => [one.node, one]));
    const names = new Set([...peers.keys(), ...paths.keys(), ...cluster.keys(),
      ...picture.nodes.map((one) => one.name)]);
    names.delete(node.name);
    names.delete("");
    const rows = [...names].map((name) => {
      const [peer, path, seen] = [peers.get(name), paths.get(name), cluster.get(name)];
      const near = peer?.state === "ESTAB";
      const hops = near ? 1 : path?.next ? path.hops : null;
      return { name, near, peer, path, seen, hops };
    }).sort((one, other) => (one.hops ?? 99) - (other.hops ?? 99)
      || this.#label(one.name).localeCompare(this.#label(other.name), "en", { numeric: true }));
    const { radio } = this.known;
    const focused = document.activeElement?.dataset?.to;
    refill(mesh, el("h3", {}, "The radio's view beside the cluster's"),
      el("p", { class: "dim small" }, [radio.mesh && `mesh ${radio.mesh}`,
        radio.frequency && `${radio.frequency} MHz`, radio.state].filter(Boolean).join(", ")),
      el("div", { class: "table" }, el("table", {}, el("thead", {},
        row("th", ["Node", "By radio", "Airtime", "Cluster"])), el("tbody", {},
        ...rows.map(({ name, near, peer, path, seen, hops }) => {
          const by = near ? `peer, ${signalWords(peer.signal)}`
            : hops ? `${hops} hops by ${this.#label(path.next)}` : "no path";
          const link = [node.name, name].sort();
          const inside = near ? el("button", { type: "button", "data-to": `${link.join(" ")}`,
            onclick: () => this.choose({ link }) }, by) : by;
          const differs = (seen?.state === "up") !== (hops !== null) ? { class: "differs" } : {};
          return el("tr", differs, el("td", {}, this.#goto(name)), el("td", {}, inside),
            el("td", {}, metricWords(near ? peer.metric : path?.metric)),
            el("td", {}, seen ? [seen.state, seen.why].filter(Boolean).join(": ") : "not seen"));
        })))));
    if (focused) mesh.querySelector(`[data-to="${CSS.escape(focused)}"]`)?.focus();
  }

  #goto(name) {
    if (!this.message.picture.nodes.some((one) => one.name === name)) return name;
    return el("button", { type: "button", "data-to": name,
      onclick: () => this.choose({ node: name }) }, this.#label(name));
  }

  #curvesOf() {
    const { curves, known } = this;
    if (!curves) return;
    const time = { now: curves.now, seconds: curves.seconds };
    const links = (what) => curves.links.map((one) => ({
      label: this.#label(one.node), steps: one[what] }));
    const one = (what, label) => [{ label, steps: curves.node[what] }];
    const found = [
      figure("Signal of its neighbours", links("signal"), time,
        (value, short) => short ? String(Math.round(value)).replace("-", "−")
          : signalWords(Math.round(value))),
      figure("Airtime to its neighbours", links("metric"), time,
        (value, short) => short ? (value * 0.01024).toFixed(1) : metricWords(value)),
      figure("Load", one("load", "Load"), time, (value) => value.toFixed(2), [0, 1]),
      figure("Temperature", one("temperature", "Temperature"), time,
        (value, short) => `${Math.round(value)}${short ? "°" : " °C"}`),
      figure("Memory used", one("memory", "Memory used"), time, percent, [0, 1]),
      figure("/data used", one("data", "/data used"), time, percent, [0, 1]),
    ].filter(Boolean);
    refill(this.parts.curves, ...found, found.length || !known ? "" : el("p",
      { class: "dim" }, "Nothing was measured yet."));
  }

  // -- deeds, of a simulated fleet

  #deeds(shape, made) {
    const { deeds } = this.message.source;
    if (!deeds.length || shape === this.deedsShape) return;
    this.deedsShape = shape;
    refill(this.parts.deeds, el("div", { class: "deeds" }, ...made()),
      this.said = el("p", { role: "status", class: "small" }));
  }

  #nodeDeeds(node) {
    const place = ["x", "y"].map((axis, at) => el("input", {
      type: "number", "aria-label": `Its ${axis} in metres`, step: "any",
      value: node.at ? String(Math.round(node.at[at] * 10) / 10) : "0" }));
    return [
      ...(node.on ? [["off", "Switch off", ""], ["kill", "Pull the plug", "bad"]]
        : [["on", "Switch on", ""]]).map(([kind, words, style]) => this.#deed(words, style,
        () => ({ kind, node: node.name }))),
      el("label", {}, "x", place[0]), el("label", {}, "y", place[1]), "m",
      this.#deed("Move", "", () => ({ kind: "move", node: node.name,
        x: Number(place[0].value), y: Number(place[1].value) })),
    ];
  }

  #deed(words, style, deed) {
    const button = el("button", { type: "button", class: style, onclick: async () => {
      button.disabled = true;
      this.said.textContent = "";
      try {
        await act(deed());
      } catch (error) {
        this.said.textContent = error.message;
      }
      button.disabled = false;
    } }, words);
    return button;
  }
}

function percent(value, short) {
  return short ? share(value).replace(" ", "") : share(value);
}

function row(cell, insides) {
  return el("tr", {}, ...insides.map((inside) => el(cell, cell === "th" ? { scope: "col" } : {},
    inside)));
}

function problems(node, all) {
  const shown = all?.length ? all : node.problems;
  const more = all?.length ? 0 : node.more_problems;
  if (!shown.length && !node.concerns.length) return null;
  return el("ul", { class: "problems" },
    ...shown.map((one) => el("li", { class: one.severity }, `${one.part}: ${one.message}`,
      el("span", { class: "do" }, one.do))),
    more ? el("li", { class: "warning" }, `${more} more`) : null,
    node.problems.length && node.concerns.length ? el("li", { class: "warning" },
      node.concerns.join(", ")) : null);
}

/** Return a cell of a table of updates: bars as such, and what people call nodes. */
function cell(text, nodes) {
  const bar = /^\[[# ]*\] +(\d+) %$/.exec(text);
  if (bar) {
    return el("span", {}, el("progress", { max: 100, value: bar[1], "aria-label": "progress" }),
      ` ${bar[1]} %`);
  }
  return nodes.find((one) => one.host === text)?.label ?? text;
}

function updates(found, nodes) {
  return found.flatMap((one) => [el("h3", {}, "Updates"), el("p", {}, one.headline),
    el("div", { class: "table" }, el("table", {}, el("thead", {}, row("th", one.heads)),
      el("tbody", {}, ...one.rows.map((cells) => row("td", cells.map((text) => cell(text, nodes)))))))]);
}
