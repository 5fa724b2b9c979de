// The loop at a glance: what comes in, what is let through, what is in force, and what happened.

import { UNKNOWN, agentLink, ago, bdi, clock, h, moment, number, percent, plural, rate, reconcile, replace, say, span } from "./dom.js";
import { meter, sparkline, timeChart } from "./chart.js";
import { ask } from "./api.js";
import { state } from "./state.js";

/** What a tile's sparkline shows: the last minute. */
const SPARK_POINTS = 60;

function tile(label, extra) {
  const value = h("span", { class: "figure" }, UNKNOWN);
  const unit = h("span", { class: "unit" });
  const note = h("p", { class: "note" });
  const node = h("div", { class: "tile card" }, h("h2", {}, label), h("p", { class: "big" }, value, " ", unit), extra, note);
  return { node, set: (text, of, below) => [say(value, text), say(unit, of), say(note, below)] };
}

/** Rows of `<dt>` and `<dd>`; `set` fills one of them. */
function facts(names) {
  const values = new Map();
  const node = h("dl", { class: "facts" }, names.map((name) => {
    const value = h("dd", {});
    values.set(name, value);
    return h("div", {}, h("dt", {}, name), value);
  }));
  return { node, set: (name, ...given) => {
    const children = given.flat().filter((child) => child !== "");
    const text = children.map((child) => child?.textContent ?? child).join("");
    if (values.get(name).textContent !== text) replace(values.get(name), ...children);
  } };
}

const badge = (tone, text) => h("span", { class: `badge ${tone}` }, text);

function policyDetails() {
  const text = h("pre", { class: "code", tabindex: 0, "aria-label": "The [policy] table in force" });
  const node = h("details", {}, h("summary", {}, "The [policy] table in force"), text);
  node.addEventListener("toggle", async () => {
    if (!node.open) return;
    try {
      say(text, JSON.stringify((await ask("policy"))?.config ?? null, null, 2));
    } catch (error) {
      say(text, `It cannot be read: ${error.message}.`);
    }
  });
  return node;
}

function eventRow(event) {
  const when = h("span", { class: "muted when" });
  const kinds = { drift: "warn", operator: "info" };
  const node = h("li", {}, badge(kinds[event.kind] ?? "plain", event.kind), h("p", {}, event.agent_id && [agentLink(event.agent_id), " "], bdi(event.text)), when);
  when.append(moment(event.at_ms, ""));
  return { node, update: () => say(when.firstChild, ago(event.at_ms, state.overview.at_ms)) };
}

function partRow() {
  const name = h("span", {});
  const sign = h("span", { class: "sign" });
  const fault = h("p", { class: "fault" });
  const node = h("li", {}, sign, name, fault);
  return {
    node,
    update(part) {
      node.className = part.ok ? "good" : "bad";
      say(sign, part.ok ? "✓ " : "✕ ");
      say(name, `${part.name} ${part.ok ? "answers" : "does not answer"}`);
      say(fault, part.error ?? "");
    },
  };
}

export function overview() {
  const sparks = { ratings: sparkline({ tone: "c", width: 120, height: 30 }), admitted: sparkline({ tone: "a", width: 120, height: 30 }), p95: sparkline({ tone: "d", width: 120, height: 30 }), price: sparkline({ tone: "b", width: 120, height: 30 }) };
  const use = meter("Capacity in use");
  const tiles = {
    // In the order of the loop.
    ratings: tile("Ratings", sparks.ratings.node),
    wait: tile("Rating to limit", sparks.p95.node),
    price: tile("Price of capacity", sparks.price.node),
    requests: tile("Requests admitted", sparks.admitted.node),
    use: tile("Capacity in use", use.node),
  };
  const charts = {
    requests: timeChart({ title: "Requests", unit: "a second", series: [{ name: "admitted", tone: "a" }, { name: "denied (429)", tone: "b" }], empty: "No gateway in this process, or nothing asked yet." }),
    ratings: timeChart({ title: "Ratings", unit: "a second", series: [{ name: "taken", tone: "c" }], height: 120 }),
    use: timeChart({ title: "Capacity in use", unit: "of what the service can serve", series: [{ name: "in use", tone: "d" }], height: 120, show: (value) => percent(value), axis: (value) => percent(value), empty: "The policy in force knows no capacity." }),
  };
  const force = facts(["Policy", "Version", "Checkpoint", "Drift found", "Agents"]);
  const process = facts(["Role", "Version", "Up for", "State"]);
  const parts = h("ul", { class: "parts" });
  const events = h("ol", { class: "events" });
  const quiet = h("p", { class: "muted" });

  const node = h("div", { class: "overview" },
    h("h1", { tabindex: -1, class: "unseen" }, "Overview"),
    h("section", { class: "tiles", "aria-label": "At a glance" }, Object.values(tiles).map((one) => one.node)),
    h("div", { class: "columns" },
      h("section", { class: "card", "aria-label": "Lately" }, h("h2", {}, "Lately"), charts.requests.node, charts.ratings.node, charts.use.node),
      h("div", { class: "side" },
        h("section", { class: "card" }, h("h2", {}, "In force"), force.node, policyDetails()),
        h("section", { class: "card" }, h("h2", {}, "This process"), process.node, parts),
        h("section", { class: "card" }, h("h2", {}, "Events"), events, quiet))));

  return {
    title: "Overview",
    node,
    show({ overview: seen, history }) {
      if (!seen) return;
      const last = history.findLast((point) => !point.gap);
      const lately = (key) => history.slice(-SPARK_POINTS).map((point) => point[key]);
      sparks.ratings.update(lately("ratings"));
      sparks.admitted.update(lately("admitted"));
      sparks.p95.update(lately("p95"));
      sparks.price.update(lately("price"));

      const total = (value, what) => (value === null || value === undefined ? "" : `${number(value)} ${what}`);
      const lag = seen.bus_lag_ratings === null ? "" : `, ${number(seen.bus_lag_ratings)} waiting on the bus`;
      tiles.ratings.set(rate(seen.ratings_per_second), "a second", (total(seen.ratings_total, "since the start") || "not taken in this process") + lag);
      const asked = last.admitted === null || last.denied === null ? null : last.admitted + last.denied;
      const share = asked ? `, ${percent(last.denied / asked, 1)} of all` : "";
      tiles.requests.set(rate(last.admitted), "a second", seen.admitted_total === null ? "no gateway in this process" : `denied ${rate(last.denied)} a second${share}`);
      const wait = seen.rating_to_limit_seconds;
      tiles.wait.set(span(wait?.p95), wait ? "for 95 of 100" : "", wait && wait.p50 !== null ? `half within ${span(wait.p50)}, 99 of 100 within ${span(wait.p99)}` : "no rating has moved a limit here yet");
      const market = seen.market;
      const used = `${rate(seen.used_per_second)} of ${rate(market?.service_capacity)} tokens a second`;
      tiles.use.set(percent(market?.use_share), "", market ? used : "the policy in force knows no capacity");
      use.update(market?.use_share, `${percent(market?.use_share)}, ${used}`);
      tiles.price.set(number(market?.price, 2), market ? "points above 3" : "", market ? `worth it from a quality of ${number(3 + market.price, 2)}` : `${seen.policy?.kind ?? "the policy"} asks no price`);

      const points = (...keys) => history.map((point) => ({ at_ms: point.at_ms, values: keys.map((key) => point[key]) }));
      charts.requests.update(points("admitted", "denied"), seen.at_ms);
      charts.ratings.update(points("ratings"), seen.at_ms);
      charts.use.update(points("use"), seen.at_ms);

      const policy = seen.policy ?? {};
      force.set("Policy", h("b", {}, policy.kind ?? UNKNOWN), " ", badge(policy.mode === "live" ? "good" : "warn", policy.mode ?? UNKNOWN));
      force.set("Version", h("code", {}, bdi(policy.version ?? UNKNOWN)));
      const checkpoint = policy.checkpoint;
      force.set("Checkpoint", checkpoint ? [bdi(checkpoint.path), h("span", { class: "muted" }, typeof checkpoint.age_seconds === "number" ? `, ${span(Math.floor(checkpoint.age_seconds))} old` : "")] : h("span", { class: "muted" }, "none"));
      force.set("Drift found", seen.drift ? `${plural(seen.drift.fall, "fall")}, ${plural(seen.drift.rise, "rise")}` : UNKNOWN);
      force.set("Agents", h("a", { href: "#/agents" }, seen.agents === null ? "see the table" : number(seen.agents)));
      process.set("Role", seen.role ?? UNKNOWN);
      process.set("Version", seen.version ?? UNKNOWN);
      process.set("Up for", span(Math.floor(seen.uptime_seconds)));
      process.set("State", seen.draining ? badge("warn", "draining") : seen.ready ? badge("good", "ready") : badge("bad", "not ready"));
      reconcile(parts, seen.parts ?? [], (part) => part.name, partRow);
      const told = seen.events ?? [];
      reconcile(events, told, (event) => `${event.at_ms} ${event.agent_id} ${event.text}`, eventRow);
      say(quiet, told.length === 0 ? (seen.events === null ? "Only the tuner's own listener knows events." : `Nothing happened since ${clock(seen.at_ms - 1000 * seen.uptime_seconds)}.`) : "");
    },
  };
}
