/** The chats of a person, by day: to search, open, rename, export and delete. */

import { asked, confirmed, openMenu } from "./dialogs.js";
import { el, iconButton, icon, save } from "./dom.js";
import { LANGUAGE, say } from "./words.js";

const PAGE = 50;
const TYPING_MS = 250;
const MAX_TITLE = 50;
const DAY_MS = 86_400_000;

/** `actions`: {open(id), begin(), deleted(id), fail(error), isRunning(id)}. */
export class Sidebar {
  #api;
  #actions;
  #found = [];
  #cursor = null;
  #current = null;
  #asked = 0;
  #search = el("input", { type: "search", placeholder: say("searchHint"), "aria-label": say("search") });
  #list = el("nav", { class: "chats", "aria-label": say("chats") });
  #end = el("div", { class: "sentinel" });

  constructor({ api, account, actions }) {
    this.#api = api;
    this.#actions = actions;
    const begin = el("a", { href: "/", class: "button begin", on: { click: (event) => follow(event, () => actions.begin()) } }, icon("plus"), say("newChat"));
    this.element = el(
      "aside",
      { class: "sidebar", id: "sidebar" },
      el("div", { class: "brand" }, el("span", { class: "name", text: "Sluice" }), iconButton("close", say("closeMenu"), () => actions.closeMenu(), { class: "narrow-only" })),
      begin,
      el("div", { class: "search" }, icon("search"), this.#search),
      this.#list,
      account.element,
    );
    let timer;
    this.#search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.load(), TYPING_MS);
    });
    new IntersectionObserver(([{ isIntersecting }]) => isIntersecting && this.#cursor && this.#more(), { root: this.#list }).observe(this.#end);
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
    return this.#found.find((it) => it.session_id === id)?.title ?? null;
  }

  /** The newest. What cannot be read leaves what is shown. */
  async load() {
    const ask = (this.#asked += 1);
    try {
      const page = await this.#page(null);
      if (ask !== this.#asked) return;
      this.#found = page.conversations;
      this.#cursor = page.next_cursor;
      this.show();
    } catch (error) {
      if (ask === this.#asked && error.code !== "unreachable") this.#actions.fail(error);
    }
  }

  async #more() {
    const ask = this.#asked;
    try {
      const page = await this.#page(this.#cursor);
      if (ask !== this.#asked) return;
      this.#found.push(...page.conversations.filter((it) => !this.#found.some((known) => known.session_id === it.session_id)));
      this.#cursor = page.next_cursor;
      this.show();
    } catch {
      // It is asked for again when somebody looks there again.
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
    }
    const parts = [...days].map(([day, chats]) => el("section", {}, el("h2", { text: day }), el("ul", {}, chats.map((chat) => this.#row(chat)))));
    const nothing = el("p", { class: "hint", text: say(this.#search.value ? "noneFound" : "noChats") });
    const active = this.#list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    const { scrollTop } = this.#list;
    this.#list.replaceChildren(...(parts.length ? parts : [nothing]), this.#end);
    this.#list.scrollTop = scrollTop;
    if (active) this.#list.querySelector(`[data-key="${active}"]`)?.focus();
  }

  #row(chat) {
    const { session_id: id } = chat;
    const title = chat.title || say("untitled");
    const link = el("a", { href: `/c/${id}`, title, "data-key": id, "aria-current": id === this.#current ? "page" : null, on: { click: (event) => follow(event, () => this.#actions.open(id)) } }, el("span", { class: "ellipsis", text: title }));
    const more = iconButton("more", say("more", { title }), () => this.#menu(more, chat), { "aria-haspopup": "menu", "aria-expanded": "false", "data-key": `more-${id}` });
    return el("li", { class: this.#actions.isRunning(id) ? "running" : "" }, link, more);
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
      const name = response.headers.get("Content-Disposition")?.match(/filename="([^"]+)"/)?.[1] ?? `chat.${ending}`;
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
