// SPDX-License-Identifier: Apache-2.0
// The mesh as a map.

import { set, svg } from "./dom.js";
import { ByForce, ByPlace } from "./places.js";
import { HEALTHS, colour, metricWords, signalWords } from "./words.js";

/** Pixels: of a node, between both directions of a link, and around all of it. */
const RADIUS = 13;
const APART = 3;
const EDGE = 60;
/** Seconds for which a link that has just broken is marked. */
const NEWS = 10;

export class MeshMap {
  /**
   * @param root an element <svg>.
   * @param choose gets a choice: { node } or { link: [one, other] }, or null.
   * @param dropped gets the name of a node that was dragged, and its new place in metres.
   */
  constructor(root, choose, dropped) {
    this.root = root;
    this.choose = choose;
    this.dropped = dropped;
    this.force = new ByForce(() => this.#moved());
    this.real = new ByPlace();
    this.by = this.force;
    this.view = { scale: 1, x: 0, y: 0, own: false };
    this.nodes = new Map();
    this.links = new Map();
    this.picture = null;
    this.chosen = null;
    this.ways = null;
    this.shown = () => true;
    this.moving = false;
    this.plan = null;
    this.ground = root.appendChild(svg("g"));
    this.lines = root.appendChild(svg("g"));
    this.discs = root.appendChild(svg("g"));
    this.measure = root.appendChild(svg("g", { "aria-hidden": "true" }));
    this.#listen();
    new ResizeObserver(() => this.fit(false)).observe(root);
  }

  /** Show a picture. */
  take(picture) {
    this.picture = picture;
    this.force.take(picture.nodes, picture.links);
    this.real.take(picture.nodes);
    this.#keep(this.nodes, picture.nodes, (node) => node.name, () => this.#newNode());
    this.#keep(this.links, picture.links, (link) => `${link.one}\n${link.other}`,
      () => this.#newLink());
    this.#dress();
    this.#drawn();
  }

  /** Arrange by forces or by places. */
  arrange(places) {
    this.by = places ? this.real : this.force;
    this.view.own = false;
    this.#drawn();
  }

  /** Mark what is chosen, and the ways from it (ways.js). */
  mark(chosen, ways) {
    [this.chosen, this.ways] = [chosen, ways];
    this.#dress();
  }

  /** Fade what a search does not find. */
  filter(shown) {
    this.shown = shown;
    this.#dress();
  }

  /** Lay an image below the places; corners in metres. */
  lay(address, corners) {
    this.plan?.image.remove();
    this.plan = { corners, image: svg("image", { href: address, preserveAspectRatio: "none" }) };
    this.ground.append(this.plan.image);
    this.#drawn();
  }

  /** Let the view hold everything; `again` even if a person has moved it. */
  fit(again = true) {
    if (again) this.view.own = false;
    this.#drawn();
  }

  zoom(factor, at = null) {
    const { width, height } = this.#size();
    const point = at ?? { x: width / 2, y: height / 2 };
    const view = this.view;
    const scale = Math.min(Math.max(view.scale * factor, 1e-4), 60);
    view.x = point.x - (point.x - view.x) * scale / view.scale;
    view.y = point.y - (point.y - view.y) * scale / view.scale;
    view.scale = scale;
    view.own = true;
    this.#drawn();
  }

  // -- elements

  #keep(elements, items, key, made) {
    const wanted = new Map(items.map((item) => [key(item), item]));
    for (const [name, element] of elements) {
      if (!wanted.has(name)) {
        element.root.remove();
        elements.delete(name);
      }
    }
    for (const [name, item] of wanted) {
      if (!elements.has(name)) elements.set(name, made());
      elements.get(name).item = item;
    }
  }

  #newNode() {
    const parts = {
      halo: svg("circle", { class: "halo", r: RADIUS + 9 }),
      disc: svg("circle", { class: "disc", r: RADIUS }),
      mark: svg("text", { class: "mark" }),
      name: svg("text", { class: "name", y: RADIUS + 17 }),
      hops: svg("text", { class: "hops", y: -RADIUS - 7 }),
    };
    const root = svg("g", { tabindex: 0, role: "button" }, ...Object.values(parts));
    const made = { root, ...parts, item: null };
    root.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      this.choose({ node: made.item.name });
    });
    this.discs.append(root);
    return made;
  }

  #newLink() {
    const parts = {
      there: svg("line"), back: svg("line"),
      tip: svg("path"), tail: svg("path"),
      cross: svg("path", { class: "cross" }),
      hit: svg("line", { class: "hit" }),
      title: svg("title"),
    };
    const root = svg("g", {}, ...Object.values(parts));
    const made = { root, ...parts, item: null };
    parts.hit.addEventListener("click", () => {
      this.choose({ link: [made.item.one, made.item.other] });
    });
    this.lines.append(root);
    return made;
  }

  #dress() {
    if (!this.picture) return;
    const now = Date.now() / 1000;
    const node = this.chosen?.node;
    this.root.classList.toggle("choosing", Boolean(node) && Boolean(this.ways));
    const labels = new Map(this.picture.nodes.map((each) => [each.name, each.label]));
    for (const made of this.nodes.values()) {
      const { item } = made;
      const [sign, words] = HEALTHS[item.health];
      const chosen = item.name === node || (this.chosen?.link ?? []).includes(item.name);
      const far = this.ways?.get(item.name)?.hops;
      set(made.root, {
        class: `node ${item.health}${chosen ? " chosen" : ""}${this.shown(item) ? "" : " faded"}`,
        "aria-label": `${item.label}, ${words}${far ? `, ${far} hops away` : ""}`,
        "aria-pressed": String(chosen),
        "data-name": item.name,
      });
      made.mark.textContent = sign;
      made.name.textContent = item.label.length > 22 ? `${item.label.slice(0, 21)}…` : item.label;
      made.hops.textContent = far ? `${far} hop${far > 1 ? "s" : ""}` : "";
    }
    for (const made of this.links.values()) {
      const { one, other, there, back, state, since } = made.item;
      const classes = ["link", state];
      if (this.chosen?.link?.[0] === one && this.chosen.link[1] === other) classes.push("chosen");
      if (state === "cut" || state === "one-way") classes.push("broken");
      if (this.ways
        && (this.ways.get(one)?.before === other || this.ways.get(other)?.before === one)) {
        classes.push("way");
      }
      const fresh = state === "cut" && now - since < NEWS ? " broken-now" : "";
      set(made.root, { class: classes.join(" "), "data-link": `${one} ${other}` });
      set(made.there, { class: `there ${colour(there, state)}${fresh}` });
      set(made.back, { class: `back ${colour(back, state)}${fresh}` });
      set(made.tip, { class: `tip ${colour(there, state)}` });
      set(made.tail, { class: `tip ${colour(back, state)}` });
      const [from, to] = [labels.get(one), labels.get(other)];
      made.title.textContent = state === "cut" ? `${from} – ${to}: cut` : [
        `${from} → ${to}: ${metricWords(there?.metric)}, hears ${signalWords(there?.signal)}`,
        `${to} → ${from}: ${metricWords(back?.metric)}, hears ${signalWords(back?.signal)}`,
      ].join("\n");
    }
  }

  // -- places on the screen

  #size() {
    return { width: this.root.clientWidth || 300, height: this.root.clientHeight || 200 };
  }

  #moved() {
    requestAnimationFrame(() => this.#drawn());
  }

  #at(name) {
    const point = this.by.place(name) ?? { x: 0, y: 0 };
    return {
      x: point.x * this.view.scale + this.view.x,
      y: point.y * this.view.scale + this.view.y,
    };
  }

  #fitted() {
    const points = [...this.nodes.keys()].map((name) => this.by.place(name)).filter(Boolean);
    if (this.by === this.real && this.plan) {
      const { left, top, right, bottom } = this.plan.corners;
      points.push({ x: left, y: top }, { x: right, y: bottom });
    }
    if (!points.length) return;
    const [xs, ys] = [points.map((point) => point.x), points.map((point) => point.y)];
    const [left, right, top, bottom] = [
      Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const { width, height } = this.#size();
    const most = this.by === this.force ? 1.7 : 60;
    const scale = Math.min(
      most,
      Math.max(width - 2 * EDGE, 80) / Math.max(right - left, 1),
      Math.max(height - 2 * EDGE, 80) / Math.max(bottom - top, 1),
    );
    this.view.scale = scale;
    this.view.x = width / 2 - scale * (left + right) / 2;
    this.view.y = height / 2 - scale * (top + bottom) / 2;
  }

  #drawn() {
    if (!this.picture) return;
    if (!this.view.own) this.#fitted();
    for (const [name, made] of this.nodes) {
      const { x, y } = this.#at(name);
      made.root.setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
    }
    for (const made of this.links.values()) this.#line(made);
    this.#drawGround();
  }

  #line(made) {
    const [a, b] = [this.#at(made.item.one), this.#at(made.item.other)];
    const far = Math.hypot(b.x - a.x, b.y - a.y) || 1;
    const [x, y] = [(b.x - a.x) / far, (b.y - a.y) / far];
    const near = Math.min(RADIUS + 3, far / 2);
    const ends = (side) => ({
      x1: a.x + near * x - side * y, y1: a.y + near * y + side * x,
      x2: b.x - near * x - side * y, y2: b.y - near * y + side * x,
    });
    const apart = ["cut", "forming"].includes(made.item.state) ? 0 : APART;
    const [there, back] = [ends(-apart), ends(apart)];
    set(made.there, there);
    set(made.back, back);
    set(made.hit, ends(0));
    const tip = (px, py, dx, dy) => `M${px} ${py}l${-9 * dx - 4 * dy} ${-9 * dy + 4 * dx}`
      + `l${8 * dy} ${-8 * dx}z`;
    made.tip.setAttribute("d", apart ? tip(there.x2, there.y2, x, y) : "");
    made.tail.setAttribute("d", apart ? tip(back.x1, back.y1, -x, -y) : "");
    const middle = { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
    made.cross.setAttribute("d", made.item.state !== "cut" ? ""
      : `M${middle.x - 6} ${middle.y - 6}l12 12m0 -12l-12 12`);
  }

  #drawGround() {
    const places = this.by === this.real;
    const { scale, x, y } = this.view;
    if (this.plan) {
      const { left, top, right, bottom } = this.plan.corners;
      this.plan.image.toggleAttribute("hidden", !places);
      set(this.plan.image, {
        x: left * scale + x, y: top * scale + y,
        width: (right - left) * scale, height: (bottom - top) * scale,
        display: places ? "inline" : "none",
      });
    }
    this.measure.replaceChildren();
    if (!places || !this.picture.nodes.some((node) => node.at)) return;
    const wide = 110 / scale;
    const round = 10 ** Math.floor(Math.log10(wide));
    const metres = [5, 2, 1].map((one) => one * round).find((one) => one <= wide) ?? round;
    const low = this.#size().height - 14;
    const words = metres >= 1000 ? `${metres / 1000} km` : `${metres} m`;
    this.measure.append(
      svg("path", { class: "scale", fill: "none",
        d: `M14 ${low - 5}v5h${metres * scale}v-5` }),
      svg("text", { class: "scale-words", x: 20 + metres * scale, y: low }, words),
    );
  }

  // -- hands

  #listen() {
    const pointers = new Map();
    let held = null;
    let far = 0;
    const point = (event) => {
      const box = this.root.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    const world = (at) => ({
      x: (at.x - this.view.x) / this.view.scale, y: (at.y - this.view.y) / this.view.scale,
    });
    this.root.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), point(event));
    }, { passive: false });
    this.root.addEventListener("pointerdown", (event) => {
      const name = event.target.closest?.(".node")?.getAttribute("data-name") ?? null;
      pointers.set(event.pointerId, point(event));
      held = pointers.size === 1 ? name : null;
      far = 0;
      if (!event.target.closest?.(".link")) this.root.setPointerCapture(event.pointerId);
    });
    this.root.addEventListener("pointermove", (event) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const at = point(event);
      const others = [...pointers].filter(([id]) => id !== event.pointerId);
      if (others.length) {
        const [, other] = others[0];
        const apart = (one) => Math.hypot(one.x - other.x, one.y - other.y) || 1;
        this.zoom(apart(at) / apart(before), other);
      } else {
        far += Math.hypot(at.x - before.x, at.y - before.y);
        if (far > 5) this.#drag(held, at, before, world);
      }
      pointers.set(event.pointerId, at);
    });
    const ended = (event) => {
      if (!pointers.delete(event.pointerId)) return;
      this.root.classList.remove("dragging");
      if (event.type === "pointerup" && far <= 5 && pointers.size === 0) {
        if (held) this.choose({ node: held });
        else if (!event.target.closest?.(".link")) this.choose(null);
      } else if (held && far > 5) {
        if (this.by === this.force) this.force.hold(held, null);
        else if (this.moving) this.dropped(held, world(point(event)));
      }
      held = null;
    };
    this.root.addEventListener("pointerup", ended);
    this.root.addEventListener("pointercancel", ended);
  }

  #drag(name, at, before, world) {
    this.root.classList.add("dragging");
    if (name && this.by === this.force) {
      this.view.own = true;
      this.force.hold(name, world(at));
    } else if (name && this.moving) {
      this.view.own = true;
      this.real.points.set(name, world(at));
      this.#drawn();
    } else {
      this.view.own = true;
      this.view.x += at.x - before.x;
      this.view.y += at.y - before.y;
      this.#drawn();
    }
  }
}
