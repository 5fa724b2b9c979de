// Buckets and routes: what is in force, and a draft of what shall be.
//
// 1. What is edited is a draft in this page; one `PUT` replaces everything, for every node, or nothing.
// 2. The `PUT` names the revision that the draft began from. When somebody else was faster, the draft is kept and compared anew.
// 3. Members that this page does not know pass through untouched.

import { bdi, h, number, plural, rate, reconcile, replace, say, tabular } from "./dom.js";
import { Refused, ask } from "./api.js";
import { check, confirm, explain, field, message } from "./dialog.js";
import { changes, copy, routeName } from "./draft.js";

const EVERY_MS = 4_000;
const KNOWN_METHODS = "GET, POST, PUT, PATCH, DELETE";
const BUCKET_KEYS = ["bucket_name", "refill_rate", "capacity", "key_selector", "default"];
const ROUTE_KEYS = ["path", "methods", "buckets", "cost"];

/** Headings, attributes and units of the columns. */
const BUCKET_HEADS = [["Bucket"], ["Rate", { class: "num" }, "tokens a second"], ["Capacity", { class: "num" }, "tokens"], ["Charged for"], ["Whose"]];
const ROUTE_HEADS = [["Path"], ["Methods"], ["Also charged to"], ["Cost", { class: "num" }]];
const labels = (heads) => heads.map(([name]) => name);

/** The members that have no column of their own, in words. */
function others(one, keys) {
  const rest = Object.entries(one).filter(([key, value]) => !keys.includes(key) && value !== null && value !== false);
  return rest.map(([key, value]) => `${key} = ${JSON.stringify(value)}`).join(", ");
}

async function download(name, value) {
  const url = URL.createObjectURL(new Blob([`${JSON.stringify(value, null, 2)}\n`], { type: "application/json" }));
  h("a", { href: url, download: `${name.replaceAll(/[^\w.-]+/g, "_")}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

async function reported(run) {
  try {
    await run();
  } catch (error) {
    message("bad", explain(error).text);
  }
}

const button = (text, label, run, tone = "quiet") => h("button", { type: "button", class: tone, "aria-label": label, on: { click: run } }, text);

export function buckets() {
  let base = null;
  let draft = null;
  let newer = null;
  let asked_ms = 0;

  const shown = () => draft ?? base;
  const lead = h("p", { class: "lead" }, "Reading.");
  const notice = h("p", { class: "notice", role: "status" });
  const bucketBody = h("tbody", {});
  const routeBody = h("tbody", {});
  const noRoutes = h("p", { class: "muted" }, "No route: every request is charged to the default bucket alone.");
  const routeTable = tabular(h("table", { class: "stacked" }, h("caption", { class: "unseen" }, "Routes, in the order in which they are tried"),
    h("thead", {}, h("tr", {}, ROUTE_HEADS.map(([name, props]) => h("th", { scope: "col", ...props }, name)), h("th", { scope: "col" }, h("span", { class: "unseen" }, "Change")))), routeBody));
  const bucketTable = tabular(h("table", { class: "stacked" }, h("caption", { class: "unseen" }, "Buckets"),
    h("thead", {}, h("tr", {}, BUCKET_HEADS.map(([name, props, unit]) => h("th", { scope: "col", ...props }, name, unit && h("span", { class: "unit" }, unit))), h("th", { scope: "col" }, h("span", { class: "unseen" }, "Change")))), bucketBody));
  const list = h("ul", {});
  const count = h("h2", {});
  const apply = h("button", { type: "button", class: "primary", on: { click: applyDraft } }, "Apply to every node…");
  const discard = h("button", { type: "button", class: "quiet", on: { click: () => { draft = null; if (newer) [base, newer] = [newer, null]; show(); } } }, "Discard");
  const bar = h("section", { class: "draft card", "aria-label": "Changes that are not applied", hidden: true }, count, list, h("div", { class: "buttons" }, discard, apply));
  const back = h("button", { type: "button", class: "danger quiet", on: { click: backToFile } }, "Back to the file…");
  const node = h("section", { class: "buckets" }, h("h1", { tabindex: -1 }, "Buckets"), lead, notice, bar,
    h("section", { class: "card" },
      h("div", { class: "card-head" }, h("h2", {}, "Buckets"), h("div", { class: "buttons" }, button("Export all", "Export all as JSON", () => base && download("buckets", base)), h("button", { type: "button", class: "primary", on: { click: () => editBucket(null) } }, "Add a bucket"))),
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Buckets" }, bucketTable)),
    h("section", { class: "card" },
      h("div", { class: "card-head" }, h("h2", {}, "Routes"), h("div", { class: "buttons" }, h("button", { type: "button", class: "primary", on: { click: () => editRoute(null) } }, "Add a route"))),
      h("p", { class: "muted" }, "The first route whose path and method fit decides. The default bucket is charged as well."),
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Routes" }, routeTable), noRoutes), back);

  const edit = (change) => {
    draft ??= copy(base);
    change(draft);
    if (changes(base, draft).length === 0) draft = null;
    show();
  };

  function bucketRow({ bucket_name }) {
    const cells = { rate: h("td", { class: "num" }), capacity: h("td", { class: "num" }), used: h("td", { class: "wrap" }), key: h("td", { class: "wrap" }) };
    const badge = h("span", { class: "badge plain" }, "default");
    const more = h("span", { class: "muted more" });
    const remove = button("Remove", `Remove ${bucket_name}`, () => removeBucket(bucket_name), "quiet danger");
    const buttons = h("div", { class: "buttons" },
      button("Edit", `Edit ${bucket_name}`, () => editBucket(bucket_name)),
      button("Bind", `Bind ${bucket_name} to a route`, () => editRoute(null, bucket_name)),
      button("JSON", `Export ${bucket_name} as JSON`, () => reported(async () => download(bucket_name, await ask(`buckets/${encodeURIComponent(bucket_name)}`)))), remove);
    return {
      node: tabular(h("tr", {}, h("th", { scope: "row" }, bdi(bucket_name), " ", badge, more), cells.rate, cells.capacity, cells.used, cells.key, h("td", {}, buttons)), labels(BUCKET_HEADS)),
      update(bucket) {
        badge.hidden = !bucket.default;
        remove.hidden = Boolean(bucket.default);
        buttons.children[1].hidden = Boolean(bucket.default);
        say(cells.rate, rate(bucket.refill_rate));
        say(cells.capacity, number(bucket.capacity));
        say(cells.key, bucket.key_selector ?? "as the identity says");
        say(more, others(bucket, BUCKET_KEYS));
        const bound = shown().routes.filter((route) => route.buckets?.includes(bucket_name)).map(routeName);
        say(cells.used, bucket.default ? "every request" : bound.length > 0 ? bound.join(", ") : "nothing: no route names it");
      },
    };
  }

  function routeRow() {
    const cells = { path: h("code", {}), methods: h("td", { class: "wrap" }), buckets: h("td", { class: "wrap" }), cost: h("td", { class: "num" }) };
    const more = h("span", { class: "muted more" });
    const buttons = h("div", { class: "buttons" });
    let index = 0;
    return {
      node: tabular(h("tr", {}, h("th", { scope: "row" }, cells.path, more), cells.methods, cells.buckets, cells.cost, h("td", {}, buttons)), labels(ROUTE_HEADS)),
      update({ route, at }) {
        index = at;
        replace(cells.path, bdi(route.path));
        say(cells.methods, route.methods?.length ? route.methods.join(", ") : "any");
        say(cells.buckets, route.buckets?.length ? route.buckets.join(", ") : "nothing else");
        say(cells.cost, number(route.cost ?? 1));
        say(more, others(route, ROUTE_KEYS));
        if (!buttons.firstChild) {
          const name = routeName(route);
          buttons.append(button("Edit", `Edit ${name}`, () => editRoute(index)),
            button("↑", `Try ${name} earlier`, () => move(index)),
            button("Remove", `Remove ${name}`, () => edit((next) => next.routes.splice(index, 1)), "quiet danger"));
        }
        buttons.children[1].setAttribute("aria-disabled", String(at === 0));
      },
    };
  }

  const move = (at) => at > 0 && edit(({ routes }) => routes.splice(at - 1, 0, ...routes.splice(at, 1)));

  function show() {
    const now = shown();
    if (!now) return;
    say(lead, base.source === "file" ? "As the configuration file says. Changes made here go to the store and hold for every node; the file stays as it is." : `Revision ${number(base.rev)}, from the store: it stands over what the configuration file says.`);
    back.hidden = base.source === "file";
    reconcile(bucketBody, now.buckets, (bucket) => bucket.bucket_name, bucketRow);
    reconcile(routeBody, now.routes.map((route, at) => ({ route, at })), ({ route }) => routeName(route), routeRow);
    routeTable.hidden = now.routes.length === 0;
    noRoutes.hidden = now.routes.length > 0;
    const made = draft ? changes(base, draft) : [];
    bar.hidden = made.length === 0;
    say(count, `${plural(made.length, "change")}, not applied yet`);
    replace(list, made.map((text) => h("li", {}, bdi(text))));
    say(notice, newer ? `Somebody else made revision ${newer.rev} meanwhile. Your changes are compared with revision ${base.rev}.` : "");
  }

  function editBucket(name) {
    if (!base) return;
    const bucket = shown().buckets.find((one) => one.bucket_name === name);
    const title = bucket ? `Edit ${name}` : "Add a bucket";
    const label = field("Name", { value: name ?? "", required: true, maxlength: 64, readonly: Boolean(bucket) }, bucket ? "A bucket of another name is another bucket." : "As routes, headers and metrics call it.");
    const refill = field("Tokens a second", { type: "number", inputmode: "decimal", min: 0, step: "any", required: true, value: bucket?.refill_rate ?? "" });
    const capacity = field("Tokens at once (capacity)", { type: "number", inputmode: "numeric", min: 1, step: 1, required: true, value: bucket?.capacity ?? "" });
    const key = field("Whose tokens", { value: bucket?.key_selector ?? "", maxlength: 200 }, "Which claim names the owner, like jwt.claims.agent_id. Empty: as [identity] says.");
    confirm({
      title,
      consequences: ["This is a draft: nothing changes before you apply it."],
      fields: [label.node, refill.node, capacity.node, key.node],
      act: bucket ? "Change the draft" : "Add to the draft",
      needsToken: false,
      run: async () => {
        const named = label.input.value.trim();
        if (!bucket && shown().buckets.some((one) => one.bucket_name === named)) throw new Refused(422, { detail: `there is a bucket ${named} already` });
        const made = { ...bucket, bucket_name: named, refill_rate: refill.input.valueAsNumber, capacity: capacity.input.valueAsNumber };
        const selector = key.input.value.trim();
        if (selector) made.key_selector = selector;
        else delete made.key_selector;
        edit((next) => {
          const at = next.buckets.findIndex((one) => one.bucket_name === named);
          if (at < 0) next.buckets.push(made);
          else next.buckets[at] = made;
        });
      },
    });
  }

  function removeBucket(name) {
    const bound = shown().routes.filter((route) => route.buckets?.includes(name));
    confirm({
      title: `Remove ${name}?`,
      consequences: [
        bound.length > 0 ? `It is taken off ${plural(bound.length, "route")}, which then charge the rest alone.` : "No route names it.",
        "This is a draft: nothing changes before you apply it.",
      ],
      act: "Remove from the draft",
      needsToken: false,
      run: async () => edit((next) => {
        next.buckets = next.buckets.filter((one) => one.bucket_name !== name);
        for (const route of next.routes) if (route.buckets) route.buckets = route.buckets.filter((one) => one !== name);
      }),
    });
  }

  function editRoute(index, bound = null) {
    if (!base) return;
    const route = index === null ? null : shown().routes[index];
    const path = field("Path", { value: route?.path ?? "", required: true, maxlength: 1024, placeholder: "/v1/orders/*" }, "* is one segment; /* at the end is whatever follows.");
    const methods = field("Methods", { value: route?.methods?.join(", ") ?? "", maxlength: 200, placeholder: KNOWN_METHODS }, "Separated by commas. Empty: any. GET means HEAD as well.");
    const cost = field("Tokens a request costs", { type: "number", inputmode: "numeric", min: 0, step: 1, value: route ? route.cost ?? "" : 1 }, route?.cost_header ? "Empty: as its cost_header says." : "0 only looks.");
    const named = shown().buckets.filter((one) => !one.default).map(({ bucket_name }) => ({ bucket_name, ...check(bucket_name, route?.buckets?.includes(bucket_name) || bucket_name === bound) }));
    const choice = h("fieldset", {}, h("legend", {}, "Also charged to"), named.length > 0 ? named.map((one) => one.node) : h("p", { class: "muted" }, "There is no bucket beside the default one."));
    confirm({
      title: route ? `Edit ${routeName(route)}` : bound ? `Bind ${bound} to a route` : "Add a route",
      consequences: ["This is a draft: nothing changes before you apply it."],
      fields: [path.node, methods.node, choice, cost.node],
      act: route ? "Change the draft" : "Add to the draft",
      needsToken: false,
      run: async () => {
        const made = { ...route, path: path.input.value.trim(), methods: methods.input.value.split(/[\s,]+/).filter(Boolean).map((method) => method.toUpperCase()), buckets: named.filter(({ input }) => input.checked).map(({ bucket_name }) => bucket_name) };
        if (cost.input.value === "") delete made.cost;
        else made.cost = cost.input.valueAsNumber;
        edit((next) => {
          if (index === null) next.routes.push(made);
          else next.routes[index] = made;
        });
      },
    });
  }

  function applyDraft() {
    const made = changes(base, draft);
    confirm({
      title: `Apply ${plural(made.length, "change")}?`,
      consequences: [...made.map((text) => `• ${text}`), "Every gateway and tuner takes this over within two seconds, without a restart or a refused request. What agents hold stays, up to the new capacity."],
      act: "Apply to every node",
      run: async () => {
        const { source, ...kept } = base;
        try {
          await ask("buckets", { method: "PUT", body: { ...kept, buckets: draft.buckets, routes: draft.routes } });
        } catch (error) {
          if (!(error instanceof Refused) || error.status !== 409) throw error;
          base = await read();
          newer = null;
          if (changes(base, draft).length === 0) draft = null;
          show();
          message("bad", `Not applied: somebody else made revision ${base.rev} meanwhile. Your draft is kept and compared with it now; look at the changes and apply again.`);
          return null;
        }
        [draft, newer] = [null, null];
        base = await read();
        show();
        return `Revision ${base.rev} is in force on every node within two seconds.`;
      },
    });
  }

  function backToFile() {
    confirm({
      title: "Go back to the configuration file?",
      consequences: [`Revision ${base.rev} is removed from the store, and every node goes back to the buckets and routes of its own file within two seconds.`, "Export them first if you may want them again: they cannot be brought back."],
      act: "Go back to the file",
      danger: true,
      run: async () => {
        await ask(`buckets?rev=${base.rev}`, { method: "DELETE" });
        [draft, newer] = [null, null];
        base = await read();
        show();
        return "What the configuration file says is in force again.";
      },
    });
  }

  const read = async (signal) => {
    const answer = await ask("buckets", { signal });
    return { ...answer, buckets: answer.buckets ?? [], routes: answer.routes ?? [] };
  };

  return {
    title: "Buckets",
    node,
    async poll(signal) {
      if (base && Date.now() - asked_ms < EVERY_MS) return;
      let seen;
      try {
        seen = await read(signal);
      } catch (error) {
        if (!(error instanceof Refused) || error.status !== 404) throw error;
        // A feed bridge charges nobody.
        say(lead, "This process knows no buckets: ask one that is a gateway, a tuner or an ingest.");
        return;
      }
      asked_ms = Date.now();
      if (!draft) base = seen;
      else newer = seen.rev === base.rev ? null : seen;
      show();
    },
    dirty: () => draft !== null,
    leave: () => draft === null || window.confirm("Leave? The changes that are not applied are lost."),
  };
}
