// SPDX-License-Identifier: Apache-2.0
// Where nodes are drawn: where the forces of their links put them, or where they really are.

/* global d3 */

/** Units between two nodes with a link. */
const LINK = 110;

/** Places by links: nodes push each other away, links hold them together. */
export class ByForce {
  /** @param moved is called whenever places have changed. */
  constructor(moved) {
    this.nodes = new Map();
    this.moved = moved;
    this.shape = "";
    this.still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.forces = d3.forceSimulation([])
      .force("push", d3.forceManyBody().strength(-420).distanceMax(900))
      .force("x", d3.forceX(0).strength(0.045))
      .force("y", d3.forceY(0).strength(0.06))
      .force("room", d3.forceCollide(38))
      .force("links", d3.forceLink([]).id((node) => node.name).distance(LINK).strength(0.5))
      .on("tick", moved)
      .stop();
  }

  take(nodes, links) {
    const names = new Set(nodes.map((node) => node.name));
    for (const name of this.nodes.keys()) if (!names.has(name)) this.nodes.delete(name);
    for (const [at, { name }] of nodes.entries()) {
      if (this.nodes.has(name)) continue;
      const angle = at * 2.399963; // the golden angle: the same fleet looks the same each time
      const far = 40 * Math.sqrt(at + 0.5);
      this.nodes.set(name, { name, x: far * Math.cos(angle), y: far * Math.sin(angle) });
    }
    const pairs = links.filter((link) => this.nodes.has(link.one) && this.nodes.has(link.other))
      .map((link) => ({ source: link.one, target: link.other }));
    // A cut link still holds: the map does not jump when one goes and comes back.
    const shape = JSON.stringify([[...names].sort(), pairs.map((each) => [each.source, each.target])]);
    if (shape === this.shape) return;
    const first = this.shape === "";
    this.shape = shape;
    this.forces.nodes([...this.nodes.values()]).force("links").links(pairs);
    this.forces.alpha(first ? 1 : 0.4);
    if (first || this.still) {
      this.forces.tick(first ? 200 : 120);
      this.moved();
    } else this.forces.restart();
  }

  place(name) {
    return this.nodes.get(name);
  }

  /** Hold a node at a point, or let it go with null. */
  hold(name, point) {
    const node = this.nodes.get(name);
    if (!node) return;
    [node.fx, node.fy] = point ? [point.x, point.y] : [null, null];
    this.forces.alpha(0.25).restart();
  }
}

/** Places in metres; nodes without one stand in a row below. */
export class ByPlace {
  constructor() {
    this.points = new Map();
  }

  take(nodes) {
    const known = nodes.filter((node) => node.at);
    this.points = new Map(known.map((node) => [node.name, { x: node.at[0], y: node.at[1] }]));
    const xs = known.map((node) => node.at[0]);
    const ys = known.map((node) => node.at[1]);
    const [left, right] = [Math.min(...xs), Math.max(...xs)];
    const wide = Math.max(right - left, Math.max(...ys) - Math.min(...ys), 20);
    nodes.filter((node) => !node.at).forEach((node, at) => {
      this.points.set(node.name, {
        x: (known.length ? left : 0) + at * wide / 8,
        y: (known.length ? Math.max(...ys) : 0) + wide / 5,
      });
    });
  }

  place(name) {
    return this.points.get(name);
  }
}
