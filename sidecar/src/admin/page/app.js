// The page: routes behind `#`, the loop that asks, and what is said of the connection.
//
// 1. One question at a time, a second after the last answer; none while the tab is hidden or the page paused.
// 2. When nobody answers, the last figures stay, marked with their age, and the waits between tries double up to RETRY_MOST_MS.
// 3. A change of the view moves the focus to its heading; a change within a view does not.

import { h, say, replace, clock, span } from "./dom.js";
import { Refused, Unreachable, ask, credential } from "./api.js";
import { announce, message, tokenDialog } from "./dialog.js";
import { gap, state, take } from "./state.js";
import { overview } from "./overview.js";
import { agents } from "./agents.js";
import { agent } from "./agent.js";
import { buckets } from "./buckets.js";
import { audit } from "./audit.js";

const EVERY_MS = 1_000;
const RETRY_MOST_MS = 10_000;

const element = (id) => document.getElementById(id);
const main = element("main");

// --- routes

/** Returns the view that an address names: its name, id and parameters. */
function parse(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [name, id, ...rest] = path.split("/");
  const params = new URLSearchParams(query);
  if (rest.length > 0) return { name: "missing", params };
  if (id !== undefined && id !== "") {
    if (name !== "agents") return { name: "missing", params };
    try {
      return { name: "agent", id: decodeURIComponent(id), params };
    } catch {
      return { name: "missing", params };
    }
  }
  const known = { "": "overview", agents: "agents", buckets: "buckets", audit: "audit" };
  return { name: known[name] ?? "missing", params };
}

function missing() {
  const node = h("section", {}, h("h1", { tabindex: -1 }, "No such page"), h("p", {}, "There is nothing at this address. ", h("a", { href: "#/" }, "Go to the overview")));
  return { title: "No such page", node };
}

const views = { overview, agents, agent, buckets, audit, missing };
let here = null;
let view = null;

function route(first = false) {
  const next = parse(location.hash);
  if (here && view.navigate && here.name === next.name && here.id === next.id) {
    here = next;
    view.navigate(next.params);
    return wake();
  }
  if (view?.leave && view.leave() === false) {
    // It has something unsaved, and the operator stays.
    history.replaceState(null, "", here.hash);
    return;
  }
  here = { ...next, hash: location.hash || "#/" };
  view?.stop?.();
  view = views[next.name](next);
  replace(main, view.node);
  document.title = `${view.title} · Merit`;
  for (const link of document.querySelectorAll("nav [data-view]")) {
    const current = link.dataset.view === next.name || (link.dataset.view === "agents" && next.name === "agent");
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  view.show?.(state);
  showLock();
  if (!first) {
    scrollTo(0, 0);
    announce("");
    main.querySelector("h1")?.focus({ preventScroll: true });
  }
  wake();
}

// --- the connection, in words

const WORDS = { connecting: "Connecting", live: "Live", lost: "Disconnected", locked: "Token needed", refused: "Refused", paused: "Paused" };
let lost_ms = null;
let next_ms = 0;
let reason = "";
let paused_ms = null;

const bannerText = h("p", {});
const bannerAge = h("p", { class: "age" });
const tryNow = h("button", { type: "button" }, "Try now");

function connection(next, why = "") {
  const before = state.connection;
  state.connection = next;
  reason = why;
  const pill = element("connection");
  pill.dataset.state = next;
  say(pill, WORDS[next]);
  document.documentElement.toggleAttribute("data-stale", next === "lost" || next === "refused");
  if (next === "lost" && before !== "lost") lost_ms = Date.now();
  const banner = element("banner");
  if (next === "lost" || next === "refused") {
    const said = next === "lost" ? `Disconnected since ${clock(lost_ms)}: ${why}.` : `Merit answers, and refuses: ${why}.`;
    say(bannerText, `${said} ${state.seen_ms ? `What you see is from ${clock(state.seen_ms)}.` : "Nothing was seen yet."}`);
    if (!bannerText.isConnected) replace(banner, bannerText, h("div", { class: "banner-row" }, bannerAge, tryNow));
  } else if (bannerText.isConnected) {
    replace(banner);
    if (next === "live") announce("Connected again.");
  }
  showLock();
}

/** Once a second: what a banner says of times. They are no part of what is read out. */
setInterval(() => {
  if (!bannerText.isConnected) return;
  const left = Math.ceil((next_ms - Date.now()) / 1000);
  const seen = state.seen_ms ? `Last figures ${span(Math.round((Date.now() - state.seen_ms) / 1000)).replace(".0", "")} ago. ` : "";
  bannerAge.setAttribute("aria-hidden", "true");
  say(bannerAge, seen + (left > 0 ? `Next try in ${left} s.` : "Trying."));
}, 500);

/** Where even reading needs a token and there is none, the page says so instead of the view. */
function showLock() {
  const locked = state.connection === "locked";
  const lock = main.querySelector(".lock");
  if (view) view.node.hidden = locked;
  if (!locked) return lock?.remove();
  const text = reason || "send a token";
  if (lock) return say(lock.querySelector(".why"), text);
  const open = h("button", { type: "button", class: "primary", on: { click: enterToken } }, "Enter the token");
  main.prepend(h("section", { class: "lock card", "aria-labelledby": "lock-title" },
    h("h1", { id: "lock-title", tabindex: -1 }, "This listener asks for a token"),
    h("p", {}, "Other machines can reach it, so reading needs the admin token, too. The listener says: ", h("span", { class: "why" }, text), "."), open));
}

async function enterToken() {
  if (await tokenDialog()) wake();
}

// --- the loop

let timer = 0;
let turn = 0;
let fails = 0;
let asking = null;

/** Asks now, and goes on from there. What an earlier question still answers is dropped. */
function wake() {
  turn += 1;
  asking?.abort();
  clearTimeout(timer);
  if (document.hidden || paused_ms !== null) return;
  round(turn);
}

async function round(mine) {
  const control = new AbortController();
  asking = control;
  let wait = EVERY_MS;
  try {
    const answer = await ask("overview", { signal: control.signal });
    if (mine !== turn) return;
    if (take(answer)) message("note", `Merit was started anew ${span(answer.uptime_seconds)} ago. Its counters begin again.`);
    fails = 0;
    connection("live");
    view.show?.(state);
    await view.poll?.(control.signal);
  } catch (error) {
    if (mine !== turn) return;
    if (error instanceof Refused && error.status === 401) {
      if (credential.known) {
        credential.set("", false);
        message("bad", `The token is refused: ${error.message}.`);
      }
      // Nothing changes before somebody enters a token.
      connection("locked", error.message);
      return;
    }
    gap();
    fails += 1;
    wait = Math.min(RETRY_MOST_MS, EVERY_MS * 2 ** (fails - 1));
    next_ms = Date.now() + wait;
    if (error instanceof Unreachable) connection("lost", error.message);
    else if (error instanceof Refused) connection("refused", error.message);
    else {
      // A fault of this page: say it, rather than show old figures as new ones.
      connection("refused", `this page cannot read the answer (${error.message})`);
      console.error(error);
    }
    view.show?.(state);
  }
  if (mine === turn) timer = setTimeout(() => round(mine), wait);
}

// --- the head of the page

function themeButton() {
  const button = element("theme");
  const order = ["system", "light", "dark"];
  const chosen = () => document.documentElement.dataset.theme ?? "system";
  const show = () => {
    replace(button, h("span", { class: "unseen" }, "Colours: "), { system: "Auto", light: "Light", dark: "Dark" }[chosen()]);
  };
  button.addEventListener("click", () => {
    const next = order[(order.indexOf(chosen()) + 1) % order.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try {
      if (next === "system") localStorage.removeItem("merit.theme");
      else localStorage.setItem("merit.theme", next);
    } catch {
      // It lasts as long as the page then.
    }
    show();
  });
  show();
}

function tokenButton() {
  const button = element("token");
  const show = () => {
    say(button, credential.known ? "Token set" : "Read only");
    button.dataset.set = credential.known;
    button.setAttribute("aria-label", credential.known ? "Token set. Forget it" : "Read only. Enter the admin token");
  };
  credential.changed(show);
  button.addEventListener("click", enterToken);
  show();
}

function pauseButton() {
  const button = element("pause");
  button.addEventListener("click", () => {
    const pausing = paused_ms === null;
    paused_ms = pausing ? Date.now() : null;
    button.setAttribute("aria-pressed", String(pausing));
    if (pausing) {
      turn += 1;
      asking?.abort();
      clearTimeout(timer);
      gap();
      connection("paused");
      say(element("connection"), `Paused at ${clock(paused_ms)}`);
    } else {
      connection("connecting");
      wake();
    }
  });
}

element("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
tryNow.addEventListener("click", wake);
addEventListener("merit:wake", wake);
addEventListener("hashchange", () => route());
addEventListener("online", wake);
document.addEventListener("visibilitychange", () => {
  if (document.hidden) gap();
  wake();
});
addEventListener("beforeunload", (event) => {
  if (view?.dirty?.()) event.preventDefault();
});
themeButton();
tokenButton();
pauseButton();
route(true);
