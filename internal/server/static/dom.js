/** Makes elements. Knows nothing of what they show. */

const SVG = "http://www.w3.org/2000/svg";

/** Paths of icons, drawn with a line 2 wide in a square of 24. */
const ICONS = {
  attach: "M21 11l-9 9a5 5 0 0 1-7-7l9-9a3.5 3.5 0 0 1 5 5l-9 9a2 2 0 0 1-3-3l8-8",
  back: "M15 18l-6-6 6-6",
  check: "M4 12l6 6L20 6",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  down: "M6 9l6 6 6-6",
  edit: "M4 20h4L19 9l-4-4L4 16z",
  error: "M12 8v5M12 16.5v.5M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z",
  menu: "M4 6h16M4 12h16M4 18h16",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  next: "M9 6l6 6-6 6",
  pick: "M5 12h14M13 6l6 6-6 6",
  plus: "M12 5v14M5 12h14",
  retry: "M20 12a8 8 0 1 1-2.5-5.8M20 3v4h-4",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM21 21l-5-5",
  send: "M12 20V5M5 12l7-7 7 7",
  settings: "M4 7h10M18 7h2M4 17h2M10 17h10M14 5v4M10 15v4M6 15v4",
  stop: "M7 7h10v10H7z",
  user: "M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM4 21c0-4 4-6 8-6s8 2 8 6",
};

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: `icon icon-${name}`, "aria-hidden": "true" })) {
    svg.setAttribute(key, value);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/**
 * An element. Of `attributes`, `text` is its content, `on` its listeners, true and false say whether one is there, and
 * one that is null or undefined is left out, as such children are.
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A button that shows an icon, and is called `label`. */
export function iconButton(name, label, click, attributes = {}) {
  const { class: more = "", ...others } = attributes;
  const options = { type: "button", class: `icon-button ${more}`.trim(), "aria-label": label, title: label, ...others };
  return el("button", { ...options, on: { click } }, icon(name));
}

export function button(label, click, attributes = {}) {
  return el("button", { type: "button", class: "button", ...attributes, on: { click } }, label);
}

/** Calls `work` at the next frame, once however often it is asked; soon, where there are no frames. */
export function onFrame(work) {
  let isDue = false;
  return () => {
    if (isDue) return;
    isDue = true;
    const run = () => {
      isDue = false;
      work();
    };
    if (document.hidden) setTimeout(run, 250);
    else requestAnimationFrame(run);
  };
}

/** Whether a key is the input method's. In Safari the one that ends a composition comes behind it. */
export function isOfInputMethod({ isComposing, keyCode }) {
  return isComposing || keyCode === 229;
}

/** 32 hexadecimal digits that nobody guesses. `crypto.randomUUID` is for pages over TLS only. */
export function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Whether it was copied. Over plain HTTP browsers have only the old way. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { class: "off-screen", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    return isCopied;
  }
}

/** A button that copies what `text` returns, and shows for a moment that it has. */
export function copyButton(label, text, attributes = {}) {
  const made = iconButton("copy", label, async () => {
    if (!(await copy(text()))) return;
    made.replaceChildren(icon("check"));
    setTimeout(() => made.replaceChildren(icon("copy")), 1500);
  }, attributes);
  return made;
}

export function save(blob, name) {
  const address = URL.createObjectURL(blob);
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
