// SPDX-License-Identifier: Apache-2.0
// Puts the page together: the newest message, and what a person has chosen.

import { act, live, planImage } from "./api.js";
import { Detail } from "./detail.js";
import { byId, el, say } from "./dom.js";
import { Counts, List, found } from "./list.js";
import { MeshMap } from "./map.js";
import { waysFrom } from "./ways.js";
import { METRICS, clock } from "./words.js";

let message = null;
let chosen = null;
let lost = "";
let planned = false;

const map = new MeshMap(byId("map"), choose, (name, at) => {
  act({ kind: "move", node: name, x: at.x, y: at.y }).catch((error) => trouble(error.message));
});
const list = new List(byId("list"), byId("none"), choose);
const counts = new Counts(byId("counts"), render);
const detail = new Detail(byId("detail"), choose);

function choose(choice) {
  const before = chosen;
  chosen = choice;
  render();
  if (choice && !before) tab(document.body.dataset.tab === "nodes" ? "detail" : document.body.dataset.tab);
  else if (choice && document.body.dataset.tab === "nodes") tab("detail");
}

function render() {
  trouble(lost || message?.trouble || "");
  const picture = message?.picture;
  if (!picture) return;
  const search = byId("search").value.trim();
  const shown = (node) => (!counts.only || node.health === counts.only)
    && (!search || found(node, search));
  if (chosen?.node && !picture.nodes.some((node) => node.name === chosen.node)) chosen = null;
  counts.take(picture.nodes);
  list.take(picture.nodes.filter(shown), chosen?.node);
  map.filter(shown);
  map.mark(chosen, chosen?.node ? waysFrom(chosen.node, picture.links) : null);
  detail.show(message, chosen);
}

function trouble(words) {
  say(byId("trouble"), words);
  byId("trouble").hidden = !words;
  byId("live").classList.toggle("old", Boolean(words));
}

function take(next) {
  message = next;
  lost = "";
  const { source, picture } = message;
  say(byId("source"), source.name);
  document.title = `${source.name} – Thicket`;
  byId("waiting").hidden = Boolean(picture);
  if (picture) {
    say(byId("live"), clock(message.at));
    map.take(picture);
  }
  byId("drag").hidden = !source.deeds.includes("move") || byId("by-place").ariaPressed !== "true";
  if (message.plan && !planned) {
    planned = true;
    planImage().then((address) => {
      map.lay(address, message.plan);
      arrange(true);
    }).catch((error) => trouble(error.message));
  }
  render();
}

function arrange(places) {
  byId("by-force").setAttribute("aria-pressed", String(!places));
  byId("by-place").setAttribute("aria-pressed", String(places));
  byId("drag").hidden = !places || !message?.source.deeds.includes("move");
  map.arrange(places);
}

function tab(name) {
  document.body.dataset.tab = name;
  for (const one of document.querySelectorAll(".tabs button")) {
    one.setAttribute("aria-current", String(one.dataset.for === name));
  }
  if (name === "map") map.fit(false);
}

// -- hands

byId("search").addEventListener("input", render);
byId("by-force").addEventListener("click", () => arrange(false));
byId("by-place").addEventListener("click", () => arrange(true));
byId("closer").addEventListener("click", () => map.zoom(1.3));
byId("farther").addEventListener("click", () => map.zoom(1 / 1.3));
byId("fit").addEventListener("click", () => map.fit());
byId("drag").addEventListener("click", () => {
  map.moving = !map.moving;
  byId("drag").setAttribute("aria-pressed", String(map.moving));
});
for (const one of document.querySelectorAll(".tabs button")) {
  one.addEventListener("click", () => tab(one.dataset.for));
}
document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement;
  if (event.key === "/" && !typing) {
    event.preventDefault();
    tab(document.body.dataset.tab === "detail" ? "nodes" : document.body.dataset.tab);
    byId("search").focus();
  } else if (event.key === "Escape") {
    if (typing && event.target.value && event.target.type === "search") {
      event.target.value = "";
      render();
    } else choose(null);
  }
});

// -- light and dark

const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = (name) => { document.documentElement.dataset.theme = name; };
const kept = localStorage.getItem("thicket-theme");
theme(kept ?? (dark.matches ? "dark" : "light"));
dark.addEventListener("change", () => {
  if (!localStorage.getItem("thicket-theme")) theme(dark.matches ? "dark" : "light");
});
byId("theme").addEventListener("click", () => {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("thicket-theme", next);
  theme(next);
});

byId("legend").replaceChildren(el("div", {}, el("dd", {}, "Airtime of a frame:")), ...[
  ...METRICS.map(([name, , words]) => [name, words]), ["forming", "expected"], ["cut", "cut"],
].map(([name, words]) => el("div", {}, el("dt", { class: name }), el("dd", {}, words))));
/** Milliseconds until what a chosen node knows is looked at again, without any news. */
const AGAIN = 5000;
setInterval(render, AGAIN);

addEventListener("hashchange", () => location.reload()); // another run, with another secret

tab("map");
live(take, (words) => {
  lost = words;
  render();
});
