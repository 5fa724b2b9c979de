// What operators did here, as this process remembers it.

import { UNKNOWN, agentLink, bdi, h, moment, reconcile, say } from "./dom.js";
import { ask } from "./api.js";

const ENTRIES = 200;

function detailOf(detail) {
  if (detail === null || detail === undefined) return "";
  const text = typeof detail === "string" ? detail : JSON.stringify(detail);
  return text === "{}" ? "" : text;
}

function entryRow(entry) {
  const tone = { done: "good", begun: "plain" }[entry.outcome] ?? "bad";
  return {
    node: h("tr", {},
      h("td", {}, moment(entry.at_ms)),
      h("td", {}, h("b", {}, entry.action)),
      h("td", {}, entry.agent_id ? agentLink(entry.agent_id) : UNKNOWN),
      h("td", { class: "wrap" }, bdi(detailOf(entry.detail))),
      h("td", {}, h("span", { class: `badge ${tone}` }, bdi(entry.outcome ?? UNKNOWN))),
      h("td", { class: "wide" }, bdi(entry.from ?? UNKNOWN))),
  };
}

export function audit() {
  const body = h("tbody", {});
  const nothing = h("p", { class: "empty" }, "Reading.");
  const table = h("table", {}, h("caption", { class: "unseen" }, "Actions, newest first"),
    h("thead", {}, h("tr", {}, ["When", "Action", "Agent", "Detail", "Outcome"].map((name) => h("th", { scope: "col" }, name)), h("th", { scope: "col", class: "wide" }, "From"))), body);
  const box = h("div", { class: "scroll card", tabindex: 0, role: "region", "aria-label": "Actions" }, table);
  const node = h("section", {}, h("h1", { tabindex: -1 }, "Audit"),
    h("p", { class: "lead" }, "What operators did through this process, newest first, at most 200. The whole record is the file that ", h("code", {}, "[admin] audit_log"), " names."), nothing, box);
  box.hidden = true;
  return {
    title: "Audit",
    node,
    async poll(signal) {
      const entries = (await ask(`audit?limit=${ENTRIES}`, { signal }))?.entries ?? [];
      reconcile(body, entries, (entry) => [entry.at_ms, entry.action, entry.agent_id, entry.outcome, detailOf(entry.detail)].join(" "), entryRow);
      box.hidden = entries.length === 0;
      nothing.hidden = entries.length > 0;
      say(nothing, "Nobody has done anything through this process yet.");
    },
  };
}
