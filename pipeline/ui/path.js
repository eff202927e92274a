// A record's way through the tiers, drawn: time goes right, temperature goes down. Pure but for the elements it makes.

import { svg } from "./dom.js";
import { span, TIERS } from "./words.js";

const WIDE = 560, HIGH = 176, LEFT = 58, TOP = 14, BAND = 38;
const y = (tier) => TOP + BAND * TIERS.indexOf(tier) + BAND / 2;

/** The stays of the record's home and of its copies: `{tier, from, to}` in ms; `to` null until now. */
export function stays(told, now) {
  const homes = told.history.filter((step) => step.kind === "home" && step.version === told.version && step.to);
  const born = now - told.age_s * 1000;
  if (!homes.length && told.tier !== "hot") { // the topic tells nothing of it: what is known is its last move, if that
    return [{ tier: told.tier, from: told.last_move ? Date.parse(told.last_move.at) : born, to: null }];
  }
  const found = [{ tier: homes[0]?.from ?? "hot", from: Math.min(born, homes.length ? Date.parse(homes[0].at) : now), to: null }];
  for (const step of homes) {
    if (step.to === found.at(-1).tier) continue;
    found.at(-1).to = Date.parse(step.at);
    found.push({ tier: step.to, from: Date.parse(step.at), to: null });
  }
  return found;
}

/** Returns the picture. */
export function path(told, now = Date.now()) {
  const found = stays(told, now), step = (WIDE - LEFT - 16) / found.length;
  const picture = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, class: "path", role: "img", "aria-label": found.map((stay) => `${stay.tier} for ${span(((stay.to ?? now) - stay.from) / 1000)}`).join(", then ") });
  for (const tier of TIERS) {
    picture.append(svg("rect", { x: LEFT, y: y(tier) - BAND / 2 + 2, width: WIDE - LEFT - 8, height: BAND - 4, rx: 5, class: "band", "data-tier": tier }),
      svg("text", { x: LEFT - 10, y: y(tier) + 4, "text-anchor": "end", class: "band-name" }, tier));
  }
  found.forEach((stay, at) => {
    const x = LEFT + 8 + at * step, end = x + step - (at === found.length - 1 ? 10 : 0);
    if (at) picture.append(svg("line", { x1: x, x2: x, y1: y(found[at - 1].tier), y2: y(stay.tier), class: "fall" }));
    picture.append(svg("line", { x1: x, x2: end, y1: y(stay.tier), y2: y(stay.tier), class: "stay", "data-tier": stay.tier }),
      svg("circle", { cx: x, cy: y(stay.tier), r: 4.5, class: "point", "data-tier": stay.tier }),
      svg("text", { x: (x + end) / 2, y: y(stay.tier) - 7, "text-anchor": "middle", class: "lasted" }, span(Math.max(0, (stay.to ?? now) - stay.from) / 1000)));
  });
  if (told.copy_in_hot && told.tier !== "hot") {
    const x = LEFT + 8 + found.length * step - 10;
    picture.append(svg("line", { x1: x, x2: x, y1: y("hot"), y2: y(told.tier), class: "copy" }), svg("circle", { cx: x, cy: y("hot"), r: 5, class: "point copy", "data-tier": "hot" }));
  }
  return picture;
}
