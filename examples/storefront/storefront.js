// The storefront's client: shows on each `[data-item]` card the viewer's own score, as it changes.
//
// 1. The token is kept in a variable: it is stored nowhere, and taken out of the address at once.
// 2. A ticket opens one stream, so the browser's own reconnect would be refused (401). Whenever a stream
//    ends it is closed, and another opened with a new ticket, behind the last event that was shown.
// 3. Whatever ids hold is text: nothing is ever parsed as HTML.
//
// A card whose score came fires `merit:rating`, which bubbles; `detail` is `{item_id, rating}`.

const RETRY_FIRST_MS = 500;
const RETRY_MOST_MS = 30_000;
/** A stream that lasted so long was a good one: the next wait is short again. */
const GOOD_AFTER_MS = 5_000;
const ANSWER_WITHIN_MS = 10_000;
const HIGHLIGHT_MS = 1_500;
/** As `personalize.events.items_max`: a page with more cards listens to all items. */
const ITEMS_MAX = 100;
/** No id of Merit's, so a stream behind it begins with the present score of each item. */
const FROM_THE_PRESENT = "present";

const element = (id) => document.getElementById(id);
const main = document.querySelector("main");
const gateway = new URL(main.dataset.gateway, location.href);
/** The cards of each item. */
const cards = new Map();
for (const card of document.querySelectorAll("[data-item]")) {
  cards.set(card.dataset.item, [...(cards.get(card.dataset.item) ?? []), card]);
}

// --- what is shown

function say(state, text) {
  const place = element("connection");
  place.dataset.state = state;
  // The same text again would be read out again.
  if (place.textContent !== text) place.textContent = text;
}

const highlights = new WeakMap();

function show(item, rating) {
  for (const card of cards.get(item) ?? []) {
    const place = card.querySelector(".rating");
    const [before, text] = [place.textContent, rating.toFixed(2)];
    place.textContent = text;
    // The first score of a card is no change.
    if (!Number.isNaN(Number.parseFloat(before)) && before !== text) {
      card.dataset.change = rating > Number.parseFloat(before) ? "up" : "down";
      card.classList.remove("changed");
      void card.offsetWidth; // so that the animation begins anew
      card.classList.add("changed");
      clearTimeout(highlights.get(card));
      highlights.set(card, setTimeout(() => card.classList.remove("changed"), HIGHLIGHT_MS));
    }
    const detail = { item_id: item, rating };
    card.dispatchEvent(new CustomEvent("merit:rating", { bubbles: true, detail }));
  }
}

/** Returns what a token says of itself, to be shown; Merit alone knows whether it is true. */
function claimsOf(text) {
  try {
    const part = text.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    const bytes = Uint8Array.from(atob(part), (letter) => letter.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes)) ?? {};
  } catch {
    return {};
  }
}

/** Returns the problem details (RFC 9457) of an answer, or what little is known. */
async function problemOf(response) {
  const problem = await response.json().catch(() => null);
  return { detail: `status ${response.status}`, ...problem };
}

// --- the stream

let token = "";
let lastEvent = FROM_THE_PRESENT;
let source = null;
let timer = 0;
let attempts = 0;
/** Counts openings: what comes late of an earlier one is dropped. */
let turn = 0;

function close() {
  turn += 1;
  clearTimeout(timer);
  timer = 0;
  source?.close();
  source = null;
}

function again() {
  close();
  say("waiting", "The connection is lost; trying again.");
  const most = Math.min(RETRY_MOST_MS, RETRY_FIRST_MS * 2 ** attempts);
  attempts += 1;
  // Jitter, so that pages that lost a gateway together do not come back together.
  timer = setTimeout(open, most * (0.5 + 0.5 * Math.random()));
}

async function open() {
  close();
  const mine = turn;
  if (attempts === 0) say("connecting", "Connecting.");
  let ticket;
  try {
    const response = await fetch(new URL("/events/ticket", gateway), {
      method: "POST",
      headers: { authorization: `Bearer ${token}` },
      cache: "no-store",
      credentials: "omit",
      signal: AbortSignal.timeout(ANSWER_WITHIN_MS),
    });
    if (response.status !== 201) {
      const { detail } = await problemOf(response);
      if (mine !== turn) return;
      // Busy passes, a token that is refused stays refused.
      if (response.status === 429 || response.status >= 500) return again();
      return say("refused", `Your token is refused: ${detail}.`);
    }
    ({ ticket } = await response.json());
  } catch {
    if (mine === turn) again();
    return;
  }
  if (mine !== turn) return;
  listen(ticket);
}

function listen(ticket) {
  const url = new URL("/events/personalized-rating", gateway);
  url.searchParams.set("ticket", ticket);
  url.searchParams.set("last_event_id", lastEvent);
  if (cards.size <= ITEMS_MAX) for (const item of cards.keys()) url.searchParams.append("item_id", item);
  const stream = new EventSource(url);
  source = stream;
  let opened = Infinity;
  stream.onopen = () => {
    opened = performance.now();
    say("live", "Live.");
  };
  stream.onmessage = ({ data, lastEventId }) => {
    if (stream !== source) return;
    const { item_id: item, rating } = JSON.parse(data);
    show(item, rating);
    // Scores after a reset have no id of their own.
    if (lastEventId) lastEvent = lastEventId;
  };
  stream.onerror = () => {
    if (stream !== source) return;
    if (performance.now() - opened > GOOD_AFTER_MS) attempts = 0;
    again();
  };
}

function enter(text) {
  token = text.trim();
  const claims = claimsOf(token);
  element("viewer").textContent = claims.sub ?? "nobody";
  element("agent").textContent = claims.agent_id ?? claims.act?.sub ?? "nobody";
  // Another viewer has other scores.
  lastEvent = FROM_THE_PRESENT;
  attempts = 0;
  for (const card of [...cards.values()].flat()) card.querySelector(".rating").textContent = "–";
  open();
}

/** Takes the token of `#token=…` out of the address and the history. */
function takeFragment() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given === null) return;
  history.replaceState(history.state, "", location.pathname + location.search);
  enter(given);
}

// --- the service, asked as the visitor's agent

let refusedUntil = 0;

function countDown() {
  const left = refusedUntil - performance.now();
  element("ask").setAttribute("aria-disabled", String(left > 0));
  if (left > 0) {
    element("wait").textContent = `Ask again in ${Math.ceil(left / 1000)} s.`;
    // To the next whole second.
    setTimeout(countDown, left % 1000 || 1000);
  } else {
    element("wait").textContent = "You may ask again.";
  }
}

async function ask() {
  if (refusedUntil > performance.now()) return;
  const answer = element("answer");
  if (!token) {
    answer.textContent = "Enter a token first.";
    return;
  }
  element("wait").textContent = "";
  try {
    const response = await fetch(main.dataset.ask, {
      headers: { authorization: `Bearer ${token}` },
      cache: "no-store",
      signal: AbortSignal.timeout(ANSWER_WITHIN_MS),
    });
    if (response.ok) {
      answer.textContent = await response.text();
      return;
    }
    const problem = await problemOf(response);
    answer.textContent = `Refused (${response.status}): ${problem.detail}.`;
    // Milliseconds are closer than the whole seconds of the field.
    const wait = problem.retry_after_ms ?? Number(response.headers.get("retry-after")) * 1000;
    if (wait > 0) {
      refusedUntil = performance.now() + wait;
      countDown();
    }
  } catch {
    answer.textContent = "The service cannot be reached.";
  }
}

// --- the page

element("who").addEventListener("submit", (event) => {
  event.preventDefault();
  enter(element("token").value);
  element("token").value = "";
});
element("ask").addEventListener("click", ask);
addEventListener("hashchange", takeFragment);
// A page that is kept for the back button has no use for a stream meanwhile.
addEventListener("pagehide", close);
addEventListener("pageshow", ({ persisted }) => { if (persisted && token) open(); });
addEventListener("online", () => { if (timer) open(); });
takeFragment();
