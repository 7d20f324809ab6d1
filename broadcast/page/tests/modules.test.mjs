// Tests of the page's modules without a browser: node --test broadcast/page/tests

import assert from "node:assert/strict";
import { test } from "node:test";

import { parse } from "../ansi.js";
import { between, mergeByTime, unread } from "../ids.js";
import { levelOf } from "../levels.js";
import { matcher } from "../matcher.js";
import { decoded, links, pieces } from "../pieces.js";
import { formatted } from "../row.js";

const styled = (line) => {
  const { text, spans } = parse(line);
  return spans.map(({ from, to, ...style }) => {
    const parts = [style.fg, style.bg && `on ${style.bg}`, ...style.flags].filter(Boolean);
    return `${text.slice(from, to)}: ${parts.join(" ")}`;
  });
};

test("ansi_sgr_parameters_become_styles", () => {
  assert.deepEqual(styled("\x1b[31merror\x1b[0m plain \x1b[1;92;44mok\x1b[39m on"), ["error: c1", "ok: c10 on c4 bold", " on: on c4 bold"]);
  assert.deepEqual(styled("\x1b[38;5;196mx\x1b[48;5;244my\x1b[m"), ["x: rgb(255,0,0)", "y: rgb(255,0,0) on rgb(128,128,128)"]);
  assert.deepEqual(styled("\x1b[38;5;9mx"), ["x: c9"]);
  assert.deepEqual(styled("\x1b[38;2;1;2;3;4mx"), ["x: rgb(1,2,3) underline"]);
  assert.deepEqual(styled("\x1b[38:2::1:2:3mx\x1b[48:5:17my"), ["x: rgb(1,2,3)", "y: rgb(1,2,3) on rgb(0,0,95)"]);
  assert.deepEqual(styled("\x9b1mx\x1b[22my\x1b[4:3mz\x1b[4:0m."), ["x: bold", "z: underline"]);
});

test("ansi_malformed_or_foreign_sequences_leave_only_text", () => {
  for (const [line, text] of [
    ["a\x1b[2Kb\x1b[10;20Hc\x1b[?25ld", "abcd"],
    ["\x1b]0;title\x07a\x1b]8;;http://a/\x1b\\b\x1b]8;;\x1b\\c", "abc"],
    ["a\x1b[31", "a31"],
    ["a\x1b", "a"],
    ["\x1b[38;5mx", "x"],
    ["\x1b[38;2;1mx", "x"],
    ["\x1b[38;5;999mx", "x"],
    ["\x1b[>4;2mx", "x"],
    ["\x1b(Bx\x1b=y", "xy"],
    ["\x1b]0;never ends", "0;never ends"],
    ["GET /\x1b]x HTTP/1.1\x1bPy", "GET /x HTTP/1.1y"],
    ["10 %\r20 %\r\x1b[32m100 %\r", "100 %"],
    ["a\0b\x7f\b", "a␀b␡␈"],
    ["tab\tstays", "tab\tstays"],
  ]) {
    assert.equal(parse(line).text, text, JSON.stringify(line));
  }
  assert.deepEqual(styled("\x1b[31mgone\rhere"), ["here: c1"]);
  assert.deepEqual(styled("\x1b[38;5;999mx"), []);
});

test("ansi_random_input_never_fails_and_spans_are_in_order", () => {
  let seed = 7;
  const random = (n) => (seed = (seed * 1103515245 + 12345) % 2 ** 31) % n;
  const alphabet = ["\x1b", "[", "]", "m", "3", "8", ";", ":", "5", "2", "x", "é", "\r", "\x07", "\\", "\x9b", "?", "\x00", "K"];
  for (let n = 0; n < 20_000; n += 1) {
    const line = Array.from({ length: random(24) }, () => alphabet[random(alphabet.length)]).join("");
    const { text, spans } = parse(line);
    assert.ok(!/[\x00-\x08\x0b-\x1f\x7f]/.test(text), JSON.stringify(line));
    let before = 0;
    for (const { from, to } of spans) {
      assert.ok(before <= from && from < to && to <= text.length, JSON.stringify(line));
      before = to;
    }
  }
});

test("hostile_lines_of_a_megabyte_are_parsed_in_a_moment", () => {
  const mega = 1 << 20;
  const lines = [
    "\r".repeat(mega) + "x",
    "\x1b[" + "1;".repeat(mega / 2),
    "\x1b]" + "x".repeat(mega),
    "\x1b".repeat(mega),
    "[" + "1".repeat(mega),
    "http://a" + ")".repeat(mega),
    "http://" + "a.".repeat(mega / 2),
    "http://a ".repeat(mega / 10),
    '"' + " ".repeat(mega),
    "level".repeat(mega / 5),
  ];
  for (const line of lines) {
    const begun = performance.now();
    const { text } = parse(line);
    levelOf(text);
    pieces(text, { links: links(text) });
    // Linear code takes tens of milliseconds, quadratic code minutes.
    assert.ok(performance.now() - begun < 10_000, JSON.stringify(line.slice(0, 20)));
  }
});

test("level_of_common_formats_is_found", () => {
  for (const [level, ...lines] of [
    ["error",
      '{"level":"error","msg":"x"}', '{"time":"2026-01-01","msg":"a","severity": "ERROR"}', '{"level":50,"msg":"pino"}', '{"PRIORITY":"3","MESSAGE":"x"}',
      "time=2026 level=error msg=x", "2026/11/30 12:00:00 [error] 123#0: *1 open() failed", "E1130 08:15:00.000000 1 a.go:1] x", "<3>x",
      "error[E0308]: mismatched types", "src/main.rs:1:2: error: x", "2026-11-30 12:00:00,123 ERROR root: x", '1.2.3.4 - - [30/Nov/2026:12:00:00 +0000] "GET / HTTP/1.1" 502 157 "-" "-"',
      "tests/test_a.py::test_b FAILED", "ERROR:root:x", "[ERR] x"],
    ["warn", "warning: unused variable", "W1130 08:15:00.000000 1 a.go:1] x", "[WARN] x", "level=warning x", '{"log.level":"warn"}', '1.2.3.4 - - [30/Nov/2026:12:00:00 +0000] "GET /x HTTP/1.1" 404 - "-" "-"'],
    ["fatal", "<2>x", '{"level":"fatal"}', '{"level":60}', "[crit] x", "CRITICAL x"],
    ["info", '{"level":"info","error":null}', "INFO x", "[notice] x", "<30>x"],
    ["debug", "DEBUG x", '{"level":20}', "level=trace"],
    ["", "", "hello", "an error is mentioned", "no information here", "terror: x", '"GET /errors HTTP/1.1" 200 5', "WARNINGS", "{}", '{"levels":1}', '{"level":{}}', "level=constructor"],
  ]) {
    for (const line of lines) assert.equal(levelOf(line), level, line);
  }
});

test("json_is_formatted_without_changing_a_value", () => {
  const text = '{"id":12345678901234567890,"a":1.0,"a":[],"b":[1,{"c":"x,\\"y: {"}],"d":{}} ';
  assert.equal(
    formatted(text),
    '{\n  "id": 12345678901234567890,\n  "a": 1.0,\n  "a": [],\n  "b": [\n    1,\n    {\n      "c": "x,\\"y: {"\n    }\n  ],\n  "d": {}\n}',
  );
  assert.equal(formatted("{no}"), null);
});

test("filter_is_text_of_any_case_or_a_regular_expression", () => {
  assert.equal(matcher(""), null);
  assert.ok(matcher("a.b").test("xA.By") && !matcher("a.b").test("axb"));
  assert.ok(matcher("/^a.b$/").test("axb") && !matcher("/^a.b$/").test("AXB") && matcher("/^a.b$/i").test("AXB"));
  assert.ok(matcher("/").test("a/b") && matcher("//").test("a//b") && matcher("/a").test("x/a"));
  const global = matcher("/a/g");
  assert.ok(global.test("a") && global.test("a"), "no state remains between lines");
  assert.match(matcher("/(/").error, /parenthes|group/i);
  assert.ok(matcher("/a/k").error);
  for (const slow of ["/(a+)+$/", "/(x|y)*z/", "/((a*)b)*/", "/(?:\\w+\\s?){2,}$/i", "/((a|b)c)+/", "/(\\d\\d?)+x/", "/(aa?)+$/", "/(a?a?)*b/", "/(.*a){20}$/", "/(a+){10}b/", "/(?:,?\\d*,?)*x/", "/(?<n>a+?)+$/"]) {
    assert.match(matcher(slow).error, /hang.*Enter/, slow);
    assert.ok(matcher(slow, true).test, slow);
  }
  for (const fast of ["/(a+)b*/", "/(x|y)z/", "/[(a+)+]/", "/\\(a+\\)+/", "/(ab)+/", "/(\\d{3})+/", "/a+.*b/", "/(a+)?/", "/(?:ab){3}/", "/(?=a)b/", "/a{2,3}?b/", "/(abc)*/"]) {
    assert.ok(matcher(fast).test, fast);
  }
  assert.deepEqual(matcher("ab").ranges("abxAB"), [[0, 2], [3, 5]]);
  assert.deepEqual(matcher("/x*/").ranges("axx"), [[1, 3]]);
  assert.deepEqual(matcher("ÄÖ").ranges("xäöx"), [[1, 3]]);
});

test("links_end_before_the_punctuation_of_the_sentence", () => {
  const found = (text) => links(text).map(([from, to]) => text.slice(from, to));
  assert.deepEqual(found("see http://a.example/x?y=1#z, and (https://b.example/(c)). Not javascript://x"), ["http://a.example/x?y=1#z", "https://b.example/(c)"]);
  assert.deepEqual(found('"url":"https://a.example/","x":1'), ["https://a.example/"]);
  assert.deepEqual(found("<http://a.example>"), ["http://a.example"]);
  assert.deepEqual(found("xhttp://a ftp://b"), []);
});

test("pieces_cover_the_text_once_with_all_appearances", () => {
  const text = "see http://a/ now";
  const made = pieces(text, { spans: [{ from: 0, to: 8, fg: "c1", flags: [] }], links: links(text), hits: [[6, 15]] });
  assert.equal(made.map((piece) => piece.text).join(""), text);
  assert.deepEqual(
    made.map((piece) => [piece.text, piece.style?.fg ?? "", piece.link ?? "", piece.isHit]),
    [
      ["see ", "c1", "", false],
      ["ht", "c1", "http://a/", false],
      ["tp", "c1", "http://a/", true],
      ["://a/", "", "http://a/", true],
      [" n", "", "", true],
      ["ow", "", "", false],
    ],
  );
  assert.deepEqual(pieces("", {}), []);
});

test("bytes_that_are_not_utf8_are_replaced", () => {
  assert.equal(decoded(Buffer.from([0x61, 0xff, 0xc3, 0xbc, 0x0a]).toString("base64")), "a\ufffdü\n");
});

test("ids_tell_how_many_messages_lie_between", () => {
  assert.equal(between("a-1", "a-2"), 0);
  assert.equal(between("a-b-1", "a-b-12"), 10);
  assert.equal(between("a-1", "b-9"), 0);
  assert.equal(between("a-5", "a-3"), 0);
  assert.equal(between(null, "a-3"), 0);
  assert.equal(unread("a-3", "a-5"), 2);
  assert.equal(unread("a-5", "b-2"), 2);
  assert.equal(unread(null, "a-7"), 7);
  assert.equal(unread("a-7", null), 0);
  const merged = mergeByTime([{ at: 1 }, { at: 4 }], [{ at: 2 }, { at: 9 }]);
  assert.deepEqual(merged.map(({ at }) => at), [1, 2, 4, 9]);
});
