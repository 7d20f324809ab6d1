// Splits a line into pieces of one appearance each: styles of a terminal, links, and what was searched for.

const LINK = /\bhttps?:\/\/[^\s<>"'`\u0000-\u001f]+/gi;

/** The links in a text, as `[from, to]`: without punctuation that belongs to the sentence around them. */
export function links(text) {
  if (!text.includes("://")) return [];
  return [...text.matchAll(LINK)].map((match) => [match.index, match.index + lengthOf(match[0])]);
}

const OPENING = { ")": "(", "]": "[", "}": "{" };

/** The length of a link. A closing bracket at its end belongs to it only if it was opened there. */
function lengthOf(link) {
  const count = {};
  for (const char of link) if ("()[]{}".includes(char)) count[char] = (count[char] ?? 0) + 1;
  let length = link.length;
  for (; length > 0; length -= 1) {
    const char = link[length - 1];
    const opening = OPENING[char];
    if (opening && count[char] > (count[opening] ?? 0)) count[char] -= 1;
    else if (!".,;:!?".includes(char)) break;
  }
  return length;
}

/** The pieces of a text: `{ text, style, link, isHit }`, in order and without gaps. */
export function pieces(text, { spans = [], links: linked = [], hits = [] }) {
  const ends = new Set([0, text.length]);
  for (const { from, to } of spans) ends.add(from).add(to);
  for (const [from, to] of [...linked, ...hits]) ends.add(Math.min(from, text.length)).add(Math.min(to, text.length));
  const positions = [...ends].sort((a, b) => a - b);
  let [span, link, hit] = [0, 0, 0];
  const made = [];
  for (let n = 0; n + 1 < positions.length; n += 1) {
    const [from, to] = [positions[n], positions[n + 1]];
    while (span < spans.length && spans[span].to <= from) span += 1;
    while (link < linked.length && linked[link][1] <= from) link += 1;
    while (hit < hits.length && hits[hit][1] <= from) hit += 1;
    const isIn = (range) => range !== undefined && range[0] <= from;
    made.push({
      text: text.slice(from, to),
      style: spans[span] && spans[span].from <= from ? spans[span] : null,
      link: isIn(linked[link]) ? text.slice(...linked[link]) : null,
      isHit: isIn(hits[hit]),
    });
  }
  return made;
}

/** Base64 as text. What is not UTF-8 is replaced: such a line is marked as such. */
export function decoded(base64) {
  const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt());
  return new TextDecoder().decode(bytes);
}
