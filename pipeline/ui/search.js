// The search playground: words, a record or a vector; every hit with its tier, score and time, and what the search did.

import { asks } from "./asking.js";
import { byId, chip, el, write } from "./dom.js";
import { look } from "./record.js";
import { count, ms, snippet, TIERS, when } from "./words.js";

const ASKED = {
  text: { label: "Words to search for", placeholder: "how do I make a file smaller" },
  id: { label: "Id of the record to start from", placeholder: "id of a record" },
  vector: { label: "A vector, as numbers with commas between", placeholder: "0.12, -0.4, …" },
};
const STEPS = ["look", "filter", "scan", "fetch"];
const node = { dim: 0, words: false };

const by = () => document.querySelector("input[name=by]:checked").value;

/** Takes the gateway's own description: whether it knows words, and how long a vector is. */
export function described(document_) {
  const { schemas } = document_.components;
  node.words = "by words" in document_.paths["/v1/search"].post.requestBody.content["application/json"].examples;
  const vector = schemas.Search.properties.vector;
  node.dim = (vector.anyOf?.find((each) => each.minItems) ?? vector).minItems;
  const k = schemas.Search.properties.k;
  byId("k").max = k.maximum;
  byId("by-words").classList.toggle("withheld", !node.words);
  if (node.words) document.querySelector("input[name=by][value=text]").checked = true;
  chosen();
}

function chosen() {
  const { label, placeholder } = ASKED[by()];
  write(byId("question-label"), label);
  byId("question").placeholder = by() === "vector" && node.dim ? `${node.dim} numbers, with commas between` : placeholder;
  byId("random").hidden = by() !== "vector";
}

function question() {
  const form = new FormData(byId("search"));
  const asked = { k: Number(form.get("k")), explain: true, include: ["payload", "attributes"] };
  const tiers = form.getAll("tiers");
  if (tiers.length < TIERS.length) asked.tiers = tiers;
  if (form.get("exact")) asked.exact = true;
  if (form.get("filter")) asked.filter = form.get("filter");
  const text = form.get("question");
  asked[by()] = by() === "vector" ? text.replace(/[[\]]/g, "").split(",").map(Number) : text;
  return asked;
}

function draw(answer) {
  const parts = [`${count(answer.hits.length)} ${answer.hits.length === 1 ? "hit" : "hits"} in ${ms(answer.took_ms)}`, `${count(answer.scanned)} of ${count(answer.of)} records looked at`];
  parts.push(answer.complete ? "complete" : `not complete: ${answer.missed.join(", ")} missing`);
  write(byId("search-said"), parts.join(" · "));
  byId("search-said").classList.toggle("wrong", !answer.complete);
  byId("spent").replaceChildren(spent(answer));
  const best = Math.max(...answer.hits.map((hit) => hit.score), 1e-9);
  byId("hits").replaceChildren(...answer.hits.map((hit) => row(hit, best, answer.searched)));
  byId("explain").hidden = !answer.explain;
  if (answer.explain) byId("explained").replaceChildren(table(answer));
}

function row(hit, best, searched) {
  const bar = el("span", { class: "score-bar", "data-tier": hit.tier });
  bar.style.width = `${Math.max(0, 100 * (hit.score / best))}%`;
  const time = searched[hit.tier] ? ms(searched[hit.tier].took_ms) : "";
  return el("li", { class: "hit", "data-tier": hit.tier },
    el("p", { class: "hit-head" },
      el("button", { type: "button", class: "id", onclick: () => look(hit.id), title: "Look at this record" }, hit.id),
      chip(hit.tier, time),
      el("span", { class: "score" }, hit.score.toFixed(4))),
    el("span", { class: "score-track", "aria-hidden": "true" }, bar),
    el("p", { class: "snippet" }, el("span", {}, snippet(hit.payload)), el("time", { dateTime: hit.event_time }, when(hit.event_time))));
}

/** Returns a bar of where the time went, by step. */
function spent({ explain, took_ms: total }) {
  const box = el("div", { class: "spent" });
  if (!explain) return box;
  const steps = Object.entries(explain.steps_ms).sort(([a], [b]) => STEPS.indexOf(a) - STEPS.indexOf(b));
  const rest = total - steps.reduce((sum, [, each]) => sum + each, 0);
  for (const [name, took] of [...steps, ["rest", Math.max(0, rest)]]) {
    const part = el("span", { class: "step", "data-step": name, title: `${name}: ${ms(took)}` }, `${name} ${ms(took)}`);
    part.style.flexGrow = Math.max(took / total, 0.001);
    box.append(part);
  }
  return box;
}

function table({ explain, searched, hits }) {
  const head = el("tr", {}, ...["tier", "rows scanned", "time", "fetched", "hits"].map((name) => el("th", { scope: "col" }, name)));
  const rows = TIERS.filter((tier) => searched[tier] || explain.fetched[tier]).map((tier) => el("tr", {}, el("th", { scope: "row" }, chip(tier)),
    el("td", {}, count(searched[tier]?.rows ?? 0)), el("td", {}, searched[tier] ? ms(searched[tier].took_ms) : "–"),
    el("td", {}, count(explain.fetched[tier] ?? 0)), el("td", {}, count(hits.filter((hit) => hit.tier === tier).length))));
  const others = Object.entries(explain).filter(([, value]) => typeof value === "number");
  const facts = el("dl", { class: "facts" }, ...others.map(([name, value]) => el("div", {}, el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, count(value)))));
  return el("div", {}, el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows))), facts);
}

function fail(problem) {
  const field = problem.field ? ` (${problem.field})` : "";
  const said = { 0: "The gateway does not answer; ask again in a moment.", 401: "A key is needed.", 503: `${problem.detail}. Ask again soon.` };
  write(byId("search-said"), said[problem.status] ?? `${problem.detail}${field}`);
  byId("search-said").classList.add("wrong");
  byId("spent").replaceChildren();
  byId("hits").replaceChildren();
  byId("explain").hidden = true;
}

/** Wires the form. */
export function begin() {
  asks("search", { question, draw, fail });
  for (const each of document.querySelectorAll("input[name=by]")) each.addEventListener("change", chosen);
  byId("random").addEventListener("click", () => {
    byId("question").value = Array.from({ length: node.dim }, () => (Math.random() * 2 - 1).toFixed(3)).join(", ");
  });
  chosen();
}
