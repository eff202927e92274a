// What happened between two answers of /v1/tiers, and how full a tier is. Pure; pipeline/tiers_rates.py says the same.

/** Records a second; null where it cannot be known: of the first answer, or across a restart. */
export function rates(now, before) {
  if (!before || now.ingested === undefined || now.at <= before.at || now.ingested < before.ingested) return null;
  const seconds = now.at - before.at;
  const since = (value, was) => Math.max(0, value - (was ?? 0)) / seconds;
  const way = (move) => `${move.from}>${move.to}`;
  const was = Object.fromEntries(before.moved.map((move) => [way(move), move.records]));
  const flows = now.moved.map((move) => ({ from: move.from, to: move.to, rate: since(move.records, was[way(move)]) }));
  const into = { hot: since(now.ingested, before.ingested) }, out = {};
  for (const { from, to, rate } of flows) {
    out[from] = (out[from] ?? 0) + rate;
    into[to] = (into[to] ?? 0) + rate;
  }
  const reads = Object.fromEntries(Object.entries(now.reads).map(([name, value]) => [name, since(value, before.reads[name])]));
  return { into, out, flows, reads, promoted: since(now.copies.promoted, before.copies.promoted) };
}

/** The rates over the last seconds: one second alone jumps with the batches that moves are made of. */
export class Recent {
  constructor(seconds) {
    this.seconds = seconds;
    this.answers = [];
  }

  add(answer) {
    const last = this.answers.at(-1);
    if (last && (answer.ingested < last.ingested || answer.at - last.at > 3 * this.seconds)) this.answers = [];
    this.answers.push(answer);
    while (this.answers.length > 2 && answer.at - this.answers[1].at >= this.seconds) this.answers.shift();
    return rates(answer, this.answers.length > 1 ? this.answers[0] : null);
  }
}

/** How full a tier is, by the tighter of its limits; null without a limit. */
export function fullness(tier) {
  const parts = [["rows", "rows_limit"], ["bytes", "bytes_limit"]].filter(([, limit]) => tier[limit]).map(([held, limit]) => tier[held] / tier[limit]);
  return parts.length ? Math.max(...parts) : null;
}
