/** Who the person is: a user with tokens, or a guest with one. Knows no page. */

import { Api, ApiError } from "./api.js";
import { keep, recall } from "./kept.js";

const PLACE = "sluice.identity";
/** A token is renewed before it ends: so long, or half of its time where that is short. */
const EARLY_MS = 60_000;

/** Nobody may come in who does not sign in. */
export class SignInNeeded extends ApiError {
  constructor() {
    super("sign in first", { code: "sign_in_needed", status: 401 });
  }
}

/**
 * Kept in localStorage, so that all tabs are the same person. Tells with the event `change` that it is another one now,
 * or nobody; `detail`: {isSignOut}, whether the person wanted to be nobody. From then on there are no tokens here any
 * more: a page is of one person, and what it still has to say nobody else says.
 */
export class Identity extends EventTarget {
  #api = new Api();
  #getting = null;
  #nameAtStart = null;

  /** What the server lets people do; null where it keeps nothing, and so knows nobody. */
  rules = null;

  async start() {
    try {
      this.rules = await this.#api.call("GET", "/api/v1/auth");
    } catch (error) {
      if (error.status !== 404) throw error;
    }
    this.#nameAtStart = this.name;
    addEventListener("storage", (event) => {
      if (event.key === null) return this.#changed(); // all was cleared
      if (event.key !== PLACE) return;
      const before = personIn(event.oldValue);
      const isAnother = before !== undefined && before !== personIn(event.newValue);
      if (isAnother || this.name !== this.#nameAtStart) this.#changed();
    });
  }

  /** The name of the user; null: a guest. */
  get name() {
    return this.#kept.name ?? null;
  }

  /** The name as it is compared: the server knows a user however that is written. null: a guest. */
  get person() {
    return this.name?.normalize("NFKC").toLowerCase() ?? null;
  }

  get isKnown() {
    const { access, refresh } = this.#kept;
    return Boolean(access || refresh) || this.rules.guests;
  }

  /** A token that is good now. Throws SignInNeeded, and ApiError. */
  async token() {
    this.#checkPerson();
    const { access, until, early } = this.#kept;
    if (access && (!until || until - (early ?? EARLY_MS) > Date.now())) return access;
    this.#getting ??= this.#exclusively(() => this.#renew(access)).finally(() => (this.#getting = null));
    return this.#getting;
  }

  /** Throws SignInNeeded where it is somebody else by now. */
  #checkPerson() {
    if (this.name !== this.#nameAtStart) throw new SignInNeeded();
  }

  /** `token` was refused. Whether there is another one now. */
  async refused(token) {
    const { access, refresh, name } = this.#kept;
    const isLost = access === token && !refresh && name === undefined; // a guest whom the server does not know any more
    if (isLost) this.#keep({});
    else if (access === token) this.#keep({ ...this.#kept, access: null });
    try {
      const isGood = Boolean(await this.token());
      if (isLost) this.#changed();
      return isGood;
    } catch (error) {
      if (error instanceof SignInNeeded) this.#changed();
      return false;
    }
  }

  /** What a guest has said goes along. Throws ApiError. */
  async signIn(name, password) {
    const as = new Api(this.#asGuest());
    const tokens = await as.call("POST", "/api/v1/auth/login", { username: name, password });
    this.#keep({ ...read(tokens), name });
    this.#changed();
  }

  async register(name, email, password) {
    const as = new Api(this.#asGuest());
    await as.call("POST", "/api/v1/auth/register", { username: name, email, password });
    await this.signIn(name, password);
  }

  signOut() {
    const { refresh } = this.#kept;
    this.#keep({});
    if (refresh) {
      // It goes out although the page ends: who leaves waits for nothing.
      const body = JSON.stringify({ refresh_token: refresh });
      navigator.sendBeacon("/api/v1/auth/logout", new Blob([body], { type: "application/json" }));
    }
    this.#changed(true);
  }

  #asGuest() {
    const { access, name } = this.#kept;
    return { token: async () => (name === undefined ? access : null), refused: async () => false };
  }

  async #renew(spent) {
    this.#checkPerson(); // others may have had the lock before
    const { access, refresh, name, until } = this.#kept;
    if (access && access !== spent && (!until || until > Date.now())) return access; // another tab was faster
    if (refresh) {
      try {
        const tokens = read(await this.#api.call("POST", "/api/v1/auth/refresh", { refresh_token: refresh }));
        this.#renewed({ ...tokens, name });
        return tokens.access;
      } catch (error) {
        if (error.status !== 401) throw error;
        this.#renewed({});
        this.#changed();
        throw new SignInNeeded();
      }
    }
    if (!this.rules.guests) throw new SignInNeeded();
    const guest = read(await this.#api.call("POST", "/api/v1/auth/guest"));
    this.#renewed(guest);
    return guest.access;
  }

  /** Keep what came for the person of this page. Throws SignInNeeded where it is somebody else by now. */
  #renewed(kept) {
    this.#checkPerson();
    this.#keep(kept);
  }

  /** Over plain HTTP browsers have no locks: there two tabs that begin at the same moment may be two guests. */
  #exclusively(work) {
    return navigator.locks ? navigator.locks.request(PLACE, work) : work();
  }

  get #kept() {
    return recall(PLACE, {});
  }

  #keep(kept) {
    keep(PLACE, kept);
  }

  #changed(isWanted = false) {
    this.dispatchEvent(new CustomEvent("change", { detail: { isSignOut: isWanted } }));
  }
}

function read({ access_token: access, refresh_token: refresh, expires_in: seconds }) {
  const ms = seconds * 1000;
  return { access, refresh, until: Date.now() + ms, early: Math.min(EARLY_MS, ms / 2) };
}

/** Who that is: a user by name, a guest by the token; undefined: nobody yet. */
function personIn(kept) {
  try {
    const { name, access } = JSON.parse(kept) ?? {};
    return name ?? access ?? undefined;
  } catch {
    return undefined;
  }
}
