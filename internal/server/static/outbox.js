/**
 * What a person has said and the server has not taken yet. It is kept in this browser, over reloads and lost
 * connections, until the server has it, and is sent once: what may have arrived although no answer came is looked for
 * first. Knows messages, not how they look.
 */

import { ApiError } from "./api.js";
import { randomId } from "./dom.js";
import { keep, recall } from "./kept.js";

const PLACE = "sluice.outbox";
const TAB = "sluice.tab";
const MAX_KEPT = 50;
const LOOK_BACK = 10;
const LATER_MS = 1500;
/** So soon other tabs say that they are there; later where all of them are just connected again. */
const HEARD_MS = 400;
const HEARD_BY_MANY_MS = 2000;
/** Refusals that pass: then it is tried again. */
const PASSING = new Set(["conversation_locked", "too_many_in_flight", "restarting", "unreachable", "sign_in_needed"]);

/**
 * Of this tab. Tells with the event `change`, and with `sent` ({message, answer}) once the server has taken one, and
 * `joined` ({id, answer}) when another model answers it, too, or cannot (null); with `begun` ({place, conversation}) when
 * a conversation was begun for what waits, and `adopted` when there are some of a tab that is gone.
 *
 * A message: {id, tab, owner, conversation, place, fields, text, files, sentIn, error}: `owner` is who wrote it, `place`
 * what its chat is called while it has no id, `fields` are those of `response.create`, `sentIn` the generation of the
 * link that it went over.
 */
export class Outbox extends EventTarget {
  #tab;
  #owner;
  #api;
  #link;
  #responses;
  #channel;
  #mustWait;
  #messages = [];
  #asking = new Set();

  /**
   * `owner`: which user that is, null for a guest. `mustWait(conversation)`: whether nothing can be asked there yet.
   */
  constructor(api, link, responses, channel, owner, mustWait) {
    super();
    this.#tab = takeTab();
    this.#owner = owner;
    this.#api = api;
    this.#link = link;
    this.#responses = responses;
    this.#channel = channel;
    this.#mustWait = mustWait;
    this.#messages = read().filter((message) => message.tab === this.#tab && this.#mayHave(message));
    for (const message of this.#messages) if (message.sentIn !== null) message.sentIn = -1; // over a link of before
    link.addEventListener("open", () => {
      this.pump();
      if (link.generation > 1) this.#adopt({ areMany: true });
    });
    link.addEventListener("close", () => this.#changed());
    responses.addEventListener("accepted", ({ detail }) => this.#accepted(detail));
    responses.addEventListener("refused", ({ detail }) => this.#refused(detail));
    channel.addEventListener("message", ({ data }) => {
      if (data.kind === "who") channel.postMessage({ kind: "here", tab: this.#tab });
    });
    // A tab that is copied is another one: what it copies must not say which one it was.
    addEventListener("pagehide", () => sessionStorage.setItem(TAB, this.#tab));
    addEventListener("pageshow", () => sessionStorage.removeItem(TAB));
    this.#adopt();
  }

  /** What waits in a chat, in order. */
  in(conversation, place) {
    return this.#messages.filter((it) => (it.conversation === null ? it.place === place : it.conversation === conversation));
  }

  /** What a chat that has no id yet was called before the page was loaded again; undefined: there is none. */
  get unbegun() {
    return this.#messages.find((message) => message.conversation === null)?.place;
  }

  add(message) {
    if (read().length >= MAX_KEPT) throw full();
    const kept = { id: randomId(), tab: this.#tab, owner: this.#owner, sentIn: null, error: null, ...message };
    this.#messages.push(kept);
    try {
      this.#save();
    } catch {
      this.#remove(kept);
      throw full(); // a browser keeps a few megabytes only
    }
    this.pump();
    return kept;
  }

  /** It is not wanted any more: what waits behind it goes. */
  discard(message) {
    this.#remove(message);
    this.pump();
  }

  /** A chat is gone, and with it what waits there. */
  forget(conversation) {
    this.#messages = this.#messages.filter((it) => it.conversation !== conversation);
    this.#save();
  }

  retry(message) {
    message.error = null;
    // It may have arrived although it failed: not every error is the server's word on it.
    if (message.sentIn !== null) message.sentIn = -1;
    this.#save();
    this.pump();
  }

  /** Send what can be sent now: of each chat the first one, when no answer runs there. */
  pump() {
    if (!this.#link.isOpen) return;
    const first = new Map();
    for (const message of this.#messages) {
      const chat = message.conversation ?? message.place;
      if (!first.has(chat)) first.set(chat, message);
    }
    for (const message of first.values()) {
      if (message.error !== null || this.#asking.has(message.id) || message.sentIn === this.#link.generation) continue;
      if (message.conversation !== null && this.#mustWait(message.conversation) && message.sentIn === null) continue;
      this.#asking.add(message.id);
      this.#send(message)
        .catch((error) => this.#failed(message, error))
        .finally(() => this.#asking.delete(message.id));
    }
  }

  async #send(message) {
    if (!this.#isMine(message)) return;
    if (message.sentIn !== null) {
      const turns = await this.#taken(message);
      if (turns.length) return this.#arrived(message, null);
    }
    if (message.conversation === null) await this.#begin(message.place);
    if (!this.#messages.includes(message)) return; // it was discarded meanwhile
    message.sentIn = this.#link.generation;
    this.#save(); // before it goes: who is lost now asks later whether it has arrived
    const fields = { ...message.fields, conversation: message.conversation, metadata: { message_id: message.id } };
    if (!this.#responses.create(message.id, fields)) message.sentIn = null;
  }

  async #begin(place) {
    const { id: conversation } = await this.#api.call("POST", "/v1/conversations", {});
    const begun = this.#messages.filter((it) => it.conversation === null && it.place === place);
    if (!begun.length) return;
    for (const message of begun) message.conversation = conversation;
    this.#save();
    this.dispatchEvent(new CustomEvent("begun", { detail: { place, conversation } }));
  }

  /** Its turns, should the server have it. */
  async #taken(message) {
    if (message.conversation === null) return [];
    const found = await this.#api.call("GET", `/v1/conversations/${message.conversation}/turns?limit=${LOOK_BACK}`);
    return found.data.filter((turn) => turn.response?.metadata?.message_id === message.id);
  }

  #accepted({ lane, answer }) {
    const message = this.#messages.find((it) => it.id === idIn(lane));
    if (message !== undefined) this.#arrived(message, answer);
    else this.dispatchEvent(new CustomEvent("joined", { detail: { id: idIn(lane), answer } }));
  }

  #arrived(message, answer) {
    this.#remove(message);
    this.dispatchEvent(new CustomEvent("sent", { detail: { message, answer } }));
  }

  #refused({ lane, error }) {
    const message = this.#messages.find((it) => it.id === idIn(lane));
    if (message !== undefined) this.#failed(message, error);
    else this.dispatchEvent(new CustomEvent("joined", { detail: { id: idIn(lane), answer: null } }));
  }

  #failed(message, error) {
    if (PASSING.has(error.code) || error.status === 503) {
      // It is looked for first: what is locked may be locked by this very message.
      message.sentIn = message.sentIn === null ? null : -1;
      setTimeout(() => this.pump(), LATER_MS);
    } else {
      message.error = { code: error.code, message: error.message, param: error.param };
    }
    this.#save();
  }

  /** Take over what tabs have left that are gone. Of many tabs that are connected again at once one does. */
  async #adopt({ areMany = false } = {}) {
    const living = new Set([this.#tab]);
    const hear = ({ data }) => (data.kind === "here" || data.kind === "who") && living.add(data.tab);
    this.#channel.addEventListener("message", hear);
    this.#channel.postMessage({ kind: "who", tab: this.#tab });
    await new Promise((resolve) => setTimeout(resolve, areMany ? HEARD_BY_MANY_MS : HEARD_MS));
    this.#channel.removeEventListener("message", hear);
    if (areMany && this.#tab !== [...living].sort()[0]) return;
    const left = read().filter((message) => !living.has(message.tab) && this.#mayHave(message));
    if (!left.length) return;
    const mine = left.map((it) => ({ ...it, tab: this.#tab, owner: this.#owner, sentIn: it.sentIn === null ? null : -1 }));
    const ids = new Set(mine.map((message) => message.id));
    write([...read().filter((message) => !ids.has(message.id)), ...mine]);
    this.#messages.push(...mine);
    this.dispatchEvent(new Event("adopted"));
    this.#changed();
    this.pump();
  }

  /** A tab that was thought to be gone may have been asleep. */
  #isMine(message) {
    const isMine = read().some((kept) => kept.id === message.id && kept.tab === this.#tab);
    if (!isMine) {
      this.#messages = this.#messages.filter((it) => it.id !== message.id);
      this.#changed();
    }
    return isMine;
  }

  #remove(message) {
    this.#messages = this.#messages.filter((it) => it.id !== message.id);
    this.#save();
  }

  /** What a guest has written goes along when they sign in; what a user has, nobody else sends. */
  #mayHave({ owner }) {
    return (owner ?? null) === null || owner === this.#owner;
  }

  #save() {
    const others = read().filter((message) => message.tab !== this.#tab || !this.#mayHave(message));
    write([...others, ...this.#messages]);
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

/** What this tab was called before the page was loaded again, or a new name. */
function takeTab() {
  const tab = sessionStorage.getItem(TAB) ?? randomId();
  sessionStorage.removeItem(TAB);
  return tab;
}

const full = () => new ApiError("too many messages wait to be sent", { code: "outbox_full" });

/** Of several models each answers in a lane of its own, behind a colon. */
const idIn = (lane) => String(lane).split(":")[0];

const read = () => recall(PLACE, []);
const write = (messages) => keep(PLACE, messages);
