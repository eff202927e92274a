// What lies between htmx and the panels. htmx asks (when, how often, one at a time, with a limit, streams that resume);
// this puts the key and the question in, and hands the answer, always data and never markup, to the panel that asked.

import { keyOf, session, wanted } from "./session.js";

const askers = new Map();

/**
 * Registers who asks from the element `id`. `draw(answer)` gets JSON (or text), `fail(problem)` a problem object, its
 * status 0 where nothing answered. `path()` goes after the element's URL, `query()` is its parameters, `question()` the
 * JSON body. `live` ones rest while the page is paused, hidden, or does not know yet what it may; `text` is no JSON.
 */
export function asks(id, asker) {
  askers.set(id, asker);
}

/** Asks now. */
export const ask = (id) => window.htmx.trigger(document.getElementById(id), "ask");

const of = (event) => askers.get(event.detail.ctx.sourceElement.getAttribute("id"));

function configure(event) {
  const { ctx } = event.detail, asker = of(event) ?? {};
  if (asker.live && (session.paused || document.hidden || session.rights === null || asker.resting?.())) {
    event.preventDefault();
    return;
  }
  const { request } = ctx;
  request.headers.Accept = asker.stream ? "text/event-stream" : asker.text ? "text/plain" : "application/json";
  const key = keyOf();
  if (key) request.headers.Authorization = `Bearer ${key}`;
  if (asker.path) request.action += asker.path();
  for (const name of [...request.body.keys()]) request.body.delete(name);
  for (const [name, value] of Object.entries(asker.query?.() ?? {})) request.body.set(name, value);
}

function put(event) {
  const { request } = event.detail.ctx, question = of(event)?.question?.();
  if (request.method !== "POST") return;
  request.body = question === undefined ? null : JSON.stringify(question);
  if (question !== undefined) request.headers["Content-Type"] = "application/json";
}

function answered(event) {
  event.preventDefault(); // nothing that was answered is swapped into the page
  const { ctx } = event.detail, asker = of(event), { status } = ctx.response;
  if (status >= 400) {
    refused(asker, problemOf(ctx.text, status));
    return;
  }
  asker.draw(asker.text ? ctx.text : JSON.parse(ctx.text));
}

function problemOf(text, status) {
  try {
    return { detail: "", ...JSON.parse(text), status };
  } catch {
    return { status, detail: `the gateway answered ${status}` };
  }
}

function refused(asker, problem) {
  if (problem.status === 401) wanted(problem.detail);
  asker.fail(problem);
}

function unanswered(event) {
  if (event.detail.ctx && of(event)) of(event).fail({ status: 0, detail: "the gateway does not answer" });
}

/** Begins to listen to htmx. */
export function begin() {
  document.addEventListener("htmx:config:request", configure);
  document.addEventListener("htmx:before:request", put);
  document.addEventListener("htmx:after:request", answered);
  document.addEventListener("htmx:error", unanswered);
}
