// The severity of a line, from the formats that are common in logs. It only chooses a colour.

const NAMES = new Map(Object.entries({
  trace: "debug", verbose: "debug", debug: "debug", dbg: "debug", fine: "debug",
  info: "info", information: "info", informational: "info", notice: "info", inf: "info",
  warn: "warn", warning: "warn", wrn: "warn",
  error: "error", err: "error", severe: "error", failed: "error", failure: "error",
  critical: "fatal", crit: "fatal", fatal: "fatal", alert: "fatal", emerg: "fatal", emergency: "fatal", panic: "fatal",
}));

// JSON (level, severity and their relatives) and logfmt.
const FIELD = /["']?\b(?:log\.)?(?:level|severity|lvl|loglevel|levelname|log_level|severity_text|PRIORITY)["']?\s*[:=]\s*["']?([a-z]+|\d+)/i;
// Bunyan and pino have tens, syslog and journald single digits.
const number = (n) => (n >= 60 ? "fatal" : n >= 50 ? "error" : n >= 40 ? "warn" : n >= 30 ? "info" : n >= 10 ? "debug" : n <= 2 ? "fatal" : n === 3 ? "error" : n === 4 ? "warn" : n <= 6 ? "info" : "debug");
// A word in capitals, in brackets, or before a colon at the beginning, as of compilers.
const CAPITALS = /\b(TRACE|VERBOSE|DEBUG|DBG|INFO|NOTICE|WARN(?:ING)?|ERR(?:OR)?|SEVERE|CRIT(?:ICAL)?|FATAL|ALERT|EMERG|PANIC|FAILED)\b/;
const BRACKETS = /[[<(|]\s*(trace|debug|info|notice|warn(?:ing)?|err(?:or)?|crit(?:ical)?|fatal|alert|emerg|panic|inf|wrn|dbg)\s*[\])>|]/i;
const COMPILER = /^\s*(?:[^\s:]+:\d+(?::\d+)?:\s+)?(?:fatal )?(error|warning|note|info|debug|fatal|panic)(?:\[[\w-]+\])?:/i;
// glog and klog: `E1130 08:15:00.000000`. Access logs: the status behind the quoted request. journald and the kernel: `<3>`.
const GLOG = /^([IWEF])\d{4} \d\d:\d\d:\d\d/;
const ACCESS = /" ([1-5]\d\d) (?:\d+|-)(?:\s|$)/;
const PRIORITY = /^<(\d{1,3})>/;
/** Levels stand at the beginning of lines, before what users or programs say. */
const HEAD_CHARS = 300;

/** Returns "debug", "info", "warn", "error", "fatal", or "" if the line names no level. */
export function levelOf(line) {
  const head = line.length > HEAD_CHARS ? line.slice(0, HEAD_CHARS) : line;
  let match;
  if (/^\s*[{[]/.test(head) || head.includes("=")) {
    // A JSON object may name its level anywhere.
    match = FIELD.exec(line.length > 8 * HEAD_CHARS ? head : line);
    if (match) return /^\d/.test(match[1]) ? number(Number(match[1])) : (NAMES.get(match[1].toLowerCase()) ?? "");
  }
  if ((match = GLOG.exec(head))) return { I: "info", W: "warn", E: "error", F: "fatal" }[match[1]];
  if ((match = PRIORITY.exec(head))) return number(Number(match[1]) % 8);
  if ((match = BRACKETS.exec(head) ?? COMPILER.exec(head) ?? CAPITALS.exec(head))) return NAMES.get(match[1].toLowerCase()) ?? "info";
  if ((match = ACCESS.exec(line))) return match[1] >= "500" ? "error" : match[1] >= "400" ? "warn" : "";
  return "";
}
