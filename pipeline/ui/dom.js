// Elements from values. Text is only ever set as text: an id or a payload is never markup.

export const byId = (id) => document.getElementById(id);

/** An element; `given` are properties, `data-`/`aria-` names and `class` attributes, `on…` listeners. */
export function el(tag, given = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class" || name === "role" || name === "scope" || name.includes("-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** An SVG element with attributes. */
export function svg(tag, given = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(given)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Writes a text where it differs, so that nothing is laid out, or read aloud, for nothing. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Says something to who listens rather than looks. */
export function say(text) {
  write(byId("say"), text);
}

export const chip = (tier, more = "") =>
  el("span", { class: "chip", "data-tier": tier ?? "gone" }, el("b", {}, tier ?? "gone"), more && ` ${more}`);
