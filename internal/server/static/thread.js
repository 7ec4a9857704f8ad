/** The middle of the page: what was said in a chat, and what waits to be said. */

import { nameOf } from "./api.js";
import { asSent, filesOf, textOf, withText } from "./conversation.js";
import { AnswerView } from "./answer.js";
import { button, el, iconButton, isOfInputMethod } from "./dom.js";
import { say, sayError } from "./words.js";

const NEAR_END_PX = 80;

/** `actions` of the page: {ask(turn), retry(message), putBack(message), isConnected(), fail(error)}. */
export class Thread {
  #conversation = null;
  #outbox;
  #renderer;
  #api;
  #actions;
  #views = new Map();
  #waiting = new Map();
  #isAtEnd = true;
  #older = el("button", { type: "button", class: "button older", hidden: true, on: { click: () => this.#loadOlder() } }, say("older"));
  #list = el("div", { class: "turns" });
  #empty = el("div", { class: "greeting", hidden: true }, el("h1", { text: say("greeting") }), el("p", { text: say("hint") }));
  #note = el("p", { class: "note", hidden: true, role: "status" });
  #seen;

  constructor({ outbox, renderer, api, actions }) {
    this.#outbox = outbox;
    this.#renderer = renderer;
    this.#api = api;
    this.#actions = { ...actions, switched: (key, isBack) => this.#views.get(key)?.focusVariants(isBack) };
    this.element = el("main", { class: "thread", tabindex: "-1" }, this.#older, this.#note, this.#empty, this.#list);
    this.element.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    // What is far away is not rendered until somebody comes near.
    const options = { root: this.element, rootMargin: "1200px 0px" };
    this.#seen = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) if (isIntersecting) this.#reveal(target);
    }, options);
    // What was said grows also when it becomes Markdown, and when a picture has come.
    const sizes = new ResizeObserver(() => this.#follow());
    for (const element of [this.element, this.#list]) sizes.observe(element);
    new IntersectionObserver(([{ isIntersecting }]) => isIntersecting && this.#loadOlder(), options).observe(this.#older);
    outbox.addEventListener("change", () => this.#showWaiting());
  }

  show(conversation) {
    if (this.#conversation === conversation) return;
    this.#conversation?.removeEventListener("change", this.#changed);
    this.#conversation = conversation;
    for (const view of this.#views.values()) view.remove();
    for (const { element } of this.#waiting.values()) element.remove();
    this.#views.clear();
    this.#waiting.clear();
    this.#isAtEnd = true;
    this.say(null);
    conversation.addEventListener("change", this.#changed);
    this.update();
  }

  #changed = () => this.update();

  /** Something about the whole chat, in the place of it; null: nothing. */
  say(words) {
    this.#note.textContent = words ?? "";
    this.#note.hidden = !words;
  }

  update() {
    const conversation = this.#conversation;
    if (conversation === null) return;
    const groups = conversation.groups;
    const keys = new Set(groups.map((group) => group.key));
    // While older ones come, whoever reads stays where they are now.
    const first = this.#older.disabled ? this.#list.firstElementChild : null;
    const top = first?.getBoundingClientRect().top;
    const focused = [...this.#list.children].findIndex((it) => it.contains(document.activeElement));
    for (const [key, view] of this.#views) {
      if (keys.has(key)) continue;
      view.remove();
      this.#views.delete(key);
    }
    let before = null;
    groups.forEach((group, index) => {
      let view = this.#views.get(group.key);
      if (view === undefined || view.size !== group.turns.length) {
        view?.remove();
        view = new GroupView(group, conversation, this.#renderer, this.#api, this.#actions, () => this.#follow());
        this.#views.set(group.key, view);
        this.#seen.observe(view.element);
      }
      const next = before === null ? this.#list.firstChild : before.nextSibling;
      if (view.element !== next) this.#list.insertBefore(view.element, next);
      view.update(group, index === groups.length - 1);
      before = view.element;
    });
    this.#older.hidden = !conversation.hasOlder;
    if (first?.isConnected) this.element.scrollTop += first.getBoundingClientRect().top - top;
    this.#showWaiting();
    // Who was at a button of what is gone goes on at what has come in its place.
    if (focused >= 0 && groups.length && !this.#list.contains(document.activeElement)) {
      this.#views.get(groups[Math.min(focused, groups.length - 1)].key).focus();
    }
  }

  /** The messages that the server has not taken yet; with nothing at all, a greeting. */
  #showWaiting() {
    if (this.#conversation === null) return;
    const { id, place } = this.#conversation;
    // The answer to one may be here before it is known that the server has it.
    const messages = this.#outbox.in(id, place).filter((message) => !this.#conversation.hasAnswerTo(message.id));
    const ids = new Set(messages.map((message) => message.id));
    for (const [id, { element }] of this.#waiting) {
      if (ids.has(id)) continue;
      element.remove();
      this.#waiting.delete(id);
    }
    let next = null;
    for (const message of messages.toReversed()) {
      const why = message.error === null ? this.#whyItWaits() : sayError(message.error);
      let shown = this.#waiting.get(message.id);
      // What is as it was stays: who is at one of its buttons stays there, and a long text is laid out once.
      if (shown?.why !== why) {
        shown?.element.remove();
        shown = { element: this.#waitingMessage(message, why), why };
        this.#waiting.set(message.id, shown);
      }
      if (shown.element.parentNode !== this.#list || shown.element.nextSibling !== next) this.#list.insertBefore(shown.element, next);
      next = shown.element;
    }
    this.#empty.hidden = messages.length > 0 || !this.#conversation.isEmpty || !this.#note.hidden;
    this.#follow();
  }

  #whyItWaits() {
    if (!this.#actions.isConnected()) return say("waitsForConnection");
    return this.#conversation.isBusy ? say("waitsForAnswer") : say("sending");
  }

  #waitingMessage(message, why) {
    const files = message.files.map((name) => el("span", { class: "chip", text: name }));
    const bubble = el("div", { class: "bubble" }, files, message.text);
    if (message.error === null) {
      const discard = iconButton("close", say("discard"), () => this.#outbox.discard(message));
      return el("section", { class: "turn waiting" }, el("div", { class: "asked" }, bubble, el("p", { class: "status" }, why, discard)));
    }
    const problem = el(
      "div",
      { class: "problem", role: "alert" },
      el("p", { text: why }),
      button(say("retry"), () => this.#actions.retry(message)),
      button(say("discard"), () => {
        this.#outbox.discard(message);
        this.#actions.putBack(message);
      }),
    );
    return el("section", { class: "turn waiting" }, el("div", { class: "asked" }, bubble), problem);
  }

  #reveal(target) {
    for (const view of this.#views.values()) {
      if (view.element === target) view.show();
    }
    this.#seen.unobserve(target);
    this.#follow();
  }

  async #loadOlder() {
    if (this.#older.disabled) return;
    this.#isAtEnd = false;
    this.#older.disabled = true;
    try {
      await this.#conversation.loadOlder();
    } catch (error) {
      this.#actions.fail(error);
    } finally {
      this.#older.disabled = false;
    }
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    this.#isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
    this.element.classList.toggle("at-end", this.#isAtEnd);
  }

  /** Stay at the end, for who is there. */
  #follow() {
    if (this.#isAtEnd) this.element.scrollTop = this.element.scrollHeight;
  }

  toEnd() {
    this.#isAtEnd = true;
    this.#follow();
  }
}

/** A question with its answer, or answers. */
class GroupView {
  #conversation;
  #actions;
  #answers = new Map();
  #asked;
  #back = iconButton("back", say("previousVariant"), () => this.#switch(-1));
  #which = el("span");
  #next = iconButton("next", say("nextVariant"), () => this.#switch(1));
  #variants = el("span", { class: "variants", hidden: true }, this.#back, this.#which, this.#next);
  #edit;
  #input;
  #group;
  #isShown = false;

  constructor(group, conversation, renderer, api, actions, drawn) {
    this.#conversation = conversation;
    this.#actions = actions;
    this.#group = group;
    this.#input = group.input;
    this.size = group.turns.length;
    this.#asked = this.#question(api);
    const answers = group.turns.filter((turn) => turn.answer !== null);
    for (const turn of answers) {
      const own = {
        retry: () => this.#again(),
        stop: () => this.#tried(conversation.stopOne(turn.answer)),
        choose: group.turns.length > 1 ? () => this.#tried(conversation.choose(turn)) : null,
      };
      this.#answers.set(turn.id, new AnswerView(turn.answer, renderer, own, drawn));
    }
    const several = answers.length > 1 ? { class: "answers several", role: "group", tabindex: "0", "aria-label": answers.map((it) => it.answer.model).join(", ") } : { class: "answers" };
    this.element = el(
      "section",
      { class: "turn" },
      this.#asked,
      el("div", several, ...[...this.#answers.values()].map((view) => view.element)),
      this.#variants,
    );
  }

  remove() {
    this.element.remove();
    for (const view of this.#answers.values()) view.leave();
  }

  focus() {
    this.element.tabIndex = -1;
    this.element.focus({ preventScroll: true });
  }

  /** Render what was said. */
  show() {
    this.#isShown = true;
    for (const view of this.#answers.values()) view.show();
  }

  update(group, isLast) {
    this.#group = group;
    const isBusy = this.#conversation.isBusy;
    if (this.#edit) this.#edit.disabled = isBusy;
    for (const turn of group.turns) {
      const view = this.#answers.get(turn.id);
      view?.mark(group.turns.length > 1 && this.#conversation.isOnPath(turn), isLast && !isBusy);
      if (turn.isRunning || this.#isShown) view?.show();
    }
    this.element.classList.toggle("last", isLast);
    this.#updateVariants(isBusy);
  }

  #question(api) {
    const text = textOf(this.#input);
    const files = filesOf(this.#input);
    if (!text && !files.length) return el("div", { class: "asked", hidden: true });
    const bubble = el("div", { class: "bubble" }, files.map((part) => attachment(part, api)), text);
    this.#edit = iconButton("edit", say("edit"), () => this.#beginEdit());
    return el("div", { class: "asked", role: "group", "aria-label": say("you") }, bubble, el("div", { class: "buttons" }, this.#edit));
  }

  #beginEdit() {
    const area = el("textarea", { "aria-label": say("edit"), rows: 3 });
    area.value = textOf(this.#input);
    const end = () => {
      form.replaceWith(this.#asked);
      this.#edit.focus();
    };
    const done = () => {
      const text = area.value.trim();
      if (!text && !filesOf(this.#input).length) return area.focus();
      end();
      this.#ask(withText(this.#input, text), text);
    };
    const form = el("div", { class: "editing" }, area, el("div", { class: "buttons" }, button(say("cancel"), end), button(say("saveAndSend"), done, { class: "button main" })));
    form.addEventListener("keydown", (event) => {
      if (isOfInputMethod(event)) return;
      if (event.key === "Escape") {
        event.stopPropagation();
        end();
      } else if (event.key === "Enter" && !event.shiftKey && event.target === area) {
        event.preventDefault();
        done();
      }
    });
    this.#asked.replaceWith(form);
    area.focus();
  }

  #again() {
    // What was stored is sent again as it was, but for what only the server writes there.
    const input = this.#input.map((item) => (item.type === "message" ? { type: "message", role: item.role, content: item.content.map((part) => ("text" in part ? { type: part.type, text: part.text } : asSent(part))) } : item));
    this.#ask(input, textOf(this.#input));
  }

  #ask(input, text) {
    this.focus(); // its buttons are gone, or disabled, while it is answered
    const turns = this.#group.turns;
    const models = turns.length > 1 ? turns.map((turn) => turn.answer.model) : null;
    this.#actions.ask({ input, text, replaces: turns[0].id, models });
  }

  #updateVariants(isBusy) {
    const { count, at } = this.#place();
    this.#variants.hidden = count < 2;
    this.#back.disabled = isBusy || at === 0;
    this.#next.disabled = isBusy || at === count - 1;
    const words = say("variant", { number: at + 1, count });
    if (this.#which.textContent !== words) this.#which.textContent = words;
  }

  /** Which of its versions this is. */
  #place() {
    const { variants, key } = this.#group;
    return { variants, count: variants.length, at: variants.findIndex((it) => it.key === key) };
  }

  async #switch(step) {
    const { variants, at } = this.#place();
    const other = variants[at + step];
    await this.#tried(this.#conversation.switchTo(other));
    this.#actions.switched(other.key, step < 0);
  }

  /** Whoever came from another version by its arrows is at these now. */
  focusVariants(isBack) {
    const [first, second] = isBack ? [this.#back, this.#next] : [this.#next, this.#back];
    (first.disabled ? second : first).focus();
  }

  async #tried(promise) {
    try {
      await promise;
    } catch (error) {
      this.#actions.fail(error);
    }
  }
}

/** A file that was sent along: an image is shown, anything else named. */
function attachment(part, api) {
  if (part.type === "input_file" || !part.file_id) {
    return el("span", { class: "chip" }, part.filename || say("attach"));
  }
  const image = el("img", { alt: say("attached", { name: part.filename ?? "" }), class: "attached" });
  api
    .fetch("GET", `/v1/files/${part.file_id}/content`)
    .then((response) => {
      image.alt = say("attached", { name: part.filename ?? nameOf(response) ?? "" });
      return response.blob();
    })
    .then((blob) => {
      image.src = URL.createObjectURL(blob);
      for (const end of ["load", "error"]) image.addEventListener(end, () => URL.revokeObjectURL(image.src), { once: true });
    })
    .catch(() => image.replaceWith(el("span", { class: "chip", text: image.alt })));
  return image;
}
