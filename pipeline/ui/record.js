// One record: where it is, how it came there, what it was decided by, and what it holds.

import { ask, asks } from "./asking.js";
import { byId, chip, el, say, write } from "./dom.js";
import { path } from "./path.js";
import { count, percent, span, when } from "./words.js";

let id = "";
const quoted = () => encodeURIComponent(id);

/** Looks at a record. */
export function look(identifier) {
  byId("record-id").value = identifier;
  byId("why").requestSubmit();
  byId("record").scrollIntoView({ block: "nearest" });
}

function draw(told) {
  const deleted = told.deleted ? " It is deleted: its tombstone is there." : "";
  write(byId("record-said"), `${told.id} is in ${told.tier}.${deleted}`);
  byId("record-said").classList.remove("wrong");
  byId("hints").hidden = told.deleted;
  byId("told").replaceChildren(
    el("p", { class: "place" }, chip(told.tier), told.copy_in_hot ? chip("hot", "copy") : null, el("span", { class: "quiet" }, `version ${told.version} · partition ${told.partition}`)),
    el("p", { class: "because" }, sentence(told.because)),
    path(told),
    el("p", { class: "because" }, el("b", {}, "Next: "), told.next.text, told.expires_at ? ` It expires at ${when(told.expires_at)}.` : ""),
    ...(told.superseded.length ? [el("p", { class: "quiet" }, `An older version waits for eviction in ${told.superseded.map((old) => old.tier).join(", ")}.`)] : []),
    numbers(told), history(told), el("div", { id: "content" }));
  ask("memory");
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;

/** What the policy looks at: now, and when the last move was decided, beside what it is held to. */
function numbers({ policy, decided, ...told }) {
  const rows = [
    ["age", span(told.age_s), decided && span(decided.age_s), `leaves hot at ${span(policy.hot_age_s)}`],
    ["not read for", span(told.idle_s), decided && span(decided.idle_s), `leaves warm at ${span(policy.warm_idle_s)}, cold at ${span(policy.cold_idle_s)}`],
    ["heat", told.heat.toPrecision(2), decided?.heat.toPrecision(2), `a copy in hot from ${policy.promote_heat_min}`],
    [`${told.tier} is full to`, percent(told.usage[told.tier]), decided?.usage[told.tier] === undefined ? null : percent(decided.usage[told.tier]), `evacuated from ${percent(policy.high_water)}`],
  ];
  const head = ["", "now", "when decided", "held to"].map((name) => el("th", { scope: "col" }, name));
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ...head)),
    el("tbody", {}, ...rows.map(([name, now, then, held]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, now), el("td", {}, then ?? "–"), el("td", { class: "quiet" }, held))))));
}

function history({ history: steps, looked }) {
  const list = el("ol", { class: "steps" }, ...steps.map((step) => el("li", {}, el("time", { dateTime: step.at }, when(step.at)), chip(step.from), "→", chip(step.to), el("span", { class: "quiet" }, `${step.reason}${step.kind === "copy" ? " · copy" : ""}`))));
  const far = looked.complete ? `all ${count(looked.to_offset - looked.begin_offset)} changes that the topic holds of its partition` : `changes ${looked.from_offset} to ${looked.to_offset}`;
  return el("div", {}, list, el("p", { class: "note" }, `${steps.length ? "" : "No move of it is told. "}Looked at ${far}.`));
}

function memory(answer) {
  const box = byId("content");
  if (!box) return;
  const text = typeof answer.payload === "string" ? answer.payload : JSON.stringify(answer.payload, null, 1);
  const attributes = Object.entries(answer.attributes ?? {});
  box.replaceChildren(
    ...(attributes.length ? [el("dl", { class: "facts" }, ...attributes.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value === null ? "–" : String(value)))))] : []),
    el("pre", { tabIndex: 0, "aria-label": "Payload" }, text ?? "no payload"));
  say(`${id} is in ${answer.tier}.`);
}

function fail(problem) {
  const said = { 0: "The gateway does not answer; ask again in a moment.", 401: "A key is needed.", 404: `There is no record ${id}, or this key may not see it.` };
  write(byId("record-said"), said[problem.status] ?? problem.detail);
  byId("record-said").classList.add("wrong");
  byId("hints").hidden = true;
  byId("told").replaceChildren();
}

/** Wires the forms. */
export function begin() {
  asks("why", { path: () => { id = byId("record-id").value; return quoted(); }, draw, fail });
  asks("memory", { path: quoted, draw: memory, fail: (problem) => byId("content")?.replaceChildren(el("p", { class: "quiet" }, problem.status === 404 ? "It holds nothing any more." : problem.detail)) });
  for (const verb of ["promote", "demote"]) {
    asks(verb, { path: () => `${quoted()}:${verb}`, draw: (answer) => write(byId("record-said"), sentence(answer.hint)), fail: (problem) => write(byId("record-said"), sentence(problem.detail)) });
  }
}
