/**
 * Text that grows, and becomes Markdown block by block as blocks are complete. The server renders and sanitises; this
 * file is the only place of the page where HTML is made of a string.
 */

import { copyButton, el, onFrame } from "./dom.js";
import { say } from "./words.js";

const MAX_TEXTS = 64;
const MAX_CHARS = 200_000;
const MAX_CACHED = 300;
const GATHER_MS = 20;
const RETRY_MS = 3000;
/** A growing block is kept in pieces: the browser lays out anew what has changed, and that shall be little. */
const PIECE_CHARS = 2000;
/** So many blocks make a part. The last two parts are laid out, those before them when somebody comes near. */
const PART_BLOCKS = 20;

const trusted = globalThis.trustedTypes?.createPolicy("sluice", { createHTML: (html) => html }) ?? { createHTML: (html) => html };

/** Has Markdown rendered, many texts at once, and keeps what it got. */
export class Renderer {
  #api;
  #cache = new Map();
  #waiting = new Map();
  #timer = null;

  constructor(api) {
    this.#api = api;
    addEventListener("online", () => this.#soon(0));
  }

  /** Shows `text` in `element`, as soon as it is rendered. */
  show(text, element) {
    if (this.#cache.has(text)) return this.#put(this.#cache.get(text), element);
    if (this.#waiting.has(text)) this.#waiting.get(text).push(element);
    else this.#waiting.set(text, [element]);
    this.#soon(GATHER_MS);
  }

  #soon(delay) {
    if (this.#timer === null && this.#waiting.size) this.#timer = setTimeout(() => this.#ask(), delay);
  }

  async #ask() {
    const asked = [];
    let room = MAX_CHARS;
    for (const text of this.#waiting.keys()) {
      if (asked.length === MAX_TEXTS || (asked.length && text.length > room)) break;
      asked.push(text);
      room -= text.length;
    }
    let delay = 0;
    try {
      const { html } = await this.#api.call("POST", "/api/markdown", { texts: asked });
      asked.forEach((text, index) => this.#came(text, html[index]));
    } catch (error) {
      // What cannot be rendered stays text.
      if (error.status >= 400 && error.status < 500 && error.status !== 429) asked.forEach((text) => this.#waiting.delete(text));
      else delay = RETRY_MS;
    }
    this.#timer = null;
    this.#soon(delay);
  }

  #came(text, html) {
    for (const element of this.#waiting.get(text) ?? []) this.#put(html, element);
    this.#waiting.delete(text);
    this.#cache.set(text, html);
    if (this.#cache.size > MAX_CACHED) this.#cache.delete(this.#cache.keys().next().value);
  }

  #put(html, element) {
    element.innerHTML = trusted.createHTML(html);
    element.classList.remove("growing");
    for (const head of element.querySelectorAll(".code-head")) {
      const code = head.parentElement.querySelector("code");
      head.append(copyButton(say("copyCode"), () => code.textContent));
    }
    for (const scrolls of element.querySelectorAll("pre, .table")) scrolls.tabIndex = 0;
  }
}

const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const LIST_ITEM = /^ {0,3}(?:[-*+]|\d{1,9}[.)])(?:\s|$)/;

/**
 * Cuts Markdown into blocks while it comes: a block ends at a blank line, a fenced one at its closing fence, and a list
 * where something follows that is none of it.
 */
export class BlockSplitter {
  #block = "";
  /** How much of the block has been looked at: whole lines. */
  #seen = 0;
  #fence = null;
  /** Of what has been looked at: whether there is more than blank lines, begun as a list, and a blank line behind it. */
  #hasText = false;
  #isList = false;
  #hasGap = false;

  /** The blocks that are complete with `delta`. What is left of it grows in `rest`. */
  add(delta) {
    this.#block += delta;
    const complete = [];
    for (let cut = this.#next(); cut !== null; cut = this.#next()) {
      const block = this.#block.slice(0, cut);
      this.#block = this.#block.slice(cut);
      this.#seen = 0;
      this.#fence = null;
      this.#hasText = this.#isList = this.#hasGap = false;
      if (block.trim()) complete.push(block);
    }
    return complete;
  }

  get rest() {
    return this.#block;
  }

  /** Where the next block begins; null: not known yet. */
  #next() {
    for (;;) {
      const end = this.#block.indexOf("\n", this.#seen);
      const isWhole = end >= 0;
      const line = this.#block.slice(this.#seen, isWhole ? end : undefined);
      if (this.#fence === null && this.#hasGap && line.trim() && this.#begins(line, isWhole)) return this.#seen;
      if (!isWhole) return null;
      const begin = this.#seen;
      this.#seen = end + 1;
      if (this.#fence !== null) {
        if (line.trim().startsWith(this.#fence) && !line.trim().slice(this.#fence.length).replaceAll(this.#fence[0], "").trim()) {
          this.#fence = null;
          if (!this.#isList) return this.#seen;
        }
      } else if (!line.trim()) {
        this.#hasGap = this.#hasText;
      } else {
        const fence = (this.#isList ? line.trimStart() : line).match(FENCE);
        if (fence !== null) {
          if (!this.#isList && this.#hasText) return begin;
          this.#fence = fence[1];
        }
        if (!this.#hasText) this.#isList = LIST_ITEM.test(line.trimStart());
        this.#hasText = true;
        this.#hasGap = false;
      }
    }
  }

  /** Whether a line behind a blank one begins a block. Of a list too little may be known of it. */
  #begins(line, isWhole) {
    if (!this.#isList) return true;
    if (/^\s/.test(line)) return false;
    if (LIST_ITEM.test(line)) return false;
    return isWhole || line.length > 11 || !/^(?:[-*+]|\d{1,9}[.)]?)$/.test(line);
  }
}

/** A text in `element` that grows. */
export class LiveText {
  #splitter = new BlockSplitter();
  #renderer;
  #element;
  #part = null;
  #growing = null;
  #fresh = [];
  #flush = onFrame(() => this.#draw());

  /** `drawn` is called whenever something was added to what is shown. */
  constructor(element, renderer, drawn = () => {}) {
    this.#element = element;
    this.#renderer = renderer;
    this.drawn = drawn;
  }

  add(delta) {
    this.#fresh.push(delta);
    this.#flush();
  }

  /** Nothing more will come. */
  finish() {
    this.#draw();
    const rest = this.#splitter.rest;
    if (rest.trim()) this.#renderer.show(rest, this.#block());
    else this.#growing?.element.remove();
    this.#growing = null;
    this.drawn();
  }

  #draw() {
    if (!this.#fresh.length) return;
    const complete = this.#splitter.add(this.#fresh.join(""));
    this.#fresh = [];
    for (const text of complete) {
      const element = this.#block();
      this.#growing.show(text);
      this.#renderer.show(text, element);
      this.#growing = null;
    }
    if (this.#splitter.rest.trim()) {
      this.#block();
      this.#growing.show(this.#splitter.rest);
    }
    this.drawn();
  }

  #block() {
    if (this.#growing === null) {
      if (this.#part === null || this.#part.childElementCount === PART_BLOCKS) this.#beginPart();
      const element = el("div", { class: "block growing" });
      this.#part.append(element);
      this.#growing = new Growing(element);
    }
    return this.#growing.element;
  }

  /** Else the browser would look at every block again for each that is added. */
  #beginPart() {
    this.#part?.previousElementSibling?.classList.add("far");
    this.#part = el("div", { class: "part" });
    this.#element.append(this.#part);
  }
}

/** A block that is not complete: its text as it is, or as code where it begins as code does. */
class Growing {
  #shown = 0;
  #isCode = false;
  #place = null;
  #piece = null;

  constructor(element) {
    this.element = element;
  }

  show(text) {
    if (this.#place === null) {
      const fence = text.match(/^\s*(`{3,}|~{3,})([^\n]*)(\n)?/);
      if (fence !== null) {
        if (!fence[3]) return; // the name of its language is not complete
        this.#isCode = true;
        this.#place = el("code");
        const head = el("div", { class: "code-head" }, el("span", { class: "code-language", text: fence[2].trim() }));
        this.element.append(el("div", { class: "code" }, head, el("pre", {}, this.#place)));
        this.#shown = fence[0].length;
      } else {
        this.#place = this.element;
        this.#shown = text.length - text.trimStart().length;
      }
    }
    // Newlines show once something follows, and a fence that may close the code if it does not.
    let visible = text.trimEnd();
    const lastLine = visible.lastIndexOf("\n") + 1;
    if (this.#isCode && /^\s*(?:`+|~+)$/.test(visible.slice(lastLine))) visible = visible.slice(0, lastLine).trimEnd();
    let fresh = visible.slice(this.#shown);
    this.#shown = Math.max(this.#shown, visible.length);
    while (fresh) {
      if (this.#piece === null || this.#piece.length > PIECE_CHARS) {
        // At the end of a line, where it does not show; very long ones are divided all the same.
        const end = this.#piece === null ? -1 : fresh.indexOf("\n");
        if (end >= 0) {
          this.#piece.appendData(fresh.slice(0, end));
          fresh = fresh.slice(end + 1);
        } else if (this.#piece !== null && this.#piece.length < 4 * PIECE_CHARS) {
          this.#piece.appendData(fresh);
          return;
        }
        this.#piece = document.createTextNode("");
        this.#place.append(el("div", { class: "piece" }, this.#piece));
      }
      this.#piece.appendData(fresh.slice(0, PIECE_CHARS));
      fresh = fresh.slice(PIECE_CHARS);
    }
  }
}
