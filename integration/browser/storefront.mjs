// Drives the storefront in Chromium and prints what it saw, as one line of JSON.
//
//   node storefront.mjs '{"chromium": …, "root": …, "page": …, "ingest": …, "control": …, "collector": …, "viewer": …,
//                         "token": …, "hostile": …, "items": […], "ratings": 200, "missed": 30}'
//
// `control` stops and starts the gateway (POST /stop, /start) and counts its streams (GET /streams). `hostile` is a
// token whose `sub` and `agent_id` are hostile texts. Waits end with DEADLINE_MS at the latest; nothing is
// tried twice.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import puppeteer from "puppeteer-core";

const DEADLINE_MS = 60_000;
const told = JSON.parse(process.argv[2]);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** What the browser itself says on the console when a gateway is away, or a request is refused as it should be. */
const EXPECTED = {
  calm: /^$/,
  restart: /^Failed to load resource: (net::ERR_(CONNECTION_(REFUSED|RESET|CLOSED)|EMPTY_RESPONSE|INCOMPLETE_CHUNKED_ENCODING)|the server responded with a status of 503)/,
  refused: /^Failed to load resource: the server responded with a status of (429|403|400)/,
};
let phase = "calm";
const complaints = [];
const expected = [];

function within(what, promise) {
  let timer;
  const late = new Promise((_, refuse) => {
    timer = setTimeout(() => refuse(new Error(`${what}: not within ${DEADLINE_MS} ms`)), DEADLINE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// --- what the page is told, as its DOM shows it

const counts = new Map();
const texts = new Map();
let waiting = [];
function updated(item, text, at) {
  counts.set(item, (counts.get(item) ?? 0) + 1);
  texts.set(item, text);
  waiting = waiting.filter((one) => !one(item, at));
}
/** Waits until `item` was updated `count` times; returns when that was. */
function reaches(item, count) {
  if ((counts.get(item) ?? 0) >= count) return Promise.resolve(Date.now());
  const reached = new Promise((resolve) => {
    waiting.push((other, at) => {
      const done = other === item && counts.get(item) >= count;
      if (done) resolve(at);
      return done;
    });
  });
  return within(`update ${count} of ${item}, has ${counts.get(item) ?? 0}`, reached);
}

async function rate(user, item, rating) {
  const response = await fetch(`${told.ingest}/v1/rating`, {
    method: "POST",
    headers: { authorization: `Bearer ${told.collector}`, "content-type": "application/json" },
    body: JSON.stringify({ user_id: user, item_id: item, rating }),
  });
  if (response.status !== 202) throw new Error(`rating: ${response.status} ${await response.text()}`);
}

async function control(what, method = "POST") {
  const response = await fetch(`${told.control}/${what}`, { method });
  if (!response.ok) throw new Error(`${what}: ${response.status}`);
  return response.text();
}

// --- pages

async function open(browser, address) {
  const page = await browser.newPage();
  page.setDefaultTimeout(DEADLINE_MS);
  const say = (text) => (EXPECTED[phase].test(text) ? expected : complaints).push(text);
  page.on("console", (message) => {
    if (["error", "warn", "assert"].includes(message.type())) say(message.text());
  });
  page.on("pageerror", (error) => say(`pageerror: ${error.message}`));
  page.on("dialog", (dialog) => { say(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  await page.exposeFunction("violated", (directive, uri) => say(`policy: ${directive} ${uri}`));
  await page.exposeFunction("updated", updated);
  await page.evaluateOnNewDocument(() => {
    addEventListener("securitypolicyviolation", (event) => violated(event.violatedDirective, event.blockedURI));
  });
  await page.goto(address, { waitUntil: "load" });
  return page;
}

const state = (page, wanted) =>
  page.waitForFunction((wanted) => document.getElementById("connection").dataset.state === wanted, {}, wanted);
const text = (page, selector) => page.$eval(selector, (element) => element.textContent);

async function violations(page, where) {
  await page.evaluate(axe);
  const found = await page.evaluate(async () => {
    const { violations } = await axe.run();
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
  });
  return found.map((one) => `${where}: ${one}`);
}

/** Presses Tab until the element has the focus. */
async function tabTo(page, id) {
  for (let presses = 0; presses < 20; presses += 1) {
    if (await page.evaluate((id) => document.activeElement.id === id, id)) return;
    await page.keyboard.press("Tab");
  }
  throw new Error(`Tab does not reach #${id}`);
}

const calm = (page) => page.waitForFunction(() => document.querySelector(".changed") === null);

async function run(browser) {
  const seen = { axe: [] };
  const page = await open(browser, told.page);
  seen.axe.push(...(await violations(page, "before a token")));
  await page.evaluate(() => {
    new MutationObserver((records) => {
      for (const { target } of records) {
        const card = target.closest(".rating")?.closest("[data-item]");
        if (card) updated(card.dataset.item, target.textContent, Date.now());
      }
    }).observe(document.getElementById("cards"), { subtree: true, childList: true });
  });

  // The token goes into the field with the keyboard. That empties the cards, and the stream fills them.
  await tabTo(page, "token");
  await page.keyboard.sendCharacter(told.token);
  await page.keyboard.press("Enter");
  await state(page, "live");
  for (const item of told.items) await reaches(item, 2);
  seen.viewer = await text(page, "#viewer");
  seen.kept = await page.evaluate(() =>
    JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href,
      document.getElementById("token").value]));
  counts.clear();

  // A rating of the viewer's own changes the text of the card.
  const own = told.items[0];
  const before = await text(page, ".card .rating");
  await rate(told.viewer, own, 1);
  await reaches(own, 1);
  seen.own = { before, after: await text(page, ".card .rating") };

  // From just before the POST to the DOM.
  const took = [];
  const given = new Map([[own, 1]]);
  const give = (item) => given.set(item, (given.get(item) ?? 0) + 1).get(item);
  for (let n = 0; n < told.ratings; n += 1) {
    const item = told.items[n % told.items.length];
    const count = give(item);
    const began = Date.now();
    const [at] = await Promise.all([reaches(item, count), rate(`user-${n % 50}`, item, 1 + (n % 5))]);
    took.push(at - began);
  }
  took.sort((a, b) => a - b);
  const at = (share) => took[Math.min(took.length - 1, Math.floor(share * took.length))];
  const mean = took.reduce((sum, one) => sum + one, 0) / took.length;
  seen.post_to_dom_ms = { ratings: took.length, mean, p50: at(0.5), p99: at(0.99), most: took.at(-1) };

  // The gateway stops while ratings come, is away while others do, and comes back while still others do.
  phase = "restart";
  const part = Math.floor(told.missed / 3);
  const some = async () => {
    for (let n = 0; n < part; n += 1) {
      const item = told.items[n % told.items.length];
      give(item);
      await rate(`late-${n}`, item, 4);
    }
  };
  await Promise.all([some(), control("stop")]);
  await state(page, "waiting");
  const shown = new Map(counts);
  await some();
  seen.waiting = await text(page, "#connection");
  seen.told_while_away = told.items.filter((item) => counts.get(item) !== shown.get(item));
  await Promise.all([some(), control("start")]);
  await state(page, "live");
  await Promise.all([...given].map(([item, count]) => reaches(item, count)));
  // One more of each: had any been told twice, there would be more now.
  for (const item of told.items) await rate("last", item, 5 - (give(item) % 2));
  await Promise.all([...given].map(([item, count]) => reaches(item, count)));
  seen.updates = told.items.map((item) => [item, given.get(item), counts.get(item)]);
  phase = "calm";

  // Every id is text.
  seen.shown = await page.evaluate(() => ({
    items: [...document.querySelectorAll(".card")].map((card) =>
      card.querySelector("bdi")?.textContent ?? card.dataset.item),
    children: [...document.querySelectorAll("bdi")].reduce((sum, bdi) => sum + bdi.children.length, 0),
    scripts: document.querySelectorAll("script").length,
  }));

  // Light and dark, narrow, and a highlight without motion.
  await calm(page);
  seen.axe.push(...(await violations(page, "light")));
  await page.setViewport({ width: 320, height: 640 });
  seen.narrow = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
  seen.axe.push(...(await violations(page, "dark and narrow")));
  const highlight = async () => {
    await rate(told.viewer, own, 5);
    const card = await page.waitForSelector(".changed");
    return card.evaluate((card) => {
      const style = getComputedStyle(card);
      return [card.dataset.item, style.animationName, style.backgroundColor];
    });
  };
  seen.highlight = await highlight();
  await calm(page);
  await page.emulateMediaFeatures([
    { name: "prefers-color-scheme", value: "light" }, { name: "prefers-reduced-motion", value: "reduce" },
  ]);
  seen.background = await page.$eval(".card", (card) => getComputedStyle(card).backgroundColor);
  seen.still = await highlight();
  // The highlight stays while it is looked at.
  await page.$eval(".card", (card) => card.classList.add("changed"));
  seen.axe.push(...(await violations(page, "highlighted, still")));
  await page.emulateMediaFeatures([]);

  // The agent asks with the keyboard until it is refused, and sees the wait.
  phase = "refused";
  await tabTo(page, "ask");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.getElementById("answer").textContent !== "");
  seen.answer = await text(page, "#answer");
  await page.evaluate(() => {
    window.waits = [];
    const wait = document.getElementById("wait");
    new MutationObserver(() => waits.push(wait.textContent)).observe(wait, { childList: true });
  });
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.getElementById("ask").getAttribute("aria-disabled") === "true");
  seen.refused = await text(page, "#answer");
  seen.axe.push(...(await violations(page, "refused")));
  await page.waitForFunction(() => document.getElementById("ask").getAttribute("aria-disabled") === "false");
  seen.waits = await page.evaluate(() => waits.filter((wait) => wait !== ""));
  await page.keyboard.press("Enter");
  await page.waitForFunction((answer) => document.getElementById("answer").textContent === answer, {}, seen.answer);

  // A token in the fragment, of somebody with hostile names. Its agent is refused, in words.
  const other = await open(browser, `${told.page}#token=${told.hostile}`);
  seen.address = await other.evaluate(() => location.href);
  seen.hostile = [await text(other, "#viewer"), await text(other, "#agent")];
  await other.click("#ask");
  await other.waitForFunction(() => document.getElementById("answer").textContent !== "");
  seen.hostile_refused = await text(other, "#answer");
  seen.hostile_elements = await other.evaluate(() =>
    document.querySelectorAll("#viewer *, #agent *, #answer *, img").length);
  await other.close();
  phase = "calm";

  // Who leaves the page leaves the stream.
  seen.streams = [Number(await control("streams", "GET"))];
  await page.goto("about:blank");
  const ended = Date.now() + DEADLINE_MS;
  do seen.streams[1] = Number(await control("streams", "GET"));
  while (seen.streams[1] > 0 && Date.now() < ended);
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
  console.error(JSON.stringify({ phase, complaints, counts: [...counts], texts: [...texts] }));
  throw error;
} finally {
  await browser.close();
}
