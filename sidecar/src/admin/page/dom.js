// Elements, made by DOM calls only, and figures in words.
//
// 1. Whatever a server sends becomes a text node or an attribute's value; nothing is parsed as HTML.
// 2. An id stands in a `<bdi>`, so that its writing direction turns nothing around it.
// 3. What is not known is "–", never 0.

export const UNKNOWN = "–";

/** Returns `tag` with `props`: attributes, `on` (listeners) and `data`; what is null or false is left out. */
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function svg(tag, props, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "style" || name.startsWith("on")) throw new Error(`${name} is not allowed by our policy`);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Sets the text of `node`, if it is another one: the same again would be read out again. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
  return node;
}

export function replace(node, ...children) {
  node.replaceChildren(...children.flat(Infinity).filter(Boolean));
  return node;
}

export const bdi = (text, props) => h("bdi", props, text);
export const agentLink = (id) => h("a", { href: `#/agents/${encodeURIComponent(id)}` }, bdi(id));
export const unseen = (text) => h("span", { class: "unseen" }, text);

/** Roles that stay when a narrow screen shows the rows of a table as blocks. */
const ROLES = { TABLE: "table", THEAD: "rowgroup", TBODY: "rowgroup", TR: "row", TD: "cell" };

/** Gives `node`, a table or a part of one, its roles; cells get the headings in `labels`, by their place. */
export function tabular(node, labels = []) {
  for (const one of [node, ...node.querySelectorAll("thead, tbody, tr, th, td")]) {
    const role = one.tagName === "TH" ? (one.scope === "col" ? "columnheader" : "rowheader") : ROLES[one.tagName];
    one.setAttribute("role", role);
    const label = one.tagName === "TD" && labels[one.cellIndex];
    if (label) one.dataset.label = label;
  }
  return node;
}

const rows = new WeakMap();

/**
 * Makes the children of `parent` those of `items`, and keeps the nodes of items that stay, with the focus in them.
 * `make(item)` returns `{node, update(item)}`.
 */
export function reconcile(parent, items, key, make) {
  const before = rows.get(parent) ?? new Map();
  const after = new Map();
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  for (const item of items) {
    let id = key(item);
    while (after.has(id)) id = `${id} `;
    after.set(id, before.get(id) ?? make(item));
    after.get(id).update?.(item);
  }
  for (const [id, { node }] of before) if (!after.has(id)) node.remove();
  let at = parent.firstChild;
  for (const { node } of after.values()) {
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
  }
  rows.set(parent, after);
  if (focused && document.activeElement !== focused) {
    const place = parent.contains(focused) ? focused : parent.closest("[tabindex]");
    place?.focus({ preventScroll: true });
  }
}

// --- figures

const known = (value) => typeof value === "number" && Number.isFinite(value);
const formats = new Map();
function format(digits) {
  if (!formats.has(digits)) {
    formats.set(digits, new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  }
  return formats.get(digits);
}

export const number = (value, digits = 0) => (known(value) ? format(digits).format(value) : UNKNOWN);

/** A rate: three digits are enough. */
export function rate(value) {
  if (!known(value)) return UNKNOWN;
  const size = Math.abs(value);
  if (size === 0) return "0";
  return format(size >= 100 ? 0 : size >= 10 ? 1 : 2).format(value);
}

export const percent = (share, digits = 0) => (known(share) ? `${format(digits).format(100 * share)} %` : UNKNOWN);

/** A wait of seconds, in the unit that fits. */
export function span(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 0.001) return `${format(2).format(1000 * seconds)} ms`;
  if (seconds < 1) return `${format(seconds < 0.01 ? 1 : 0).format(1000 * seconds)} ms`;
  if (seconds < 10) return `${format(1).format(seconds)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const [minutes, hours, days] = [60, 3600, 86_400].map((unit) => Math.floor(seconds / unit));
  if (hours < 1) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  if (days < 1) return `${hours} h ${minutes % 60} min`;
  return `${days} d ${hours % 24} h`;
}

export const ago = (at_ms, now_ms = Date.now()) => {
  if (!known(at_ms)) return UNKNOWN;
  const seconds = Math.floor((now_ms - at_ms) / 1000);
  if (seconds < 1) return "now";
  const [size, unit] = [[86_400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([size]) => seconds >= size);
  return `${Math.floor(seconds / size)} ${unit} ago`;
};

const pad = (value) => String(value).padStart(2, "0");

/** The time of day here, with the date when it is not today's. */
export function clock(at_ms) {
  if (!known(at_ms)) return UNKNOWN;
  const at = new Date(at_ms);
  const time = [at.getHours(), at.getMinutes(), at.getSeconds()].map(pad).join(":");
  if (at.toDateString() === new Date().toDateString()) return time;
  return `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${time}`;
}

/** A moment as `<time>`. */
export function moment(at_ms, text) {
  const valid = known(at_ms) && Math.abs(at_ms) < 8.64e15;
  return h("time", { datetime: valid ? new Date(at_ms).toISOString() : null }, text ?? clock(at_ms));
}

export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;
