// What state the node is in: one word, one sentence that says what to do, and the figures beside the column.

import { byId, el, say, write } from "./dom.js";
import { count, ms } from "./words.js";

const seen = { tiers: null, problem: null, sick: [] };

/** Notes what /v1/tiers said: an answer, or the problem it had instead. */
export function told(answer, problem = null) {
  if (answer) seen.tiers = answer;
  seen.problem = problem;
  show();
}

/** Notes the tiers that did not say how full they are when the metrics were asked. */
export function unwell(tiers) {
  seen.sick = tiers;
  show();
}

/** The state in a word and a sentence. Pure. */
export function judged({ tiers, problem, sick }) {
  if (problem?.status === 0) return ["away", "unreachable", "The gateway does not answer. Figures are the last that were seen; asking goes on. Is the node running? `isotherm doctor` looks."];
  if (problem?.status === 401) return ["away", "locked", "This gateway wants an API key."];
  if (problem?.status === 403) return ["away", "forbidden", `${problem.detail}. Use another key.`];
  if (sick.length) return ["sick", "degraded", `${sick.join(" and ")} ${sick.length > 1 ? "do" : "does"} not answer. Searches leave it out and say so; nothing is lost, and moves wait. \`isotherm doctor\` says what is wrong with it.`];
  if (problem) return ["sick", "degraded", `${problem.detail} (${problem.status}).`];
  if (!tiers) return ["waiting", "connecting", ""];
  if (tiers.replaying.length) return ["waiting", "replaying", `The log is being replayed: partitions ${tiers.replaying.join(", ")} do not answer yet. Nothing is missing; it takes as long as hot's unsaved part is large.`];
  if (tiers.paused?.length) return ["sick", "paused", `Partitions ${tiers.paused.join(", ")} are paused: hot has no room for them. Give the tiers below room (their limits), or hot more of it.`];
  return ["ready", "ready", ""];
}

function show() {
  const [kind, word, sentence] = judged(seen);
  if (byId("state").dataset.state !== kind) say(`The node is ${word}. ${sentence}`);
  byId("state").dataset.state = kind;
  write(byId("state-word"), word);
  const notice = byId("notice");
  notice.hidden = sentence === "";
  notice.dataset.state = kind;
  write(notice, sentence.replaceAll("`", ""));
  const behind = seen.tiers && kind !== "away" ? `${ms(seen.tiers.freshness.lag_ms)} behind the log` : "";
  write(byId("behind"), behind);
  document.title = `${word === "ready" ? "" : `${word} · `}Isotherm`;
}

/** Draws what else the tiers say. */
export function facts(answer, rated) {
  if (!answer.copies) return;
  const reads = rated ? Object.entries(rated.reads).filter(([name]) => name !== "copies").reduce((sum, [, each]) => sum + each, 0) : 0;
  const shown = [
    ["copies in hot", `${count(answer.copies.records)} of ${count(answer.copies.records_max)}`],
    ["only in the log", count(Object.values(answer.dirty).reduce((sum, each) => sum + each, 0))],
    ["read from hot", reads ? `${Math.round((100 * rated.reads.hot) / reads)} %` : "–"],
    ["searched by code", count(answer.codes.coded)],
    ["recall of codes", answer.codes.recall === null ? "–" : answer.codes.recall.toFixed(3)],
    ["dead letters", count(Object.values(answer.dead_letters).reduce((sum, each) => sum + each, 0))],
  ];
  const list = byId("facts");
  if (!list.childElementCount) list.replaceChildren(...shown.map(([name]) => el("div", {}, el("dt", {}, name), el("dd"))));
  shown.forEach(([, value], at) => write(list.children[at].lastElementChild, value));
}
