// SPDX-License-Identifier: Apache-2.0
// What the page asks the program that serves it. The secret comes behind the # of the address, which
// no server sees, and stays in this tab.

const KEPT = "thicket-secret";
const PAUSES = [500, 1000, 2000, 5000];
/** Milliseconds without a sign of life after which the connection is taken for dead. */
const SILENT = 25_000;

function secret() {
  const given = location.hash.slice(1);
  if (given) {
    sessionStorage.setItem(KEPT, given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEPT) ?? "";
}

const headers = { Authorization: `Bearer ${secret()}` };

/** Return what a request is answered with; throw an Error with words for people. */
async function asked(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(String(said.error ?? `${answer.status} ${answer.statusText}`));
  }
  return answer;
}

/** What one node knows of radio and cluster. */
export async function detailOf(name) {
  return (await asked(`api/node?name=${encodeURIComponent(name)}`)).json();
}

/** The curves of a node and its links, of the last `seconds`. */
export async function curvesOf(name, seconds) {
  return (await asked(`api/curves?name=${encodeURIComponent(name)}&seconds=${seconds}`)).json();
}

/** An address of the floor plan's image. */
export async function planImage() {
  return URL.createObjectURL(await (await asked("api/plan")).blob());
}

/** Do something to a simulated fleet. */
export async function act(deed) {
  await asked("api/do", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(deed),
  });
}

/**
 * Get pictures for ever.
 * @param take gets each.
 * @param lost gets why there is no connection.
 */
export async function live(take, lost) {
  for (let failures = 0; ; failures += 1) {
    try {
      await stream((message) => {
        failures = 0;
        take(message);
      });
      lost("The program that serves this page has ended the connection.");
    } catch (error) {
      lost(error instanceof TypeError || error.name === "AbortError"
        ? "The program that serves this page does not answer: is it still running?"
        : error.message);
    }
    await new Promise((done) => setTimeout(done, PAUSES[Math.min(failures, PAUSES.length - 1)]));
  }
}

async function stream(take) {
  const stop = new AbortController();
  let timer = setTimeout(() => stop.abort(), SILENT);
  try {
    const answer = await asked("api/live", { signal: stop.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => stop.abort(), SILENT);
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        if (event.startsWith("data: ")) take(JSON.parse(event.slice(6)));
      }
    }
  } finally {
    clearTimeout(timer);
    stop.abort();
  }
}
