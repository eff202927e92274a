// Latency by tier over time, from the histograms of /metrics; and how each partition stands.

import { byId, chip, el, write } from "./dom.js";
import { buckets, by, quantile } from "./metrics.js";
import { count, ms, span, TIERS } from "./words.js";

const WINDOW_S = 10;
const KEPT = 300; // samples, two seconds apart
const FLOOR_MS = 0.1;
const HIGH = 196;

const times = [];
const lines = { 0.5: TIERS.map(() => []), 0.99: TIERS.map(() => []) };
let window_ = [];
let chart = null;

const chosen = () => document.querySelector("input[name=quantile]:checked").value;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Adds what the metrics say now. */
export function draw(metrics) {
  const now = Date.now() / 1000;
  window_.push({ now, counted: buckets(metrics, "isotherm_query_tier_seconds", "tier") });
  while (window_.length > 2 && now - window_[1].now >= WINDOW_S) window_.shift();
  const [first, last] = [window_[0], window_.at(-1)];
  times.push(now);
  for (const part of Object.keys(lines)) {
    TIERS.forEach((tier, at) => {
      const counted = last.counted.get(tier);
      const value = counted && first !== last ? quantile(Number(part), counted, first.counted.get(tier)) : null;
      lines[part][at].push(value === null ? null : Math.max(FLOOR_MS, value * 1000));
      if (lines[part][at].length > KEPT) lines[part][at].shift();
    });
  }
  if (times.length > KEPT) times.shift();
  show(last, first);
}

function show(last, first) {
  const shown = lines[chosen()];
  chart.setData([times, ...shown]);
  byId("chart").classList.toggle("still", shown.every((line) => line.every((value) => value === null)));
  const list = byId("latency-now");
  if (!list.childElementCount) list.replaceChildren(...TIERS.map((tier) => el("li", {}, chip(tier), el("b"), el("small"))));
  TIERS.forEach((tier, at) => {
    const value = shown[at].at(-1), [, figure, asked] = list.children[at].children;
    write(figure, value === null || value === undefined ? "–" : ms(value));
    const total = (each) => each?.counted.get(tier)?.get(Infinity) ?? 0;
    const rate = first && last.now > first.now ? (total(last) - total(first)) / (last.now - first.now) : 0;
    write(asked, rate ? `${rate < 10 ? rate.toFixed(1) : count(Math.round(rate))}/s` : "not asked");
  });
}

/** Makes the chart, and makes it anew when the colours change. */
export function build() {
  const again = () => {
    chart?.destroy();
    chart = new window.uPlot(options(byId("chart")), [times, ...lines[chosen()]], byId("chart"));
  };
  again();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  new ResizeObserver(() => chart.setSize({ width: byId("chart").clientWidth, height: HIGH })).observe(byId("chart"));
  for (const each of document.querySelectorAll("input[name=quantile]")) each.addEventListener("change", () => chart.setData([times, ...lines[chosen()]]));
}

function options(box) {
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
  const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB").slice(0, 8);
  return {
    width: box.clientWidth || 300,
    height: HIGH,
    legend: { show: false },
    cursor: { y: false, points: { size: 7 } },
    padding: [8, 8, 0, 0],
    scales: {
      x: { time: false, range: () => { const end = times.at(-1) ?? Date.now() / 1000; return [Math.min(times[0] ?? end, end - 120), end]; } },
      y: { distr: 3, range: (_, low, high) => [10 ** Math.floor(Math.log10(Math.max(FLOOR_MS, low ?? FLOOR_MS))), 10 ** Math.ceil(Math.log10(Math.max(10, (high ?? 10) * 1.01)))] },
    },
    axes: [{ ...axis, space: 90, values: (_, ticks) => ticks.map(clock) }, { ...axis, size: 52, splits: (_, __, low, high) => decades(low, high), values: (_, ticks) => ticks.map((tick) => ms(tick)) }],
    series: [{}, ...TIERS.map((tier) => ({ label: tier, stroke: colour(`--${tier}`), width: 2, spanGaps: false, points: { size: 4 } }))],
  };
}

function decades(low, high) {
  const found = [];
  for (let each = low; each <= high * 1.001; each *= 10) found.push(each);
  return found;
}

/** Draws a row a partition. */
export function partitions(metrics, answer) {
  const lag = by(metrics, "isotherm_consumer_lag", "partition", { topic: "memories" });
  const dirty = by(metrics, "isotherm_dirty_records", "partition"), oldest = by(metrics, "isotherm_watermark_age_seconds", "partition");
  const jobs = by(metrics, "isotherm_lane_jobs", "partition");
  const body = byId("partition-rows"), known = [...dirty.keys()].sort((a, b) => a - b);
  if (body.childElementCount !== known.length) {
    body.replaceChildren(...known.map((number) => el("tr", { "data-partition": number }, el("th", { scope: "row" }, number), ...Array.from({ length: 5 }, () => el("td")))));
  }
  known.forEach((number, at) => {
    const cells = body.children[at].children, applied = answer?.freshness.applied[number];
    const state = answer?.replaying.includes(Number(number)) ? "replaying" : answer?.paused.includes(Number(number)) ? "paused" : jobs.get(number) ? `${count(jobs.get(number))} jobs` : "at rest";
    write(cells[1], count(lag.get(number) ?? 0));
    write(cells[2], applied === undefined || applied < 0 ? "–" : count(applied));
    write(cells[3], count(dirty.get(number)));
    write(cells[4], oldest.get(number) ? span(oldest.get(number)) : "–");
    write(cells[5], state);
    body.children[at].classList.toggle("behind", (lag.get(number) ?? 0) > 0);
  });
}
