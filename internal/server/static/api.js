/** The REST API: requests, answers and errors. Knows no page. */

/** How long an answer may take. Where a network is silent a browser waits for minutes. */
const PATIENCE_MS = 15_000;

/** What a server said no with, or why there was no answer (`unreachable`). */
export class ApiError extends Error {
  constructor(message, { code = "internal_error", param = null, status = 0 } = {}) {
    super(message);
    this.code = code;
    this.param = param;
    this.status = status;
  }

  /** From the body of an error, or the inner object of one. */
  static of(body, status) {
    const { message, code, param } = body?.error ?? {};
    return new ApiError(message ?? `the server answered ${status}`, { code, param, status });
  }

  static unreachable() {
    return new ApiError("the server cannot be reached", { code: "unreachable" });
  }
}

export class Api {
  #identity;

  /** `identity` says who asks: null, or an object with `token()` and `refused(token)`. */
  constructor(identity = null) {
    this.#identity = identity;
  }

  /** The answer to `method path`: what its JSON says, null where there is none. Throws ApiError. */
  async call(method, path, body) {
    const response = await this.fetch(method, path, body, AbortSignal.timeout(PATIENCE_MS));
    try {
      return response.status === 204 ? null : await response.json();
    } catch {
      throw ApiError.unreachable(); // it broke off
    }
  }

  /** The response itself, which is one of success. Throws ApiError. */
  async fetch(method, path, body, signal, isSecond = false) {
    const token = await this.#identity?.token();
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
    } catch {
      throw ApiError.unreachable();
    }
    if (response.status === 401 && token && !isSecond && (await this.#identity.refused(token))) {
      return this.fetch(method, path, body, signal, true); // somebody again, by another token
    }
    if (!response.ok) throw ApiError.of(await response.json().catch(() => null), response.status);
    return response;
  }

  /** Upload a file; `progress` is told 0 to 1, `signal` ends it. The file object of the API. Throws ApiError. */
  async upload(file, progress, signal) {
    const form = new FormData();
    form.append("purpose", "user_data");
    form.append("file", file, file.name);
    const token = await this.#identity?.token();
    const aborted = () => new ApiError("", { code: "aborted" });
    if (signal.aborted) throw aborted();
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest(); // fetch does not tell how far it is
      request.open("POST", "/v1/files");
      if (token) request.setRequestHeader("Authorization", `Bearer ${token}`);
      request.responseType = "json";
      request.upload.addEventListener("progress", (event) => progress(event.loaded / event.total));
      request.addEventListener("load", () => {
        if (request.status < 300) resolve(request.response);
        else reject(ApiError.of(request.response, request.status));
      });
      request.addEventListener("error", () => reject(ApiError.unreachable()));
      request.addEventListener("abort", () => reject(aborted()));
      signal.addEventListener("abort", () => request.abort());
      request.send(form);
    });
  }
}

/** What a download is called; null: it has no name. Sources: RFC 6266 §4.3, RFC 8187 §3.2. */
export function nameOf(response) {
  const header = response.headers.get("Content-Disposition") ?? "";
  const extended = header.match(/filename\*=UTF-8''([^;]+)/i);
  return extended === null ? (header.match(/filename="([^"]+)"/)?.[1] ?? null) : decodeURIComponent(extended[1]);
}
