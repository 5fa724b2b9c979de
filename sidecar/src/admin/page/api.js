// What the admin listener is asked, and the token that it is shown.
//
// 1. The token is kept in a variable. It goes to sessionStorage only when its owner says so, and into no address.
// 2. Addresses are relative to the page, so that a proxy may put all of it below a path of its own.
// 3. No answer within WITHIN_MS is none: whoever asked is told, and nothing is tried again here.

const WITHIN_MS = 8_000;
const KEPT_AS = "merit.admin-token";

/** The listener cannot be reached. */
export class Unreachable extends Error {}

/** The listener refused; `problem` is what it said (RFC 9457). */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail ?? `the listener answered ${status}`);
    this.status = status;
    this.problem = problem;
  }

  /** What is at fault, one text each. */
  get faults() {
    const { faults } = this.problem;
    return Array.isArray(faults) ? faults.map(String) : [];
  }
}

let token = "";
const listeners = new Set();
try {
  token = sessionStorage.getItem(KEPT_AS) ?? "";
} catch {
  // Storage may be forbidden.
}

export const credential = {
  get known() {
    return token !== "";
  },
  set(text, keep) {
    token = text;
    try {
      if (keep && text) sessionStorage.setItem(KEPT_AS, text);
      else sessionStorage.removeItem(KEPT_AS);
    } catch {
      // It lasts as long as the page then.
    }
    for (const listener of listeners) listener();
  },
  changed(listener) {
    listeners.add(listener);
  },
};

export const agentPath = (id) => `agents/${encodeURIComponent(id)}`;

/** Asks for `path`; returns the JSON of the answer, null where there is none. */
export async function ask(path, { method = "GET", body, signal } = {}) {
  const base = new URL(".", document.baseURI);
  const headers = { accept: "application/json" };
  if (token) headers.authorization = `Bearer ${token}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const late = AbortSignal.timeout(WITHIN_MS);
  let response, text;
  try {
    response = await fetch(new URL(path, base), {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
      credentials: "same-origin",
      redirect: "error",
      signal: signal ? AbortSignal.any([signal, late]) : late,
    });
    text = await response.text();
  } catch (error) {
    if (signal?.aborted) throw signal.reason;
    const why = late.aborted ? `no answer within ${WITHIN_MS / 1000} s` : "nobody answers";
    throw new Unreachable(why, { cause: error });
  }
  let json = null;
  try {
    json = text === "" ? null : JSON.parse(text);
  } catch {
    if (response.ok) throw new Refused(response.status, { detail: "the answer is no JSON: is this Merit's admin listener?" });
  }
  if (!response.ok) throw new Refused(response.status, json && typeof json === "object" ? json : {});
  return json;
}
