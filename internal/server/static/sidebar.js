/** The chats of a person, by day: to search, open, rename, export and delete. */

import { nameOf } from "./api.js";
import { asked, confirmed, openMenu } from "./dialogs.js";
import { el, iconButton, icon, save } from "./dom.js";
import { LANGUAGE, say } from "./words.js";

const PAGE = 50;
const TYPING_MS = 250;
export const MAX_TITLE = 50;
const MAX_TITLES = 1000;
const DAY_MS = 86_400_000;

/** `actions`: {open(id), begin(), deleted(id), fail(error), isRunning(id)}. */
export class Sidebar {
  #api;
  #actions;
  #found = [];
  #cursor = null;
  /** So many are read, as far as one has scrolled. */
  #wanted = PAGE;
  #isReadingMore = false;
  #current = null;
  #asked = 0;
  #rows = new Map();
  /** Of all chats that were seen: also of one that a search has not found. */
  #titles = new Map();
  #layout = "";
  #close;
  #search = el("input", { type: "search", placeholder: say("searchHint"), "aria-label": say("search") });
  #list = el("nav", { class: "chats", "aria-label": say("chats") });
  #end = el("div", { class: "sentinel" });
  #endSeen = new IntersectionObserver(([{ isIntersecting }]) => isIntersecting && this.#more(), { root: this.#list });

  constructor({ api, account, actions }) {
    this.#api = api;
    this.#actions = actions;
    this.#close = iconButton("close", say("closeMenu"), () => actions.closeMenu(), { class: "narrow-only" });
    const begin = el("a", { href: "/", class: "button begin", on: { click: (event) => follow(event, () => actions.begin()) } }, icon("plus"), say("newChat"));
    this.element = el(
      "aside",
      { class: "sidebar", id: "sidebar" },
      el("div", { class: "brand" }, el("span", { class: "name", text: "Sluice" }), this.#close),
      begin,
      el("div", { class: "search" }, icon("search"), this.#search),
      this.#list,
      account.element,
    );
    let timer;
    this.#search.addEventListener("input", () => {
      clearTimeout(timer);
      this.#wanted = PAGE;
      timer = setTimeout(() => this.load(), TYPING_MS);
    });
    // Escape empties the field, and stops no answer then.
    this.#search.addEventListener("keydown", (event) => event.key === "Escape" && this.#search.value && event.stopPropagation());
  }

  focus() {
    this.#close.focus();
  }

  focusSearch() {
    this.#search.focus();
    this.#search.select();
  }

  set current(id) {
    this.#current = id;
    this.show();
  }

  titleOf(id) {
    return this.#titles.get(id) ?? null;
  }

  /** What is shown, anew. What cannot be read leaves it as it is. */
  async load() {
    const ask = (this.#asked += 1);
    try {
      let found = [];
      let cursor = null;
      do {
        const page = await this.#page(cursor);
        if (ask !== this.#asked) return;
        found = withMore(found, page.conversations);
        cursor = page.next_cursor;
      } while (cursor && found.length < this.#wanted);
      this.#found = found;
      this.#cursor = cursor;
      this.show();
    } catch (error) {
      if (ask === this.#asked && error.code !== "unreachable") this.#actions.fail(error);
    }
  }

  async #more() {
    if (this.#cursor === null || this.#isReadingMore) return;
    const ask = this.#asked;
    this.#isReadingMore = true;
    try {
      const page = await this.#page(this.#cursor);
      if (ask !== this.#asked) return;
      this.#found = withMore(this.#found, page.conversations);
      this.#wanted = this.#found.length;
      this.#cursor = page.next_cursor;
      this.show();
    } catch {
      // It is asked for again when somebody looks there again.
    } finally {
      this.#isReadingMore = false;
    }
  }

  #page(cursor) {
    const query = new URLSearchParams({ limit: String(PAGE) });
    if (cursor) query.set("cursor", cursor);
    const words = this.#search.value.trim();
    if (words) query.set("q", words);
    return this.#api.call("GET", `/conversations?${query}`);
  }

  show() {
    // One in which nothing was said yet is of a message that waits.
    const shown = this.#found.filter((it) => it.message_count > 0 || it.session_id === this.#current);
    const days = new Map();
    for (const chat of shown) {
      const day = dayOf(new Date(chat.updated_at));
      if (!days.has(day)) days.set(day, []);
      days.get(day).push(chat);
      this.#remember(chat);
      this.#row(chat).show(chat, chat.session_id === this.#current, this.#actions.isRunning(chat.session_id));
    }
    this.#arrange(days);
    // It tells anew whether the end is seen: that may not have changed by what has come above it.
    this.#endSeen.unobserve(this.#end);
    this.#endSeen.observe(this.#end);
  }

  /** Rows stay where they are as long as they can: with one goes its menu, and the place of the keyboard. */
  #arrange(days) {
    const nothing = say(this.#search.value ? "noneFound" : "noChats");
    const layout = JSON.stringify([nothing, ...[...days].map(([day, chats]) => [day, ...chats.map((chat) => chat.session_id)])]);
    if (layout === this.#layout) return;
    const menu = this.#list.querySelector(":popover-open");
    if (menu !== null) return menu.addEventListener("toggle", () => this.show(), { once: true });
    this.#layout = layout;
    const active = this.#list.contains(document.activeElement) ? document.activeElement : null;
    const { scrollTop } = this.#list;
    const parts = [...days].map(([day, chats]) => el("section", {}, el("h2", { text: day }), el("ul", {}, chats.map((chat) => this.#row(chat).element))));
    this.#list.replaceChildren(...(parts.length ? parts : [el("p", { class: "hint", text: nothing })]), this.#end);
    this.#list.scrollTop = scrollTop;
    active?.focus();
    for (const [id, row] of this.#rows) if (!row.element.isConnected) this.#rows.delete(id);
  }

  #row({ session_id: id }) {
    if (!this.#rows.has(id)) {
      this.#rows.set(id, new Row(id, { open: () => this.#actions.open(id), menu: (anchor, chat) => this.#menu(anchor, chat) }));
    }
    return this.#rows.get(id);
  }

  #remember({ session_id: id, title }) {
    this.#titles.delete(id);
    this.#titles.set(id, title);
    if (this.#titles.size > MAX_TITLES) this.#titles.delete(this.#titles.keys().next().value);
  }

  #menu(anchor, chat) {
    openMenu(anchor, [
      [say("rename"), () => this.#rename(chat)],
      [say("exportMarkdown"), () => this.#export(chat, "markdown", "md")],
      [say("exportJson"), () => this.#export(chat, "json", "json")],
      [say("delete"), () => this.#delete(chat), { class: "danger" }],
    ]);
  }

  async #rename(chat) {
    const title = await asked(say("rename"), say("renameTo"), chat.title, MAX_TITLE);
    if (title === null) return;
    await this.#tried(this.#api.call("PATCH", `/conversations/${chat.session_id}`, { title }));
  }

  async #export(chat, format, ending) {
    try {
      const response = await this.#api.fetch("GET", `/conversations/${chat.session_id}/export?format=${format}`);
      const name = nameOf(response) ?? `chat.${ending}`;
      save(await response.blob(), name);
    } catch (error) {
      this.#actions.fail(error);
    }
  }

  async #delete(chat) {
    const question = say("deleteQuestion", { title: chat.title || say("untitled") });
    if (!(await confirmed(question, say("deleteWarning"), say("delete")))) return;
    if (await this.#tried(this.#api.call("DELETE", `/conversations/${chat.session_id}`))) this.#actions.deleted(chat.session_id);
  }

  async #tried(promise) {
    try {
      await promise;
      await this.load();
      this.#actions.changed();
      return true;
    } catch (error) {
      this.#actions.fail(error);
      return false;
    }
  }
}

/** A chat that was talked in meanwhile may come again. */
function withMore(known, more) {
  const ids = new Set(known.map((chat) => chat.session_id));
  return [...known, ...more.filter((chat) => !ids.has(chat.session_id))];
}

/** One chat in the list. `actions`: {open, menu(anchor, chat)}. */
class Row {
  #chat;
  #name = el("span", { class: "ellipsis" });
  #link;
  #more;

  constructor(id, actions) {
    this.#link = el("a", { href: `/c/${id}`, on: { click: (event) => follow(event, actions.open) } }, this.#name);
    this.#more = iconButton("more", "", () => actions.menu(this.#more, this.#chat), { "aria-haspopup": "menu", "aria-expanded": "false" });
    this.element = el("li", {}, this.#link, this.#more);
  }

  show(chat, isCurrent, isRunning) {
    this.#chat = chat;
    const title = chat.title || say("untitled");
    const more = say("more", { title });
    if (this.#name.textContent !== title) this.#name.textContent = title;
    this.#link.title = title;
    this.#more.title = more;
    this.#more.setAttribute("aria-label", more);
    if (isCurrent) this.#link.setAttribute("aria-current", "page");
    else this.#link.removeAttribute("aria-current");
    this.element.classList.toggle("running", isRunning);
  }
}

/** A click that opens another tab is the browser's. */
function follow(event, work) {
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.button !== 0) return;
  event.preventDefault();
  work();
}

function dayOf(date) {
  const today = new Date();
  today.setHours(0, 0, 0, 0);
  const days = Math.ceil((today - date) / DAY_MS);
  if (days <= 0) return say("today");
  if (days === 1) return say("yesterday");
  if (days <= 7) return say("week");
  const options = date.getFullYear() === today.getFullYear() ? { month: "long" } : { month: "long", year: "numeric" };
  return new Intl.DateTimeFormat(LANGUAGE, options).format(date);
}
