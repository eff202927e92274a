// The tiers as one column, hot on top: how full each is, and what flows from one into the next.

import { byId, el, write } from "./dom.js";
import { fullness } from "./rates.js";
import { bytes, count, percent, rate, TIERS } from "./words.js";

const WHAT = {
  hot: "the newest, in memory",
  warm: "Valkey or Redis",
  cold: "a DuckDB file",
  glacier: "Parquet, Delta Lake",
};
const DROPS = 3;

const parts = {};

/** Makes the column once; from then on only texts and levels change, so that nothing moves. */
export function build() {
  byId("column").replaceChildren(
    source(),
    ...TIERS.flatMap((tier, at) => [row(tier), ...(at < TIERS.length - 1 ? [neck(tier)] : [])]),
  );
  byId("share").replaceChildren(...TIERS.map((tier) => el("span", { "data-tier": tier })));
}

function source() {
  const text = el("p", { class: "log-text" }, el("span", {}, "Kafka’s log"), el("b", { id: "ingest" }, "–"));
  const drops = el("span", { class: "drops", "data-flow": "log" });
  parts.log = { drops };
  return el("li", { class: "source" }, el("span", { class: "pipe", "aria-hidden": "true" }, drops), text);
}

function row(tier) {
  const level = el("span", { class: "level" }), mark = el("span", { class: "mark" });
  const vessel = el("span", { class: "vessel", role: "meter", "aria-label": `${tier}, how full`, "aria-valuemin": "0", "aria-valuemax": "100" }, level, mark);
  const made = {
    level, mark, vessel,
    records: el("span", { class: "records", "data-of": "records" }, "–"),
    held: el("span", { class: "held" }, " "),
    into: el("b", {}, "–"), out: el("b", {}, "–"), read: el("b", {}, "–"),
    sick: el("span", { class: "sick", hidden: true }, "does not answer"),
    queued: el("span", { class: "held" }),
  };
  const flow = el("p", { class: "flow" },
    el("span", {}, "in ", made.into), el("span", {}, "out ", made.out), el("span", {}, "read ", made.read));
  made.row = el("li", { class: "tier", "data-tier": tier }, vessel,
    el("div", { class: "tier-text" },
      el("h3", {}, tier, el("small", {}, WHAT[tier]), made.sick),
      el("p", {}, made.records, el("span", { class: "unit" }, "records")),
      el("p", { class: "holding" }, made.held, made.queued), flow));
  parts[tier] = made;
  return made.row;
}

function neck(tier) {
  const drops = el("span", { class: "drops" });
  const text = el("p", { class: "moves", "data-from": tier }, "at rest");
  parts[tier].neck = { drops, text };
  return el("li", { class: "neck", "data-tier": tier }, el("span", { class: "pipe", "aria-hidden": "true" }, drops), text);
}

/** Draws what the tiers hold; `rated` null before it is known. */
export function draw(answer, rated) {
  for (const tier of TIERS) {
    const made = parts[tier], held = answer.tiers[tier];
    if (!held) continue;
    write(made.records, count(held.records));
    made.records.dataset.value = held.records;
    if (held.bytes === undefined) continue; // a key of some namespaces is told of its records only
    level(tier, fullness(held));
    const limit = held.bytes_limit ? ` of ${bytes(held.bytes_limit)}` : held.rows_limit ? ` · ${count(held.rows)} of ${count(held.rows_limit)} rows` : "";
    write(made.held, `${bytes(held.bytes)}${limit}`);
    write(made.queued, held.queued ? ` · ${count(held.queued)} to evict` : "");
    write(made.into, rate(rated?.into[tier] ?? (rated ? 0 : null)));
    write(made.out, rate(rated?.out[tier] ?? (rated ? 0 : null)));
    write(made.read, rate(rated?.reads[tier]));
  }
  share(answer);
  if (answer.moved) flows(answer, rated);
}

/** Shows how the records are spread over the temperatures. */
function share({ tiers }) {
  const total = TIERS.reduce((sum, tier) => sum + tiers[tier].records, 0);
  write(byId("total"), `${count(total)} records`);
  TIERS.forEach((tier, at) => { byId("share").children[at].style.flexGrow = tiers[tier].records / (total || 1); });
}

function flows(answer, rated) {
  write(byId("ingest"), rate(rated?.into.hot));
  drip(parts.log.drops, rated?.into.hot ?? 0);
  TIERS.slice(0, -1).forEach((tier, at) => {
    const { drops, text } = parts[tier].neck;
    const going = (rated?.flows ?? []).filter((flow) => flow.from === tier && flow.rate > 0);
    const through = (rated?.flows ?? []).filter((flow) => TIERS.indexOf(flow.from) <= at && TIERS.indexOf(flow.to) > at);
    drip(drops, through.reduce((sum, flow) => sum + flow.rate, 0));
    const total = answer.moved.filter((move) => move.from === tier).reduce((sum, move) => sum + move.records, 0);
    const said = going.map((flow) => `to ${flow.to} ${rate(flow.rate)}`).join(" · ");
    write(text, said || (total ? `at rest · ${count(total)} moved` : "at rest"));
    text.classList.toggle("moving", going.length > 0);
  });
}

/** Lets drops fall where something moves: more of them, and faster, by the decade. */
function drip(drops, perSecond) {
  const wanted = perSecond <= 0 ? 0 : Math.min(DROPS, 1 + Math.floor(Math.log10(1 + perSecond / 4)));
  while (drops.childElementCount < wanted) drops.append(el("i"));
  while (drops.childElementCount > wanted) drops.lastElementChild.remove();
}

function level(tier, full) {
  const { vessel, level: rising } = parts[tier];
  vessel.classList.toggle("boundless", full === null);
  rising.style.transform = `translateY(${100 - 100 * Math.min(1, full ?? 0)}%)`;
  vessel.classList.toggle("some", (full ?? 0) > 0);
  vessel.dataset.text = full === null ? "no limit" : percent(full);
  if (full === null) vessel.removeAttribute("aria-valuenow");
  else vessel.setAttribute("aria-valuenow", Math.round(100 * full));
  vessel.setAttribute("aria-valuetext", full === null ? "no limit" : percent(full));
}

/** Marks where evacuation begins. */
export function highWater(part) {
  for (const tier of TIERS.slice(0, -1)) parts[tier].mark.style.bottom = `${100 * part}%`;
}

/** Shows what is known while a tier does not say how full it is: the index knows the records, nothing knows the rates. */
export function partial(records, sickOnes) {
  for (const tier of TIERS) {
    sick(tier, sickOnes.includes(tier));
    if (sickOnes.length === 0) continue;
    write(parts[tier].records, count(records.get(tier) ?? 0));
    for (const each of [parts[tier].into, parts[tier].out, parts[tier].read]) write(each, rate(null));
    if (parts[tier].neck) {
      write(parts[tier].neck.text, "not known");
      drip(parts[tier].neck.drops, 0);
    }
  }
}

function sick(tier, is) {
  parts[tier].sick.hidden = !is;
  parts[tier].row.classList.toggle("is-sick", is);
}
