// Dead letters: what could not be applied, why, and how it begins.

import { ask, asks } from "./asking.js";
import { byId, el, write } from "./dom.js";
import { may, whole } from "./session.js";
import { bytes, count, when } from "./words.js";

const AGAIN_MS = 5000; // a look reads the topic: not more often than this by itself
let known = -1;
let asked = 0;

function draw({ letters, scanned }) {
  write(byId("dead-said"), letters.length ? "" : `None among the newest ${count(scanned)} of each partition.`);
  byId("letter-rows").replaceChildren(...letters.map(row));
}

function row(letter) {
  const place = `${letter.topic} ${letter.partition}@${letter.offset}${letter.row ? ` row ${letter.row}` : ""}`;
  const value = letter.sha256 ? `too large to keep; SHA-256 ${letter.sha256}` : letter.value === null ? "a null value" : letter.value;
  const rest = letter.bytes > (letter.value ?? "").length ? ` (of ${bytes(letter.bytes)})` : "";
  return el("li", {}, el("details", {},
    el("summary", {}, el("time", { dateTime: letter.at }, when(letter.at)), el("b", { class: "reason" }, letter.reason), el("span", { class: "key" }, letter.key ?? "no key"), letter.replayed ? el("span", { class: "quiet" }, "sent again") : null),
    el("p", {}, letter.error),
    el("pre", { tabIndex: 0, "aria-label": "How the value begins" }, value),
    el("p", { class: "note" }, `${place}${rest} · letter ${letter.position}. Once its cause is gone: isotherm dead-letters replay ${letter.position}`)));
}

/** Looks again when there are more than there were. */
export function counted(byReason) {
  if (!may("operate") || !whole()) return;
  const total = Object.values(byReason).reduce((sum, each) => sum + each, 0);
  if (total === known || Date.now() - asked < AGAIN_MS) return;
  known = total;
  asked = Date.now();
  ask("letters");
}

/** Wires the list. */
export function begin() {
  asks("letters", { draw, fail: (problem) => write(byId("dead-said"), problem.status ? problem.detail : "The gateway does not answer.") });
}
