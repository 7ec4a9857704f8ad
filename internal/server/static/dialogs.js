/** Dialogs and menus. Know nothing of chats. */

import { button, el, iconButton } from "./dom.js";
import { say } from "./words.js";

/** A dialog over the page, until it is closed; `content` is under its title. Resolves then. */
export function openDialog(title, content, { class: more = "" } = {}) {
  const id = `title-${Math.random().toString(36).slice(2)}`;
  const close = iconButton("close", say("close"), () => dialog.close());
  const dialog = el(
    "dialog",
    { class: `dialog ${more}`, "aria-labelledby": id },
    el("header", {}, el("h2", { id, text: title }), close),
    content,
  );
  // A click beside it, on what lies behind.
  dialog.addEventListener("mousedown", (event) => event.target === dialog && dialog.close());
  document.body.append(dialog);
  dialog.showModal();
  const closed = new Promise((resolve) =>
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve();
    }),
  );
  return { dialog, closed };
}

/** Whether the person said yes. */
export async function confirmed(question, explanation, yes) {
  let isYes = false;
  const agree = button(yes, () => {
    isYes = true;
    dialog.close();
  }, { class: "button danger" });
  const leave = button(say("cancel"), () => dialog.close(), { autofocus: true });
  const content = el("div", {}, el("p", { text: explanation }), el("div", { class: "buttons end" }, leave, agree));
  const { dialog, closed } = openDialog(question, content);
  await closed;
  return isYes;
}

/** What the person wrote in a field called `label`; null: they did not want to. */
export async function asked(title, label, value, maxLength) {
  let answer = null;
  const field = el("input", { type: "text", required: true, maxlength: maxLength, autofocus: true });
  field.value = value;
  const form = el(
    "form",
    { method: "dialog" },
    el("label", {}, label, field),
    el("div", { class: "buttons end" }, button(say("cancel"), () => dialog.close()), el("button", { class: "button main", text: say("save") })),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!field.value.trim()) return;
    answer = field.value.trim();
    dialog.close();
  });
  const { dialog, closed } = openDialog(title, form);
  field.select();
  await closed;
  return answer;
}

/** A menu beside `anchor`: `entries` are [label, what it does]. */
export function openMenu(anchor, entries) {
  const choose = (work) => () => {
    menu.hidePopover();
    work();
  };
  const items = entries.map(([label, work, more = {}]) => el("button", { type: "button", role: "menuitem", ...more, on: { click: choose(work) } }, label));
  const menu = el("div", { class: "menu", role: "menu", popover: "auto" }, items);
  menu.addEventListener("keydown", (event) => {
    const at = items.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: items.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    items[(to + items.length) % items.length].focus();
  });
  show(menu, anchor);
  items[0].focus();
}

/** Show `panel`, a popover, beside `anchor`, within the window; it is gone when it is closed. */
export function show(panel, anchor) {
  anchor.after(panel);
  panel.showPopover();
  anchor.setAttribute("aria-expanded", "true");
  const from = anchor.getBoundingClientRect();
  const { width, height } = panel.getBoundingClientRect();
  const isBelow = from.bottom + height + 8 < innerHeight || from.top < height + 8;
  panel.style.left = `${Math.max(8, Math.min(from.left, innerWidth - width - 8))}px`;
  panel.style.top = `${isBelow ? Math.min(from.bottom + 4, Math.max(8, innerHeight - height - 8)) : from.top - height - 4}px`;
  panel.addEventListener("toggle", ({ newState }) => {
    if (newState !== "closed") return;
    anchor.setAttribute("aria-expanded", "false");
    const hadFocus = panel.contains(document.activeElement) || document.activeElement === document.body;
    panel.remove();
    if (hadFocus) anchor.focus();
  });
}
