/** Builds the page, in one chain, and says which chat is shown. */

import { AccountButton, signInPage } from "./account.js";
import { Api } from "./api.js";
import { Composer, HAS_KEYBOARD } from "./composer.js";
import { ConnectionSign } from "./connection.js";
import { Conversation, filesOf, question } from "./conversation.js";
import { el, iconButton, isOfInputMethod } from "./dom.js";
import { Identity } from "./identity.js";
import { Link } from "./link.js";
import { Renderer } from "./markdown.js";
import { ModelPicker } from "./models.js";
import { Outbox } from "./outbox.js";
import { Responses } from "./responses.js";
import { Settings } from "./settings.js";
import { MAX_TITLE, Sidebar } from "./sidebar.js";
import { Thread } from "./thread.js";
import { say, sayError } from "./words.js";

const MAX_OPEN = 20;
const LEFT = "sluice.left";
const TOAST_MS = 6000;
/** As in style.css: there the menu lies over the page. */
const NARROW = matchMedia("(max-width: 56rem)");
/** A title is found by a model, after the first answer. */
const TITLE_MS = [1500, 5000, 15_000];

class App {
  #person;
  #settings;
  #api;
  #link;
  #responses;
  #outbox;
  #channel = new BroadcastChannel("sluice");
  #open = new Map();
  #drafts = new Map();
  /** Messages of which another model may still begin to answer. */
  #joining = new Map();
  #shown = null;
  /** The new chat: it stays the same, with what is being written there, until something is sent in it. */
  #unbegun = null;
  #spoken = el("div", { class: "off-screen", role: "status", "aria-live": "polite" });
  #toasts = el("div", { class: "toasts", role: "alert" });
  #title = el("h1", { class: "ellipsis title" });
  #menu = iconButton("menu", say("menu"), () => this.#toggleMenu(true), { class: "narrow-only", "aria-controls": "sidebar", "aria-expanded": "false" });

  constructor(identity) {
    this.#person = identity.person;
    this.#settings = new Settings(this.#person);
    this.#api = new Api(identity);
    this.#link = new Link("/v1/responses", identity);
    this.#responses = new Responses(this.#link, this.#api);
    const mustWait = (id) => this.#open.get(id)?.mustWait ?? false;
    this.#outbox = new Outbox(this.#api, this.#link, this.#responses, this.#channel, this.#person, mustWait);
    this.models = new ModelPicker(this.#api);
    this.sidebar = new Sidebar({
      api: this.#api,
      account: new AccountButton(identity),
      actions: {
        open: (id) => this.go(id),
        begin: () => this.go(null),
        deleted: (id) => {
          this.#deleted(id);
          this.#tell({ kind: "deleted", conversation: id });
        },
        changed: () => {
          this.#update();
          this.#tell({ kind: "list" });
        },
        closeMenu: () => this.#toggleMenu(false),
        fail: (error) => this.fail(error),
        isRunning: (id) => this.#open.get(id)?.isBusy ?? false,
      },
    });
    this.thread = new Thread({
      outbox: this.#outbox,
      renderer: new Renderer(this.#api),
      api: this.#api,
      actions: {
        ask: (turn) => this.#tried(() => this.#ask(turn)),
        fail: (error) => this.fail(error),
        retry: (message) => this.#retry(message),
        isConnected: () => this.#link.isOpen,
        putBack: ({ text, files, fields }) => {
          const parts = typeof fields.input === "string" ? [] : filesOf(fields.input);
          this.composer.takeUp(text, parts.map((part, index) => ({ name: files[index] ?? part.filename ?? "", part })));
        },
      },
    });
    this.composer = new Composer({
      api: this.#api,
      models: this.models,
      openSettings: () => this.#settings.open(this.#api),
      actions: {
        send: (message) => this.#send(message),
        stop: () => this.#stop(),
        fail: (error) => this.fail(error),
      },
    });
    this.element = el(
      "div",
      { class: "page" },
      el("a", { class: "skip", href: "#message", text: say("skip"), on: { click: (event) => { event.preventDefault(); this.composer.focus(); } } }),
      this.sidebar.element,
      el("div", { class: "veil", on: { click: () => this.#toggleMenu(false) } }),
      el(
        "div",
        { class: "chat" },
        el("header", { class: "top" }, this.#menu, this.#title, iconButton("plus", say("newChat"), () => this.go(null), { class: "narrow-only" })),
        new ConnectionSign(this.#link).element,
        this.thread.element,
        el("div", { class: "bottom" }, this.composer.element),
      ),
      this.#toasts,
      this.#spoken,
    );
    this.#listen();
  }

  async start() {
    const left = takeLeft();
    const isOurs = left !== null && (left.person === null || left.person === this.#person);
    // A guest whom the server did not know any more is another one now, without any chats.
    if (isOurs && this.#person !== null) history.replaceState(null, "", left.path);
    this.#route();
    if (isOurs) this.composer.draft = { text: left.text, uploads: [] };
    this.#link.open();
    await this.#tried(() => Promise.all([this.models.load(), this.#list()]));
  }

  /** Keep where one is, and what one writes, until the same person is back in this tab: a login may end at any time. */
  leave() {
    const left = { person: this.#person, path: location.pathname, text: this.composer.draft.text };
    sessionStorage.setItem(LEFT, JSON.stringify(left));
  }

  /** Nothing is shown, said or heard any more: another page comes in the place of this one, as soon as it can. */
  end() {
    this.#link.close();
    document.body.replaceChildren();
  }

  #listen() {
    addEventListener("popstate", () => this.#route());
    this.#link.addEventListener("open", () => this.#connected());
    this.#link.addEventListener("refused", ({ detail }) => this.fail(new Error(detail)));
    this.#outbox.addEventListener("begun", ({ detail }) => this.#begun(detail));
    this.#outbox.addEventListener("sent", ({ detail }) => this.#sent(detail));
    this.#outbox.addEventListener("joined", ({ detail }) => this.#joined(detail));
    this.#outbox.addEventListener("adopted", () => this.#adopted());
    this.#channel.addEventListener("message", ({ data }) => this.#hear(data));
    document.addEventListener("visibilitychange", () => !document.hidden && this.#link.isOpen && this.#catchUp());
    document.addEventListener("keydown", (event) => this.#key(event));
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer?.files.length) this.composer.attach(event.dataTransfer.files);
    });
  }

  // ── which chat ─────────────────────────────────────────────────────────────────────────────────

  /** Show a chat; null: a new one. */
  go(id) {
    this.#toggleMenu(false);
    const path = id === null ? "/" : `/c/${id}`;
    if (path !== location.pathname) history.pushState(null, "", path);
    this.#route();
    if (HAS_KEYBOARD.matches) this.composer.focus();
  }

  #route() {
    const id = location.pathname.match(/^\/c\/(\w+)$/)?.[1] ?? null;
    if (this.#shown !== null) {
      if (id === this.#shown.id && (id !== null || this.#shown.isEmpty)) return;
      this.#drafts.set(this.#shown.id ?? this.#shown.place, this.composer.draft);
    }
    const conversation = this.#conversation(id);
    this.#shown = conversation;
    this.thread.show(conversation);
    this.composer.draft = this.#drafts.get(id ?? conversation.place) ?? { text: "", uploads: [] };
    this.sidebar.current = id;
    this.#update();
    this.#refresh(conversation);
  }

  #conversation(id) {
    if (id === null && this.#unbegun?.id === null) return this.#unbegun;
    let conversation = this.#open.get(id);
    if (conversation !== undefined) return conversation;
    conversation = new Conversation(this.#api, this.#responses, id, id === null ? this.#outbox.unbegun : undefined);
    conversation.addEventListener("change", () => this.#changed(conversation));
    conversation.addEventListener("end", ({ detail }) => this.#ended(conversation, detail.answer));
    if (id === null) this.#unbegun = conversation;
    else this.#keepOpen(conversation);
    return conversation;
  }

  #keepOpen(conversation) {
    this.#open.set(conversation.id, conversation);
    for (const [id, old] of this.#open) {
      if (this.#open.size <= MAX_OPEN) break;
      if (old !== this.#shown && !old.isBusy) this.#open.delete(id);
    }
  }

  /** Read what is not here yet: others may have gone on in it, and what could not be read is asked for again. */
  #refresh(conversation) {
    if (conversation.isLoaded) conversation.refresh().catch(() => {});
    else this.#load(conversation);
  }

  async #load(conversation) {
    this.thread.say(say("loadingChat"));
    this.#keepOpen(conversation);
    try {
      await conversation.load();
      this.thread.update();
      this.#outbox.pump();
    } catch (error) {
      if (conversation !== this.#shown) return;
      this.thread.say(error.status === 404 ? say("conversationGone") : sayError(error));
    }
  }

  #changed(conversation) {
    if (conversation === this.#shown) {
      if (conversation.isLoaded) this.thread.say(null);
      this.#update();
    }
    this.#outbox.pump();
  }

  #update() {
    this.composer.isBusy = this.#shown.isBusy;
    // One that is far down the list has not been read yet.
    const title = this.sidebar.titleOf(this.#shown.id) || this.#shown.opening.slice(0, MAX_TITLE) || say("untitled");
    this.#title.textContent = title;
    document.title = this.#shown.id === null ? "Sluice" : `${title} – Sluice`;
  }

  async #list() {
    await this.sidebar.load();
    this.#update();
  }

  #deleted(id) {
    this.#open.delete(id);
    this.#outbox.forget(id);
    if (this.#shown.id === id) this.go(null);
  }

  // ── asking ─────────────────────────────────────────────────────────────────────────────────────

  #send({ text, files }) {
    const input = files.length ? question(text, files.map((file) => file.part)) : text;
    this.#ask({ input, text, files: files.map((file) => file.name) });
  }

  #ask({ input, text, files = [], replaces = null, models = null }) {
    const fields = { ...this.#whom(models ?? this.models.chosen), input, ...this.#settings.fields };
    if (replaces !== null) fields.replaces = replaces;
    const { id, place } = this.#shown;
    this.#outbox.add({ conversation: id, place, fields, text, files });
    this.thread.toEnd();
  }

  /** Without a name, when none are known yet, the server's first model answers. */
  #whom(names) {
    return names.length === 0 ? {} : { model: names.length === 1 ? names[0] : names };
  }

  #retry(message) {
    // Whom it was for may be gone for good: then it is for those that are chosen now.
    if (message.error.code === "model_not_found") Object.assign(message.fields, this.#whom(this.models.chosen));
    this.#outbox.retry(message);
  }

  #begun({ place, conversation: id }) {
    const conversation = this.#unbegun;
    if (conversation?.place !== place) return;
    conversation.id = id;
    this.#keepOpen(conversation);
    if (this.#drafts.has(place)) this.#drafts.set(id, this.#drafts.get(place));
    this.#drafts.delete(place);
    if (conversation !== this.#shown) return;
    history.replaceState(null, "", `/c/${id}`);
    this.sidebar.current = id;
    this.thread.update();
  }

  /** A new chat that is empty becomes the one that another tab was to begin. */
  #adopted() {
    const chat = this.#unbegun;
    if (chat === null || chat.id !== null || this.#outbox.in(null, chat.place).length) return;
    chat.place = this.#outbox.unbegun ?? chat.place;
    if (chat === this.#shown) this.thread.update();
  }

  /** The server has taken a message. Without `answer` it did so over a connection that broke then. */
  #sent({ message, answer }) {
    const conversation = this.#conversation(message.conversation);
    this.#joining.set(message.id, message);
    if (this.#joining.size > MAX_OPEN) this.#joining.delete(this.#joining.keys().next().value);
    this.#tried(() => conversation.join(answer, message));
    this.#tell({ kind: "turn", conversation: message.conversation });
    this.#list();
  }

  /** Another model has begun to answer, or could not. */
  #joined({ id, answer }) {
    const message = this.#joining.get(id);
    // It was discarded when the server had it already.
    if (message === undefined) return this.#shown.refresh().catch(() => {});
    const conversation = this.#conversation(message.conversation);
    this.#tried(() => conversation.join(answer, message));
  }

  #stop() {
    return this.#tried(() => this.#shown.stop());
  }

  #ended(conversation, answer) {
    if (conversation === this.#shown) this.#spoken.textContent = answer.status === "failed" ? sayError(answer.error) : say("finished");
    this.#list();
    if (conversation.groups.length === 1) for (const delay of TITLE_MS) setTimeout(() => this.#list(), delay);
  }

  // ── other tabs, and the server ─────────────────────────────────────────────────────────────────

  #tell(news) {
    this.#channel.postMessage(news);
  }

  #hear(news) {
    if (news.kind === "deleted") this.#deleted(news.conversation);
    if (news.kind === "turn") this.#open.get(news.conversation)?.refresh().catch(() => {});
    if (news.kind === "turn" || news.kind === "list") this.#list();
  }

  #connected() {
    if (this.#link.generation > 1) this.#catchUp();
    this.thread.update();
  }

  /** What others have done meanwhile, and what could not be read. */
  #catchUp() {
    this.#refresh(this.#shown);
    this.#list();
    this.models.load().catch(() => {});
  }

  // ── the page ───────────────────────────────────────────────────────────────────────────────────

  /** Where there is room for it the menu is always open. */
  #toggleMenu(isWanted) {
    const isOpen = isWanted && NARROW.matches;
    if (isOpen === this.element.classList.contains("menu-open")) return;
    const hadFocus = this.sidebar.element.contains(document.activeElement);
    this.element.classList.toggle("menu-open", isOpen);
    this.#menu.setAttribute("aria-expanded", String(isOpen));
    if (isOpen) this.sidebar.focus();
    else if (hadFocus) this.#menu.focus();
  }

  #key(event) {
    if (isOfInputMethod(event)) return;
    const withControl = event.ctrlKey || event.metaKey;
    if (event.key === "Escape" && !event.defaultPrevented && !document.querySelector("dialog[open], :popover-open")) {
      if (this.element.classList.contains("menu-open")) this.#toggleMenu(false);
      else if (this.#shown.isBusy) this.#stop();
    } else if (withControl && !event.shiftKey && event.key.toLowerCase() === "k") {
      event.preventDefault();
      this.#toggleMenu(true);
      this.sidebar.focusSearch();
    } else if (withControl && event.shiftKey && event.key.toLowerCase() === "o") {
      event.preventDefault();
      this.go(null);
    }
  }

  async #tried(work) {
    try {
      return await work();
    } catch (error) {
      this.fail(error);
    }
  }

  fail(error) {
    const toast = el("p", { class: "toast" }, el("span", { text: sayError(error) }), iconButton("close", say("close"), () => toast.remove()));
    this.#toasts.append(toast);
    setTimeout(() => toast.remove(), TOAST_MS);
  }
}

/** What `leave` has kept, once. */
function takeLeft() {
  const left = JSON.parse(sessionStorage.getItem(LEFT));
  sessionStorage.removeItem(LEFT);
  return left;
}

async function main() {
  const identity = new Identity();
  let app = null;
  for (let delay = 500; ; delay = Math.min(delay * 2, 5000)) {
    try {
      await identity.start();
      break;
    } catch (error) {
      document.body.replaceChildren(el("p", { class: "note", role: "alert", text: sayError(error) }));
      await new Promise((resolve) => setTimeout(resolve, delay));
    }
  }
  // Who is somebody else now sees nothing of what was there before.
  identity.addEventListener("change", ({ detail }) => {
    if (!detail.isSignOut) app?.leave();
    app?.end();
    location.assign("/");
  }, { once: true });
  // A page that the browser had put aside has heard nothing of who that is now, and of what was said and sent.
  addEventListener("pageshow", ({ persisted }) => {
    if (!persisted) return;
    app?.leave();
    app?.end();
    location.reload();
  });
  if (identity.rules === null) {
    document.body.replaceChildren(el("main", { class: "note" }, el("h1", { text: "Sluice" }), el("p", { text: say("noStorage") })));
  } else if (!identity.isKnown) {
    document.body.replaceChildren(signInPage(identity));
  } else {
    app = new App(identity);
    document.body.replaceChildren(app.element);
    await app.start();
  }
}

main();
