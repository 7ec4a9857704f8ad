/** The WebSocket to the server, made again whenever it breaks. Knows frames, not what they say. */

import { ApiError } from "./api.js";
import { SignInNeeded } from "./identity.js";

const DELAYS_MS = [200, 500, 1000, 2000, 4000];
const PATIENCE_MS = 10_000;
const LOOK_MS = 5_000;
/** Who comes so late was asleep: the connection may be dead without a word. */
const SLEPT_MS = 20_000;
/** What is asked is answered sooner, if only with a place in the queue, or the connection is dead without a word. */
const DEAF_MS = 15_000;
/** So long nothing may come while something is awaited; twice as long at each time that a new connection changed nothing. */
const SILENT_MS = 20_000;
/** So slowly a long message may go. */
const SLOW_BYTES_PER_MS = 10;
/** One that breaks sooner was none: the next one may have to wait. */
const STEADY_MS = 1_000;

const UNAUTHENTICATED = 4401;
const FORBIDDEN = 4403;

/** The server ends a connection over which more comes in one message, and the reason may be lost on the way. */
const MAX_BYTES = Number(document.querySelector('meta[name="max-message-bytes"]').content);

/**
 * Tells with events: `open`, `close`, and `message` with the object that came as `detail`.
 * `generation` grows with each connection.
 */
export class Link extends EventTarget {
  #path;
  #identity;
  #socket = null;
  #tries = 0;
  #timer = null;
  #isConnecting = false;
  #lookedAt = Date.now();
  #openedAt = 0;
  #unanswered = null;
  #heardAt = 0;
  #maySilentMs = SILENT_MS;

  generation = 0;
  /** Whether the server may have something to say by itself. */
  isAwaited = () => false;

  constructor(path, identity) {
    super();
    this.#path = path;
    this.#identity = identity;
    addEventListener("online", () => this.#hurry());
    // It may be another network that is gone than the one to the server: a new connection tells.
    addEventListener("offline", () => this.reopen());
    document.addEventListener("visibilitychange", () => !document.hidden && this.#hurry());
    setInterval(() => this.#look(), LOOK_MS);
  }

  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  get #isSteady() {
    return this.#openedAt > 0 && Date.now() - this.#openedAt > STEADY_MS;
  }

  /**
   * Whether it went: where there is no connection nothing is kept. `isQuestion`: the server has something to say to it
   * at once, else there is a new connection. Throws ApiError for what the server never takes.
   */
  send(message, isQuestion = false) {
    if (!this.isOpen) return false;
    const frame = JSON.stringify(message);
    const bytes = new TextEncoder().encode(frame).length;
    if (bytes > MAX_BYTES) {
      throw new ApiError("the message is too long: shorten it, or attach it as a file", { code: "message_too_long" });
    }
    this.#socket.send(frame);
    if (isQuestion) this.#unanswered ??= setTimeout(() => this.reopen(), DEAF_MS + bytes / SLOW_BYTES_PER_MS);
    return true;
  }

  #heard() {
    this.#stopWaiting();
    this.#heardAt = Date.now();
    this.#maySilentMs = SILENT_MS;
  }

  #stopWaiting() {
    clearTimeout(this.#unanswered);
    this.#unanswered = null;
  }

  async open() {
    if (this.#socket !== null || this.#isConnecting) return;
    clearTimeout(this.#timer);
    this.#isConnecting = true;
    try {
      const token = await this.#identity.token();
      this.#connect(token);
    } catch (error) {
      if (!(error instanceof SignInNeeded)) this.#again();
    } finally {
      this.#isConnecting = false;
    }
  }

  close() {
    clearTimeout(this.#timer);
    this.#lose();
  }

  /** A new connection in the place of this one. */
  reopen() {
    this.close();
    this.open();
  }

  #connect(token) {
    const address = new URL(this.#path, location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    // Browsers send no headers here. The server answers to the first one, as it has to answer to one of them.
    const protocols = token ? ["realtime", `openai-insecure-api-key.${token}`] : [];
    const socket = new WebSocket(address, protocols);
    this.#socket = socket;
    const patience = setTimeout(() => this.#lost(socket), PATIENCE_MS);
    socket.addEventListener("open", () => {
      clearTimeout(patience);
      if (socket !== this.#socket) return;
      this.#openedAt = Date.now();
      this.#heardAt = Date.now();
      this.generation += 1;
      this.dispatchEvent(new Event("open"));
    });
    socket.addEventListener("message", ({ data }) => {
      if (socket !== this.#socket) return;
      this.#heard();
      this.dispatchEvent(new CustomEvent("message", { detail: JSON.parse(data) }));
    });
    socket.addEventListener("close", async ({ code, reason }) => {
      clearTimeout(patience);
      if (socket !== this.#socket) return;
      // A login that has run out is renewed without a pause.
      if (code === UNAUTHENTICATED && (await this.#identity.refused(token)) && this.#isSteady) return this.reopen();
      if (code === FORBIDDEN) this.dispatchEvent(new CustomEvent("refused", { detail: reason }));
      this.#lost(socket);
    });
  }

  #lost(socket) {
    if (socket !== this.#socket) return;
    this.#lose();
    this.#again();
  }

  #lose() {
    const socket = this.#socket;
    this.#socket = null;
    this.#stopWaiting();
    if (socket === null) return;
    if (this.#isSteady) this.#tries = 0;
    this.#openedAt = 0;
    socket.close();
    this.dispatchEvent(new Event("close"));
  }

  #again() {
    const delay = DELAYS_MS[Math.min(this.#tries, DELAYS_MS.length - 1)];
    this.#tries += 1;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.open(), delay * (0.75 + Math.random() / 2));
  }

  #hurry() {
    this.#look();
    if (this.#socket === null) this.open();
  }

  #look() {
    const slept = Date.now() - this.#lookedAt > SLEPT_MS + (document.hidden ? 60_000 : 0);
    this.#lookedAt = Date.now();
    if (!this.isOpen) return;
    if (slept) return this.reopen();
    if (!this.isAwaited()) this.#heardAt = Date.now();
    if (Date.now() - this.#heardAt < this.#maySilentMs) return;
    // A browser does not tell of a connection that is dead without a word, nor of the server's pings.
    this.#maySilentMs *= 2;
    this.reopen();
  }
}
