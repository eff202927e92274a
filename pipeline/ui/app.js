// Wires the panels to what they ask. Each panel has a module; what is asked, and how often, stands in index.html.

import { ask, asks, begin as beginAsking } from "./asking.js";
import * as column from "./column.js";
import { byId, write } from "./dom.js";
import * as feed from "./feed.js";
import * as latency from "./latency.js";
import * as letters from "./letters.js";
import { by, parse, samples, single } from "./metrics.js";
import { Recent } from "./rates.js";
import * as record from "./record.js";
import * as search from "./search.js";
import { begin as beginSession, granted, wanted, whole } from "./session.js";
import * as state from "./state.js";
import { TIERS } from "./words.js";

const RATED_S = 4; // rates are of so many seconds
const recent = new Recent(RATED_S);
let last = null;

function tiers(answer) {
  last = answer;
  const rated = recent.add(answer);
  state.told(answer);
  column.draw(answer, rated);
  state.facts(answer, rated);
  if (answer.dead_letters) letters.counted(answer.dead_letters);
  byId("first").hidden = Object.values(answer.tiers).some((tier) => tier.records > 0) || answer.replaying.length > 0;
}

function metrics(text) {
  const found = parse(text), up = by(found, "isotherm_tier_up", "tier");
  const sick = TIERS.filter((tier) => up.get(tier) === 0);
  column.partial(by(found, "isotherm_records", "tier"), sick);
  state.unwell(sick);
  column.highWater(single(found, "isotherm_high_water_ratio"));
  latency.draw(found);
  latency.partitions(found, last);
  const [build] = samples(found, "isotherm_build_info");
  write(byId("build"), `${build.labels.version} · ${build.labels.device}`);
}

function begin() {
  beginSession();
  beginAsking();
  asks("who", {
    draw: (rights) => {
      granted(rights);
      ["tiers", "latency"].forEach(ask);
      feed.listen();
    },
    fail: (problem) => {
      state.told(null, problem);
      if (problem.status === 403) wanted(`${problem.detail}: the dashboard needs it.`);
      else if (problem.status !== 401) setTimeout(() => ask("who"), 2000);
    },
  });
  asks("node", { draw: search.described, fail: () => setTimeout(() => ask("node"), 2000) });
  asks("tiers", { live: true, draw: tiers, fail: (problem) => state.told(null, problem) });
  asks("latency", { live: true, text: true, resting: () => !whole(), draw: metrics, fail: () => {} });
  column.build();
  latency.build();
  for (const panel of [search, record, feed, letters]) panel.begin();
  write(byId("first-line"), `echo '{"id": "gzip", "text": "Compress data with gzip"}' | isotherm publish --url ${location.origin}`);
  ask("who");
  ask("node");
}

// htmx looks at the page in a task that it queued before this one.
window.addEventListener("load", () => setTimeout(begin), { once: true });
