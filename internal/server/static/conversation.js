/**
 * One chat: its turns, which form a tree, and which of them are on the way to where it goes on. Knows the API, not how
 * turns look.
 */

import { randomId } from "./dom.js";

const PAGE = 30;
const NEWEST = 10;

/** What was asked, and an answer. `previous` is the turn that it continues; one that is `aside` is not shown. */
class Turn {
  constructor({ id, previous_response_id: previous, input, aside, response, created_at: createdAt }, answer) {
    this.id = id;
    this.previous = previous;
    this.input = input;
    this.aside = aside;
    this.answer = answer;
    this.batch = response?.batch ?? null;
    this.createdAt = createdAt ?? response?.created_at ?? null;
  }

  get hasFailed() {
    return this.answer !== null && this.answer.status === "failed";
  }

  get isRunning() {
    return this.answer !== null && !this.answer.isDone;
  }
}

/** Turns that ask the same of several models; mostly there is one. */
class Group {
  variants = [];

  constructor(key, turns) {
    this.key = key;
    this.turns = turns.sort((one, other) => (one.batch?.position ?? 0) - (other.batch?.position ?? 0));
  }

  get input() {
    return this.turns[0].input;
  }

  get previous() {
    return this.turns[0].previous;
  }

  get isRunning() {
    return this.turns.some((turn) => turn.isRunning);
  }

  get hasFailed() {
    return this.turns.every((turn) => turn.hasFailed);
  }

  get isAside() {
    return this.turns.every((turn) => turn.aside);
  }
}

const keyOf = (turn) => turn.batch?.id ?? turn.id;
const byId = (one, other) => (one.id < other.id ? -1 : 1);

/** Tells with the events `change`, and `end` ({answer}) when an answer is complete. */
export class Conversation extends EventTarget {
  #api;
  #responses;
  #turns = new Map();
  #loading = null;
  /** How often it has gone on from elsewhere by what was done here, and how often it is about to. */
  #moves = 0;
  #moving = 0;
  /** How often turns were asked for, and which time of these is the last one that was heard of. */
  #asked = 0;
  #heard = 0;
  /** The turns that were here before the last ones, as long as it is not known whether there are others between. */
  #known = null;

  id;
  /** What it is called here while it has no id yet. */
  place;
  head = null;
  hasOlder = false;
  isLoaded;

  /** Without an `id` it is not begun yet; `place`: what it was called before the page was loaded again. */
  constructor(api, responses, id, place) {
    super();
    this.#api = api;
    this.#responses = responses;
    this.id = id;
    this.place = place ?? randomId();
    this.isLoaded = id === null;
  }

  get isEmpty() {
    return this.isLoaded && this.#turns.size === 0;
  }

  get isBusy() {
    return this.running.length > 0;
  }

  /** Whether nothing can be asked yet: behind an answer that runs, or from elsewhere as soon as the server knows. */
  get mustWait() {
    return this.isBusy || this.#moving > 0;
  }

  hasAnswerTo(messageId) {
    return [...this.#turns.values()].some((turn) => turn.answer?.metadata.message_id === messageId);
  }

  get running() {
    return [...this.#turns.values()].filter((turn) => turn.isRunning).map((turn) => turn.answer);
  }

  /** The newest turns. Throws ApiError. */
  async load() {
    this.#loading ??= this.#read(PAGE).finally(() => (this.#loading = null));
    await this.#loading;
    this.isLoaded = true;
    this.#changed();
  }

  /** What is new since: another tab, or another program, may have gone on. Throws ApiError. */
  async refresh() {
    if (this.id === null) return;
    if (!this.isLoaded) return this.load();
    const { hasOlder } = this;
    const known = (this.#known ??= new Set(this.#turns.keys()));
    const isApart = ({ has_more: hasMore, data }) => known.size > 0 && hasMore && !data.some((turn) => known.has(turn.id));
    let page = await this.#read(NEWEST);
    // More may be new than one page holds.
    while (isApart(page)) page = await this.#read(PAGE, page.data.map((turn) => turn.id).sort()[0]);
    this.#known = null;
    if (known.size > 0) this.hasOlder = hasOlder;
    this.#changed();
  }

  async loadOlder() {
    const oldest = [...this.#turns.keys()].sort()[0];
    await this.#read(PAGE, oldest);
    this.#changed();
  }

  async #read(limit, after = null) {
    const behind = after === null ? "" : `&after=${after}`;
    const moves = this.#moves;
    const asked = (this.#asked += 1);
    const page = await this.#api.call("GET", `/v1/conversations/${this.id}/turns?limit=${limit}${behind}`);
    // It may tell of where one was before.
    if (moves !== this.#moves || asked < this.#heard) return this.#read(limit, after);
    this.#heard = asked;
    this.head = page.head_id;
    if (after !== null || this.#turns.size === 0) this.hasOlder = page.has_more;
    for (const found of page.data) this.#take(found);
    return page;
  }

  #take(found) {
    const known = this.#turns.get(found.id);
    if (known !== undefined) {
      known.previous = found.previous_response_id;
      known.aside = found.aside;
      known.input = found.input;
      if (known.isRunning && found.response) known.answer.load(found.response);
    } else {
      this.#add(new Turn(found, found.response ? this.#responses.of(found.response) : null));
    }
    const { id, first_token_at: firstAt, ended_at: endedAt } = found;
    if (firstAt && endedAt) this.#turns.get(id).answer?.timed(firstAt * 1000, endedAt * 1000);
  }

  /** What was asked here, in `message`, has got an answer that begins; null: it is known to the server only. Throws ApiError. */
  async join(answer, message) {
    if (answer === null) return this.refresh();
    if (!this.isLoaded) await this.load();
    if (this.#turns.has(answer.id)) return;
    const { input, replaces } = message.fields;
    const beside = replaces && this.#turns.get(replaces);
    const previous = beside ? beside.previous : this.head;
    const items = typeof input === "string" ? question(input) : input;
    const response = { batch: answer.batch, created_at: Date.now() / 1000 };
    const turn = new Turn({ id: answer.id, previous_response_id: previous, input: items, aside: false, response }, answer);
    this.#add(turn);
    if (beside) this.#goTo(turn);
    this.#changed();
  }

  #add(turn) {
    this.#turns.set(turn.id, turn);
    const { answer } = turn;
    if (answer === null || answer.isDone) return;
    const look = () => {
      if (!answer.isDone) return;
      answer.removeEventListener("change", look);
      this.dispatchEvent(new CustomEvent("end", { detail: { answer } }));
      this.#changed();
      this.refresh().catch(() => {}); // where it goes on from now; it is asked again at the next turn
    };
    answer.addEventListener("change", look);
    this.#responses.follow(answer);
  }

  /**
   * What is to be shown, the oldest first. Each group knows its `variants`, itself among them: other answers to the
   * same, or other words in its place.
   */
  get groups() {
    const all = this.#grouped();
    const families = new Map();
    for (const group of all) {
      const parent = this.#parentKey(group);
      if (families.has(parent)) families.get(parent).push(group);
      else families.set(parent, [group]);
    }
    const shown = all.filter((group) => !group.isAside);
    for (const group of shown) {
      const family = families.get(this.#parentKey(group));
      group.variants = family.filter((it) => it === group || (it.isAside && !it.hasFailed));
    }
    return shown;
  }

  /** What it began with, as far as that is known. */
  get opening() {
    const first = this.hasOlder ? undefined : this.groups[0];
    return first === undefined ? "" : textOf(first.input);
  }

  #grouped() {
    const found = new Map();
    for (const turn of [...this.#turns.values()].sort(byId)) {
      const key = keyOf(turn);
      if (found.has(key)) found.get(key).push(turn);
      else found.set(key, [turn]);
    }
    return [...found].map(([key, members]) => new Group(key, members));
  }

  #parentKey({ previous }) {
    const turn = this.#turns.get(previous);
    return turn ? keyOf(turn) : previous;
  }

  /** Show another version of a turn, with what came behind it, and go on from there. Throws ApiError. */
  async switchTo(group) {
    const all = this.#grouped();
    let leaf = group;
    for (let next = leaf; next !== undefined; ) {
      leaf = next;
      next = all.filter((it) => !it.hasFailed && this.#parentKey(it) === leaf.key).at(-1);
    }
    const turn = leaf.turns.find((it) => it.id === this.head) ?? leaf.turns.find((it) => !it.hasFailed);
    await this.#move(`/conversations/${this.id}`, { head: turn.id }, () => {
      this.head = turn.id;
      this.#goTo(turn);
    });
  }

  /** Of several answers, go on from this one. Throws ApiError. */
  async choose(turn) {
    await this.#move(`/v1/batches/${turn.batch.id}`, { chosen: turn.id }, () => {
      this.#moves += 1;
      this.head = turn.id;
    });
  }

  async #move(path, change, done) {
    this.#moving += 1;
    try {
      await this.#api.call("PATCH", path, change);
      done();
    } finally {
      this.#moving -= 1;
      this.#changed();
    }
  }

  /** Whether the chat goes on from this turn, or has gone on from it. */
  isOnPath(turn) {
    return this.head === turn.id || [...this.#turns.values()].some((it) => it.previous === turn.id && !it.aside);
  }

  /** Set aside what is not on the way to `tip`. */
  #goTo(tip) {
    this.#moves += 1;
    const onPath = new Set();
    for (let turn = tip; turn !== undefined; turn = this.#turns.get(turn.previous)) onPath.add(keyOf(turn));
    for (const turn of this.#turns.values()) turn.aside = !onPath.has(keyOf(turn));
  }

  async stop() {
    await Promise.all(this.running.map((answer) => this.#responses.stop(answer)));
  }

  async stopOne(answer) {
    await this.#responses.stop(answer);
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

/** What a person has written in a turn. */
export function textOf(input) {
  return partsOf(input).filter((part) => part.type === "input_text").map((part) => part.text).join("\n\n");
}

/** What is attached to a turn: parts of the kinds `input_file` and `input_image`. */
export function filesOf(input) {
  return partsOf(input).filter((part) => part.type === "input_file" || part.type === "input_image");
}

const partsOf = (input) => input.filter((item) => item.type === "message" && item.role === "user").flatMap((item) => item.content ?? []);

/** What a person asks, as it is sent: `text`, which may be empty, and parts of what is attached. */
export function question(text, parts = []) {
  return [{ type: "message", role: "user", content: [...(text ? [{ type: "input_text", text }] : []), ...parts] }];
}

/** The same again, with other words. */
export function withText(input, text) {
  return question(text, filesOf(input).map(asSent));
}

/** As it is sent, of what was stored: a file is named by its id, where it has one. */
export function asSent(part) {
  const { type, file_id, filename, file_data, image_url } = part;
  const named = type === "input_file" ? { filename } : {};
  if (file_id) return { type, file_id, ...named };
  return type === "input_file" ? { type, file_data, ...named } : { type, image_url };
}
