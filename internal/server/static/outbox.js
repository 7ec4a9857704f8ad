/**
 * What a person has said and the server has not taken yet. It is kept in this browser, over reloads and lost
 * connections, until the server has it, and is sent once: what may have arrived although no answer came is looked for
 * first. Knows messages, not how they look.
 */

import { ApiError } from "./api.js";
import { randomId } from "./dom.js";
import { forget, keep, recall, recallAll } from "./kept.js";

/** Each message has a place of its own, behind this: tabs that write at once write in different ones. */
const PLACE = "sluice.outbox.";
const TAB = "sluice.tab";
const MAX_KEPT = 50;
const LOOK_BACK = 10;
const LATER_MS = 1500;
/** So soon other tabs say that they are there; later where all of them are just connected again. */
const HEARD_MS = 400;
const HEARD_BY_MANY_MS = 2000;
/** Refusals that pass: then it is tried again. */
const PASSING = new Set(["conversation_locked", "too_many_in_flight", "restarting", "unreachable"]);

/**
 * Of this tab. Tells with the event `change`, and with `sent` ({message, answer}) once the server has taken one, and
 * `joined` ({id, answer}) when another model answers it, too, or cannot (null); with `begun` ({place, conversation}) when
 * a conversation was begun for what waits, and `adopted` when there are some of a tab that is gone.
 *
 * A message: {id, at, tab, owner, conversation, place, fields, text, files, sentIn, error}: `at` says which came first,
 * `owner` who wrote it, `place` what its chat is called while it has no id, `fields` are those of `response.create`,
 * `sentIn` the generation of the link that it went over.
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
  #adopting = 0;

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
    this.#takeOver(read().filter((message) => message.tab === this.#tab));
    link.addEventListener("open", () => {
      this.pump();
      this.#adopt(HEARD_BY_MANY_MS); // some may have been closed meanwhile
    });
    link.addEventListener("close", () => this.#changed());
    responses.addEventListener("accepted", ({ detail }) => this.#accepted(detail));
    responses.addEventListener("refused", ({ detail }) => this.#refused(detail));
    channel.addEventListener("message", ({ data }) => {
      if (data.kind === "who") channel.postMessage({ kind: "here", tab: this.#tab, isAdopting: this.#adopting > 0 });
    });
    // A tab that is copied is another one: what it copies must not say which one it was.
    addEventListener("pagehide", () => sessionStorage.setItem(TAB, this.#tab));
    addEventListener("pageshow", () => sessionStorage.removeItem(TAB));
    this.#adopt(HEARD_MS);
  }

  /** What waits in a chat, in order. */
  in(conversation, place) {
    return this.#messages.filter((it) => (it.conversation === null ? it.place === place : it.conversation === conversation));
  }

  /** What a chat that has no id yet was called before the page was loaded again; undefined: there is none. */
  get unbegun() {
    return this.#messages.find((message) => message.conversation === null)?.place;
  }

  /** Throws ApiError where there is no room. */
  add(message) {
    const waiting = read();
    if (waiting.length >= MAX_KEPT) throw full();
    const at = Math.max(Date.now(), ...waiting.map((it) => it.at + 1));
    const added = { id: randomId(), at, tab: this.#tab, owner: this.#owner, sentIn: null, error: null, ...message };
    try {
      keep(PLACE + added.id, added);
    } catch {
      throw full(); // a browser keeps a few megabytes only
    }
    this.#messages.push(added);
    this.#changed();
    this.pump();
    return added;
  }

  /** It is not wanted any more: what waits behind it goes. */
  discard(message) {
    this.#remove(message);
    this.pump();
  }

  /** A chat is gone, and with it what waits there. */
  forget(conversation) {
    this.#remove(...this.#messages.filter((it) => it.conversation === conversation));
  }

  retry(message) {
    message.error = null;
    // It may have arrived although it failed: not every error is the server's word on it.
    if (message.sentIn !== null) message.sentIn = -1;
    this.#save(message);
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
    if (!this.#isMine(message)) return this.#changed();
    if (message.sentIn !== null) {
      const turns = await this.#taken(message);
      if (turns.length) return this.#arrived(message, null);
    }
    if (message.conversation === null) await this.#begin(message.place);
    message.sentIn = this.#link.generation;
    this.#save(message); // before it goes: who is lost now asks later whether it has arrived
    if (!this.#messages.includes(message)) return; // it was discarded meanwhile, or another tab has it
    const fields = { ...message.fields, conversation: message.conversation, metadata: { message_id: message.id } };
    if (!this.#responses.create(message.id, fields)) message.sentIn = null;
  }

  async #begin(place) {
    const { id: conversation } = await this.#api.call("POST", "/v1/conversations", {});
    const begun = this.#messages.filter((it) => it.conversation === null && it.place === place);
    if (!begun.length) return;
    for (const message of begun) message.conversation = conversation;
    this.#save(...begun);
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
    // A token may run out on the way; and without a login this page is left, which takes a moment.
    if (PASSING.has(error.code) || error.status === 503 || error.status === 401) {
      // It is looked for first: what is locked may be locked by this very message.
      message.sentIn = message.sentIn === null ? null : -1;
      setTimeout(() => this.pump(), LATER_MS);
    } else {
      message.error = { code: error.code, message: error.message, param: error.param };
    }
    this.#save(message);
  }

  /** Take over what tabs have left that are gone. Of tabs that are about to at once, one does. */
  async #adopt(patienceMs) {
    this.#adopting += 1;
    const living = new Set([this.#tab]);
    const rivals = new Set();
    const hear = ({ data }) => {
      if (data.kind !== "here" && data.kind !== "who") return;
      living.add(data.tab);
      if (data.kind === "who" || data.isAdopting) rivals.add(data.tab);
    };
    this.#channel.addEventListener("message", hear);
    this.#channel.postMessage({ kind: "who", tab: this.#tab });
    await new Promise((resolve) => setTimeout(resolve, patienceMs));
    this.#channel.removeEventListener("message", hear);
    this.#adopting -= 1;
    // Another one does; but a tab that it has heard may be gone by now.
    if ([...rivals].some((tab) => tab < this.#tab)) return this.#adopt(patienceMs);
    this.#takeOver(read().filter((message) => !living.has(message.tab)));
  }

  #takeOver(left) {
    const mine = left.filter((message) => this.#mayHave(message));
    if (!mine.length) return;
    for (const message of mine) {
      // What was sent went over a link of before.
      Object.assign(message, { tab: this.#tab, owner: this.#owner, sentIn: message.sentIn === null ? null : -1 });
      write(message);
    }
    this.#messages = [...this.#messages, ...mine].sort(byTime);
    this.dispatchEvent(new Event("adopted"));
    this.#changed();
    this.pump();
  }

  /** A tab that was thought to be gone may have been asleep. */
  #isMine(message) {
    const isMine = recall(PLACE + message.id, {}).tab === this.#tab;
    if (!isMine) this.#messages = this.#messages.filter((it) => it.id !== message.id);
    return isMine;
  }

  #remove(...messages) {
    for (const message of messages) if (this.#isMine(message)) forget(PLACE + message.id);
    this.#messages = this.#messages.filter((it) => !messages.includes(it));
    this.#changed();
  }

  /** What a guest has written goes along when they sign in; what a user has, nobody else sends. */
  #mayHave({ owner }) {
    return (owner ?? null) === null || owner === this.#owner;
  }

  /** These are not as they were. */
  #save(...messages) {
    for (const message of messages) if (this.#isMine(message)) write(message);
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

const byTime = (one, other) => one.at - other.at;

const read = () => recallAll(PLACE).filter(isMessage).sort(byTime);

/** It may be of another version of this page. */
function isMessage({ id, at, fields, text, files }) {
  return typeof id === "string" && Number.isFinite(at) && typeof text === "string" && Array.isArray(files) && fields?.input !== undefined;
}

/** What is there already: where there is no room any more it stays as it was. */
function write(message) {
  try {
    keep(PLACE + message.id, message);
  } catch {
    // There was room for it before, and it is not much longer.
  }
}
