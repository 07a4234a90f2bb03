// SPDX-License-Identifier: Apache-2.0
// Curves of what was measured.

import { el, svg } from "./dom.js";
import { clock } from "./words.js";

const WIDTH = 340;
const HEIGHT = 96;
const LEFT = 34;
const LOW = 16;
export const COLOURS = 6;

/**
 * Return a figure with curves.
 * @param title what it is of.
 * @param lines [{ label, steps }]; a step is [at, mean, least, most].
 * @param time { now, seconds }.
 * @param say makes words of a value.
 * @param bounds the least range of values that is shown; null: that of the values.
 */
export function figure(title, lines, time, say, bounds = null) {
  const shown = lines.filter((line) => line.steps.length).slice(0, 24);
  const values = shown.flatMap((line) => line.steps.flatMap(([, , least, most]) => [least, most]));
  if (!values.length) return null;
  let low = Math.min(...values, ...(bounds ? [bounds[0]] : []));
  let high = Math.max(...values, ...(bounds ? [bounds[1]] : []));
  if (high - low < 1e-9) [low, high] = [low - 1, high + 1];
  const from = time.now - time.seconds;
  const x = (at) => LEFT + (WIDTH - LEFT - 4) * Math.max(0, at - from) / time.seconds;
  const y = (value) => 5 + (HEIGHT - LOW - 10) * (high - value) / (high - low);
  const drawn = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", preserveAspectRatio: "none",
    "aria-label": `${title}: ${shown.map((line) => `${line.label} ${say(line.steps.at(-1)[1])}`)
      .join(", ")}`,
  });
  for (const value of [low, high]) {
    drawn.append(
      svg("line", { class: "grid", x1: LEFT, x2: WIDTH - 4, y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 4, y: y(value) + 4, "text-anchor": "end" }, say(value, true)),
    );
  }
  const step = time.seconds > 7200 ? 300 : 10;
  for (const [number, line] of shown.entries()) {
    const own = `k${number % COLOURS}`;
    for (const piece of pieces(line.steps, 3.5 * step)) {
      const points = (pick) => piece.map((one) => `${x(one[0]).toFixed(1)},${y(pick(one)).toFixed(1)}`);
      if (piece.some((one) => one[3] - one[2] > 0)) {
        drawn.append(svg("polygon", { class: `band ${own}`,
          points: [...points((one) => one[3]), ...points((one) => one[2]).reverse()].join(" ") }));
      }
      const mean = points((one) => one[1]);
      if (mean.length === 1) mean.push(mean[0].replace(/^[\d.]+/, (at) => String(Number(at) + 2)));
      drawn.append(svg("polyline", { class: `line ${own}`, points: mean.join(" ") }));
    }
  }
  for (const part of [0, 0.5, 1]) {
    drawn.append(svg("text", {
      x: LEFT + (WIDTH - LEFT - 4) * part, y: HEIGHT - 2,
      "text-anchor": ["start", "middle", "end"][2 * part],
    }, clock(from + part * time.seconds).slice(0, 5)));
  }
  return el("div", { class: "curve" },
    el("div", { class: "what" }, el("span", {}, title),
      shown.length === 1 ? el("span", {}, say(shown[0].steps.at(-1)[1])) : null),
    drawn,
    shown.length > 1 || shown[0].label !== title ? el("div", { class: "key" },
      ...shown.map((line, number) => el("span", { class: `k${number % COLOURS}` },
        `${line.label} ${say(line.steps.at(-1)[1])}`))) : null);
}

/** Cut steps where nothing was measured. */
function pieces(steps, most) {
  const found = [];
  for (const step of steps) {
    const last = found.at(-1);
    if (last && step[0] - last.at(-1)[0] <= most) last.push(step);
    else found.push([step]);
  }
  return found;
}
