/** How models are to answer: kept in this browser, sent with every message. */

import { openDialog } from "./dialogs.js";
import { el } from "./dom.js";
import { say } from "./words.js";

const PLACE = "sluice.settings";

/** The fields of `response.create` that the person has set. */
export function settingFields() {
  const { temperature, maxTokens, system } = read();
  return {
    ...(Number.isFinite(temperature) ? { temperature } : {}),
    ...(Number.isFinite(maxTokens) ? { max_output_tokens: maxTokens } : {}),
    ...(system ? { instructions: system } : {}),
  };
}

export async function openSettings() {
  const kept = read();
  const temperature = el("input", { type: "number", min: 0, max: 2, step: "any", placeholder: say("modelDefault") });
  const maxTokens = el("input", { type: "number", min: 1, step: 1, placeholder: say("modelDefault") });
  const system = el("textarea", { rows: 5, placeholder: say("systemHint") });
  temperature.value = kept.temperature ?? "";
  maxTokens.value = kept.maxTokens ?? "";
  system.value = kept.system ?? "";
  const form = el(
    "form",
    { method: "dialog" },
    el("label", {}, say("temperature"), temperature),
    el("label", {}, say("maxTokens"), maxTokens),
    el("label", {}, say("system"), system),
    el("div", { class: "buttons end" }, el("button", { class: "button main", text: say("save") })),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const number = (field) => (field.value === "" ? null : field.valueAsNumber);
    const set = { temperature: number(temperature), maxTokens: number(maxTokens), system: system.value.trim() };
    localStorage.setItem(PLACE, JSON.stringify(set));
    dialog.close();
  });
  const { dialog, closed } = openDialog(say("settings"), form);
  await closed;
}

function read() {
  try {
    return JSON.parse(localStorage.getItem(PLACE)) ?? {};
  } catch {
    return {};
  }
}
