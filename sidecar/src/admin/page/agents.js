// The table of agents. Searching, sorting and paging are done by the listener; this asks for one page.
//
// The address carries search, order, filter and page, so that a table can be linked.

import { agentLink, h, number, plural, rate, reconcile, say, span, unseen } from "./dom.js";
import { sparkline, trend } from "./chart.js";
import { ask } from "./api.js";
import { announce } from "./dialog.js";
import { listenerNow } from "./state.js";

const SEARCH_AFTER_MS = 250;
const SIZES = [25, 50, 100, 200];
const DEFAULTS = { q: "", sort: "-refill_rate", only: "", page: "1", page_size: "50" };

/** Member, heading, whether it is a number, and what a first click sorts by. */
const COLUMNS = [
  { key: "agent_id", name: "Agent" },
  { key: "refill_rate", name: "Rate", unit: "tokens a second", down: true },
  { key: "quality", name: "Quality", unit: "1 to 5", down: true },
  { key: "capacity", name: "Capacity", unit: "tokens", down: true, wide: true },
  { key: "ratings", name: "Ratings", unit: "by weight", down: true, wide: true },
  { key: "admitted", name: "Admitted", unit: "tokens", down: true, wide: true },
  { key: "denied", name: "Denied", unit: "tokens", down: true, wide: true },
];

/** What is unusual of an agent, as badges. */
export function badgesOf({ held, banned_until_ms, operator }) {
  const found = [];
  if (typeof banned_until_ms === "number" && banned_until_ms > listenerNow()) found.push(["bad", "banned", `until ${new Date(banned_until_ms).toLocaleString("en-GB")}`]);
  if (held === "frozen") found.push(["info", "frozen", "its rate does not move"]);
  if (held === "override") found.push(["info", "override", "its rate was set and is held"]);
  if (operator) found.push(["plain", "set by hand", "no rating has moved it since"]);
  return found.map(([tone, text, title]) => h("span", { class: `badge ${tone}`, title }, text));
}

function agentRow({ agent_id }) {
  const badges = h("span", { class: "badges" });
  const line = { rates: sparkline({ tone: "a" }), qualities: sparkline({ tone: "d" }) };
  const words = { rates: unseen(""), qualities: unseen("") };
  const cells = Object.fromEntries(["refill_rate", "quality", "capacity", "ratings", "admitted", "denied"].map((key) => [key, h("span", { class: "value" })]));
  const deviation = h("span", { class: "muted" });
  const node = h("tr", {},
    h("th", { scope: "row" }, agentLink(agent_id), badges),
    h("td", { class: "num with-spark" }, cells.refill_rate, words.rates, line.rates.node),
    h("td", { class: "num with-spark" }, h("span", {}, cells.quality, deviation), words.qualities, line.qualities.node),
    ["capacity", "ratings", "admitted", "denied"].map((key) => h("td", { class: "num wide" }, cells[key])));
  let shown = "";
  return {
    node,
    update(agent) {
      say(cells.refill_rate, rate(agent.refill_rate));
      say(cells.quality, number(agent.quality, 2));
      say(deviation, typeof agent.deviation === "number" ? ` ±${number(agent.deviation, 2)}` : "");
      say(cells.capacity, number(agent.capacity));
      say(cells.ratings, number(agent.ratings, 1));
      say(cells.admitted, number(agent.admitted));
      say(cells.denied, number(agent.denied));
      line.rates.update(agent.rates);
      line.qualities.update(agent.qualities);
      say(words.rates, trend(agent.rates) && `, ${trend(agent.rates)}`);
      say(words.qualities, trend(agent.qualities) && `, ${trend(agent.qualities)}`);
      const signature = [agent.held, agent.banned_until_ms > listenerNow(), agent.operator].join();
      if (signature !== shown) badges.replaceChildren(...badgesOf(agent));
      shown = signature;
    },
  };
}

export function agents({ params }) {
  let wanted = read(params);
  let seen = null;
  let asked = "";
  let typing = 0;

  function read(given) {
    return Object.fromEntries(Object.entries(DEFAULTS).map(([key, value]) => [key, given.get(key) ?? value]));
  }
  const queryOf = (of) => new URLSearchParams(Object.entries(of).filter(([key, value]) => value !== DEFAULTS[key]));
  const address = (change) => {
    const text = queryOf({ ...wanted, page: "1", ...change }).toString();
    return `#/agents${text && `?${text}`}`;
  };
  const go = (change) => {
    location.hash = address(change);
  };

  const search = h("input", { id: "search", type: "search", autocomplete: "off", spellcheck: "false", maxlength: 128, placeholder: "Part of an id" });
  const order = h("select", { id: "order" }, COLUMNS.flatMap(({ key, name, down }) => (down
    ? [h("option", { value: `-${key}` }, `${name}, most first`), h("option", { value: key }, `${name}, least first`)]
    : [h("option", { value: key }, `${name}, A to Z`), h("option", { value: `-${key}` }, `${name}, Z to A`)])));
  const only = h("select", { id: "only" }, [["", "All agents"], ["frozen", "Frozen"], ["banned", "Banned"], ["operator", "Set by hand"]].map(([value, text]) => h("option", { value }, text)));
  const size = h("select", { id: "size" }, SIZES.map((count) => h("option", { value: String(count) }, String(count))));
  const summary = h("p", { class: "summary" }, "Reading the table.");
  const warning = h("p", { class: "notice", hidden: true });
  const body = h("tbody", {});
  const heads = COLUMNS.map(({ key, name, unit, down, wide }) => {
    const arrow = h("span", { class: "arrow", "aria-hidden": "true" });
    const button = h("button", { type: "button", on: { click: () => go({ sort: nextSort(key, down) }) } }, name, arrow);
    const node = h("th", { scope: "col", class: [key === "agent_id" ? "" : "num", wide ? "wide" : ""].join(" ").trim() }, button, unit && h("span", { class: "unit" }, unit));
    return { key, node, arrow };
  });
  const table = h("table", { class: "agents" }, h("caption", { class: "unseen" }, "Agents"), h("thead", {}, h("tr", {}, heads.map(({ node }) => node))), body);
  const box = h("div", { class: "scroll card", tabindex: 0, role: "region", "aria-label": "Table of agents" }, table);
  const nothing = h("div", { class: "empty", hidden: true });
  const pageButton = (text, label, to) => h("button", { type: "button", "aria-label": label, on: { click: (event) => event.currentTarget.getAttribute("aria-disabled") !== "true" && turnTo(to()) } }, text);
  const first = pageButton("«", "First page", () => 1);
  const back = pageButton("‹ Back", null, () => Number(wanted.page) - 1);
  const next = pageButton("Next ›", null, () => Number(wanted.page) + 1);
  const last = pageButton("»", "Last page", () => seen?.pages ?? 1);
  const where = h("span", { class: "where" });
  const pages = h("nav", { class: "pages", "aria-label": "Pages of the table" }, first, back, where, next, last);
  const node = h("section", {}, h("h1", { tabindex: -1 }, "Agents"),
    h("form", { class: "filters", role: "search" },
      h("div", { class: "field grow" }, h("label", { for: "search" }, "Search"), search),
      h("div", { class: "field" }, h("label", { for: "only" }, "Show"), only),
      h("div", { class: "field" }, h("label", { for: "order" }, "Order"), order),
      h("div", { class: "field wide" }, h("label", { for: "size" }, "On a page"), size)),
    h("div", { class: "summary-row" }, summary), warning, box, nothing, pages);
  box.hidden = true;
  pages.hidden = true;

  const nextSort = (key, down) => {
    if (wanted.sort === key) return `-${key}`;
    if (wanted.sort === `-${key}`) return key;
    return down ? `-${key}` : key;
  };
  const turnTo = (page) => go({ page: String(Math.max(1, Math.min(page, seen?.pages ?? 1))) });

  node.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    find();
  });
  search.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(find, SEARCH_AFTER_MS);
  });
  function find() {
    clearTimeout(typing);
    const text = search.value.trim();
    if (text === wanted.q) return;
    // A step of the history for each letter would be too many.
    history.replaceState(null, "", address({ q: text }));
    wanted = { ...wanted, q: text, page: "1" };
    dispatchEvent(new Event("merit:wake"));
  }
  only.addEventListener("change", () => go({ only: only.value }));
  order.addEventListener("change", () => go({ sort: order.value }));
  size.addEventListener("change", () => go({ page_size: size.value }));

  function showWanted() {
    if (document.activeElement !== search) search.value = wanted.q;
    only.value = wanted.only;
    order.value = wanted.sort;
    if (![...size.options].some(({ value }) => value === wanted.page_size)) size.append(h("option", { value: wanted.page_size }, wanted.page_size));
    size.value = wanted.page_size;
    for (const { key, node: head, arrow } of heads) {
      const down = wanted.sort === `-${key}`;
      const up = wanted.sort === key;
      if (down || up) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
      say(arrow, down ? " ↓" : up ? " ↑" : "");
    }
  }

  function showSeen(told) {
    const from = (seen.page - 1) * seen.page_size;
    const filtered = wanted.q !== "" || wanted.only !== "";
    const range = seen.agents.length === 0 ? "" : `${number(from + 1)} to ${number(from + seen.agents.length)} of `;
    const count = filtered ? `${number(seen.matching)} found among ${plural(seen.total, "agent")}` : plural(seen.total, "agent");
    say(summary, `${range}${count}. Read ${span((seen.age_ms ?? 0) / 1000)} ago.`);
    warning.hidden = seen.complete !== false;
    say(warning, seen.complete === false ? "Not all agents are in the table: it is still being read, or there are more than 200,000. Search, order and counts are of those that are." : "");
    reconcile(body, seen.agents, (one) => one.agent_id, agentRow);
    box.hidden = seen.agents.length === 0;
    nothing.hidden = seen.agents.length > 0;
    const none = seen.total === 0
      ? ["No agent has a record yet.", "An agent gets one with its first rating. ", "Until then it spends at the configured limits."]
      : ["No agent is like that.", `None of ${plural(seen.total, "agent")} fits the search and the filter.`, ""];
    if (!nothing.hidden && nothing.textContent !== none.join("")) nothing.replaceChildren(h("p", {}, h("b", {}, none[0])), h("p", { class: "muted" }, none[1], none[2]));
    pages.hidden = seen.pages <= 1;
    say(where, `Page ${number(seen.page)} of ${number(seen.pages)}`);
    for (const button of [first, back]) button.setAttribute("aria-disabled", String(seen.page <= 1));
    for (const button of [next, last]) button.setAttribute("aria-disabled", String(seen.page >= seen.pages));
    if (told) announce(`${range}${count}, page ${seen.page} of ${seen.pages}.`);
  }

  showWanted();
  return {
    title: "Agents",
    node,
    navigate(given) {
      wanted = read(given);
      showWanted();
    },
    async poll(signal) {
      const mine = wanted;
      const query = new URLSearchParams(Object.entries(mine).filter(([, value]) => value !== "")).toString();
      const answer = await ask(`agents?${query}`, { signal });
      if (mine !== wanted) return;
      if (answer.agents.length === 0 && answer.page > answer.pages) return go({ page: String(answer.pages) });
      seen = answer;
      // The listener may have given another page than the one that is gone.
      wanted.page = String(answer.page);
      showSeen(asked !== "" && asked !== query);
      asked = query;
    },
    stop: () => clearTimeout(typing),
  };
}
