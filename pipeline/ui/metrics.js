// Prometheus text as values. Pure.

const LINE = /^(\w+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** A Map from a metric's name to its samples, `{labels, value}`. */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(LABEL)) labels[name] = value;
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push({ labels, value: match[3] === "+Inf" ? Infinity : Number(match[3]) });
  }
  return found;
}

export const samples = (metrics, name) => metrics.get(name) ?? [];
export const single = (metrics, name) => samples(metrics, name)[0]?.value;

/** Values of a metric by one label, of the samples that `where` names. */
export function by(metrics, name, label, where = {}) {
  const wanted = samples(metrics, name).filter(({ labels }) => Object.entries(where).every(([key, value]) => labels[key] === value));
  return new Map(wanted.map(({ labels, value }) => [labels[label], value]));
}

/** Cumulative counts by upper bound, a Map a tier. */
export function buckets(metrics, name, label) {
  const found = new Map();
  for (const { labels, value } of samples(metrics, `${name}_bucket`)) {
    const key = labels[label];
    if (!found.has(key)) found.set(key, new Map());
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    found.get(key).set(bound, (found.get(key).get(bound) ?? 0) + value);
  }
  return found;
}

/** The quantile of what was counted between two moments, linear within a bucket as Prometheus does; null for nothing. */
export function quantile(part, now, before) {
  const bounds = [...now.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => now.get(bound) - (before?.get(bound) ?? 0));
  const total = counts.at(-1) ?? 0;
  if (total <= 0) return null;
  const rank = part * total, at = counts.findIndex((each) => each >= rank);
  if (bounds[at] === Infinity) return bounds[at - 1];
  const low = at ? bounds[at - 1] : 0, under = at ? counts[at - 1] : 0;
  return low + (bounds[at] - low) * ((rank - under) / (counts[at] - under || 1));
}
