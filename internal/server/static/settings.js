/** How models are to answer: kept in this browser for each person, sent with every message. */

import { openDialog } from "./dialogs.js";
import { el } from "./dom.js";
import { keep, move, recall } from "./kept.js";
import { say, sayError } from "./words.js";

/** Of guests. */
const PLACE = "sluice.settings";

/** What a guest has set goes along when they sign in; of what a user has, nobody else finds anything. */
export class Settings {
  #place;
  #isOpening = false;

  /** `person`: which user that is, null for a guest. */
  constructor(person) {
    this.#place = person === null ? PLACE : `${PLACE}.${person}`;
    if (person !== null) move(PLACE, this.#place);
  }

  /** The fields of `response.create` that the person has set. */
  get fields() {
    const { temperature, maxTokens, system } = recall(this.#place, {});
    return {
      ...(Number.isFinite(temperature) ? { temperature } : {}),
      ...(Number.isFinite(maxTokens) ? { max_output_tokens: maxTokens } : {}),
      ...(system ? { instructions: system } : {}),
    };
  }

  async open(api) {
    if (this.#isOpening) return;
    this.#isOpening = true;
    const upstream = await Upstream.of(api).catch(() => null); // what is kept here can be set all the same
    this.#isOpening = false;
    const kept = recall(this.#place, {});
    const temperature = el("input", { type: "number", min: 0, max: 2, step: "any", placeholder: say("modelDefault") });
    const maxTokens = el("input", { type: "number", min: 1, step: 1, placeholder: say("modelDefault") });
    const system = el("textarea", { rows: 5, placeholder: say("systemHint") });
    temperature.value = kept.temperature ?? "";
    maxTokens.value = kept.maxTokens ?? "";
    system.value = kept.system ?? "";
    const problem = el("p", { class: "problem", role: "alert", hidden: true });
    const form = el(
      "form",
      {},
      el("label", {}, say("temperature"), temperature),
      el("label", {}, say("maxTokens"), maxTokens),
      el("label", {}, say("system"), system),
      upstream?.element,
      problem,
      el("div", { class: "buttons end" }, el("button", { class: "button main", text: say("save") })),
    );
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const number = (field) => (field.value === "" ? null : field.valueAsNumber);
      const set = { temperature: number(temperature), maxTokens: number(maxTokens), system: system.value.trim() };
      keep(this.#place, set);
      try {
        await upstream?.save();
        dialog.close();
      } catch (error) {
        problem.textContent = sayError(error);
        problem.hidden = false;
      }
    });
    const { dialog, closed } = openDialog(say("settings"), form);
    await closed;
  }
}

/** A server of the person's own that one of the models asks: kept by this server, where its operator allows it. */
class Upstream {
  #api;
  #config;
  #url = el("input", { type: "url", maxlength: 2048, autocapitalize: "none", spellcheck: "false" });
  #key = el("input", { type: "password", maxlength: 4096, autocomplete: "off" });
  #model = el("input", { type: "text", maxlength: 64, autocapitalize: "none", spellcheck: "false" });

  /** null where it is not allowed. Throws ApiError. */
  static async of(api) {
    const config = await api.call("GET", "/api/config");
    return config.upstream_model ? new Upstream(api, config) : null;
  }

  constructor(api, config) {
    this.#api = api;
    this.#config = config;
    this.#url.value = config.upstream_url ?? "";
    this.#model.value = config.upstream_url ? (config.model ?? "") : "";
    this.#key.placeholder = config.upstream_key ?? "";
    this.element = el(
      "fieldset",
      {},
      el("legend", { text: say("upstream") }),
      el("p", { class: "hint", text: say("upstreamHint", { model: config.upstream_model }) }),
      el("label", {}, say("upstreamUrl"), this.#url),
      el("label", {}, say("upstreamKey"), this.#key),
      el("label", {}, say("upstreamModel"), this.#model),
    );
  }

  /** Throws ApiError. */
  async save() {
    const url = this.#url.value.trim() || null;
    const had = this.#config.upstream_url !== null;
    const key = this.#key.value ? { upstream_key: this.#key.value } : {};
    if (url !== null) {
      await this.#api.call("POST", "/api/config", { upstream_url: url, model: this.#model.value.trim() || null, ...key });
    } else if (had) {
      await this.#api.call("POST", "/api/config", { upstream_url: null, upstream_key: null, model: null });
    }
  }
}
