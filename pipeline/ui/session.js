// Who asks: the key of this tab, what it may do, and whether the page is paused.

import { byId, el, write } from "./dom.js";

const KEPT = "isotherm.key"; // of sessionStorage: ends with the tab, and no other site can read it

export const session = { rights: null, paused: false };

export const keyOf = () => sessionStorage.getItem(KEPT);
export const may = (scope) => session.rights !== null && session.rights.scopes.includes(scope);
export const whole = () => session.rights !== null && session.rights.namespaces === null;

/** Opens the dialog, with why. */
export function wanted(why) {
  write(byId("key-said"), why);
  const dialog = byId("key");
  if (!dialog.open) dialog.showModal();
  byId("key-text").focus();
}

/** Takes what /v1/key said; shows what this key may see, and leaves the rest out. */
export function granted(rights) {
  session.rights = rights;
  const held = { operate: may("operate"), whole: whole() };
  for (const each of document.querySelectorAll("[data-needs]")) {
    each.classList.toggle("withheld", !each.dataset.needs.split(" ").every((need) => held[need]));
  }
  document.body.classList.toggle("narrow-key", !held.whole);
  const narrowed = byId("narrowed");
  narrowed.hidden = held.whole && held.operate;
  const spaces = (rights.namespaces ?? []).flatMap((name, at) => [at ? ", " : "", el("code", {}, name)]);
  if (!held.whole) narrowed.replaceChildren("This key sees the namespaces ", ...spaces, " and nothing else. What is about the whole node (limits, flows, latency, partitions, dead letters) needs a key of all namespaces.");
  else narrowed.replaceChildren("This key may read. Dead letters and hints need the scope ", el("code", {}, "operate"), ".");
  write(byId("key-open"), rights.key_id ? `Key ${rights.key_id.slice(0, 6)}` : "Key");
}

/** Wires the dialog and the pause button. A key that changes begins the page anew. */
export function begin() {
  const keep = (key) => {
    if (key) sessionStorage.setItem(KEPT, key);
    else sessionStorage.removeItem(KEPT);
    byId("key-text").value = "";
    location.reload();
  };
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = byId("key-text").value.trim();
    if (key) keep(key);
  });
  byId("key-forget").addEventListener("click", () => keep(null));
  byId("key-close").addEventListener("click", () => byId("key").close());
  byId("key-open").addEventListener("click", () => wanted(keyOf() ? "A key is in use." : "No key is in use."));
  byId("pause").addEventListener("click", (event) => {
    session.paused = !session.paused;
    event.currentTarget.setAttribute("aria-pressed", session.paused);
    write(event.currentTarget, session.paused ? "Go on" : "Pause");
    document.body.classList.toggle("paused", session.paused);
  });
}
