/** Signing in and up, and the button that says who one is. */

import { openDialog, openMenu } from "./dialogs.js";
import { el, icon } from "./dom.js";
import { say, sayError } from "./words.js";

export class AccountButton {
  #identity;

  /** It is of one person, as the page is: who is somebody else has another page. */
  constructor(identity) {
    this.#identity = identity;
    const { name } = identity;
    const label = name === null ? say("signIn") : `${say("account")}: ${name}`;
    this.element = el(
      "button",
      { type: "button", class: "button quiet account", "aria-label": label, on: { click: () => this.#open() } },
      icon("user"),
      el("span", { class: "ellipsis", text: name ?? say("signIn") }),
    );
  }

  #open() {
    if (this.#identity.name === null) return openSignIn(this.#identity);
    openMenu(this.element, [[say("signOut"), () => this.#identity.signOut()]]);
  }
}

/** A dialog to sign in, or up. */
export async function openSignIn(identity) {
  const form = signInForm(identity, () => dialog.close());
  const { dialog, closed } = openDialog(say("signIn"), form);
  await closed;
}

/** In the place of the page, where nobody may come in who is not known. */
export function signInPage(identity) {
  const form = signInForm(identity, () => {});
  return el("main", { class: "sign-in" }, el("h1", { text: "Sluice" }), form);
}

function signInForm(identity, done) {
  let isNew = false;
  const name = el("input", { type: "text", name: "username", autocomplete: "username", required: true, autocapitalize: "none", spellcheck: "false", autofocus: true });
  const email = el("input", { type: "email", name: "email", autocomplete: "email", disabled: true });
  const password = el("input", { type: "password", name: "password", autocomplete: "current-password", required: true });
  const emailRow = el("label", { hidden: true }, say("email"), email);
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  const go = el("button", { class: "button main", text: say("signIn") });
  const other = el("button", { type: "button", class: "button quiet", text: say("registerInstead"), hidden: !identity.rules.registration });
  const hint = el("p", { class: "hint", text: say("signInKeeps"), hidden: !identity.rules.guests });
  const form = el(
    "form",
    { class: "sign-in-form" },
    el("label", {}, say("username"), name),
    emailRow,
    el("label", {}, say("password"), password),
    hint,
    problem,
    go,
    other,
  );
  other.addEventListener("click", () => {
    isNew = !isNew;
    emailRow.hidden = !isNew;
    email.disabled = !isNew;
    email.required = isNew;
    password.autocomplete = isNew ? "new-password" : "current-password";
    go.textContent = say(isNew ? "register" : "signIn");
    other.textContent = say(isNew ? "signInInstead" : "registerInstead");
    problem.hidden = true;
    name.focus();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    problem.hidden = true;
    go.disabled = true;
    try {
      if (isNew) await identity.register(name.value, email.value, password.value);
      else await identity.signIn(name.value, password.value);
      done();
    } catch (error) {
      problem.textContent = sayError(error);
      problem.hidden = false;
      ({ username: name, email, password })[error.param]?.focus();
    } finally {
      go.disabled = false;
    }
  });
  return form;
}
