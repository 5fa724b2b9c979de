// Dialogs: what an action will do, the token it needs, and what became of it.
//
// 1. Nothing is written before its consequences stood on the screen and were confirmed.
// 2. A refusal leaves the dialog open with what was typed, and says what the listener said.
// 3. The platform's <dialog> keeps the focus inside, closes with Escape and gives the focus back.

import { h, say, replace } from "./dom.js";
import { Refused, Unreachable, credential } from "./api.js";

const SHOWN_MS = 12_000;
let serial = 0;

/** Says `text` to screen readers only. */
export function announce(text) {
  say(document.getElementById("said"), text);
}

/** Shows a message until it is dismissed, or for a while when it is `good`. */
export function message(kind, text) {
  const dismiss = h("button", { type: "button", class: "quiet", "aria-label": "Dismiss" }, "×");
  const node = h("div", { class: `message ${kind}`, role: kind === "bad" ? "alert" : "status" });
  document.getElementById("messages").append(node);
  // Into a region that stands already: what is in it when it appears is not always read out.
  node.append(h("p", {}, text), dismiss);
  dismiss.addEventListener("click", () => node.remove());
  if (kind !== "bad") setTimeout(() => node.remove(), SHOWN_MS);
}

/** Returns a labelled field: `{node, input}`. */
export function field(label, attributes, hint) {
  serial += 1;
  const id = `field-${serial}`;
  const input = attributes.options
    ? h("select", { id }, attributes.options.map(([value, text]) => h("option", { value, selected: value === attributes.value }, text)))
    : h("input", { id, autocomplete: "off", spellcheck: "false", ...attributes, "aria-describedby": hint ? `${id}-hint` : null });
  const node = h("div", { class: "field" }, h("label", { for: id }, label), input, hint && h("p", { class: "hint", id: `${id}-hint` }, hint));
  return { node, input };
}

export function check(label, checked = false) {
  const input = h("input", { type: "checkbox", checked });
  return { node: h("label", { class: "check" }, input, " ", label), input };
}

function tokenFields() {
  const token = field("Admin token", { type: "password", autocomplete: "off", minlength: 16, maxlength: 4096 }, "The text in the variable that [admin] token_env names.");
  const keep = check("Keep it until this tab is closed (otherwise until the page is reloaded)");
  return { node: h("fieldset", { class: "token-fields" }, h("legend", {}, "Who may do this"), token.node, keep.node), token: token.input, keep: keep.input };
}

/** Returns what went wrong, in words and as a list of faults. */
export function explain(error) {
  if (error instanceof Unreachable) return { text: `Merit cannot be reached: ${error.message}. Whether the change was made is not known: look before you try again.`, faults: [] };
  if (!(error instanceof Refused)) throw error;
  // The listener repeats its faults in one text, for terminals.
  const { faults } = error;
  const said = faults.length > 0 ? error.message.replace(faults.join("; "), "").replace(/[:\s]+$/, "") : error.message;
  return { text: `Refused (${error.status})${said && `: ${said}`}${faults.length > 0 ? ":" : "."}`.replace("..", "."), faults };
}

/**
 * Asks for a confirmation and does what was confirmed.
 *
 * `consequences` are sentences, `fields` are nodes, `act` a label, `run` does it and returns the message of success.
 * Resolves to true when it was done.
 */
export function confirm({ title, consequences = [], fields = [], act, danger = false, needsToken = true, run }) {
  serial += 1;
  const id = `dialog-${serial}`;
  const error = h("div", { class: "dialog-error", role: "alert" });
  const go = h("button", { class: danger ? "danger" : "primary" }, act);
  const cancel = h("button", { type: "button", class: "quiet" }, "Cancel");
  const login = tokenFields();
  const place = h("div", {}, needsToken && !credential.known ? login.node : null);
  const form = h("form", { novalidate: true },
    h("h2", { id }, title),
    h("div", { class: "consequences", id: `${id}-why` }, consequences.map((text) => h("p", {}, text))),
    fields, place, error, h("div", { class: "buttons" }, cancel, go));
  const dialog = h("dialog", { "aria-labelledby": id, "aria-describedby": consequences.length ? `${id}-why` : null }, form);
  document.body.append(dialog);

  return new Promise((resolve) => {
    let done = false;
    let busy = false;
    const refuse = (text, faults = [], focus = null) => {
      // A browser lets a second Escape through: what became of it must be told all the same.
      if (!dialog.open) return message("bad", [text, ...faults].join(" "));
      replace(error, h("p", {}, text), faults.length > 0 && h("ul", {}, faults.map((fault) => h("li", {}, fault))));
      focus?.focus();
    };
    cancel.addEventListener("click", () => busy || dialog.close());
    dialog.addEventListener("cancel", (event) => busy && event.preventDefault());
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(done);
    });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (busy) return;
      replace(error);
      const wrong = [...form.elements].find((input) => input.willValidate && !input.checkValidity());
      if (wrong) {
        const label = wrong.labels?.[0]?.textContent ?? "a field";
        wrong.setAttribute("aria-invalid", "true");
        return refuse(`${label}: ${wrong.validationMessage}`, [], wrong);
      }
      for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
      if (login.node.isConnected) {
        const text = login.token.value.trim();
        if (!text) return refuse("Enter the admin token.", [], login.token);
        credential.set(text, login.keep.checked);
      }
      busy = true;
      go.setAttribute("aria-disabled", "true");
      say(go, "Working…");
      try {
        const told = await run();
        done = true;
        dialog.close();
        if (told) message("good", told);
      } catch (failure) {
        if (failure instanceof Refused && failure.status === 401) {
          credential.set("", false);
          login.token.value = "";
          if (needsToken) place.append(login.node);
          refuse(`The token is refused: ${failure.message}. Nothing was changed.`, [], login.token);
        } else {
          const { text, faults } = explain(failure);
          refuse(text, faults);
        }
      } finally {
        busy = false;
        go.removeAttribute("aria-disabled");
        say(go, act);
      }
    });
    dialog.showModal();
    // The first field, or where nothing is to be typed what harms least.
    (form.querySelector("input, select") ?? cancel).focus();
  });
}

/** Lets the operator enter or forget the token. */
export async function tokenDialog() {
  if (credential.known) {
    return confirm({
      title: "Forget the token?",
      consequences: ["This page forgets the admin token, in this tab too. Actions ask for it again."],
      act: "Forget it",
      needsToken: false,
      run: async () => {
        credential.set("", false);
        return "The token is forgotten.";
      },
    });
  }
  const login = tokenFields();
  login.token.required = true;
  return confirm({
    title: "Enter the admin token",
    consequences: ["Every action needs it; off loopback reading does, too. It is sent with each request from here on and stands in no address."],
    fields: [login.node],
    act: "Use it",
    needsToken: false,
    run: async () => {
      credential.set(login.token.value.trim(), login.keep.checked);
      return "The token is used from now on. The listener says whether it is right when it is first needed.";
    },
  });
}
