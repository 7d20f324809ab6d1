// Drives the program's page in a headless Chromium:
//
//     npm ci --prefix broadcast/tests/browser
//     node broadcast/tests/browser/run.mjs PATH_TO_BINARY [--screenshots DIR]
//
// The same over TLS, without the tests whose proxies speak plain HTTP:
//
//     broadcast/tests/browser/certificates DIR
//     HOME=DIR NODE_EXTRA_CA_CERTS=DIR/ca.pem node broadcast/tests/browser/run.mjs PATH_TO_BINARY --tls DIR
//
// The browser is $CHROMIUM, or /usr/bin/chromium. Exits with 1 if anything failed. Every wait is for a
// condition, with a deadline.

import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { clusterTests } from "./cluster.mjs";
import { TOKEN, offline, publish, roomTests } from "./rooms.mjs";
import { siteTests } from "./sites.mjs";
import { Program, WAIT_MS, assert, browser, hasState, message, open, says, sees, setBinary } from "./support.mjs";

const { values, positionals } = parseArgs({
  options: { screenshots: { type: "string" }, tls: { type: "string" } },
  allowPositionals: true,
});
if (positionals.length !== 1) {
  console.error("usage: node run.mjs PATH_TO_BINARY [--screenshots DIR] [--tls DIR]");
  process.exit(2);
}
setBinary(positionals[0], values.tls);

const tests = {
  async "a line of standard input appears on both pages"({ program, pages }) {
    program.say("the first line");
    for (const page of pages) await sees(page, "the first line");
  },

  async "a new client is announced on the open pages"({ pages: [page] }) {
    await sees(page, "Welcome, 127.0.0.1:");
    assert((await message(page, "Welcome, ").count()) >= 2, "the first page has not seen both pages arrive");
  },

  async "the input field has the focus, and Enter sends"({ pages: [page] }) {
    await page.keyboard.type("sent from the first page");
    await page.keyboard.press("Enter");
    await page.locator("#log li.own", { hasText: "sent from the first page" }).waitFor({ timeout: WAIT_MS });
    await page.locator("#log li.text", { hasText: "sent from the first page" }).waitFor({ timeout: WAIT_MS });
    assert((await page.inputValue("#field")) === "", "the field still has what was sent");
  },

  async "an echo reaches its sender only"({ program, pages: [, other] }) {
    program.say("after the echo");
    await sees(other, "after the echo");
    assert((await message(other, "sent from the first page").count()) === 0, "the other page has got the echo");
  },

  async "the button sends, and every control is reachable by keyboard"({ pages: [, page] }) {
    await page.locator("#field").fill("sent with the button");
    await page.locator("#field").press("Tab");
    assert((await page.evaluate(() => document.activeElement.id)) === "send", "Tab does not lead to the button");
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert(outline !== "none", "the button does not show its focus");
    await page.keyboard.press("Enter");
    await sees(page, "sent with the button");
    assert((await page.evaluate(() => document.activeElement.id)) === "field", "the focus is not back in the field");
    await page.keyboard.press("Shift+Tab");
    assert((await page.evaluate(() => document.activeElement.id)) === "log", "Shift+Tab does not lead to the messages");
    await page.locator("#field").focus();
  },

  async "markup in a message is shown as text"({ program, pages }) {
    const markup = '<img src=x onerror="document.title=1"><b>bold</b><script>document.title=2</script>';
    program.say(markup);
    for (const page of pages) {
      await sees(page, markup);
      assert((await page.locator("#log img, #log b:not(.own b), #log script").count()) === 0, "markup has become elements");
      assert(!/^[12]$/.test(await page.title()), "a script in a message has run");
    }
  },

  async "a line that is not UTF-8 is shown as binary with its length"({ program, pages: [page] }) {
    program.child.stdin.write(Buffer.from([0xff, 0xfe, 0x00, 0x0a]));
    await says(page, "#log li.binary", "binary, 3 bytes");
  },

  async "the number of clients is shown and updated"({ program, pages: [page] }) {
    await says(page, "#clients", "2 clients");
    const third = await open(program);
    await says(page, "#clients", "3 clients");
    await third.context().close();
    await says(page, "#clients", "2 clients");
  },

  async "only the last messages are kept, and the newest is visible"({ program, pages: [page] }) {
    program.say(Array.from({ length: 2000 }, (_, n) => `many ${n}`).join("\n"));
    await sees(page, "many 1999");
    const shown = await page.locator("#log li").count();
    assert(shown === 500, `${shown} messages are shown`);
    const fromEnd = await page.evaluate(() => {
      const log = document.getElementById("log");
      return log.scrollHeight - log.scrollTop - log.clientHeight;
    });
    assert(fromEnd < 2, `the list is ${fromEnd} pixels from its end`);
  },

  async "a scrolled-up page stays in place and counts new messages"({ program, pages: [page] }) {
    const log = page.locator("#log");
    await log.evaluate((element) => element.scrollTo(0, element.scrollHeight / 2));
    // The message in the middle of the window must stay there while older ones are removed.
    const inSight = () =>
      log.evaluate((element) => {
        const box = element.getBoundingClientRect();
        const at = document.elementFromPoint(box.left + 200, box.top + box.height / 2);
        return at.closest("li")?.textContent;
      });
    const before = await inSight();
    program.say("one\ntwo\nthree");
    await says(page, "#newest", "3 new messages");
    assert((await inSight()) === before, "what was being read has moved");
    await page.locator("#newest").click();
    await page.locator("#newest").waitFor({ state: "hidden", timeout: WAIT_MS });
    await message(page, "three").last().waitFor({ timeout: WAIT_MS });
  },

  async "the title counts messages received while the page was hidden"({ program, pages: [page] }) {
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

  async "both pages reconnect when the program is killed and restarted"(run) {
    await run.program.end("SIGKILL");
    for (const page of run.pages) {
      await hasState(page, "waiting");
      await sees(page, "Disconnected");
      assert((await page.getAttribute("#send", "aria-disabled")) === "true", "the button looks as if it worked");
    }
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
    await run.pages[0].locator("#log li.text", { hasText: "not lost" }).waitFor({ timeout: WAIT_MS });
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
    await page.setViewportSize({ width: 320, height: 560 });
    const excess = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert(excess <= 0, `${excess} pixels are out of sight`);
  },

  async "no foreign request is made, and the console is empty"({ program, pages }) {
    for (const page of pages) {
      const elsewhere = page.requests.filter((url) => !url.startsWith(program.url) && !url.startsWith("data:"));
      assert(elsewhere.length === 0, `fetched: ${elsewhere}`);
      assert(page.complaints.length === 0, `complaints: ${page.complaints.join("; ")}`);
    }
  },
};

/** Takes the screenshots of the documentation. */
async function screenshots(directory) {
  await mkdir(directory, { recursive: true });
  const options = ["--no-welcome", "--history", "50", "--publish-token", TOKEN];
  const room = "tickets";
  for (const colorScheme of ["light", "dark"]) {
    // The documented port, or any other if that one is taken.
    const program = await Program.start("127.0.0.1:8080", ...options).catch(() => Program.start(undefined, ...options));
    try {
      const others = [await open(program, { room }), await open(program)];
      const empty = await open(program, { colorScheme, room: "an empty room" });
      await empty.screenshot({ path: join(directory, `page-empty-${colorScheme}.png`) });
      await empty.context().close();
      let time = Date.parse("2026-03-14T09:26:44");
      const page = await open(program, { colorScheme, time, room });
      // Messages get their times from the page's fake clock.
      await page.evaluate(() => {
        const parse = JSON.parse;
        window.times = [];
        JSON.parse = (text) => {
          const message = parse(text);
          return "at" in message ? { ...message, at: times.shift() ?? Date.now() } : message;
        };
      });
      const later = (seconds) => page.clock.setFixedTime((time += seconds * 1000));
      const say = async (seconds, line) => {
        await later(seconds);
        await publish(program, room, line);
        await sees(page, line);
      };
      await say(3, '203.0.113.7 - - "GET /tickets/4711 HTTP/1.1" 200 5316 0.012');
      await say(2, '198.51.100.23 - - "POST /tickets HTTP/1.1" 201 148 0.031');
      await say(4, '192.0.2.144 - - "GET /search?q=broadcast HTTP/1.1" 200 9120 0.087');
      await later(7);
      program.say("deploy: web-3 is healthy again, taking traffic");
      await sees(page, "deploy: ");
      await say(3, '198.51.100.23 - - "GET /tickets/4712 HTTP/1.1" 200 4877 0.010');
      await later(9);
      await page.keyboard.type("Looks good from Zürich. Grüezi mitenand!");
      await page.keyboard.press("Enter");
      await page.locator("#log li.text", { hasText: "Zürich" }).waitFor({ timeout: WAIT_MS });
      await later(5);
      await publish(program, room, Buffer.alloc(2048, 0xff));
      await sees(page, "binary, ");
      await offline(page, async () => {
        await later(21);
        const times = [time - 14_000, time - 12_000, time - 3_000];
        await page.evaluate((times) => (window.times = times), times);
        await publish(
          program,
          room,
          '{"level":"warn","service":"mailer","message":"queue is 120 deep","retry_in_s":5,"hosts":["mail-1","mail-2"],"trace":"0b7c5f7e9d7b4b0a9e0d"}',
        );
        await publish(program, room, '192.0.2.144 - - "GET /tickets/4712/history HTTP/1.1" 200 12044 0.024');
        await publish(program, room, '203.0.113.7 - - "PUT /tickets/4711 HTTP/1.1" 200 5402 0.019');
      });
      await say(3, "backup: 1,204 files, 3.1 GiB, finished in 41 s");
      await page.locator("#clients", { hasText: "here" }).waitFor({ timeout: WAIT_MS });
      await page.screenshot({ path: join(directory, `page-${colorScheme}.png`) });
      await page.setViewportSize({ width: 390, height: 760 });
      await page.screenshot({ path: join(directory, `page-narrow-${colorScheme}.png`) });
      await program.end("SIGKILL");
      await page.locator("#now").waitFor({ timeout: WAIT_MS });
      await page.screenshot({ path: join(directory, `page-waiting-${colorScheme}.png`) });
      for (const one of [page, ...others]) await one.context().close();
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
  const all = { ...tests, ...roomTests, ...(values.tls ? {} : { ...siteTests, ...clusterTests }) };
  for (const [name, test] of Object.entries(all)) {
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
  await browser.close();
}
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed === 0 ? 0 : 1;
