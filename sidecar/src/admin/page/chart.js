// Pictures of numbers, as SVG that is made by DOM calls: sparklines, charts over time, meters.
//
// What a picture shows stands beside it in words or as a table, so sparklines are hidden from screen readers.

import { h, svg, say, replace, number, rate, clock, unseen } from "./dom.js";

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** Returns the path of `points` ([x, y] or null for a gap). */
function path(points) {
  let text = "";
  let down = false;
  for (const point of points) {
    if (point) text += `${down ? "L" : "M"}${point[0].toFixed(1)} ${point[1].toFixed(1)}`;
    down = Boolean(point);
  }
  return text;
}

/** A line of what was seen lately, without axes. */
export function sparkline({ width = 88, height = 26, tone = "a" } = {}) {
  const line = svg("path", { class: "line", d: "" });
  const area = svg("path", { class: "area", d: "" });
  const dot = svg("circle", { class: "dot", r: 0 });
  const node = svg("svg", { class: `spark tone-${tone}`, width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", focusable: "false" }, area, line, dot);
  let shown = "";
  return {
    node,
    update(values) {
      const seen = (values ?? []).map((value) => (isNumber(value) ? value : null));
      const signature = seen.join();
      if (signature === shown) return;
      shown = signature;
      const numbers = seen.filter((value) => value !== null);
      if (numbers.length === 0) {
        line.setAttribute("d", "");
        area.setAttribute("d", "");
        dot.setAttribute("r", 0);
        return;
      }
      const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
      // What hardly moves is drawn flat, not as a storm.
      const room = Math.max(high - low, 0.02 * Math.abs(high), 1e-9);
      const middle = (high + low) / 2;
      const pad = 4;
      const x = (index) => (seen.length < 2 ? width - pad : pad + (index * (width - 2 * pad)) / (seen.length - 1));
      const y = (value) => height / 2 - ((value - middle) / room) * (height - 2 * pad);
      const points = seen.map((value, index) => (value === null ? null : [x(index), y(value)]));
      const drawn = points.filter(Boolean);
      line.setAttribute("d", path(points));
      area.setAttribute("d", drawn.length > 1 ? `${path(drawn)}L${drawn.at(-1)[0].toFixed(1)} ${height}L${drawn[0][0].toFixed(1)} ${height}Z` : "");
      dot.setAttribute("r", 2.2);
      dot.setAttribute("cx", drawn.at(-1)[0]);
      dot.setAttribute("cy", drawn.at(-1)[1]);
    },
  };
}

/** What a sparkline shows, in words. */
export function trend(values) {
  const numbers = (values ?? []).filter(isNumber);
  if (numbers.length < 2 || numbers[0] === 0) return "";
  const change = numbers.at(-1) / numbers[0] - 1;
  if (Math.abs(change) < 0.005) return "steady lately";
  return `${change > 0 ? "up" : "down"} ${number(Math.abs(100 * change))} % lately`;
}

/** Returns round numbers from `low` to `high`, about `count` of them. */
function ticks(low, high, count) {
  const raw = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * unit).find((one) => one >= raw * 0.999);
  const found = [];
  // Each from its number: sums would drift, and 0 would be −0.
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-6; n += 1) found.push(n * step || 0);
  return found;
}

function ageText(seconds) {
  if (seconds < 1) return "now";
  return seconds % 60 === 0 && seconds >= 60 ? `−${seconds / 60} min` : `−${seconds} s`;
}

const TABLE_ROWS = 12;
/** A time axis is not shorter than this. */
const LEAST_MS = 60_000;

/**
 * A chart over time. `series` are `{name, tone, step}`; `update(points, now_ms)` takes `{at_ms, values: […]}`, oldest first.
 * The time axis has what is there, `seconds` at most unless that is null. `low` and `high` are fixed ends of the scale.
 */
export function timeChart({ title, unit, series, seconds = 300, low = 0, high = null, height = 150, show = rate, axis = null, empty = "Nothing seen yet." }) {
  const caption = h("figcaption", { class: "chart-title" }, h("span", {}, title), h("span", { class: "muted" }, ` ${unit}`));
  const legend = h("ul", { class: "legend" });
  const values = series.map(({ name, tone }) => {
    const value = h("b", {}, "–");
    legend.append(h("li", { class: `tone-${tone}` }, h("span", { class: "swatch", "aria-hidden": "true" }), name, " ", value));
    return value;
  });
  const when = h("span", { class: "muted when" });
  const canvas = svg("svg", { class: "canvas", role: "img", height, "aria-label": title });
  const nothing = h("p", { class: "empty-chart muted" }, empty);
  const body = h("tbody", {});
  const table = h("table", { class: "plain" },
    h("caption", { class: "unseen" }, `${title}, ${unit}`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "When"), series.map(({ name }) => h("th", { scope: "col", class: "num" }, name)))), body);
  const details = h("details", { class: "as-table" }, h("summary", {}, "As a table", unseen(`: ${title}`)), table);
  const node = h("figure", { class: "chart" }, h("div", { class: "chart-head" }, caption, legend, when), canvas, nothing, details);

  let points = [];
  let now = 0;
  let hovered = null;
  let width = 600;
  let scale = null;

  function draw() {
    const left = 40, right = 10, top = 8, bottom = 20;
    canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
    canvas.setAttribute("width", width);
    const all = points.flatMap((point) => point.values).filter(isNumber);
    nothing.hidden = all.length > 0;
    canvas.toggleAttribute("hidden", all.length === 0);
    details.hidden = all.length === 0;
    if (all.length === 0) {
      for (const value of values) say(value, "–");
      return;
    }
    const age_ms = Math.max(now - points[0].at_ms, LEAST_MS);
    const first = now - (seconds === null ? age_ms : Math.min(age_ms, 1000 * seconds));
    let least = low ?? Math.min(...all);
    let most = high ?? Math.max(...all, least + 1e-6);
    if (high === null && most - least < 1e-5) most = least + 1;
    let marks = ticks(least, most, 3);
    if (high === null && marks.at(-1) < most) most = marks.at(-1) + (marks[1] - marks[0] || 1);
    marks = ticks(least, most, 3);
    const x = (at) => left + ((at - first) / (now - first)) * (width - left - right);
    const y = (value) => height - bottom - ((value - least) / (most - least)) * (height - top - bottom);
    scale = { first, x };
    const drawn = [];
    for (const mark of marks) {
      drawn.push(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(mark), y2: y(mark) }));
      const step = marks.length > 1 ? marks[1] - marks[0] : 1;
      drawn.push(svg("text", { class: "axis", x: left - 7, y: y(mark) + 4, "text-anchor": "end" }, axis ? axis(mark) : number(mark, step >= 1 ? 0 : step >= 0.1 ? 1 : 2)));
    }
    const whole = (now - first) / 1000;
    const pace = [5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600, 86_400].find((one) => whole / one <= (width < 420 ? 3 : 6) && (one !== 30 || whole <= 90)) ?? whole;
    for (let age = 0; age <= whole + 0.5; age += pace) {
      const at = x(now - 1000 * age);
      const anchor = age === 0 ? "end" : at < left + 20 ? "start" : "middle";
      drawn.push(svg("text", { class: "axis", x: age === 0 ? width - right : at, y: height - 5, "text-anchor": anchor }, ageText(age)));
    }
    series.forEach(({ tone, step }, index) => {
      const line = [];
      let before = null;
      for (const point of points) {
        if (point.at_ms < first - 5000) continue;
        const value = point.values[index];
        if (!isNumber(value)) {
          line.push(null);
          before = null;
          continue;
        }
        const at = [x(Math.max(point.at_ms, first)), y(Math.min(Math.max(value, least), most))];
        if (step && before) line.push([at[0], before[1]]);
        line.push(at);
        before = at;
      }
      if (step && before) line.push([x(now), before[1]]);
      const solid = line.filter(Boolean);
      if (index === 0 && solid.length > 1 && !line.includes(null)) {
        drawn.push(svg("path", { class: `area tone-${tone}`, d: `${path(line)}L${solid.at(-1)[0].toFixed(1)} ${height - bottom}L${solid[0][0].toFixed(1)} ${height - bottom}Z` }));
      }
      drawn.push(svg("path", { class: `line tone-${tone}`, d: path(line) }));
      if (solid.length === 1) drawn.push(svg("circle", { class: `dot tone-${tone}`, cx: solid[0][0], cy: solid[0][1], r: 2.5 }));
    });
    const known = points.findLast((point) => point.values.some(isNumber));
    const point = hovered ?? known;
    if (hovered) {
      const at = x(hovered.at_ms);
      drawn.push(svg("line", { class: "cursor", x1: at, x2: at, y1: top, y2: height - bottom }));
      hovered.values.forEach((value, index) => {
        if (isNumber(value)) drawn.push(svg("circle", { class: `dot tone-${series[index].tone}`, cx: at, cy: y(Math.min(Math.max(value, least), most)), r: 3 }));
      });
    }
    say(when, hovered ? clock(hovered.at_ms) : "");
    point.values.forEach((value, index) => say(values[index], isNumber(value) ? show(value) : "–"));
    const latest = known.values;
    canvas.setAttribute("aria-label", `${title}, ${unit}: ${series.map(({ name }, index) => `${name} ${isNumber(latest[index]) ? show(latest[index]) : "not known"}`).join(", ")}`);
    replace(canvas, drawn);
    if (details.open) fillTable();
  }

  function fillTable() {
    const every = Math.max(1, Math.ceil(points.length / TABLE_ROWS));
    const chosen = points.filter((_, index) => (points.length - 1 - index) % every === 0).reverse();
    replace(body, chosen.map((point) => h("tr", {}, h("td", {}, clock(point.at_ms)), point.values.map((value) => h("td", { class: "num" }, isNumber(value) ? show(value) : "–")))));
  }

  details.addEventListener("toggle", () => details.open && fillTable());
  canvas.addEventListener("pointermove", (event) => {
    if (!scale || points.length === 0) return;
    const at = event.clientX - canvas.getBoundingClientRect().left;
    const visible = points.filter((point) => point.at_ms >= scale.first);
    if (visible.length === 0) return;
    hovered = visible.reduce((best, point) => (Math.abs(scale.x(point.at_ms) - at) < Math.abs(scale.x(best.at_ms) - at) ? point : best));
    draw();
  });
  canvas.addEventListener("pointerleave", () => {
    hovered = null;
    draw();
  });
  new ResizeObserver(([entry]) => {
    const wide = Math.floor(entry.contentRect.width);
    if (wide > 0 && wide !== width) {
      width = wide;
      draw();
    }
  }).observe(node);
  return {
    node,
    update(next, now_ms) {
      [points, now] = [next, now_ms];
      if (hovered && !points.includes(hovered)) hovered = null;
      draw();
    },
  };
}

/** A bar from nothing to `most`; `label` names it for screen readers. */
export function meter(label, tone = "a") {
  const bar = h("span", { class: "bar" });
  const node = h("span", { class: `meter tone-${tone}`, role: "meter", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": 0 }, bar);
  return {
    node,
    update(share, text) {
      const held = isNumber(share) ? Math.min(Math.max(share, 0), 1) : 0;
      bar.style.width = `${(100 * held).toFixed(1)}%`;
      node.setAttribute("aria-valuenow", Math.round(100 * held));
      node.setAttribute("aria-valuetext", isNumber(share) ? text : "not known");
    },
  };
}

/** Where an agent's quality lies on the scale of scores, beside what capacity costs. */
export function qualityScale() {
  const width = 320, height = 58;
  const x = (score) => 14 + ((Math.min(Math.max(score, 1), 5) - 1) / 4) * (width - 28);
  const base = 30;
  const canvas = svg("svg", { class: "scale", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Quality" });
  return {
    node: canvas,
    update({ quality, deviation, price }) {
      if (!isNumber(quality)) {
        replace(canvas);
        canvas.setAttribute("aria-label", "Quality is not known");
        return;
      }
      const drawn = [svg("line", { class: "rail", x1: x(1), x2: x(5), y1: base, y2: base })];
      for (const score of [1, 2, 3, 4, 5]) {
        drawn.push(svg("line", { class: "rail", x1: x(score), x2: x(score), y1: base - 3, y2: base + 3 }));
        drawn.push(svg("text", { class: "axis", x: x(score), y: height - 8, "text-anchor": "middle" }, String(score)));
      }
      if (isNumber(price)) {
        const at = x(3 + price);
        drawn.push(svg("line", { class: "cost", x1: at, x2: at, y1: 12, y2: base + 9 }));
        drawn.push(svg("text", { class: "axis cost-text", x: at, y: 9, "text-anchor": at > width - 60 ? "end" : at < 60 ? "start" : "middle" }, `price ${number(price, 2)}`));
      }
      if (isNumber(deviation)) {
        drawn.push(svg("line", { class: "whisker tone-d", x1: x(quality - deviation), x2: x(quality + deviation), y1: base, y2: base }));
      }
      drawn.push(svg("circle", { class: "estimate tone-d", cx: x(quality), cy: base, r: 5.5 }));
      replace(canvas, drawn);
      const cost = isNumber(price) ? `; capacity costs what a quality of ${number(3 + price, 2)} is worth` : "";
      canvas.setAttribute("aria-label", `Quality ${number(quality, 2)} of 1 to 5${isNumber(deviation) ? `, give or take ${number(deviation, 2)}` : ""}${cost}`);
    },
  };
}
