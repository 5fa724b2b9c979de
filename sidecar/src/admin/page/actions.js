// What an operator can do to one agent, each behind a dialog that says what it will do.

import { clock, h, number, rate } from "./dom.js";
import { agentPath, ask } from "./api.js";
import { confirm, field } from "./dialog.js";

const BANS = [["15m", "15 minutes"], ["1h", "1 hour"], ["24h", "24 hours"], ["168h", "7 days"], ["720h", "30 days"]];

/** A rate as it is typed: to the micro-token, which is what limits are kept in. */
const typed = (value) => (typeof value === "number" ? String(Number(value.toFixed(6))) : "");

const post = (id, action, body) => ask(`${agentPath(id)}/${action}`, { method: "POST", body: body ?? {} });

function setLimits(agent, done) {
  const names = (agent.buckets ?? []).map(({ bucket_name }) => bucket_name);
  const standard = agent.buckets?.find((bucket) => bucket.default) ?? agent.buckets?.[0];
  const bucket = names.length > 1 ? field("Bucket", { options: names.map((name) => [name, name]), value: standard.bucket_name }) : null;
  const refill = field("Tokens a second", { type: "number", inputmode: "decimal", min: 0, step: "any", value: typed(standard?.refill_rate) }, `Now ${rate(standard?.refill_rate)}. Empty: stays as it is.`);
  const capacity = field("Tokens at once (capacity)", { type: "number", inputmode: "numeric", min: 1, step: 1, value: standard?.capacity ?? "" }, `Now ${number(standard?.capacity)}. Empty: stays as it is.`);
  bucket?.input.addEventListener("change", () => {
    const chosen = agent.buckets.find(({ bucket_name }) => bucket_name === bucket.input.value);
    refill.input.value = typed(chosen.refill_rate);
    capacity.input.value = chosen.capacity;
  });
  return confirm({
    title: `Set the limits of ${agent.agent_id}`,
    consequences: ["They hold from its next request on, at every gateway.", "This is a new starting point: the next rating moves on from it. To hold a rate where it is, freeze the agent, too."],
    fields: [bucket?.node, refill.node, capacity.node],
    act: "Set the limits",
    run: async () => {
      const body = {};
      // What was typed, as the number it is: `valueAsNumber` of nothing is NaN.
      if (refill.input.value !== "") body.refill_rate = refill.input.valueAsNumber;
      if (capacity.input.value !== "") body.capacity = capacity.input.valueAsNumber;
      if (bucket && bucket.input.value !== standard.bucket_name) body.bucket_name = bucket.input.value;
      done(await post(agent.agent_id, "set", body));
      return `The limits of ${agent.agent_id} are set.`;
    },
  });
}

function simple(agent, done, { action, title, consequences, act, danger, told }) {
  return confirm({ title, consequences, act, danger, run: async () => {
    done(await post(agent.agent_id, action));
    return told;
  } });
}

function ban(agent, done) {
  const length = field("For how long", { options: BANS, value: "1h" });
  return confirm({
    title: `Ban ${agent.agent_id}?`,
    consequences: [
      "Every request of it is answered 403 until the ban ends, at every gateway, whatever tokens it holds.",
      "Its record, its limits and its ratings stay. Ratings that still come are learned.",
      "The ban ends by itself, or when somebody lifts it.",
    ],
    fields: [length.node],
    act: `Ban ${agent.agent_id}`,
    danger: true,
    run: async () => {
      done(await post(agent.agent_id, "ban", { for: length.input.value }));
      const [, text] = BANS.find(([value]) => value === length.input.value);
      return `${agent.agent_id} is banned for ${text}.`;
    },
  });
}

/** Returns the actions that fit the agent. `current()` is the newest answer, `done(answer)` shows the next one. */
export function actionsOf({ agent_id, held, banned_until_ms }, { banned, current, done }) {
  const frozen = held === "frozen" || held === "override";
  const row = (label, text, run, tone = "") => h("div", { class: "action" }, h("button", { type: "button", class: tone, on: { click: run } }, label), h("p", { class: "muted" }, text));
  return [
    row("Set limits…", "A new starting point; ratings move it on.", () => setLimits(current(), done)),
    frozen
      ? row("Unfreeze…", "Ratings move its rate again.", () => simple(current(), done, {
        action: "unfreeze",
        title: `Let ratings move ${agent_id} again?`,
        consequences: ["What was learned meanwhile counts from its next rating or tick on, so its rate may move at once, by a step a tick."],
        act: "Unfreeze",
        told: `${agent_id} is no longer frozen.`,
      }))
      : row("Freeze…", "Holds its rate where it is; ratings are still learned.", () => simple(current(), done, {
        action: "freeze",
        title: `Freeze ${agent_id}?`,
        consequences: [`Its rate stays at ${rate(current().refill_rate)} tokens a second until somebody unfreezes it.`, "Ratings are still learned, and count when it is unfrozen."],
        act: "Freeze",
        told: `${agent_id} is frozen.`,
      })),
    banned
      ? row("Lift the ban…", `Banned until ${clock(banned_until_ms)}.`, () => simple(current(), done, {
        action: "unban",
        title: `Lift the ban of ${agent_id}?`,
        consequences: ["Its requests are decided by its bucket again, at once."],
        act: "Lift the ban",
        told: `The ban of ${agent_id} is lifted.`,
      }))
      : row("Ban…", "Answers 403 to all its requests for a time.", () => ban(current(), done), "danger"),
    row("Reset…", "Forgets what ratings said of it.", () => simple(current(), done, {
      action: "reset",
      title: `Reset ${agent_id}?`,
      consequences: [
        "What ratings said of its quality is forgotten, and limits set by hand with it: it starts anew from the configured limits.",
        "Which ratings were counted is remembered, so that none counts twice. What was forgotten cannot be brought back.",
      ],
      act: `Reset ${agent_id}`,
      danger: true,
      told: `${agent_id} starts anew.`,
    }), "danger"),
  ];
}
