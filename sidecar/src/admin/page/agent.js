// One agent: what it may spend, why, what moved it, and what an operator can do about it.

import { UNKNOWN, ago, bdi, clock, h, moment, number, rate, reconcile, replace, say, span } from "./dom.js";
import { meter, qualityScale, timeChart } from "./chart.js";
import { Refused, agentPath, ask } from "./api.js";
import { badgesOf } from "./agents.js";
import { actionsOf } from "./actions.js";
import { listenerNow } from "./state.js";

const HISTORY_MAX = 600;

function tile(label, extra) {
  const value = h("span", { class: "figure" }, UNKNOWN);
  const unit = h("span", { class: "unit" });
  const note = h("p", { class: "note" });
  return { node: h("div", { class: "tile card" }, h("h2", {}, label), h("p", { class: "big" }, value, " ", unit), extra, note), set: (text, of, below) => [say(value, text), say(unit, of), say(note, below)] };
}

/** From what it asks for to what it gets, step by step. */
function ladder() {
  const list = h("ol", { class: "ladder" });
  return {
    node: list,
    update(why, mode) {
      const applied = mode === null || mode === "live";
      const factor = typeof why.residual === "number" ? Math.exp(why.residual) : null;
      const steps = [
        { key: "demand", name: "It asks for", value: why.demand },
        { key: "base", name: "The base law gives", value: why.base_rate },
      ];
      if (factor !== null && why.residual !== 0) {
        const change = `${factor >= 1 ? "+" : "−"}${number(Math.abs(100 * (factor - 1)), 1)} %`;
        steps.push({ key: "residual", name: applied ? `What was learned makes it (${change})` : `What was learned would make it (${change}, not applied: ${mode})`, value: why.base_rate * factor, faint: !applied });
      }
      const reasons = { none: "In force", frozen: "In force: frozen by an operator", override: "In force: held as an operator set it" };
      steps.push({ key: "force", name: reasons[why.held ?? "none"] ?? `In force: ${why.held}`, value: why.refill_rate, last: true });
      const shown = steps.filter(({ value }) => typeof value === "number");
      const most = Math.max(...shown.map(({ value }) => value), 1e-9);
      const scaled = shown.map((step) => ({ ...step, share: step.value / most }));
      reconcile(list, scaled, ({ key }) => key, ({ last }) => {
        const bar = h("span", { class: "bar" });
        const value = h("b", {});
        const text = h("span", { class: "step" });
        return { node: h("li", { class: last ? "last" : null }, text, value, h("span", { class: "rail", "aria-hidden": "true" }, bar)), update(step) {
          say(text, step.name);
          say(value, `${rate(step.value)}/s`);
          bar.style.width = `${(100 * step.share).toFixed(1)}%`;
          bar.classList.toggle("faint", Boolean(step.faint));
        } };
      });
    },
  };
}

function bucketRow({ bucket_name }) {
  const level = meter(`Level of ${bucket_name}`);
  const cells = { rate: h("td", { class: "num" }), capacity: h("td", { class: "num" }), level: h("span", {}), full: h("td", { class: "num" }), own: h("td", {}) };
  const standard = h("span", { class: "badge plain" }, "default");
  const name = h("th", { scope: "row" }, bdi(bucket_name), " ", standard);
  return {
    node: h("tr", {}, name, cells.rate, cells.capacity, h("td", { class: "level" }, cells.level, level.node), cells.full, cells.own),
    update(bucket) {
      standard.hidden = !bucket.default;
      say(cells.rate, rate(bucket.refill_rate));
      say(cells.capacity, number(bucket.capacity));
      say(cells.level, number(bucket.level, 1));
      level.update(bucket.level / bucket.capacity, `${number(bucket.level, 1)} of ${number(bucket.capacity)} tokens`);
      say(cells.full, bucket.full_in_ms === 0 ? "now" : bucket.full_in_ms === null || bucket.full_in_ms === undefined ? UNKNOWN : `in ${span(bucket.full_in_ms / 1000)}`);
      say(cells.own, bucket.own ? "its own" : "as configured");
    },
  };
}

const CAUSES = { rating: "a rating", tick: "a look at the market", operator: "an operator" };

function moveRow(move) {
  const change = move.to - move.from;
  const sign = Math.abs(change) < 5e-4 ? "=" : change > 0 ? "▲" : "▼";
  const cause = `${CAUSES[move.cause] ?? move.cause}${typeof move.score === "number" ? ` of ${number(move.score, Number.isInteger(move.score) ? 0 : 1)}` : ""}`;
  const when = h("td", {});
  const text = moment(move.at_ms, "");
  when.append(text);
  return {
    node: h("tr", {}, when, h("td", {}, bdi(cause)),
      h("td", { class: "num" }, rate(move.from), " → ", h("b", {}, rate(move.to))),
      h("td", { class: change > 5e-4 ? "up" : change < -5e-4 ? "down" : "muted" }, h("span", { "aria-hidden": "true" }, sign), h("span", { class: "unseen" }, { "=": "the same", "▲": "up", "▼": "down" }[sign])),
      h("td", {}, move.held ? h("span", { class: "badge warn" }, bdi(move.held)) : "")),
    update: () => say(text, ago(move.at_ms, listenerNow())),
  };
}

export function agent({ id }) {
  const badges = h("span", { class: "badges" });
  const heading = h("h1", { tabindex: -1 }, bdi(id));
  const lead = h("p", { class: "lead" }, "Reading.");
  const level = meter("Tokens it holds now");
  const tiles = { rate: tile("May spend"), level: tile("Holds now", level.node), quality: tile("Quality"), counts: tile("Tokens spent") };
  const chart = timeChart({ title: "Rate", unit: "tokens a second", series: [{ name: "may spend", tone: "a", step: true }], seconds: null, height: 150, empty: "It has not moved yet." });
  const qualities = timeChart({ title: "Quality", unit: "mean score, 1 to 5", series: [{ name: "estimate", tone: "d", step: true }], seconds: null, low: 1, high: 5, height: 130, show: (value) => number(value, 2), empty: "The policy in force does not estimate quality, or nobody has rated yet." });
  const sentences = h("ul", { class: "sentences" });
  const scale = qualityScale();
  const steps = ladder();
  const moves = h("tbody", {});
  const movesTable = h("table", {}, h("caption", { class: "unseen" }, "The newest decisions"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "When"), h("th", { scope: "col" }, "Because of"), h("th", { scope: "col", class: "num" }, "Tokens a second"), h("th", { scope: "col" }, h("span", { class: "unseen" }, "Direction")), h("th", { scope: "col" }, "Held by"))), moves);
  const noMoves = h("p", { class: "muted" });
  const buckets = h("tbody", {});
  const bucketTable = h("table", {}, h("caption", { class: "unseen" }, "Buckets"),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Bucket"), h("th", { scope: "col", class: "num" }, "Rate"), h("th", { scope: "col", class: "num" }, "Capacity"), h("th", { scope: "col" }, "Level"), h("th", { scope: "col", class: "num" }, "Full"), h("th", { scope: "col" }, "Limits"))), buckets);
  const actions = h("div", { class: "actions" });
  const body = h("div", { hidden: true },
    h("section", { class: "tiles four", "aria-label": "At a glance" }, Object.values(tiles).map((one) => one.node)),
    h("div", { class: "columns" },
      h("div", { class: "side" },
        h("section", { class: "card" }, h("h2", {}, "Why this rate"), sentences, scale.node, steps.node),
        h("section", { class: "card" }, h("h2", {}, "What moved it"), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "The newest decisions" }, movesTable), noMoves)),
      h("div", { class: "side" },
        h("section", { class: "card" }, h("h2", {}, "Actions"), actions),
        h("section", { class: "card" }, h("h2", {}, "Lately"), chart.node, qualities.node))),
    h("section", { class: "card" }, h("h2", {}, "Buckets"), h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Buckets of this agent" }, bucketTable)));
  const fault = h("div", { class: "empty", hidden: true });
  const node = h("section", { class: "agent" }, h("p", { class: "crumb" }, h("a", { href: "#/agents" }, "‹ Agents")), h("div", { class: "title-row" }, heading, badges), lead, fault, body);

  let history = [];
  let shownActions = "";
  let mode = null;

  function remember(seen) {
    const known = new Map();
    for (const point of [...history, ...(seen.history ?? [])]) known.set(point.at_ms, point);
    const now = listenerNow();
    const last = history.at(-1);
    if (!last || last.refill_rate !== seen.refill_rate || last.quality !== seen.quality) known.set(now, { at_ms: now, refill_rate: seen.refill_rate, quality: seen.quality });
    history = [...known.values()].filter((point) => point.at_ms <= now).sort((a, b) => a.at_ms - b.at_ms).slice(-HISTORY_MAX);
    if (history.length === 0) history = [{ at_ms: now, refill_rate: seen.refill_rate, quality: seen.quality }];
  }

  function show(seen) {
    body.hidden = false;
    fault.hidden = true;
    const bucket = seen.buckets?.find((one) => one.default) ?? seen.buckets?.[0];
    const why = seen.why ?? {};
    say(lead, seen.known
      ? `Policy ${seen.policy ?? UNKNOWN}, revision ${number(seen.rev)} of its record${seen.operator ? "; its limits were set by hand and no rating has moved them since" : ""}.`
      : "Nobody has rated this agent yet and it has no record: it starts from the configured limits shown here.");
    replace(badges, badgesOf(seen));
    tiles.rate.set(rate(seen.refill_rate), "tokens a second", `up to ${number(seen.capacity)} at once`);
    tiles.level.set(number(bucket?.level, 1), `of ${number(bucket?.capacity)} tokens`, bucket?.full_in_ms ? `full in ${span(bucket.full_in_ms / 1000)}` : bucket?.full_in_ms === 0 ? "full" : "");
    level.update(bucket ? bucket.level / bucket.capacity : null, `${number(bucket?.level, 1)} of ${number(bucket?.capacity)} tokens`);
    tiles.quality.set(number(seen.quality, 2), typeof seen.deviation === "number" ? `± ${number(seen.deviation, 2)}` : "", typeof seen.ratings === "number" ? `from ${number(seen.ratings, 1)} ratings by weight` : seen.quality === null ? `${seen.policy} does not estimate it` : "");
    tiles.counts.set(number(seen.admitted), "so far", `${number(seen.denied)} refused`);
    reconcile(sentences, why.sentences ?? [], (text) => text, (text) => ({ node: h("li", {}, bdi(text)) }));
    scale.node.toggleAttribute("hidden", typeof why.quality !== "number");
    scale.update(why);
    steps.update({ ...why, refill_rate: why.refill_rate ?? seen.refill_rate }, mode);
    const told = seen.moves;
    movesTable.hidden = !told?.length;
    reconcile(moves, told ?? [], (move) => `${move.at_ms} ${move.cause} ${move.to}`, moveRow);
    say(noMoves, told === null || told === undefined ? "Only the tuner that has this agent in memory knows, on its own listener." : told.length === 0 ? "Nothing yet." : "");
    reconcile(buckets, seen.buckets ?? [], (one) => one.bucket_name, bucketRow);
    remember(seen);
    const now = listenerNow();
    chart.update(history.map((point) => ({ at_ms: point.at_ms, values: [point.refill_rate] })), now);
    qualities.update(history.map((point) => ({ at_ms: point.at_ms, values: [point.quality] })), now);
    const banned = typeof seen.banned_until_ms === "number" && seen.banned_until_ms > now;
    const signature = [seen.held, banned, seen.banned_until_ms].join();
    if (signature !== shownActions) {
      const focused = actions.contains(document.activeElement);
      replace(actions, actionsOf(seen, { banned, current: () => latest, done: show_done }));
      if (focused) actions.querySelector("button")?.focus();
      shownActions = signature;
    }
  }

  let latest = null;
  const show_done = (answer) => {
    if (answer?.agent_id === id) {
      latest = answer;
      show(answer);
    }
    dispatchEvent(new Event("merit:wake"));
  };

  return {
    title: id,
    node,
    show({ overview }) {
      mode = overview?.policy?.mode ?? null;
    },
    async poll(signal) {
      try {
        if (/^\.*$/.test(id)) throw new Refused(400, { detail: "an id has a letter or a digit" });
        latest = await ask(agentPath(id), { signal });
        show(latest);
      } catch (error) {
        if (!(error instanceof Refused) || ![400, 404, 422].includes(error.status)) throw error;
        body.hidden = true;
        fault.hidden = false;
        say(lead, "");
        replace(fault, h("p", {}, h("b", {}, "No agent can have this id.")), h("p", { class: "muted" }, error.message));
      }
    },
  };
}
