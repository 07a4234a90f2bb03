// SPDX-License-Identifier: Apache-2.0
// How values are said, and which colour they have.

/** How a node can be, the worst first: its sign and its words. */
export const HEALTHS = {
  problem: ["!", "with a problem"],
  silent: ["?", "silent"],
  away: ["–", "away"],
  warning: ["!", "with a warning"],
  forming: ["…", "on the way"],
  untold: ["·", "not telling"],
  well: ["✓", "well"],
};
const RANKS = Object.keys(HEALTHS);

/** Order nodes, the worst first. */
export function worse(one, other) {
  const errors = (node) => node.problems.filter((each) => each.severity === "error").length;
  return RANKS.indexOf(one.health) - RANKS.indexOf(other.health)
    || errors(other) - errors(one)
    || one.label.localeCompare(other.label, "en", { numeric: true });
}

/** Airtime metrics (802.11s, units of 10.24 µs) up to which a link has a colour. */
export const METRICS = [
  ["m1", 200, "up to 2 ms"],
  ["m2", 500, "up to 5 ms"],
  ["m3", 2000, "up to 20 ms"],
  ["m4", Infinity, "more"],
];

/** Return the class of one direction of a link. */
export function colour(side, state) {
  if (state === "cut") return "cut";
  if (state === "forming") return "forming";
  if (!side) return state === "one-way" ? "cut" : "m0";
  if (side.metric === null) return "m0";
  return METRICS.find(([, most]) => side.metric <= most)[0];
}

export function metricWords(metric) {
  return metric === null || metric === undefined ? "–" : `${(metric * 0.01024).toFixed(1)} ms`;
}

export function signalWords(signal) {
  return signal === null || signal === undefined ? "–" : `${signal} dBm`.replace("-", "−");
}

export function share(value) {
  return value === null || value === undefined ? "–" : `${Math.round(100 * value)} %`;
}

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString("en-GB");
}

/** Return why a node is not well, in a line. */
export function why(node) {
  if (node.problems.length) return node.problems[0].message;
  if (node.health !== "well" && node.why) return node.why;
  if (node.concerns.length) return node.concerns.join(", ");
  return node.health === "forming" ? node.state : "";
}
