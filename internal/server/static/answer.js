/** One answer on the page: thoughts, text, how it stands, and what can be done with it. */

import { button, copyButton, el, iconButton, onFrame } from "./dom.js";
import { LiveText } from "./markdown.js";
import { say, sayError, sayNumber } from "./words.js";

/** `actions`: {retry, stop, choose} of its turn; `choose` is null where there is nothing to choose. `drawn` is called when it grows. */
export class AnswerView {
  #answer;
  #renderer;
  #actions;
  #drawn;
  #text = null;
  #thinking = null;
  #thoughts = null;
  #hasFolded = false;
  #body = el("div", { class: "body" });
  #status = el("p", { class: "status", role: "status", hidden: true });
  #error = el("div", { class: "problem", role: "alert", hidden: true });
  #facts = el("span", { class: "facts" });
  #buttons = el("span", { class: "buttons" });
  #stop = null;
  /** Of which end the buttons are. */
  #arranged = null;
  #choose = null;
  #isShown = false;
  #left = new AbortController();

  constructor(answer, renderer, actions, drawn) {
    this.#answer = answer;
    this.#renderer = renderer;
    this.#actions = actions;
    this.#drawn = drawn;
    const footer = el("footer", {}, this.#buttons, this.#facts);
    const who = el("header", { class: "who" }, answer.model);
    this.element = el(
      "article",
      { class: "answer", "aria-label": say("modelAnswer", { model: answer.model }) },
      who,
      this.#body,
      this.#status,
      this.#error,
      footer,
    );
    if (actions.choose) this.#choose = button(say("continueWith"), actions.choose, { class: "button choose", hidden: true });
    if (this.#choose) footer.append(this.#choose);
    const listen = (type, listener) => answer.addEventListener(type, listener, { signal: this.#left.signal });
    listen("text", ({ detail }) => this.#isShown && this.#say(detail));
    listen("text", onFrame(() => this.#measure()));
    listen("thought", ({ detail }) => this.#isShown && this.#think(detail));
    listen("change", () => this.#update());
    this.#update();
  }

  /** It is not on the page any more. */
  leave() {
    this.#left.abort();
  }

  /** Show what has been said; nothing is made of it before. */
  show() {
    if (this.#isShown) return;
    this.#isShown = true;
    const { text, thoughts, isDone } = this.#answer;
    if (thoughts) this.#think(thoughts);
    if (text) this.#say(text);
    if (isDone) this.#finish();
  }

  /** `isCurrent`: the chat goes on from here, of several answers; null: there is nothing to choose. */
  mark(isCurrent, mayChoose) {
    this.element.classList.toggle("current", isCurrent === true);
    if (this.#choose !== null) {
      this.#choose.hidden = !mayChoose || isCurrent || !this.#answer.isDone || this.#answer.status === "failed";
    }
  }

  #say(delta) {
    if (this.#text === null) {
      this.#text = new LiveText(this.#body, this.#renderer, this.#drawn);
      this.#fold();
    }
    this.#text.add(delta);
  }

  #think(delta) {
    if (this.#thinking === null) {
      const place = el("div", { class: "thoughts" });
      this.#thinking = el("details", { class: "thinking", open: true }, el("summary", { text: say("thinking") }), place);
      this.#body.before(this.#thinking);
      this.#thoughts = new Thoughts(place, this.#drawn);
    }
    this.#thoughts.add(delta);
  }

  /** Thoughts take one line when the answer begins; who opens them again keeps them open. */
  #fold() {
    if (this.#thinking === null || this.#hasFolded) return;
    this.#hasFolded = true;
    this.#thinking.open = false;
    const seconds = this.#answer.thoughtSeconds;
    this.#thinking.querySelector("summary").textContent =
      seconds === null ? say("thoughtUnknown") : say("thought", { seconds: sayNumber(seconds) });
  }

  #finish() {
    this.#fold();
    this.#text?.finish();
    this.#text = null;
  }

  #update() {
    const { isDone, status, error, reason, queue, text, thoughts } = this.#answer;
    this.element.classList.toggle("running", !isDone);
    this.element.setAttribute("aria-busy", String(!isDone));
    const note = isDone ? endNote(status, reason) : text || thoughts ? "" : waitNote(queue);
    this.#status.textContent = note;
    this.#status.hidden = !note;
    if (status === "failed" && this.#error.hidden) {
      this.#error.replaceChildren(el("p", { text: sayError(error) }), button(say("retry"), this.#actions.retry));
      this.#error.hidden = false;
    }
    this.#arrange();
    if (isDone && this.#isShown && this.#text !== null) this.#finish();
    else if (isDone && this.#isShown) this.#fold();
    this.#measure();
    this.#drawn();
  }

  #arrange() {
    const { isDone, text, model, status } = this.#answer;
    if (!isDone) {
      if (this.#stop === null) {
        this.#stop = iconButton("stop", say("stopOne", { model }), this.#actions.stop);
        this.#buttons.replaceChildren(this.#stop);
      }
      return;
    }
    const found = `${status} ${text !== ""}`;
    if (found === this.#arranged) return;
    this.#arranged = found;
    const hadFocus = this.#buttons.contains(document.activeElement);
    const copy = text ? copyButton(say("copyAnswer"), () => this.#answer.text) : null;
    const again = status !== "failed" ? iconButton("retry", say("regenerate"), this.#actions.retry) : null;
    this.#buttons.replaceChildren(...[copy, again].filter(Boolean));
    if (hadFocus) (copy ?? again)?.focus();
  }

  #measure() {
    const { rate, usage, isDone } = this.#answer;
    const tokens = isDone && usage?.output_tokens ? say("tokens", { count: usage.output_tokens }) : null;
    const speed = rate === null ? null : say("speed", { rate: sayNumber(rate, rate < 10 ? 1 : 0) });
    const facts = [tokens, speed].filter(Boolean).join(" · ");
    if (this.#facts.textContent !== facts) this.#facts.textContent = facts;
  }
}

/** Thoughts are shown as they are, in pieces. */
class Thoughts {
  #place;
  #fresh = [];
  #piece = null;
  #flush;

  constructor(place, drawn) {
    this.#place = place;
    this.#flush = onFrame(() => {
      const text = this.#fresh.join("");
      this.#fresh = [];
      if (this.#piece === null || this.#piece.length > 2000) {
        this.#piece = document.createTextNode("");
        place.append(el("span", {}, this.#piece));
      }
      this.#piece.appendData(text);
      drawn();
    });
  }

  add(delta) {
    this.#fresh.push(delta);
    this.#flush();
  }
}

function waitNote(queue) {
  if (queue === null) return "…";
  const { position, prefill, loading, note } = queue;
  if (loading !== null && loading !== undefined) return say("loadingModel", { percent: Math.round(loading * 100) });
  if (prefill && prefill.processed < prefill.total) {
    return say("reading", { percent: Math.floor((100 * prefill.processed) / prefill.total) });
  }
  if (note) return sayError({ message: note });
  return position > 0 ? say("ahead", { count: position }) : "…";
}

function endNote(status, reason) {
  if (status !== "incomplete" && status !== "cancelled") return "";
  return { cancelled: say("cancelled"), max_output_tokens: say("length") }[reason ?? status] ?? say("interrupted");
}
