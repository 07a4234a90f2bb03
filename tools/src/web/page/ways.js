// SPDX-License-Identifier: Apache-2.0
// The ways through the mesh from one node, by the least sum of airtime metrics (IEEE 802.11, 14.9).

/** The metric of a link that tells none. */
const UNKNOWN = 8192;

/**
 * Return the ways from a node: for each other node that can be reached, the hop before it and how
 * many hops it takes.
 */
export function waysFrom(name, links) {
  const beside = new Map();
  const add = (from, to, side) => {
    if (!beside.has(from)) beside.set(from, []);
    beside.get(from).push([to, side?.metric ?? UNKNOWN]);
  };
  for (const link of links) {
    if (link.state !== "up") continue;
    add(link.one, link.other, link.there);
    add(link.other, link.one, link.back);
  }
  const found = new Map([[name, { length: 0, hops: 0, before: null }]]);
  const open = new Set([name]);
  while (open.size) {
    let next = null;
    for (const one of open) {
      if (next === null || found.get(one).length < found.get(next).length) next = one;
    }
    open.delete(next);
    const { length, hops } = found.get(next);
    for (const [other, metric] of beside.get(next) ?? []) {
      const known = found.get(other);
      if (!known || length + metric < known.length) {
        found.set(other, { length: length + metric, hops: hops + 1, before: next });
        open.add(other);
      }
    }
  }
  return found;
}
