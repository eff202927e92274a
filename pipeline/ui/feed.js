// The change feed, live. htmx keeps the stream: it resumes after the last event, waits longer after each failure, and
// rests while nobody looks.

import { asks } from "./asking.js";
import { byId, chip, el, write } from "./dom.js";
import { look } from "./record.js";
import { session, wanted } from "./session.js";
import { count, when } from "./words.js";

const SHOWN = 60; // changes in the list
const IDS = 1; // of a change: the others have moved for the same reason
const EVERY_MS = 250; // the list is drawn at most so often
const AGAIN_MS = [1000, 2000, 5000, 15000];

let waiting = [];
let drawn = 0;
let failures = 0;
let told = { records: 0, since: Date.now() };

function row(change) {
  const ids = change.ids.slice(0, IDS).map((id) => el("button", { type: "button", class: "id", onclick: () => look(id) }, id));
  const more = change.ids.length - ids.length;
  return el("li", {}, el("time", { dateTime: new Date(change.at).toISOString() }, when(change.at)),
    el("span", { class: "way" }, chip(change.from), "→", chip(change.to)),
    el("span", { class: "why" }, el("b", {}, count(change.ids.length)), ` ${change.kind === "copy" ? "as a copy, " : ""}${change.reason}`),
    el("span", { class: "ids" }, ...ids, more > 0 ? `+${count(more)}` : null));
}

function draw() {
  drawn = 0;
  const list = byId("changes");
  list.prepend(...waiting.slice(-SHOWN).reverse().map(row));
  waiting = [];
  while (list.childElementCount > SHOWN) list.lastElementChild.remove();
}

function message(event) {
  const { event: name, data } = event.detail.message;
  event.preventDefault(); // it is drawn here, and not handed on as an event of the page
  if (name === "closing") write(byId("feed-said"), "The node stops; the feed goes on when it is back.");
  if (name === "dropped") write(byId("feed-said"), "The feed broke off; it resumes where it was.");
  if (name !== "change" || session.paused) return;
  const change = JSON.parse(data);
  told.records += change.ids.length;
  waiting.push(change);
  drawn ||= setTimeout(draw, EVERY_MS);
}

function count_() {
  const seconds = (Date.now() - told.since) / 1000;
  if (byId("stream").dataset.open === "yes") write(byId("feed-said"), told.records ? `${count(told.records)} moved in ${Math.round(seconds)} s` : "listening; nothing moves");
  told = { records: 0, since: Date.now() };
}

function broken(problem) {
  byId("stream").dataset.open = "no";
  if (problem.status === 401) { wanted(problem.detail); return; }
  write(byId("feed-said"), problem.status === 429 ? "As many feeds are open as may be; trying again." : "No feed; trying again.");
  setTimeout(listen, AGAIN_MS[Math.min(failures, AGAIN_MS.length - 1)]);
  failures += 1;
}

/** Begins to listen. */
export const listen = () => window.htmx.trigger(byId("stream"), "listen");

/** Wires the stream. */
export function begin() {
  byId("feed").append(byId("stream-template").content.cloneNode(true));
  const stream = byId("stream");
  window.htmx.process(stream); // only now: htmx may have looked at the page before its extension for streams was there
  asks("stream", { stream: true, draw: () => broken({ status: 0 }), fail: broken });
  stream.addEventListener("htmx:sse:before:message", message);
  stream.addEventListener("htmx:sse:after:connection", () => {
    failures = 0;
    stream.dataset.open = "yes";
    write(byId("feed-said"), "listening");
  });
  stream.addEventListener("htmx:sse:error", (event) => {
    const { status, connection } = event.detail;
    stream.dataset.open = "no";
    if (status === 400) connection.lastEventId = ""; // the topic no longer has the place: go on at its end
    if (status === 401) wanted("This key is not (any more) good.");
    write(byId("feed-said"), "No feed; trying again.");
  });
  setInterval(count_, 5000);
}
