// The row of one line. Received text is only ever set as text, so that markup in it is not interpreted.

import { parse } from "./ansi.js";
import { levelOf } from "./levels.js";
import { links, pieces } from "./pieces.js";

/** Longer lines are folded. */
export const FOLDED_CHARS = 1_000;
/** A longer line of JSON is not formatted. */
const JSON_CHARS_MAX = 1 << 20;

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });

// Formatting a time costs more than the rest of a row.
let shownSecond = NaN;
let shownTime = "";

function timeOf(at) {
  const second = Math.floor(at / 1000);
  if (second !== shownSecond) {
    shownSecond = second;
    const isToday = new Date(at).toDateString() === new Date().toDateString();
    shownTime = (isToday ? clock : day).format(at);
  }
  return shownTime;
}

/** The exact time, which is shown when the pointer rests on a time. */
export function exactTime(at) {
  return `${exact.format(at)}.${String(at % 1000).padStart(3, "0")}`;
}

function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

function button(className, text, label) {
  const made = make("button", className, text);
  made.type = "button";
  if (label) made.setAttribute("aria-label", label);
  return made;
}

/** Whether a whole line looks like a JSON object or array. */
function isJson(text) {
  if (text.length > JSON_CHARS_MAX || !/^\s*[{[]/.test(text)) return false;
  const whole = text.trim();
  return whole[0] === "{" ? whole.endsWith("}") : whole.endsWith("]") && /^\[\s*["{[\d]/.test(whole);
}

/** JSON with a line for each member. Its values stay as they are: parsing would change long numbers and repeated names. */
export function formatted(text) {
  try {
    JSON.parse(text);
  } catch {
    return null;
  }
  let made = "";
  let depth = 0;
  let before = "";
  const line = () => `\n${"  ".repeat(depth)}`;
  for (const [token] of text.matchAll(/"(?:[^"\\]|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/g)) {
    if (token === "}" || token === "]") {
      depth -= 1;
      made += before === "{" || before === "[" ? token : line() + token;
    } else {
      if (before === "{" || before === "[" || before === ",") made += line();
      made += token === ":" ? ": " : token;
      if (token === "{" || token === "[") depth += 1;
    }
    before = token;
  }
  return made;
}

/** The text of a line as it is shown and searched: without control sequences. */
export function plainText(line) {
  return (line.plain ??= parse(line.text).text);
}

function appendPieces(parent, text, marks) {
  for (const piece of pieces(text, marks)) {
    let element = piece.isHit ? make("mark", "", piece.text) : null;
    const { style } = piece;
    if (style) {
      const names = style.flags.concat([style.fg && !style.fg.startsWith("rgb") && `fg-${style.fg}`, style.bg && !style.bg.startsWith("rgb") && `bg-${style.bg}`]);
      const styled = make("span", names.filter(Boolean).join(" "));
      // Set through the object model, which the content security policy allows, unlike a style attribute.
      if (style.fg?.startsWith("rgb")) styled.style.setProperty("--fg", style.fg);
      if (style.bg?.startsWith("rgb")) styled.style.setProperty("--bg", style.bg);
      styled.append(element ?? piece.text);
      element = styled;
    }
    if (piece.link) {
      const link = make("a");
      link.href = piece.link;
      link.target = "_blank";
      link.rel = "noopener noreferrer";
      link.append(element ?? piece.text);
      element = link;
    }
    parent.append(element ?? piece.text);
  }
}

/** Fills the content of a row. Called again when it is unfolded, or when what is searched for changes. */
function fill(content, line, find) {
  const { text, spans } = parse(line.text);
  const isFolded = text.length > FOLDED_CHARS && !line.isUnfolded;
  const shown = isFolded ? text.slice(0, FOLDED_CHARS) : text;
  const hits = find ? find.ranges(shown) : [];
  const linked = links(shown);
  if (spans.length || hits.length || linked.length) {
    const within = isFolded ? spans.filter(({ from }) => from < FOLDED_CHARS).map((span) => ({ ...span, to: Math.min(span.to, FOLDED_CHARS) })) : spans;
    appendPieces(content, shown, { spans: within, links: linked, hits });
  } else content.append(shown);
  if (isFolded) content.append(button("fold", `… ${(text.length - FOLDED_CHARS).toLocaleString()} more characters`));
  if (line.isExpanded) {
    const pretty = formatted(text);
    content.append(make("pre", "", pretty ?? "This is not valid JSON."));
  }
}

/** Makes the row of a line. */
export function makeRow(line, { find, tag }) {
  const row = make("div", `row ${line.kind}`);
  if (line.isMissed) row.classList.add("missed");
  const time = make("time", "", timeOf(line.at));
  row.append(time);
  if (line.kind === "note") {
    const content = make("p", "", line.text);
    if (line.skipped) content.append(button("load", "Load them"));
    row.append(content);
    return row;
  }
  if (line.kind === "joined") {
    row.append(make("p", "", joinedText(line)));
    return row;
  }
  const text = plainText(line);
  const level = line.kind === "own" ? "" : (line.level ??= levelOf(text));
  if (level) row.dataset.level = level;
  const label = tag(line);
  if (label) row.append(make("span", "tag", label));
  if (line.isBytes) row.append(make("span", "tag", "not UTF-8"));
  if (isJson(text)) row.append(button("json", "{}", line.isExpanded ? "Fold this JSON" : "Format this JSON"));
  const content = make("p");
  fill(content, line, find);
  row.append(content);
  return row;
}

export function joinedText({ names, count }) {
  return count === 1 ? `${names[0]} joined` : `${count.toLocaleString()} joined`;
}
