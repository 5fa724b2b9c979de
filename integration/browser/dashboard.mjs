// Drives the dashboard in Chromium and prints what it saw, as one line of JSON.
//
//   node dashboard.mjs '{"visit": "all", "chromium": …, "root": …, "page": …, "token": …, "agent": …, "agents": …, "gateway": …,
//                        "bearer": …, "control": …, "downloads": …, "hostile": […]}'
//   node dashboard.mjs '{"visit": "crowd", "chromium": …, "root": …, "page": …, "agent": …, "agents": …}'
//   node dashboard.mjs '{"visit": "locked", "chromium": …, "root": …, "page": …, "token": …}'
//
// `agent` is one of `agents` agents, good and much rated; `bearer` its own token for the `gateway`. `control` kills the process and
// starts it again (POST /kill, /start). `crowd` times a table of many agents; `locked` is a listener of which even
// reading needs the token. Waits end with DEADLINE_MS at the latest; nothing is tried twice.

import { existsSync, readFileSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import puppeteer from "puppeteer-core";

const DEADLINE_MS = 60_000;
const told = JSON.parse(process.argv[2]);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** What the browser itself says on the console when the process is away, or refuses as it should. */
const EXPECTED = {
  calm: /^$/,
  away: /^Failed to load resource: (net::ERR_(CONNECTION_(REFUSED|RESET|CLOSED)|EMPTY_RESPONSE)|the server responded with a status of 503)/,
  refused: /^Failed to load resource: the server responded with a status of (400|401|403|409|422)/,
};
let phase = "calm";
const complaints = [];
const expected = [];
let step = "start";

// --- pages

async function open(browser, address) {
  const page = await browser.newPage();
  page.setDefaultTimeout(DEADLINE_MS);
  const say = (text) => (EXPECTED[phase].test(text) ? expected : complaints).push(`${step}: ${text}`);
  page.on("console", (message) => {
    if (["error", "warn", "assert"].includes(message.type())) say(message.text());
  });
  page.on("pageerror", (error) => say(`pageerror: ${error.message}`));
  page.on("dialog", (dialog) => { say(`dialog: ${dialog.message()}`); dialog.accept(); });
  page.on("request", (request) => {
    if (!request.url().startsWith(told.page) && !/^(data|blob):/.test(request.url())) say(`asked elsewhere: ${request.url()}`);
  });
  await page.exposeFunction("violated", (directive, uri) => say(`policy: ${directive} ${uri}`));
  await page.evaluateOnNewDocument(() => {
    addEventListener("securitypolicyviolation", (event) => violated(event.violatedDirective, event.blockedURI));
  });
  await page.setViewport({ width: 1280, height: 900 });
  await page.goto(address, { waitUntil: "load" });
  return page;
}

const text = (page, selector) => page.$eval(selector, (element) => element.textContent);
const texts = (page, selector) => page.$$eval(selector, (elements) => elements.map((element) => element.textContent));
const connection = (page, wanted) =>
  page.waitForFunction((wanted) => document.getElementById("connection").dataset.state === wanted, {}, wanted);
/** Waits until the element is there and its text holds `part`. */
const holds = (page, selector, part) =>
  page.waitForFunction((selector, part) => document.querySelector(selector)?.textContent.includes(part), {}, selector, part);

async function go(page, hash, heading) {
  await page.evaluate((hash) => { location.hash = hash; }, hash);
  await holds(page, "main h1", heading);
}

/** Presses the button or link that is seen and has this text or label; in the dialog, when one is open. */
async function press(page, label) {
  const button = await page.waitForFunction((label) => {
    const root = document.querySelector("dialog[open]") ?? document;
    return [...root.querySelectorAll("button, summary, a")].find((one) =>
      (one.textContent.trim() === label || one.getAttribute("aria-label") === label) && one.checkVisibility());
  }, {}, label);
  await button.asElement().click();
}

/** Types into the dialog's field of this label, in place of what is there. */
async function type(page, label, value) {
  const field = await page.waitForFunction((label) =>
    [...document.querySelectorAll("dialog[open] label")].find((one) => one.textContent.trim() === label)?.control, {}, label);
  await field.asElement().evaluate((input) => { input.value = ""; input.focus(); });
  await page.keyboard.type(value);
}

const closed = (page) => page.waitForFunction(() => document.querySelector("dialog") === null);
const dismissed = async (page) => {
  const messages = await texts(page, ".message p");
  await page.$$eval(".message button", (buttons) => buttons.forEach((button) => button.click()));
  return messages;
};

// --- what must hold on every view

async function violations(page, where) {
  await page.evaluate(axe);
  const found = await page.evaluate(async () => {
    const { violations } = await axe.run();
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
  });
  return found.map((one) => `${where}: ${one}`);
}

const seen = { axe: [], wide: [] };
const colours = (value) => [{ name: "prefers-color-scheme", value }, { name: "prefers-reduced-motion", value: "reduce" }];

/** Looks at the view in both colours, and on a telephone. */
async function inspect(page, where) {
  for (const scheme of ["light", "dark"]) {
    await page.emulateMediaFeatures(colours(scheme));
    seen.axe.push(...(await violations(page, `${where}, ${scheme}`)));
  }
  await page.setViewport({ width: 360, height: 740 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  if (wide > 360) seen.wide.push(`${where}: ${wide}`);
  seen.axe.push(...(await violations(page, `${where}, narrow`)));
  await page.setViewport({ width: 1280, height: 900 });
  await page.emulateMediaFeatures(colours("light"));
}

/** Presses Tab until what has the focus fits. */
async function tabTo(page, fits) {
  for (let presses = 0; presses < 60; presses += 1) {
    if (await page.evaluate(fits)) return;
    await page.keyboard.press("Tab");
  }
  throw new Error(`Tab does not reach ${fits}`);
}

async function asked(method, where, body) {
  const response = await fetch(new URL(where, told.page), {
    method,
    headers: { authorization: `Bearer ${told.token}`, "content-type": "application/json" },
    body: body && JSON.stringify(body),
  });
  if (!response.ok) throw new Error(`${method} ${where}: ${response.status} ${await response.text()}`);
  return response.json();
}

const atGateway = async (method, where) => {
  const response = await fetch(new URL(where, told.gateway), { method, headers: { authorization: `Bearer ${told.bearer}` } });
  return [response.status, response.headers.get("ratelimit-policy") ?? ""];
};

/** Asks the gateway until its answer fits: it takes new buckets over within two seconds. */
async function gatewayUntil(method, where, fits) {
  const ends = Date.now() + DEADLINE_MS;
  for (;;) {
    const answer = await atGateway(method, where);
    if (fits(answer)) return answer;
    if (Date.now() > ends) throw new Error(`the gateway still answers ${answer}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function control(what) {
  const response = await fetch(`${told.control}/${what}`, { method: "POST" });
  if (!response.ok) throw new Error(`${what}: ${response.status}`);
}

// --- the visit

async function overview(page) {
  await connection(page, "live");
  await holds(page, ".tile:nth-child(1) .note", "since the start");
  seen.tiles = await texts(page, ".tile h2");
  seen.policy = await text(page, ".facts dd");
  await page.waitForFunction(() => document.querySelectorAll(".canvas .line").length >= 2);
  // The pictures stand beside a table of the same.
  await press(page, "As a table: Requests");
  await page.waitForFunction(() => document.querySelectorAll("details[open] tbody tr").length > 0);
  await inspect(page, "overview");
  // The colours can be chosen against the system's, and are still so after a reload.
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await background();
  await press(page, "Colours: Auto");
  await press(page, "Colours: Light");
  const dark = await background();
  await page.reload({ waitUntil: "load" });
  seen.theme = [light !== dark, (await background()) === dark];
  await press(page, "Colours: Dark");
  await connection(page, "live");
  await press(page, "Pause");
  await connection(page, "paused");
  await press(page, "Pause");
  await connection(page, "live");
}

async function table(page) {
  // With the keyboard, from the first element on.
  await page.evaluate(() => document.activeElement.blur());
  await tabTo(page, () => document.activeElement.textContent === "Agents");
  await page.keyboard.press("Enter");
  await holds(page, ".summary", `of ${told.agents} agents`);
  seen.focus = await page.evaluate(() => [document.activeElement.tagName, document.activeElement.textContent, document.title]);
  const ids = () => texts(page, "tbody th a");
  await inspect(page, "agents");

  await tabTo(page, () => document.activeElement.closest("th")?.textContent.startsWith("Agent"));
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector("[aria-sort=ascending]")?.textContent.startsWith("Agent") && document.querySelector("tbody th a").textContent === "agent-001");
  seen.ascending = (await ids()).slice(0, 2);
  seen.kept_focus = await page.evaluate(() => document.activeElement.closest("th")?.textContent.startsWith("Agent"));
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector("tbody th a").textContent !== "agent-001");
  seen.descending = (await ids()).slice(0, 1);
  await page.select("#size", "25");
  // Before the answer came, the pages of the size before are still told.
  await holds(page, ".where", `Page 1 of ${Math.ceil(told.agents / 25)}`);
  await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 25);
  seen.pages = [await text(page, ".where"), (await ids()).length];
  await press(page, "Next ›");
  await holds(page, ".where", "Page 2 of ");
  await holds(page, ".summary", "26 to 50 of ");
  seen.pages.push(await text(page, ".summary"), (await ids()).length);
  seen.linked = await page.evaluate(() => location.hash);
  await page.reload({ waitUntil: "load" });
  await holds(page, ".where", "Page 2 of ");

  await page.type("#search", told.agent.toUpperCase());
  await holds(page, ".summary", "found among");
  await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 1);
  seen.found = await ids();
  seen.row = await texts(page, "tbody td");
  seen.sparks = await page.$$eval("tbody .spark .line", (lines) => lines.filter((line) => line.getAttribute("d")).length);
  await go(page, "#/agents?q=there-is-none", "Agents");
  await holds(page, ".empty", "No agent is like that");
  await inspect(page, "no agent");
}

async function agent(page) {
  await go(page, `#/agents/${told.agent}`, told.agent);
  await page.waitForFunction(() => document.querySelectorAll(".sentences li").length > 0);
  seen.sentences = await texts(page, ".sentences li");
  seen.ladder = await texts(page, ".ladder .step");
  seen.scale = await page.$eval(".scale", (scale) => scale.getAttribute("aria-label"));
  seen.moves = await page.$$eval("section h2", (heads) =>
    [...heads.find((head) => head.textContent === "What moved it").parentElement.querySelectorAll("tbody tr")].map((row) => row.innerText));
  await inspect(page, "agent");
}

async function act(page, button, consequence, fields = {}) {
  await press(page, button);
  const said = await text(page, "dialog .consequences");
  if (!said.includes(consequence)) throw new Error(`${button} does not say ${consequence}: ${said}`);
  for (const [label, value] of Object.entries(fields)) await type(page, label, value);
  await page.$eval("dialog[open] form", (form) => form.requestSubmit());
}

async function actions(page) {
  const badge = (wanted, there) => page.waitForFunction((wanted, there) =>
    [...document.querySelectorAll(".title-row .badge")].some((one) => one.textContent === wanted) === there, {}, wanted, there);

  // A wrong token is refused and told, and nothing happens.
  phase = "refused";
  await act(page, "Freeze…", "until somebody unfreezes it", { "Admin token": "0123456789abcdeF" });
  await holds(page, ".dialog-error", "refused");
  seen.wrong_token = await text(page, ".dialog-error");
  seen.wrong_focus = await page.evaluate(() => document.activeElement.type);
  seen.axe.push(...(await violations(page, "refused")));
  seen.not_frozen = (await asked("GET", `agents/${told.agent}`)).held;
  phase = "calm";
  await type(page, "Admin token", told.token);
  await page.keyboard.press("Enter");
  await closed(page);
  await badge("frozen", true);
  seen.frozen = [(await asked("GET", `agents/${told.agent}`)).held, await dismissed(page)];
  await act(page, "Unfreeze…", "may move at once");
  await closed(page);
  await badge("frozen", false);

  phase = "refused";
  await act(page, "Set limits…", "starting point", { "Tokens a second": "1e300" });
  await holds(page, ".dialog-error", "refill_rate");
  seen.bad_rate = await text(page, ".dialog-error");
  phase = "calm";
  await type(page, "Tokens a second", "7.5");
  await type(page, "Tokens at once (capacity)", "19");
  await page.keyboard.press("Enter");
  await closed(page);
  const { refill_rate, capacity } = await asked("GET", `agents/${told.agent}`);
  seen.set = [refill_rate, capacity];
  await dismissed(page);

  seen.before_ban = (await atGateway("GET", "/v1/items/1"))[0];
  await press(page, "Ban…");
  seen.ban_dialog = [await text(page, "dialog .consequences"), await violations(page, "ban")];
  await page.keyboard.press("Escape");
  await closed(page);
  seen.focus_back = await page.evaluate(() => document.activeElement.textContent);
  await act(page, "Ban…", "403");
  await closed(page);
  await badge("banned", true);
  seen.banned = (await atGateway("GET", "/v1/items/1"))[0];
  await inspect(page, "banned");
  await act(page, "Lift the ban…", "at once");
  await closed(page);
  await badge("banned", false);
  seen.unbanned = (await atGateway("GET", "/v1/items/1"))[0];

  await act(page, "Reset…", "cannot be brought back");
  await closed(page);
  await page.waitForFunction(() => document.querySelector(".sentences")?.textContent.includes("Nobody has rated it yet"));
  await dismissed(page);
  seen.reset = (await asked("GET", `agents/${told.agent}`)).refill_rate;
  seen.kept = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie]));
  seen.address = page.url();
}

async function bucketList(page) {
  await go(page, "#/buckets", "Buckets");
  await holds(page, ".buckets tbody", "moltbook-agent-bucket");
  await inspect(page, "buckets");
  await press(page, "Add a bucket");
  await type(page, "Name", "writes");
  await type(page, "Tokens a second", "2");
  await type(page, "Tokens at once (capacity)", "10");
  seen.axe.push(...(await violations(page, "add a bucket")));
  await page.keyboard.press("Enter");
  await closed(page);
  await press(page, "Bind writes to a route");
  await type(page, "Path", "/v1/orders/*");
  await type(page, "Methods", "post");
  await page.keyboard.press("Enter");
  await closed(page);
  seen.draft = await texts(page, ".draft li");
  await inspect(page, "draft");
  seen.not_applied = (await asked("GET", "buckets")).buckets.length;
  await press(page, "Apply to every node…");
  await press(page, "Apply to every node");
  await closed(page);
  seen.applied = await asked("GET", "buckets");
  [, seen.order] = await gatewayUntil("POST", "/v1/orders/1", ([, policy]) => policy.includes("writes"));
  await dismissed(page);

  // Another value; the listener finds what is wrong with a first one.
  await press(page, "Edit writes");
  await type(page, "Tokens a second", "1e300");
  await page.keyboard.press("Enter");
  await closed(page);
  phase = "refused";
  await press(page, "Apply to every node…");
  await press(page, "Apply to every node");
  await holds(page, ".dialog-error", "refill_rate");
  seen.fault = await text(page, ".dialog-error");
  await press(page, "Cancel");
  await closed(page);
  await press(page, "Edit writes");
  await type(page, "Tokens a second", "4");
  await page.keyboard.press("Enter");
  await closed(page);
  // Somebody else is faster: nothing of theirs is lost without a word.
  const theirs = await asked("GET", "buckets");
  theirs.buckets[0].refill_rate += 1;
  await asked("PUT", "buckets", theirs);
  await press(page, "Apply to every node…");
  await press(page, "Apply to every node");
  await closed(page);
  phase = "calm";
  seen.conflict = [await dismissed(page), await texts(page, ".draft li")];
  await press(page, "Discard");
  await press(page, "Edit writes");
  await type(page, "Tokens a second", "4");
  await page.keyboard.press("Enter");
  await closed(page);
  await press(page, "Apply to every node…");
  await press(page, "Apply to every node");
  await closed(page);
  seen.changed = (await asked("GET", "buckets")).buckets.find(({ bucket_name }) => bucket_name === "writes").refill_rate;
  await dismissed(page);

  // The file that comes down is the bucket as the listener gives it.
  const session = await page.createCDPSession();
  await session.send("Browser.setDownloadBehavior", { behavior: "allow", downloadPath: told.downloads, eventsEnabled: true });
  const finished = new Promise((resolve) => session.on("Browser.downloadProgress", ({ state }) => state === "completed" && resolve()));
  await press(page, "Export writes as JSON");
  await finished;
  const file = path.join(told.downloads, "writes.json");
  seen.exported = existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : readdirSync(told.downloads);
  seen.exported_as = await asked("GET", "buckets/writes");

  await press(page, "Back to the file…");
  await press(page, "Go back to the file");
  await closed(page);
  await holds(page, ".buckets .lead", "As the configuration file says");
  seen.file_again = (await asked("GET", "buckets")).source;
  await gatewayUntil("POST", "/v1/orders/1", ([, policy]) => !policy.includes("writes"));
  await dismissed(page);

  // A draft may hold anything; the listener has the last word.
  await press(page, "Add a bucket");
  await type(page, "Name", told.hostile[0]);
  await type(page, "Tokens a second", "1");
  await type(page, "Tokens at once (capacity)", "1");
  await page.keyboard.press("Enter");
  await closed(page);
  seen.hostile_bucket = [await texts(page, ".buckets tbody th bdi"), await page.$$eval(".buckets tbody th *:not(bdi):not(span)", (found) => found.length)];
  await press(page, "Discard");
}

async function auditList(page) {
  await go(page, "#/audit", "Audit");
  await page.waitForFunction(() => document.querySelectorAll("tbody tr").length > 5);
  seen.audit = await page.$$eval("tbody tr", (rows) => rows.map((row) => row.children[1].textContent));
  await inspect(page, "audit");
}

async function hostile(page) {
  phase = "refused";
  seen.hostile = [];
  for (const id of told.hostile) {
    await go(page, `#/agents/${encodeURIComponent(id)}`, id);
    await holds(page, ".empty", "No agent can have this id");
    const shown = await page.evaluate(() => [document.querySelector("main h1").textContent, document.title, document.querySelectorAll("main h1 *:not(bdi), img:not(.mark img), main script").length]);
    seen.hostile.push(shown);
    await go(page, `#/agents?q=${encodeURIComponent(id)}`, "Agents");
    await page.waitForFunction((id) => document.getElementById("search").value === id && document.querySelector(".empty")?.checkVisibility(), {}, id);
  }
  await go(page, "#/agents/..", "..");
  await holds(page, ".empty", "No agent can have this id");
  phase = "calm";
  await go(page, "#/nothing/here", "No such page");
  await inspect(page, "no such page");
}

async function away(page) {
  await go(page, "#/", "Overview");
  await connection(page, "live");
  await holds(page, ".tile:nth-child(1) .note", "since the start");
  phase = "away";
  const before = await texts(page, ".tile .figure");
  await control("kill");
  await connection(page, "lost");
  seen.lost = [await text(page, "#banner p"), await text(page, "#connection")];
  await page.waitForFunction(() => document.querySelector("#banner .age").textContent.includes("Next try in"));
  seen.stale = [before.map((figure) => figure !== "–"), (await texts(page, ".tile .figure")).map((figure) => figure !== "–")];
  await inspect(page, "disconnected");
  // From one view to another and back.
  await page.evaluate((id) => { location.hash = `#/agents/${id}`; }, told.agent);
  await page.evaluate(() => { location.hash = "#/"; });
  // Trying changes nothing while nobody is there; afterwards the page comes back by itself.
  await press(page, "Try now");
  await connection(page, "lost");
  await control("start");
  await connection(page, "live");
  phase = "calm";
  await holds(page, "#messages", "started anew");
  seen.back = [await text(page, "#banner"), await dismissed(page)];
}

/** A table of very many agents: how long until it is there, and from one page of it to another. */
async function crowd(page) {
  const timed = async (run) => {
    const began = Date.now();
    await run();
    return Date.now() - began;
  };
  const count = new Intl.NumberFormat("en").format(told.agents);
  seen.ms = {};
  seen.ms.first = await timed(async () => {
    await go(page, "#/agents?sort=agent_id", "Agents");
    await holds(page, ".summary", `of ${count} agents`);
  });
  // Until all are in it.
  await page.waitForFunction(() => document.querySelector(".notice").hidden);
  seen.where = await text(page, ".where");
  seen.first = (await texts(page, "tbody th a"))[0];
  seen.ms.next = await timed(async () => {
    await press(page, "Next ›");
    await holds(page, ".where", "Page 2 of ");
  });
  seen.ms.last = await timed(async () => {
    await press(page, "»");
    await holds(page, ".where", "Page 2,000 of 2,000");
  });
  seen.last = (await texts(page, "tbody th a")).at(-1);
  seen.ms.sorted = await timed(async () => {
    await go(page, "#/agents?sort=-refill_rate", "Agents");
    await page.waitForFunction((first) => document.querySelector("tbody th a").textContent !== first, {}, seen.last);
    await holds(page, ".where", "Page 1 of ");
  });
  seen.ms.found = await timed(async () => {
    await page.type("#search", told.agent);
    await page.waitForFunction(() => document.querySelectorAll("tbody tr").length === 1);
  });
  seen.found = await texts(page, "tbody th a");
  await inspect(page, "crowd");
}

/** Where even reading needs the token, the page is there and asks for it. */
async function locked(page) {
  phase = "refused";
  await connection(page, "locked");
  await holds(page, "main h1", "asks for a token");
  seen.hidden = await page.$eval(".overview", (view) => !view.checkVisibility());
  await inspect(page, "locked");
  await press(page, "Enter the token");
  await type(page, "Admin token", "0123456789abcdeF");
  seen.axe.push(...(await violations(page, "token")));
  await page.keyboard.press("Enter");
  await holds(page, "#messages", "The token is refused");
  seen.refused = await dismissed(page);
  await connection(page, "locked");
  // Kept for the tab, because it was asked for.
  await press(page, "Enter the token");
  await type(page, "Admin token", told.token);
  await page.click("dialog[open] input[type=checkbox]");
  await page.keyboard.press("Enter");
  await connection(page, "live");
  phase = "calm";
  seen.opened = await page.$eval(".overview", (view) => view.checkVisibility());
  await page.reload({ waitUntil: "load" });
  await connection(page, "live");
  seen.address = page.url();
  phase = "refused";
  await press(page, "Token set. Forget it");
  await press(page, "Forget it");
  await connection(page, "locked");
  seen.kept = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }]));
}

const VISITS = { all: [overview, table, agent, actions, auditList, hostile, away, bucketList], crowd: [crowd], locked: [locked] };

async function run(browser) {
  const parts = VISITS[told.visit];
  if (told.visit === "locked") phase = "refused";
  const page = await open(browser, told.page);
  await page.emulateMediaFeatures(colours("light"));
  for (const part of parts) {
    step = part.name;
    await part(page);
  }
  return { ...seen, complaints, expected: expected.length };
}

const browser = await puppeteer.launch({
  executablePath: told.chromium,
  pipe: true, // Chromium ends when this process does
  // Chromium refuses to sandbox what root runs.
  args: told.root ? ["--no-sandbox"] : [],
});
try {
  console.log(JSON.stringify(await run(browser)));
} catch (error) {
  const [page] = (await browser.pages()).slice(-1);
  console.error(JSON.stringify({ step, phase, complaints, seen, shown: await page.evaluate(() => document.body.innerText.slice(0, 4000)) }));
  throw error;
} finally {
  await browser.close();
}
