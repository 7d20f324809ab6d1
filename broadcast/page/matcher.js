// Filters: a text that may occur anywhere, whatever its case, or a regular expression between slashes.

/** Only so much of a line is searched. */
const SEARCHED_CHARS_MAX = 20_000;

/**
 * Whether an expression repeats a group that contains repetitions, optional parts or alternatives, such as `(a+)+`: on some
 * lines, browsers then try more ways than a person can wait for, and the page hangs. Many that it holds back are harmless.
 */
function mayHang(source) {
  // Without escapes, classes, the marks of groups, and those of lazy repetitions.
  let rest = source.replace(/\\./g, "x").replace(/\[[^\]]*\]/g, "x").replace(/\(\?(?:<?[=!]|:|<\w+>)/g, "(").replace(/([+*?}])\?/g, "$1");
  for (;;) {
    const group = /\(([^()]*)\)([*+]|\{\d+(?:,\d*)?\})?/.exec(rest);
    if (!group) return false;
    const [whole, content, repeats] = group;
    const varies = /[*+?|]|\{\d+,/.test(content);
    if (repeats && varies) return true;
    rest = rest.replace(whole, () => (repeats || varies ? "x*" : "x"));
  }
}

/**
 * Parses a filter. Returns `null` if it is empty, and otherwise `{ test(text), ranges(text) }`, or `{ error }` if it is not a
 * regular expression, or may hang the page and was not `confirmed`.
 */
export function matcher(filter, confirmed = false) {
  if (filter === "") return null;
  const [, source, flags] = /^\/(.+)\/([a-z]*)$/.exec(filter) ?? [];
  if (source && !confirmed && mayHang(source)) return { error: "this expression may hang the page; Enter applies it" };
  let expression;
  try {
    // Sticky and global keep state between the calls.
    expression = source ? new RegExp(source, flags.replace(/[gy]/g, "")) : new RegExp(filter.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "iu");
  } catch (error) {
    return { error: String(error.message).replace(/^Invalid regular expression: /, "") };
  }
  const all = new RegExp(expression.source, `${expression.flags}g`);
  const searched = (text) => (text.length > SEARCHED_CHARS_MAX ? text.slice(0, SEARCHED_CHARS_MAX) : text);
  return {
    test: (text) => expression.test(searched(text)),
    /** The parts that match, as pairs of positions. */
    ranges: (text) =>
      [...searched(text).matchAll(all)].filter((match) => match[0]).map((match) => [match.index, match.index + match[0].length]),
  };
}
