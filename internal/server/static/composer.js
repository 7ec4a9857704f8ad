/** Where a person writes: the message, its files, and the buttons that send and stop. */

import { ApiError } from "./api.js";
import { el, iconButton, isOfInputMethod } from "./dom.js";
import { say, sayError } from "./words.js";

const MAX_FILES = 16;
/** Where fingers do the typing a keyboard would cover half of the page, and what was to be read. */
export const HAS_KEYBOARD = matchMedia("(hover: hover)");
/** Else a long text is laid out three times for each letter. */
const GROWS_BY_ITSELF = CSS.supports("field-sizing", "content");
/** Whether more than that runs from the right takes Chromium seconds to tell, in one long line. */
const LONG_CHARS = 20_000;

/** `actions`: {send({text, files}), stop, fail}. A file: {name, part}, `part` as the API takes it. */
export class Composer {
  #api;
  #actions;
  #uploads = [];
  #isBusy = false;
  #isComposing = false;
  #area = el("textarea", { id: "message", rows: 1, "aria-label": say("message"), placeholder: say("message"), autofocus: true, dir: "auto" });
  #chips = el("ul", { class: "chips", hidden: true });
  #chooser = el("input", { type: "file", multiple: true, hidden: true, tabindex: "-1", "aria-label": say("attach") });
  #send;
  #stop;

  constructor({ api, models, openSettings, actions }) {
    this.#api = api;
    this.#actions = actions;
    this.#send = iconButton("send", say("send"), () => this.#submit(), { class: "main" });
    this.#stop = iconButton("stop", say("stop"), () => actions.stop(), { class: "main", hidden: true });
    const tools = el(
      "div",
      { class: "tools" },
      iconButton("attach", say("attach"), () => this.#chooser.click()),
      iconButton("settings", say("settings"), openSettings),
      models.element,
      el("span", { class: "space" }),
      this.#stop,
      this.#send,
    );
    this.element = el("form", { class: "composer" }, this.#chips, this.#area, tools, this.#chooser);
    this.element.addEventListener("submit", (event) => event.preventDefault());
    this.#area.addEventListener("compositionstart", () => (this.#isComposing = true));
    this.#area.addEventListener("compositionend", () => (this.#isComposing = false));
    this.#area.addEventListener("keydown", (event) => this.#key(event));
    this.#area.addEventListener("input", () => this.#grow());
    this.#area.addEventListener("paste", (event) => {
      if (event.clipboardData?.files.length) {
        event.preventDefault();
        this.attach(event.clipboardData.files);
      }
    });
    this.#chooser.addEventListener("change", () => {
      this.attach(this.#chooser.files);
      this.#chooser.value = "";
    });
  }

  focus() {
    this.#area.focus();
  }

  /** What was being written in another chat stays there. */
  get draft() {
    return { text: this.#area.value, uploads: this.#uploads };
  }

  set draft({ text, uploads }) {
    this.#area.value = text;
    this.#uploads = uploads;
    this.#grow();
    this.#showUploads();
  }

  /** A message that was not sent, in front of what is being written. A file: {name, part}. */
  takeUp(text, files) {
    const uploads = files.map(({ name, part }) => ({ name, part, progress: 1, error: null, stop: new AbortController() }));
    this.draft = { text: [text, this.#area.value].filter(Boolean).join("\n\n"), uploads: [...uploads, ...this.#uploads] };
    this.focus();
  }

  set isBusy(isBusy) {
    this.#isBusy = isBusy;
    if (!isBusy && document.activeElement === this.#stop) this.focus();
    this.#stop.hidden = !isBusy;
    this.#update();
  }

  attach(files) {
    if (files.length > MAX_FILES - this.#uploads.length) this.#actions.fail(new ApiError(say("tooManyFiles", { count: MAX_FILES })));
    for (const file of [...files].slice(0, MAX_FILES - this.#uploads.length)) {
      const upload = { name: file.name, progress: 0, part: null, error: null, stop: new AbortController() };
      this.#uploads.push(upload);
      this.#api
        .upload(file, (progress) => {
          upload.progress = progress;
          this.#showUploads();
        }, upload.stop.signal)
        .then((object) => (upload.part = partOf(object)))
        .catch((error) => (upload.error = error))
        .finally(() => this.#showUploads());
    }
    this.#showUploads();
  }

  #showUploads() {
    const chips = this.#uploads.map((upload) => {
      const { name, progress, part, error } = upload;
      const words = error !== null
        ? say("fileFailed", { name, why: sayError(error) })
        : part === null ? say("uploading", { name, percent: Math.round(progress * 100) }) : name;
      const remove = iconButton("close", say("remove", { name }), () => {
        upload.stop.abort();
        this.#uploads = this.#uploads.filter((it) => it !== upload);
        this.#showUploads();
        this.focus();
      });
      return el("li", { class: error === null ? "chip" : "chip bad" }, el("span", { class: "ellipsis", text: words }), remove);
    });
    this.#chips.replaceChildren(...chips);
    this.#chips.hidden = chips.length === 0;
    this.#update();
  }

  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || this.#isComposing || isOfInputMethod(event)) return;
    event.preventDefault();
    this.#submit();
  }

  #submit() {
    const text = this.#area.value.trim();
    const good = this.#uploads.filter((upload) => upload.error === null);
    if (good.some((upload) => upload.part === null)) return this.#actions.fail(new ApiError(say("attachLater")));
    if (!text && !good.length) return;
    try {
      this.#actions.send({ text, files: good });
    } catch (error) {
      return this.#actions.fail(error);
    }
    if (document.activeElement === this.#send && HAS_KEYBOARD.matches) this.focus();
    this.draft = { text: "", uploads: [] };
  }

  #update() {
    const isEmpty = !this.#area.value.trim() && !this.#uploads.some((upload) => upload.error === null);
    this.#send.disabled = isEmpty;
    this.#send.hidden = this.#isBusy && isEmpty;
  }

  #grow() {
    this.#area.dir = this.#area.value.length > LONG_CHARS ? "" : "auto";
    if (!GROWS_BY_ITSELF) {
      this.#area.style.height = "auto";
      this.#area.style.height = `${this.#area.scrollHeight}px`;
    }
    this.#update();
  }
}

function partOf({ id, filename, media_type: type }) {
  return type?.startsWith("image/") ? { type: "input_image", file_id: id } : { type: "input_file", file_id: id, filename };
}
