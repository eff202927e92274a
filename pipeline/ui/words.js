// Numbers as people read them.

export const TIERS = ["hot", "warm", "cold", "glacier"];
const whole = new Intl.NumberFormat("en");
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const SPANS = [["d", 86400], ["h", 3600], ["min", 60]];

export const count = (value) => whole.format(value);

export function rate(value) {
  if (value === null || value === undefined) return "–";
  return `${value >= 10 || value === 0 ? count(Math.round(value)) : value.toFixed(1)}/s`;
}

export function bytes(value) {
  let at = 0;
  while (value >= 1024 && at < UNITS.length - 1) { value /= 1024; at += 1; }
  return `${at === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[at]}`;
}

export function span(seconds) {
  if (seconds < 1) return `${ms(seconds * 1000)}`;
  const [unit, size] = SPANS.find(([, each]) => seconds >= 2 * each) ?? ["s", 1];
  const value = seconds / size;
  return `${value >= 100 ? Math.round(value) : Number(value.toPrecision(3))} ${unit}`;
}

export function ms(value) {
  if (value >= 1000) return `${Number((value / 1000).toPrecision(3))} s`;
  return `${value >= 100 ? Math.round(value) : Number(value.toPrecision(2))} ms`;
}

export const percent = (part) => `${part > 0 && part < 0.01 ? "<1" : Math.round(part * 100)} %`;

/** A time of today as a time, another as a date too. */
export function when(moment) {
  const at = new Date(moment), today = new Date();
  const time = at.toLocaleTimeString("en-GB");
  return at.toDateString() === today.toDateString() ? time : `${at.toLocaleDateString("en-CA")} ${time}`;
}

/** A value as a short text: a payload's own text if it has one. */
export function snippet(value, most = 180) {
  if (value === null || value === undefined) return "";
  const text = typeof value === "string" ? value : typeof value.text === "string" ? value.text : JSON.stringify(value);
  const line = text.replace(/\s+/g, " ");
  return line.length > most ? `${line.slice(0, most)}…` : line;
}
