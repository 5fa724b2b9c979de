// Takes one picture for the documentation.
//
//   node pictures.mjs CHROMIUM OUT.png dashboard|agent URL       after a minute, so that there is something to see
//   node pictures.mjs CHROMIUM OUT.png storefront URL
//   node pictures.mjs CHROMIUM OUT.png terminal FILE TITLE       a text with colours, as a terminal shows it

import { readFileSync } from "node:fs";
import puppeteer from "puppeteer-core";

const LOOKED_MS = 75_000;
const DEADLINE_MS = 60_000;
const [chromium, out, kind, what, title] = process.argv.slice(2);
const rest = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Returns the pieces of a text with SGR sequences: `{text, bold, dim, colour}`. */
function pieces(text) {
  const found = [];
  let look = {};
  for (const [, codes, plain] of text.matchAll(/(?:\x1b\[([\d;]*)m)?([^\x1b]*)/g)) {
    for (const code of codes === undefined ? [] : codes.split(";").map(Number)) {
      if (code === 0) look = {};
      else if (code === 1) look = { ...look, bold: true };
      else if (code === 2) look = { ...look, dim: true };
      else if (code === 22) look = { ...look, bold: false, dim: false };
      else if (code === 39) look = { ...look, colour: undefined };
      else if ((code >= 30 && code <= 37) || (code >= 90 && code <= 97)) look = { ...look, colour: code % 10 };
    }
    if (plain) found.push({ text: plain, ...look });
  }
  return found;
}

const draw = {
  async dashboard(page) {
    await page.setViewport({ width: 1280, height: 860, deviceScaleFactor: 1.5 });
    await page.goto(what, { waitUntil: "load" });
    await page.waitForFunction(() => document.getElementById("connection").dataset.state === "live");
    await rest(LOOKED_MS);
  },
  async agent(page) {
    await page.setViewport({ width: 1280, height: 900, deviceScaleFactor: 1.5 });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
    // The one that ten users rate down.
    await page.goto(new URL("#/agents/agent-01", what).href, { waitUntil: "load" });
    await page.waitForFunction(() => document.querySelectorAll(".sentences li").length > 0);
    await rest(LOOKED_MS);
  },
  async storefront(page) {
    await page.setViewport({ width: 900, height: 560, deviceScaleFactor: 1.5 });
    await page.goto(what, { waitUntil: "load" });
    await page.waitForFunction(() => [...document.querySelectorAll(".rating")].every((one) => one.textContent !== "–"));
    await rest(2_000);
  },
  async terminal(page) {
    await page.setViewport({ width: 1000, height: 200, deviceScaleFactor: 1.5 });
    const colours = ["#5c6370", "#ff938c", "#62d69e", "#f0c060", "#85a6ff", "#c39bff", "#52d1c5", "#e9edf4"];
    const text = readFileSync(what, "utf8").replace(/\n+$/, "");
    await page.evaluate((pieces, title, colours) => {
      const make = (tag, css, ...children) => {
        const node = document.createElement(tag);
        Object.assign(node.style, css);
        node.append(...children);
        return node;
      };
      Object.assign(document.body.style, { margin: 0, display: "inline-block", background: "#0d1015", color: "#d7dce5" });
      const lights = ["#ff5f57", "#febc2e", "#28c840"].map((background) => make("span", { display: "inline-block", width: "11px", height: "11px", marginRight: "7px", borderRadius: "50%", background }));
      const name = make("span", { flex: 1, textAlign: "center", paddingRight: "54px" }, title);
      const bar = make("div", { display: "flex", alignItems: "center", padding: "9px 14px", background: "#1d232c", font: "600 12px system-ui", color: "#a2acbb" }, ...lights, name);
      const lines = pieces.map(({ text, bold, dim, colour }) => make("span", { fontWeight: bold ? 700 : 400, opacity: dim ? 0.7 : 1, color: colour === undefined ? "inherit" : colours[colour] }, text));
      const body = make("pre", { margin: 0, padding: "16px 20px 20px", font: "13px/1.45 ui-monospace, monospace" }, ...lines);
      document.body.replaceChildren(bar, body);
    }, pieces(text), title, colours);
    return (await page.$("body")).boundingBox();
  },
};

const browser = await puppeteer.launch({
  executablePath: chromium,
  pipe: true,
  // Chromium refuses to sandbox what root runs.
  args: process.getuid() === 0 ? ["--no-sandbox"] : [],
});
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(DEADLINE_MS);
  const clip = await draw[kind](page);
  await page.screenshot({ path: out, ...(clip ? { clip, captureBeyondViewport: true } : {}) });
} finally {
  await browser.close();
}
