// Terminal output: SGR attributes (ECMA-48 §8.3.117) become spans; all other control sequences are removed.

// CSI, also as one byte, then OSC and the other strings that end with BEL or ST, then two-byte sequences. A string without an end
// is shown: otherwise a line could hide its rest.
const SEQUENCE = /(?:\x1b\[|\x9b)([0-?]*)[ -/]*([@-~])|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]?/g;
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f]/g;

/** The levels of each of red, green and blue in the 6 × 6 × 6 cube of 256 colours. */
const CUBE = [0, 95, 135, 175, 215, 255];

function indexed(n) {
  if (n < 16) return `c${n}`;
  if (n < 232) return rgb(CUBE[Math.floor((n - 16) / 36)], CUBE[Math.floor((n - 16) / 6) % 6], CUBE[(n - 16) % 6]);
  const grey = 8 + 10 * (n - 232);
  return rgb(grey, grey, grey);
}

const rgb = (...parts) => `rgb(${parts.map((part) => Math.min(255, part)).join(",")})`;

/** Reads an extended colour: `5;N`, `2;R;G;B`, or the same with colons. Returns the colour, and how many parameters it took. */
function extended(rest) {
  if (rest[0] === 5 && rest[1] <= 255) return [indexed(rest[1]), 2];
  if (rest[0] === 2 && rest.length >= 4) return [rgb(...rest.slice(1, 4)), 4];
  return [undefined, rest.length];
}

const FLAGS = { 1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "inverse", 8: "hidden", 9: "strike" };
const RESETS = { 22: ["bold", "dim"], 23: ["italic"], 24: ["underline"], 27: ["inverse"], 28: ["hidden"], 29: ["strike"] };

function apply(style, parameters) {
  const next = { ...style, flags: new Set(style.flags) };
  // With colons, a parameter has parts of its own; `38:2::R:G:B` has an empty one for the colour space.
  const groups = parameters.split(";").map((group) => group.split(":"));
  for (let at = 0; at < groups.length; at += 1) {
    const parts = groups[at];
    const code = Number(parts[0]);
    if (code === 0) {
      next.fg = next.bg = undefined;
      next.flags.clear();
    } else if (code === 38 || code === 48) {
      const key = code === 38 ? "fg" : "bg";
      if (parts.length > 1) {
        const own = parts.slice(1).map(Number);
        if (own[0] === 2 && own.length > 4) own.splice(1, 1);
        [next[key]] = extended(own);
      } else {
        const [colour, taken] = extended(groups.slice(at + 1, at + 5).map((group) => Number(group[0])));
        next[key] = colour;
        at += taken;
      }
    } else if (code === 39) next.fg = undefined;
    else if (code === 49) next.bg = undefined;
    else if (code === 4 && parts[1] === "0") next.flags.delete("underline");
    else if (FLAGS[code]) next.flags.add(FLAGS[code]);
    else if (code === 21) next.flags.add("underline");
    else if (RESETS[code]) RESETS[code].forEach((flag) => next.flags.delete(flag));
    else if ((code >= 30 && code <= 37) || (code >= 90 && code <= 97)) next.fg = `c${code < 90 ? code - 30 : code - 82}`;
    else if ((code >= 40 && code <= 47) || (code >= 100 && code <= 107)) next.bg = `c${code < 100 ? code - 40 : code - 92}`;
  }
  return next;
}

const isPlain = ({ fg, bg, flags }) => !fg && !bg && flags.size === 0;

/**
 * Parses a line. Returns its text without control sequences, and its styled parts `{ from, to, fg, bg, flags }`. A colour is
 * `c0` to `c15`, or `rgb(…)`. A carriage return within the line begins it anew, as in a terminal.
 */
export function parse(line) {
  if (!/[\x00-\x08\x0b-\x1f\x7f\x9b]/.test(line)) return { text: line, spans: [] };
  // An expression for the end would try each start of a run.
  let end = line.length;
  while (end > 0 && line[end - 1] === "\r") end -= 1;
  const start = end > 0 ? line.lastIndexOf("\r", end - 1) + 1 : 0;
  let text = "";
  const spans = [];
  let style = { flags: new Set() };
  let from = 0;
  const add = (piece) => {
    const before = text.length;
    text += piece.replace(/\r/g, "").replace(CONTROL, (char) => String.fromCharCode(char === "\x7f" ? 0x2421 : 0x2400 + char.charCodeAt()));
    if (!isPlain(style) && text.length > before) {
      spans.push({ from: before, to: text.length, fg: style.fg, bg: style.bg, flags: [...style.flags] });
    }
  };
  for (const match of line.matchAll(SEQUENCE)) {
    if (match.index >= start) {
      add(line.slice(Math.max(from, start), match.index));
    }
    if (match[2] === "m" && !/[<-?]/.test(match[1])) style = apply(style, match[1]);
    from = match.index + match[0].length;
  }
  add(line.slice(Math.max(from, start)));
  return { text, spans };
}
