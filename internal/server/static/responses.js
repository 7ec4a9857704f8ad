/**
 * Answers as they are made: what each has said so far, followed over one connection and, when that breaks, from the
 * very event on over the next. Knows the Responses API, no page.
 */

import { ApiError } from "./api.js";

const RETRY_MS = 1500;
const ENDED = new Set(["completed", "incomplete", "failed", "cancelled"]);

/** One answer. Tells with the events `text`, `thought` (`detail`: what was added) and `change`. */
export class Answer extends EventTarget {
  text = "";
  thoughts = "";
  /** Where it waits: {position}, {prefill: {processed, total}} or {loading}; null: it does not, or not any more. */
  queue = null;
  error = null;
  usage = null;
  /** The number of the last event that was seen. */
  last = -1;
  /** When the first and the last token came, and how many events of them: as this page saw it. */
  firstAt = null;
  lastAt = null;
  pieces = 0;
  thoughtSeconds = null;
  /** Whether this page has heard it from its beginning, as it was made: else it cannot tell how fast that was. */
  isLive = false;

  constructor(response) {
    super();
    this.id = response.id;
    this.model = response.model;
    this.batch = response.batch ?? null;
    this.metadata = response.metadata ?? {};
    this.load(response);
  }

  get isDone() {
    return ENDED.has(this.status);
  }

  /** Tokens a second; null where that is not known. */
  get rate() {
    const seconds = this.firstAt === null ? 0 : (this.lastAt - this.firstAt) / 1000;
    if (seconds < 0.3 || !this.isLive) return null;
    const tokens = this.isDone ? this.usage?.output_tokens : this.pieces;
    return tokens > 1 ? (tokens - 1) / seconds : null;
  }

  /** Take over what a response object says. */
  load(response) {
    this.status = response.status;
    this.usage = response.usage ?? this.usage;
    this.reason = response.incomplete_details?.reason ?? null;
    this.error = response.error && new ApiError(response.error.message, { code: response.error.code });
    const output = response.output ?? [];
    const said = (type) =>
      output.filter((item) => item.type === type).flatMap((item) => item.content ?? []).map((part) => part.text).join("");
    if (this.isDone) this.#complete(said("message"), said("reasoning"));
  }

  /** When it was made, in milliseconds, as the server has it. */
  timed(firstAt, lastAt) {
    [this.firstAt, this.lastAt, this.isLive] = [firstAt, lastAt, true];
    this.#changed();
  }

  /** What was said is what we heard, but where we could not listen. */
  #complete(text, thoughts) {
    if (thoughts.startsWith(this.thoughts)) this.#think(thoughts.slice(this.thoughts.length));
    if (text.startsWith(this.text)) this.#say(text.slice(this.text.length));
    this.queue = null;
    this.#changed();
  }

  /** An event of its log, or of its place in the queue. What is known already changes nothing. */
  apply(event) {
    if (this.isDone) return; // the whole of it was read elsewhere, and came first
    const number = event.sequence_number;
    if (number !== undefined) {
      if (number <= this.last) return;
      this.last = number;
    }
    switch (event.type) {
      case "response.output_text.delta":
        this.#came();
        this.#say(event.delta);
        break;
      case "response.reasoning_text.delta":
        this.#came();
        this.#think(event.delta);
        break;
      case "response.queue":
        if (this.pieces > 0) break;
        this.queue = { position: event.position, prefill: event.prefill ?? null, loading: event.loading ?? null };
        this.#changed();
        break;
      case "response.queued":
        this.queue = { position: event.queue?.position ?? 0, note: event.queue?.message ?? null };
        this.#changed();
        break;
      case "response.created":
      case "response.in_progress":
        this.status = event.response.status;
        this.#changed();
        break;
      case "response.completed":
      case "response.incomplete":
      case "response.failed":
        this.load(event.response);
        break;
    }
  }

  #came() {
    this.lastAt = performance.now();
    this.firstAt ??= this.lastAt;
    this.pieces += 1;
    if (this.queue !== null) {
      this.queue = null;
      this.#changed();
    }
  }

  #say(delta) {
    if (!delta) return;
    const isFirst = this.text === "";
    if (isFirst && this.thoughts && this.isLive && !this.isDone) {
      this.thoughtSeconds = Math.max(1, Math.round((this.lastAt - this.firstAt) / 1000));
    }
    this.text += delta;
    this.dispatchEvent(new CustomEvent("text", { detail: delta }));
    if (isFirst) this.#changed();
  }

  #think(delta) {
    if (!delta) return;
    const isFirst = this.thoughts === "";
    this.thoughts += delta;
    this.dispatchEvent(new CustomEvent("thought", { detail: delta }));
    if (isFirst) this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

/**
 * All answers that are followed. Tells with events: `accepted` (`detail`: {lane, answer}) when the server has
 * taken what was asked in a lane of ours, and `refused` ({lane, error}).
 */
export class Responses extends EventTarget {
  #link;
  #api;
  #byLane = new Map();
  #running = new Map();
  /** Ids of those that were stopped and have not ended yet: the connection may break before the server hears it. */
  #stopped = new Set();

  constructor(link, api) {
    super();
    this.#link = link;
    this.#api = api;
    link.isAwaited = () => this.#running.size > 0;
    link.addEventListener("open", () => this.#resumeAll());
    link.addEventListener("message", ({ detail }) => this.#hear(detail));
  }

  /** Ask. `lane` is the asker's own name for it, in which the answer comes. Whether it went. */
  create(lane, fields) {
    return this.#link.send({ type: "response.create", stream_id: lane, include: ["queue"], background: true, ...fields }, true);
  }

  /** The answer that a response object tells of: the one that is followed, where it is. */
  of(response) {
    return this.#running.get(response.id) ?? new Answer(response);
  }

  async stop(answer) {
    if (this.#running.has(answer.id)) this.#stopped.add(answer.id);
    if (this.#cancel(answer)) return;
    await this.#api.call("POST", `/v1/responses/${answer.id}/cancel`);
  }

  #cancel(answer) {
    return this.#link.send({ type: "response.cancel", response_id: answer.id });
  }

  /** Follow an answer that was begun elsewhere: by another tab, or by this page before it was loaded again. */
  follow(answer) {
    if (answer.isDone || this.#running.has(answer.id)) return;
    this.#running.set(answer.id, answer);
    if (this.#link.isOpen) this.#resume(answer);
  }

  #resumeAll() {
    this.#byLane.clear();
    for (const answer of this.#running.values()) {
      if (answer.isDone) {
        this.#done(answer, answer.id);
        continue;
      }
      this.#resume(answer);
      if (this.#stopped.has(answer.id)) this.#cancel(answer);
    }
  }

  #resume(answer) {
    const lane = answer.id;
    this.#byLane.set(lane, answer);
    const after = answer.last < 0 ? {} : { starting_after: answer.last };
    this.#link.send({ type: "response.resume", response_id: answer.id, stream_id: lane, include: ["queue"], ...after });
  }

  #hear(event) {
    const lane = event.stream_id;
    if (event.type === "error") return this.#refused(lane, event);
    let answer = this.#byLane.get(lane);
    if (answer === undefined || (event.response && event.response.id !== answer.id)) {
      if (event.type !== "response.queued") return;
      // A list of turns may have told of it before this did: then it is on the page already.
      answer = this.of(event.response);
      answer.isLive = true;
      this.#byLane.set(lane, answer);
      this.#running.set(answer.id, answer);
      answer.apply(event);
      this.dispatchEvent(new CustomEvent("accepted", { detail: { lane, answer } }));
      return;
    }
    answer.apply(event);
    if (answer.isDone) this.#done(answer, lane);
  }

  #done(answer, lane) {
    this.#byLane.delete(lane);
    this.#running.delete(answer.id);
    this.#stopped.delete(answer.id);
  }

  #refused(lane, { error, status }) {
    const refusal = ApiError.of({ error }, status);
    const answer = this.#byLane.get(lane);
    if (answer === undefined) {
      this.dispatchEvent(new CustomEvent("refused", { detail: { lane, error: refusal } }));
      return;
    }
    this.#byLane.delete(lane);
    if (this.#isHeard(answer)) return; // it comes in the lane that it was asked in
    this.#look(answer);
  }

  #isHeard(answer) {
    return [...this.#byLane.values()].includes(answer);
  }

  /** It cannot be followed: it has ended for long, its server was lost with it, or there are too many. */
  async #look(answer) {
    try {
      const response = await this.#api.call("GET", `/v1/responses/${answer.id}`);
      answer.load(response);
    } catch (error) {
      if (error.status === 404) answer.load({ status: "failed", error });
    }
    if (answer.isDone) return this.#done(answer, answer.id);
    setTimeout(() => {
      if (this.#link.isOpen && this.#running.has(answer.id) && !this.#isHeard(answer)) this.#resume(answer);
    }, RETRY_MS);
  }
}
