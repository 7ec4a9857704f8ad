/** What this browser keeps of a person, in localStorage. Knows places and JSON, not what it means. */

/** What is kept in a place; `otherwise`, a list or an object, where there is none of that kind. */
export function recall(place, otherwise) {
  try {
    const kept = JSON.parse(localStorage.getItem(place));
    const isOfKind = kept !== null && typeof kept === "object" && Array.isArray(kept) === Array.isArray(otherwise);
    return isOfKind ? kept : otherwise;
  } catch {
    return otherwise;
  }
}

/** The objects that are kept in all places whose names begin so. */
export function recallAll(beginning) {
  try {
    const places = Object.keys(localStorage).filter((place) => place.startsWith(beginning));
    return places.map((place) => recall(place, null)).filter((kept) => kept !== null);
  } catch {
    return [];
  }
}

/** What is kept in a place is kept in another one from now on, if nothing is there yet. */
export function move(from, to) {
  const kept = localStorage.getItem(from);
  if (kept === null) return;
  localStorage.removeItem(from);
  if (localStorage.getItem(to) === null) localStorage.setItem(to, kept);
}

/** Throws what the browser throws when there is no room. */
export function keep(place, value) {
  localStorage.setItem(place, JSON.stringify(value));
}

export function forget(place) {
  localStorage.removeItem(place);
}
