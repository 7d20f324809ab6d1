// Drives the program's page in a headless browser:
//
//     npm ci --prefix broadcast/tests/browser
//     node broadcast/tests/browser/run.mjs PATH_TO_BINARY [--groups page,rooms,formats,login,sites,cluster] [--only PART_OF_A_NAME]
//     node broadcast/tests/browser/run.mjs PATH_TO_BINARY --screenshots DIR    takes those of the documentation instead
//
// The same over TLS, without the tests whose proxies speak plain HTTP:
//
//     broadcast/tests/browser/certificates DIR
//     HOME=DIR NODE_EXTRA_CA_CERTS=DIR/ca.pem node broadcast/tests/browser/run.mjs PATH_TO_BINARY --tls DIR
//
// The browser is $CHROMIUM, or /usr/bin/chromium; with BROWSER=firefox, $FIREFOX or /usr/bin/firefox-esr. Exits with 1 if anything failed. Every wait is for a
// condition, with a deadline.

import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { clusterTests } from "./cluster.mjs";
import { formatTests } from "./formats.mjs";
import { loginTests } from "./login.mjs";
import { roomTests } from "./rooms.mjs";
import { siteTests } from "./sites.mjs";
import { Program, WAIT_MS, assert, browser, browserName, hasState, message, open, says, sees, setBinary, within } from "./support.mjs";

const { values, positionals } = parseArgs({
  options: { groups: { type: "string" }, only: { type: "string" }, screenshots: { type: "string" }, tls: { type: "string" } },
  allowPositionals: true,
});
if (positionals.length !== 1) {
  console.error("usage: node run.mjs PATH_TO_BINARY [--groups NAMES] [--only PART_OF_A_NAME] [--screenshots DIR] [--tls DIR]");
  process.exit(2);
}
setBinary(positionals[0], values.tls);

/** Scrolls up as a person does. */
async function scrollUp(page, pixels) {
  await page.mouse.move(500, 400);
  const before = await page.locator("#log").evaluate((log) => log.scrollTop);
  await page.mouse.wheel(0, -pixels);
  await page.waitForFunction((before) => document.getElementById("log").scrollTop < before, before, { timeout: WAIT_MS });
}

/** The text of the row in the middle of the window. */
const inSight = (page) =>
  page.locator("#log").evaluate((element) => {
    const box = element.getBoundingClientRect();
    return document.elementFromPoint(box.left + 200, box.top + box.height / 2).closest(".row")?.textContent;
  });

/** Waits until the list is at its end, and the frames after it are drawn. */
const isAtEnd = (page) =>
  page.waitForFunction(() => {
    const log = document.getElementById("log");
    return log.scrollHeight - log.scrollTop - log.clientHeight < 2;
  });

/** The file that the page saves when `act` is done. */
async function downloadedBy(page, act) {
  if (browserName === "chromium") {
    const [file] = await Promise.all([page.waitForEvent("download", { timeout: WAIT_MS }), act()]);
    return { name: file.suggestedFilename(), content: await readFile(await file.path(), "utf8") };
  }
  // Headless Firefox saves nothing, on no page, so this is what it is asked to save.
  await page.evaluate(() => {
    const create = URL.createObjectURL;
    URL.createObjectURL = (blob) => ((window.saved = { blob }), create.call(URL, blob));
    HTMLAnchorElement.prototype.click = function () {
      window.saved.name = this.download;
    };
  });
  await act();
  const saved = await page.waitForFunction(async () => window.saved && { name: window.saved.name, content: await window.saved.blob.text() });
  return saved.jsonValue();
}

/** Waits until the rows of ten thousand lines are made, in time that nothing else needs. */
const hasAllRows = (page) => page.waitForFunction(() => document.querySelectorAll("#lines .row").length > 9_900, null, { timeout: 5 * WAIT_MS });

const tests = {
  async "a line of standard input appears on both pages"({ program, pages }) {
    program.say("the first line");
    for (const page of pages) await sees(page, "the first line");
  },

  async "new clients are a small note that folds with its neighbours"({ program, pages: [page] }) {
    await page.locator(".row.joined").first().waitFor({ timeout: WAIT_MS });
    program.say("between");
    await sees(page, "between");
    const others = [];
    for (let n = 0; n < 3; n += 1) others.push(await open(program));
    await sees(page, "3 joined");
    for (const other of others) await other.context().close();
  },

  async "in echo mode the field is there on request, says what it does, and sends"({ pages: [page] }) {
    assert(!(await page.locator("#form").isVisible()), "the field takes room although sending does nothing for others");
    await page.keyboard.press("m");
    assert((await page.evaluate(() => document.activeElement.id)) === "field", "the field does not have the focus");
    assert(/only this page/.test(await page.getAttribute("#field", "placeholder")), "it does not say what will happen");
    await page.keyboard.type("sent from the first page");
    await page.keyboard.press("Enter");
    await page.locator("#lines .row.own", { hasText: "sent from the first page" }).waitFor({ timeout: WAIT_MS });
    await page.locator("#lines .row.text", { hasText: "sent from the first page" }).waitFor({ timeout: WAIT_MS });
    assert((await page.inputValue("#field")) === "", "the field still has what was sent");
  },

  async "an echo reaches its sender only"({ program, pages: [, other] }) {
    program.say("after the echo");
    await sees(other, "after the echo");
    assert((await message(other, "sent from the first page").count()) === 0, "the other page has got the echo");
  },

  async "every control is reachable by keyboard and shows its focus"({ pages: [, page] }) {
    await page.locator("#filter").focus();
    const reached = [];
    while (reached.length < 10 && reached.at(-1) !== "log") {
      reached.push(await page.evaluate(() => document.activeElement.id));
      const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
      assert(outline !== "none" || reached.at(-1) === "log", `${reached.at(-1)} does not show its focus`);
      await page.keyboard.press("Tab");
    }
    for (const id of ["filter", "not", "find", "pause", "more", "log"]) assert(reached.includes(id), `Tab does not lead to ${id}: ${reached}`);
    await page.locator("#log").focus();
  },

  async "markup in a line is shown as text"({ program, pages }) {
    const markup = '<img src=x onerror="document.title=1"><b>bold</b><script>document.title=2</script>';
    program.say(markup);
    for (const page of pages) {
      await sees(page, markup);
      assert((await page.locator("#log img, #log b, #log script").count()) === 0, "markup has become elements");
      assert(!/^[12]$/.test(await page.title()), "a script in a line has run");
    }
  },

  async "a line that is not UTF-8 is shown with a mark"({ program, pages: [page] }) {
    program.child.stdin.write(Buffer.from([0x61, 0xff, 0x00, 0x62, 0x0a]));
    await sees(page, "not UTF-8");
    assert((await message(page, "not UTF-8").locator("p").innerText()) === "a\ufffd␀b", "its bytes are not shown");
  },

  async "colours of a terminal become styles, and are not copied"({ program, pages: [page] }) {
    program.say("\x1b[1;31mred\x1b[0m \x1b[38;5;46mgreen\x1b[0m \x1b[48;2;1;2;3mback\x1b[0m\x1b]0;title\x07 end");
    await sees(page, "red green back end");
    const row = message(page, "red green back end").last();
    assert((await row.locator("span.fg-c1.bold").innerText()) === "red", "red is not red and bold");
    const colour = (text, name) => row.locator("span", { hasText: text }).last().evaluate((span, name) => getComputedStyle(span)[name], name);
    assert((await colour("green", "color")) === "rgb(0, 255, 0)", await colour("green", "color"));
    assert((await colour("back", "backgroundColor")) === "rgb(1, 2, 3)", await colour("back", "backgroundColor"));
    const copied = await row.evaluate((row) => {
      getSelection().selectAllChildren(row.closest("#lines"));
      return getSelection().toString();
    });
    assert(/(^|\n)red green back end\n?$/.test(copied.trimEnd()), `copied: ${JSON.stringify(copied.slice(-80))}`);
    await page.evaluate(() => getSelection().removeAllRanges());
  },

  async "levels, links and JSON are shown as what they are"({ program, pages: [page] }) {
    program.say('{"level":"error","msg":"see https://a.example/x.","n":[1,2]}');
    program.say("2026-11-30 WARN pool is full");
    await sees(page, "pool is full");
    const row = message(page, "a.example").last();
    assert((await row.getAttribute("data-level")) === "error", "the level of JSON is not found");
    assert((await message(page, "pool is full").getAttribute("data-level")) === "warn", "the level of text is not found");
    const link = row.locator("a");
    assert((await link.getAttribute("href")) === "https://a.example/x", await link.getAttribute("href"));
    assert(/noopener/.test(await link.getAttribute("rel")), "the link passes the page on");
    await row.locator("button.json").click();
    await says(page, "#lines pre", '"level": "error"');
    await message(page, "a.example").last().locator("button.json").click();
    await page.locator("#lines pre").waitFor({ state: "detached", timeout: WAIT_MS });
    await page.keyboard.press("f");
  },

  async "a long line is folded and can be unfolded"({ program, pages: [page] }) {
    program.say(`long ${"x".repeat(5000)}END`);
    const row = message(page, "long xxx").last();
    await row.waitFor({ timeout: WAIT_MS });
    assert(!(await row.innerText()).includes("END"), "it is not folded");
    await row.locator("button.fold").click();
    await message(page, "END").last().waitFor({ timeout: WAIT_MS });
    await page.keyboard.press("f");
  },

  async "the exact time is shown when the pointer rests on a time"({ pages: [page] }) {
    const time = page.locator("#lines .row.text time").last();
    await time.hover();
    assert(/20\d\d.*:\d\d.*\.\d{3}$/.test(await time.getAttribute("title")), await time.getAttribute("title"));
  },

  async "the number of clients is shown and updated"({ program, pages: [page] }) {
    await says(page, "#clients", "2 clients");
    const third = await open(program);
    await says(page, "#clients", "3 clients");
    await third.context().close();
    await says(page, "#clients", "2 clients");
  },

  async "ten thousand lines are kept, and what was left out is said"({ program, pages: [page] }) {
    await page.keyboard.press("f");
    const text = Array.from({ length: 15_000 }, (_, n) => `many ${n}`).join("\n");
    program.say(text);
    await sees(page, "many 14999");
    await isAtEnd(page);
    await page.waitForFunction(() => /older lines are not shown/.test(document.getElementById("older").textContent));
    await scrollUp(page, 1e6);
    // Rows are made when they come into sight.
    await hasAllRows(page);
    const first = Number(/many (\d+)/.exec(await page.locator("#lines .row.text").first().textContent())[1]);
    assert(first > 4_800 && first <= 5_000, `the first line is ${first}`);
    await page.keyboard.press("f");
    await isAtEnd(page);
  },

  async "a scrolled-up page stays in place and counts new lines"({ program, pages: [page] }) {
    await scrollUp(page, 60_000);
    await page.waitForFunction(() => document.elementFromPoint(400, 400)?.closest(".row"));
    // Rows above are made as time allows.
    await hasAllRows(page);
    const before = await inSight(page);
    program.say("one\ntwo\nthree");
    await says(page, "#newest", "3 new lines");
    assert((await inSight(page)) === before, `${before} has become ${await inSight(page)}`);
    // More than the page keeps: what is read stays, and the gap is said.
    program.say(Array.from({ length: 12_000 }, (_, n) => `flood ${n}`).join("\n"));
    await says(page, "#newest", "12,003 new lines");
    assert((await inSight(page)) === before, `${before} has become ${await inSight(page)} after a flood`);
    await page.locator("#newest").click();
    await page.locator("#newest").waitFor({ state: "hidden", timeout: WAIT_MS });
    await sees(page, "flood 11999");
    await isAtEnd(page);
  },

  async "filters hide lines, are in the address, and survive a reload"({ program, pages: [, page] }) {
    await page.keyboard.press("f");
    program.say("apple pie\nApple tart\nbanana bread\napple bread");
    await sees(page, "apple bread");
    await page.keyboard.press("/");
    await page.keyboard.type("apple");
    await page.waitForURL(/filter=apple/, { timeout: WAIT_MS });
    await page.keyboard.press("Escape");
    await page.keyboard.press("x");
    await page.keyboard.type("/tart|pie/i");
    await page.waitForURL(/not=/, { timeout: WAIT_MS });
    const visible = ".block:not([hidden]) > .row.text:not([hidden])";
    await page.waitForFunction((visible) => document.querySelectorAll(visible).length === 1, visible, { timeout: WAIT_MS });
    assert((await page.locator(visible).innerText()).endsWith("apple bread"), `visible: ${await page.locator(visible).innerText()}`);
    program.say("another apple bread\ncherry");
    await sees(page, "another apple bread");
    await page.reload();
    await hasState(page, "open");
    await sees(page, "another apple bread");
    assert((await page.inputValue("#filter")) === "apple", "the filter is gone after a reload");
    assert((await message(page, "cherry").count()) === 0, "the filter is not applied after a reload");
    for (const id of ["#filter", "#not"]) await page.locator(id).fill("");
    await sees(page, "cherry");
    await page.locator("#filter").fill("/(/");
    await page.locator("#filter[aria-invalid=true]").waitFor({ timeout: WAIT_MS });
    await page.locator("#filter").fill("");
    await page.waitForURL((url) => !url.search, { timeout: WAIT_MS });
  },

  async "a filter hides all lines without its text, however many are shown"({ program, pages: [, page] }) {
    program.say(Array.from({ length: 400 }, (_, n) => (n % 50 ? `sand ${n}` : `pearl ${n}`)).join("\n"));
    await sees(page, "sand 399");
    await page.locator("#filter").fill("pearl");
    const isFiltered = () => {
      const shown = [...document.querySelectorAll("#lines .row.text")].filter((row) => row.checkVisibility());
      return shown.every((row) => /pearl/.test(row.textContent)) && shown.filter((row) => /pearl \d+$/.test(row.textContent)).length === 8;
    };
    await page.waitForFunction(isFiltered, null, { timeout: WAIT_MS });
    await page.locator("#filter").fill("");
    await sees(page, "sand 399");
  },

  async "what is searched for is highlighted, with next and previous"({ program, pages: [, page] }) {
    await page.keyboard.press("Escape");
    await page.keyboard.press("f");
    program.say("needle 1\nhay\nneedle 2 needle\nhay");
    await sees(page, "needle 2");
    await page.keyboard.press("s");
    await page.keyboard.type("needle");
    await says(page, "#hits", "2 lines");
    await page.waitForFunction(() => document.querySelectorAll("#lines mark").length === 3);
    await page.keyboard.press("Enter");
    await says(page, "#hits", "1 of 2");
    await says(page, ".row.current", "needle 1");
    await page.keyboard.press("Escape");
    await page.keyboard.press("n");
    await says(page, ".row.current", "needle 2");
    await page.keyboard.press("N");
    await says(page, ".row.current", "needle 1");
    await page.locator("#find").fill("");
    await page.waitForFunction(() => document.querySelectorAll("#lines mark").length === 0);
    await page.locator("#log").focus();
    await page.keyboard.press("f");
  },

  async "a paused page shows nothing new until it goes on"({ program, pages: [page, other] }) {
    await page.locator("#log").focus();
    await page.keyboard.press("p");
    program.say("while paused");
    await sees(other, "while paused");
    await says(page, "#newest", "Paused: 1 new line");
    assert((await message(page, "while paused").count()) === 0, "it is shown");
    await page.keyboard.press("p");
    await sees(page, "while paused");
  },

  async "settings stay in the browser, and controls do what they say"({ program, pages: [page] }) {
    const root = (name) => page.evaluate((name) => document.documentElement.dataset[name], name);
    for (const key of ["w", "e", "t"]) await page.keyboard.press(key);
    assert((await root("wrap")) === "off" && (await root("width")) === "full" && (await root("theme")) === "light", "the keys do nothing");
    await page.reload();
    await hasState(page, "open");
    assert((await root("wrap")) === "off" && (await root("theme")) === "light", "the settings are gone");
    for (const key of ["w", "e", "t", "t"]) await page.keyboard.press(key);
    assert((await root("wrap")) === "on" && (await root("theme")) === "auto", "they cannot be reset");
    program.say("for the file");
    await sees(page, "for the file");
    const { name, content } = await downloadedBy(page, () => page.keyboard.press("d"));
    assert(content.endsWith("for the file\n") && name.endsWith(".log"), `${name}: ${content.slice(-60)}`);
    await page.keyboard.press("c");
    assert((await page.locator("#lines .row").count()) === 0, "the list is not cleared");
    await page.keyboard.press("?");
    await page.locator("#help[open]").waitFor({ timeout: WAIT_MS });
    await page.locator("#single-keys").uncheck();
    await page.keyboard.press("Escape");
    await page.locator("#help").waitFor({ state: "hidden", timeout: WAIT_MS });
    await page.keyboard.press("w");
    await page.reload();
    await hasState(page, "open");
    await page.keyboard.press("w");
    assert((await root("wrap")) === "on", "a key works that is turned off");
    await page.locator("#more").click();
    await page.locator("#keys").click();
    await page.locator("#single-keys").check();
    await page.keyboard.press("Escape");
  },

  async "an expression of a link that may hang the page is applied on request"({ program, pages: [page] }) {
    program.say("aaaaab\nbbb");
    await sees(page, "bbb");
    await page.goto(`${program.url}?filter=${encodeURIComponent("/(a+)+b/")}`);
    await hasState(page, "open");
    await sees(page, "bbb");
    assert((await page.locator("#filter").evaluate((input) => input.validationMessage)).includes("Enter"), "the page does not say why");
    await page.waitForFunction(() => document.activeElement.id === "filter", null, { timeout: WAIT_MS });
    await page.keyboard.press("Enter");
    await message(page, "bbb").waitFor({ state: "hidden", timeout: WAIT_MS });
    assert((await message(page, "aaaaab").count()) > 0, "the expression is not applied");
    await page.goto(program.url);
    await hasState(page, "open");
  },

  async "the title counts lines received while the page was hidden"({ program, pages: [page] }) {
    const hide = (hidden) =>
      page.evaluate((hidden) => {
        const state = hidden ? "hidden" : "visible";
        Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
      }, hidden);
    await hide(true);
    const asked = page.requests.length;
    program.say("unread one\nunread two");
    await page.waitForFunction(() => document.title.startsWith("(2) "), null, { timeout: WAIT_MS });
    assert(page.requests.length === asked, "a hidden page asks for the number of clients");
    await hide(false);
    assert((await page.title()) === "humphrey-broadcast", `the title is ${await page.title()}`);
    await page.waitForRequest(/clients$/, { timeout: WAIT_MS });
  },

  async "a frozen page catches up when it is resumed"({ program, pages: [page, other] }) {
    // Firefox freezes no pages.
    if (browserName !== "chromium") return;
    const cdp = await page.context().newCDPSession(page);
    await cdp.send("Page.setWebLifecycleState", { state: "frozen" });
    program.say("while frozen");
    await sees(other, "while frozen");
    await cdp.send("Page.setWebLifecycleState", { state: "active" });
    await sees(page, "while frozen");
    program.say("after the thaw");
    await sees(page, "after the thaw");
  },

  async "both pages reconnect when the program is killed and restarted"(run) {
    await run.program.end("SIGKILL");
    for (const page of run.pages) {
      await hasState(page, "waiting");
      await sees(page, "Disconnected");
      assert((await page.title()).startsWith("⚠ "), `the title is ${await page.title()}`);
    }
    await run.pages[0].keyboard.press("m");
    assert((await run.pages[0].getAttribute("#send", "aria-disabled")) === "true", "the button looks as if it worked");
    await run.pages[0].locator("#field").fill("not lost");
    await run.pages[0].locator("#field").press("Enter");
    assert((await run.pages[0].inputValue("#field")) === "not lost", "the unsent text is gone");
    run.program = await Program.start(run.program.listen);
    for (const page of run.pages) await hasState(page, "open");
    run.program.say("a new beginning");
    for (const page of run.pages) {
      await sees(page, "a new beginning");
      await sees(page, "Reconnected");
    }
    await run.pages[0].locator("#field").press("Enter");
    await run.pages[0].locator("#lines .row.text", { hasText: "not lost" }).waitFor({ timeout: WAIT_MS });
    await run.pages[0].keyboard.press("Escape");
  },

  async "the button reconnects at once during a long delay"(run) {
    const page = run.pages[0];
    // Makes the random delay the longest possible, which leaves time to start the program.
    await page.evaluate(() => (Math.random = () => 0.99));
    await run.program.end("SIGKILL");
    await page.locator("#state-text", { hasText: /in ([7-9]|1\d) s/ }).waitFor({ timeout: 2 * WAIT_MS });
    run.program = await Program.start(run.program.listen);
    await page.locator("#now").click();
    await hasState(page, "open");
    await page.locator("#now").waitFor({ state: "hidden", timeout: WAIT_MS });
    // After several failures their next delay would be long, too; reloading resets it.
    for (const other of run.pages) {
      await other.reload();
      await hasState(other, "open");
    }
  },

  async "a shutdown is shown with its reason, and the exit code is 0"(run) {
    await run.program.end("SIGTERM");
    assert(run.program.child.exitCode === 0, `it exited with ${run.program.child.exitCode}`);
    for (const page of run.pages) await sees(page, "(1001)");
    run.program = await Program.start(run.program.listen);
    for (const page of run.pages) await hasState(page, "open");
  },

  async "a narrow window does not scroll sideways"({ pages: [page] }) {
    for (const width of [320, 390]) {
      await page.setViewportSize({ width, height: 560 });
      const excess = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert(excess <= 0, `${excess} pixels are out of sight at ${width}`);
    }
  },

  async "no foreign request is made, and the console is empty"({ program, pages }) {
    for (const page of pages) {
      const elsewhere = page.requests.filter((url) => !url.startsWith(program.url) && !/^(data|blob):/.test(url));
      assert(elsewhere.length === 0, `fetched: ${elsewhere}`);
      assert(page.complaints.length === 0, `complaints: ${page.complaints.join("; ")}`);
    }
  },
};

/** Lines of a shop, as its programs write them. */
const SHOP = [
  [0, 'web: 203.0.113.7 - - [14/Mar/2026:09:26:41 +0000] "GET /tickets/4711 HTTP/1.1" 200 5316 "-" "Mozilla/5.0"'],
  [2, 'api: {"level":"info","msg":"ticket reserved","ticket":4711,"seat":"B12","ms":31}'],
  [1, 'web: 198.51.100.23 - - [14/Mar/2026:09:26:44 +0000] "POST /tickets HTTP/1.1" 201 148 "-" "Mozilla/5.0"'],
  [3, "worker: 2026-03-14T09:26:47Z WARN  mail queue is 120 deep, see https://wiki.example.com/runbooks/mail."],
  [1, 'web: 192.0.2.144 - - [14/Mar/2026:09:26:48 +0000] "GET /search?q=broadcast HTTP/1.1" 404 153 "-" "curl/8.14"'],
  [2, 'api: {"level":"error","msg":"payment failed","ticket":4711,"provider":"acme","retry":{"after_s":5,"attempt":2}}'],
  [1, "\x1b[1m\x1b[32m   Compiling\x1b[0m shop v2.14.0"],
  [2, "\x1b[1m\x1b[33mwarning\x1b[0m\x1b[1m: unused variable: `seat`\x1b[0m"],
  [1, "\x1b[1m\x1b[38;5;9merror[E0308]\x1b[0m\x1b[1m: mismatched types\x1b[0m in src/tickets.rs:42:9"],
  [4, "tests/test_tickets.py::test_reserve \x1b[32mPASSED\x1b[0m    tests/test_tickets.py::test_pay \x1b[31mFAILED\x1b[0m"],
  [2, "worker: Grüezi mitenand: 1,204 mails sent in 41 s"],
  [3, 'web: 203.0.113.7 - - [14/Mar/2026:09:27:02 +0000] "PUT /tickets/4711 HTTP/1.1" 502 0 "-" "Mozilla/5.0"'],
];

/** Takes the screenshots of the documentation. */
async function screenshots(directory) {
  await mkdir(directory, { recursive: true });
  const options = ["--no-welcome", "--prefix-room", "--on-message", "ignore", "--title", "Shop, production"];
  for (const colorScheme of ["light", "dark"]) {
    // The documented port, or any other if that one is taken.
    const program = await Program.start("127.0.0.1:8080", ...options).catch(() => Program.start(undefined, ...options));
    try {
      let time = Date.parse("2026-03-14T09:26:41");
      const page = await open(program, { colorScheme, time, viewport: { width: 1100, height: 640 } });
      // Lines get their times from the page's fake clock.
      await page.evaluate(() => {
        const parse = JSON.parse;
        JSON.parse = (text) => {
          const message = parse(text);
          return message && "at" in message ? { ...message, at: Date.now() } : message;
        };
      });
      for (const [seconds, line] of SHOP) {
        await page.clock.setFixedTime((time += seconds * 1000));
        const before = await page.locator("#lines .row").count();
        program.say(line);
        await page.waitForFunction((before) => document.querySelectorAll("#lines .row").length > before, before, { timeout: WAIT_MS });
      }
      await page.locator("#rooms a", { hasText: "worker" }).waitFor({ timeout: WAIT_MS });
      await message(page, "payment failed").locator("button.json").click();
      await page.locator("#find").fill("tickets");
      await page.waitForFunction(() => document.querySelectorAll("#lines mark").length > 3);
      await page.locator("#log").focus();
      await page.screenshot({ path: join(directory, `page${colorScheme === "dark" ? "-dark" : ""}.png`) });
      await page.locator("#find").fill("");
      await page.locator("#filter").fill("/tickets|mail/");
      await page.setViewportSize({ width: 390, height: 760 });
      await page.waitForFunction(() => document.querySelectorAll("#lines mark").length === 0);
      await page.keyboard.press("Escape");
      await page.screenshot({ path: join(directory, `page-phone${colorScheme === "dark" ? "-dark" : ""}.png`) });
      await page.context().close();
    } finally {
      await program.end("SIGKILL");
    }
  }
}

let passed = 0;
let failed = 0;
const program = await Program.start();
const run = { program, pages: [await open(program), await open(program)] };
try {
  const plain = { login: loginTests, sites: siteTests, cluster: clusterTests };
  const groups = { page: tests, rooms: roomTests, formats: formatTests, ...(values.tls ? {} : plain) };
  const chosen = values.screenshots ? [] : (values.groups?.split(",") ?? Object.keys(groups));
  for (const name of chosen) assert(name in groups, `there is no group ${name}`);
  for (const [name, test] of chosen.flatMap((name) => Object.entries(groups[name]))) {
    if (!name.includes(values.only ?? "")) continue;
    try {
      await test(run);
      passed += 1;
      console.log(`ok    ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAIL  ${name}\n      ${String(error.message).split("\n").slice(0, 6).join("\n      ")}`);
    }
  }
  if (values.screenshots) await screenshots(values.screenshots);
} catch (error) {
  failed += 1;
  console.log(`FAIL  ${error.message}`);
} finally {
  await run.program.end("SIGKILL");
}
console.log(`${passed} passed, ${failed} failed`);
// Chromium sometimes does not close; the end of this process ends it.
await within(browser.close(), "the browser to close").catch((error) => console.log(error.message));
process.exit(failed === 0 ? 0 : 1);
