/** The sign that says that the connection is lost, or back again. Knows the link, no chats. */

import { el } from "./dom.js";
import { say } from "./words.js";

/** A break that is shorter nobody has to know of. */
const BREAK_MS = 600;
const CONNECTED_MS = 2500;

export class ConnectionSign {
  element = el("p", { class: "connection", role: "status", hidden: true });
  #isTold = false;
  #breaking = null;
  #hiding = null;

  constructor(link) {
    link.addEventListener("open", () => this.#connected());
    link.addEventListener("close", () => this.#disconnected());
  }

  #connected() {
    clearTimeout(this.#breaking);
    this.#breaking = null;
    if (!this.#isTold) return;
    this.#isTold = false;
    this.#say(say("connected"), "good");
    clearTimeout(this.#hiding);
    this.#hiding = setTimeout(() => this.#isTold || this.#say(null), CONNECTED_MS);
  }

  #disconnected() {
    const tell = () => {
      this.#isTold = true;
      this.#say(navigator.onLine ? say("reconnecting") : say("offline"));
    };
    if (this.#isTold) tell();
    else this.#breaking ??= setTimeout(tell, BREAK_MS);
  }

  #say(words, kind = "") {
    this.element.textContent = words ?? "";
    this.element.hidden = words === null;
    this.element.className = `connection ${kind}`;
  }
}
