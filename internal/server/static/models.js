/** Which models are asked. One, or several side by side. */

import { show } from "./dialogs.js";
import { el, icon } from "./dom.js";
import { keep, recall } from "./kept.js";
import { say } from "./words.js";

const PLACE = "sluice.models";
const MAX_CHOSEN = 8;

export class ModelPicker {
  #api;
  #all = [];
  #chosen = [];
  #name = el("span", { class: "ellipsis" });

  constructor(api) {
    this.#api = api;
    this.element = el(
      "button",
      { type: "button", class: "button quiet models", "aria-haspopup": "dialog", "aria-expanded": "false", on: { click: () => this.#open() } },
      this.#name,
      icon("down"),
    );
    this.#show();
  }

  /** Throws ApiError. */
  async load() {
    const { data } = await this.#api.call("GET", "/v1/models");
    this.#all = data.map((model) => model.id);
    const kept = recall(PLACE, []).filter((name) => this.#all.includes(name));
    this.#chosen = kept.length ? kept : this.#all.slice(0, 1);
    this.#show();
  }

  get chosen() {
    return this.#chosen;
  }

  #choose(names) {
    this.#chosen = this.#all.filter((name) => names.includes(name)).slice(0, MAX_CHOSEN);
    keep(PLACE, this.#chosen);
    this.#show();
  }

  #show() {
    const names = this.#chosen.join(", ");
    this.#name.textContent = names || say("chooseModel");
    this.element.setAttribute("aria-label", names ? `${say("chooseModel")}: ${names}` : say("chooseModel"));
  }

  async #open() {
    await this.load().catch(() => {}); // what is known will do
    const panel = el("div", { class: "menu models-menu", role: "dialog", "aria-label": say("chooseModel"), popover: "auto" });
    const row = (name) => {
      const isChosen = this.#chosen.includes(name);
      const only = el("button", { type: "button", class: "ellipsis", "aria-pressed": String(isChosen), on: { click: () => {
        this.#choose([name]);
        panel.hidePopover();
      } } }, name);
      const box = el("input", { type: "checkbox", "aria-label": say("compare", { model: name }), title: say("compare", { model: name }) });
      box.checked = isChosen;
      box.addEventListener("change", () => {
        const names = box.checked ? [...this.#chosen, name] : this.#chosen.filter((it) => it !== name);
        if (names.length) this.#choose(names);
        else box.checked = true;
        for (const [index, other] of [...panel.querySelectorAll("button")].entries()) {
          other.setAttribute("aria-pressed", String(this.#chosen.includes(this.#all[index])));
        }
      });
      return el("div", { class: "model-row" }, only, box);
    };
    panel.append(el("p", { class: "hint", text: say("compareHint") }), ...this.#all.map(row));
    show(panel, this.element);
    panel.querySelector("[aria-pressed=true]")?.focus();
  }
}
