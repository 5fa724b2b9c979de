// What every view knows: the newest overview, what was seen since the page was opened, and the connection.

/** What is seen within this time is kept: 15 minutes. */
const KEPT_MS = 900_000;
/** Counters are turned into rates over this time. */
const RATE_OVER_MS = 3_000;

export const state = {
  /** The newest answer of `/overview`, or null. */
  overview: null,
  /** When it came, by this machine's clock. */
  seen_ms: null,
  /** `connecting`, `live`, `lost`, `locked` (a token is needed), `refused` or `paused`. */
  connection: "connecting",
  /** Points of `{at_ms, admitted, denied, ratings, price, use, p95}`, oldest first; rates a second. */
  history: [],
};

/** Returns the listener's time: what it tells of moments is compared with this, whatever this machine's clock says. */
export const listenerNow = () => (state.overview ? state.overview.at_ms + (Date.now() - state.seen_ms) : Date.now());

let samples = [];

const difference = (newer, older, key, seconds) => {
  const [now, before] = [newer[key], older[key]];
  return typeof now === "number" && typeof before === "number" && now >= before ? (now - before) / seconds : null;
};

/** Takes a new overview. Returns true when another process answered than before. */
export function take(overview) {
  const before = state.overview;
  const at_ms = typeof overview.at_ms === "number" ? overview.at_ms : Date.now();
  // Up for less time than before: it was started anew, and its counters with it.
  const anew = before !== null && overview.uptime_seconds < before.uptime_seconds;
  if (anew) samples = [];
  // A clock that was set back would draw lines to the left.
  if (samples.length > 0 && at_ms <= samples.at(-1).at_ms) {
    if (at_ms < samples.at(-1).at_ms - RATE_OVER_MS) [samples, state.history] = [[], []];
    else samples.pop();
  }
  samples.push({ at_ms, admitted: overview.admitted_total, denied: overview.denied_total });
  while (samples.length > 2 && at_ms - samples[1].at_ms >= RATE_OVER_MS) samples.shift();
  const oldest = samples[0];
  const seconds = (at_ms - oldest.at_ms) / 1000;
  const per_second = (key) => (seconds > 0.2 ? difference(samples.at(-1), oldest, key, seconds) : null);
  const wait = overview.rating_to_limit_seconds;
  const market = overview.market;
  state.history = state.history.filter((point) => point.at_ms > at_ms - KEPT_MS && point.at_ms < at_ms);
  state.history.push({
    at_ms,
    admitted: per_second("admitted"),
    denied: per_second("denied"),
    ratings: overview.ratings_per_second,
    price: market?.price ?? null,
    use: market?.use_share ?? null,
    p95: wait?.p95 ?? null,
  });
  state.overview = overview;
  state.seen_ms = Date.now();
  return anew;
}

/** Marks that nothing is known of the time since the last point: charts show a gap. */
export function gap() {
  samples = [];
  const last = state.history.at(-1);
  if (last && !last.gap) {
    state.history.push({ at_ms: last.at_ms + 1, gap: true, admitted: null, denied: null, ratings: null, price: null, use: null, p95: null });
  }
}
