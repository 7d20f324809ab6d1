// The page's rooms, history and reconnects. Each test starts its own program.

import { Program, WAIT_MS, assert, hasState, message, open, says, sees } from "./support.mjs";

export const TOKEN = "s3cret";

/** Publishes to a room, or to everyone. Returns the number of recipients. */
export async function publish(program, room, body) {
  const path = room === null ? "publish" : `publish/${encodeURIComponent(room)}`;
  const headers = { Authorization: `Bearer ${TOKEN}` };
  if (typeof body !== "string") headers["Content-Type"] = "application/octet-stream";
  const response = await fetch(program.url + path, { method: "POST", headers, body });
  assert(response.status === 200, `published with status ${response.status}`);
  return (await response.json()).members;
}

/** Wraps a test with its own program, and functions that publish and open pages. */
function withProgram(options, test) {
  return async () => {
    const start = (listen) => Program.start(listen, "--publish-token", TOKEN, ...options);
    const run = {
      program: await start(),
      contexts: [],
      async open(options) {
        const page = await open(run.program, options);
        run.contexts.push(page.context());
        return page;
      },
      publish: (room, body) => publish(run.program, room, body),
      async restart() {
        await run.program.end("SIGKILL");
        run.program = await start(run.program.listen);
      },
    };
    try {
      await test(run);
    } finally {
      for (const context of run.contexts) await context.close();
      await run.program.end("SIGKILL");
    }
  };
}

/** The texts of the shown messages, in order. */
const shown = (page) =>
  page.locator("#lines .row:not([hidden])").evaluateAll((rows) => rows.map((row) => [...row.querySelectorAll(".tag")].map((tag) => `${tag.textContent}: `).join("") + row.querySelector("p").innerText));

/** Enters a room's name in the page's field. */
async function choose(page, room) {
  await page.keyboard.press("r");
  await page.locator("#room").fill(room);
  await page.locator("#room").press("Enter");
  await hasState(page, "open");
}

/**
 * Takes the page offline, runs `meanwhile`, which may restart the program, and puts the page back online.
 */
export async function offline(page, meanwhile) {
  // Chromium keeps open connections when it goes offline, so the page closes its own.
  await page.context().setOffline(true);
  await page.evaluate(() => sockets.at(-1).close());
  await hasState(page, "waiting");
  await meanwhile();
  await page.context().setOffline(false);
  await hasState(page, "open");
}

/** Stops the program without closing its connections, until the page detects it. */
async function fallsSilent(page, program) {
  program.child.kill("SIGSTOP");
  const said = message(page, "Disconnected: the server does not answer.");
  // The page pings after ten seconds of silence, and waits ten seconds for the answer.
  await said.waitFor({ timeout: 4 * WAIT_MS });
  assert((await page.getAttribute("#state", "data-state")) !== "open", "the page says that it is connected");
  program.child.kill("SIGCONT");
  await hasState(page, "open");
}

const missed = (page) => page.locator("#lines .row.missed p").allInnerTexts();

export const roomTests = {
  "choosing a room shows its messages and those to everyone, and updates the URL": withProgram(
    ["--no-welcome"],
    async ({ program, open, publish }) => {
      const page = await open();
      await choose(page, "Zürich & Bern/2");
      assert(page.url() === `${program.url}#Z%C3%BCrich%20%26%20Bern%2F2`, `the address is ${page.url()}`);
      assert((await page.title()) === "Zürich & Bern/2 · humphrey-broadcast", `the title is ${await page.title()}`);
      assert((await page.evaluate(() => document.activeElement.id)) === "log", "the focus is not on the lines");
      const linked = await open({ room: "Zürich & Bern/2" });
      await says(page, "#clients", "2 here, 2 clients in all");
      assert((await publish("Zürich & Bern/2", "to the room")) === 2, "not both pages are in the room");
      assert((await publish("elsewhere", "to another room")) === 0, "the other room has members");
      program.say("to everyone");
      for (const one of [page, linked]) {
        await sees(one, "to everyone");
        assert(String(await shown(one)) === "to the room,to everyone: to everyone", `${await shown(one)}`);
      }
    },
  ),

  "leaving a room ends its messages, and the back button rejoins it": withProgram(
    ["--no-welcome", "--history", "0"],
    async ({ program, open, publish }) => {
      const page = await open({ room: "a" });
      await says(page, "#clients", "1 here");
      await publish("a", "in a");
      await sees(page, "in a");
      await choose(page, "");
      assert(page.url() === program.url, `the address is ${page.url()}`);
      await says(page, "#empty", "No lines yet");
      await page.waitForFunction(() => document.getElementById("clients").textContent === "1 client");
      assert((await publish("a", "not seen")) === 0, "it is still in the room");
      await page.goBack();
      await page.waitForFunction(() => document.getElementById("clients").textContent.startsWith("1 here"));
      await publish("a", "in a again");
      await sees(page, "in a again");
      assert(String(await shown(page)) === "in a again", `${await shown(page)}`);
    },
  ),

  "invalid room names are rejected": withProgram(["--no-welcome"], async ({ program, open }) => {
    const page = await open({ room: "a" });
    await page.keyboard.press("r");
    for (const name of ["..", "ü".repeat(121)]) {
      await page.locator("#room").fill(name);
      await page.locator("#room").press("Enter");
      assert(!(await page.locator("#room").evaluate((field) => field.validity.valid)), `${name} is accepted`);
      assert(page.url() === `${program.url}#a`, `the address is ${page.url()}`);
    }
    await page.locator("#room").press("Escape");
    await page.locator("#menu").waitFor({ state: "hidden", timeout: WAIT_MS });
    assert((await page.inputValue("#room")) === "a", "Escape does not restore the room's name");
    const lost = await open({ room: "..".repeat(121) });
    await sees(lost, "contains an invalid room name");
  }),

  "late joiners see the history with its times": withProgram(
    ["--no-welcome", "--history", "3"],
    async ({ program, open, publish }) => {
      for (const n of [1, 2, 3, 4]) await publish("a", `room ${n}`);
      const early = await open({ room: "a" });
      program.say("for all");
      await sees(early, "for all");
      const page = await open({ room: "a" });
      await sees(page, "End of the history. New lines follow.");
      const texts = await shown(page);
      assert(
        String(texts) === "room 2,room 3,room 4,to everyone: for all,End of the history. New lines follow.",
        JSON.stringify(texts),
      );
      assert((await missed(page)).length === 0, "a message that was not missed is marked");
      const times = async (one) => {
        await message(one, "for all").locator("time").hover();
        return message(one, "for all").locator("time").getAttribute("title");
      };
      assert((await times(page)) === (await times(early)), "the message is not shown with the time of its sending");
    },
  ),

  "missed messages are shown after a reconnect, marked, once and in order": withProgram(
    ["--no-welcome", "--history", "50"],
    async ({ program, open, publish }) => {
      const page = await open({ room: "a" });
      const other = await open({ room: "a" });
      await says(page, "#clients", "2 here");
      await publish("a", "before");
      await sees(page, "before");
      await offline(page, async () => {
        for (const n of [1, 2]) await publish("a", `missed in the room ${n}`);
        // Lines of one millisecond have no order among rooms.
        const sent = Date.now();
        while (Date.now() <= sent + 1) await new Promise((resolve) => setTimeout(resolve, 1));
        program.say("missed by everyone");
        await sees(other, "missed by everyone");
        await publish("a", "missed <b>last</b>");
        await publish("b", "of another room");
      });
      await sees(page, "Reconnected. 4 lines received late.");
      await publish("a", "after");
      await sees(page, "after");
      const expected = [
        "missed in the room 1",
        "missed in the room 2",
        "missed by everyone",
        "missed <b>last</b>",
      ];
      assert(String(await missed(page)) === String(expected), `marked: ${await missed(page)}`);
      for (const text of ["before", "after"]) {
        assert((await message(page, text).count()) === 1, `${text} is shown more than once`);
      }
      assert((await page.locator("#lines .row p b").count()) === 0, "markup has become elements");
      await offline(page, async () => {});
      await sees(page, "Reconnected. No lines were missed.");
      assert((await message(page, "missed in the room 1").count()) === 1, "a missed message is shown twice");
    },
  ),

  "a connection cut during the replay loses and repeats no message": withProgram(
    ["--no-welcome", "--history", "50"],
    async ({ open, publish }) => {
      const page = await open({ room: "a" });
      await says(page, "#clients", "1 here");
      await publish("a", "before");
      await sees(page, "before");
      await offline(page, async () => {
        for (const n of [1, 2, 3, 4]) await publish("a", `missed ${n}`);
        await page.evaluate(() => (breakAfter = 2));
      });
      await sees(page, "Reconnected. 4 lines received late.");
      assert((await page.evaluate(() => sockets.length)) >= 3, "it has not broken off");
      assert(String(await missed(page)) === "missed 1,missed 2,missed 3,missed 4", `marked: ${await missed(page)}`);
    },
  ),

  "a refused client reconnects only on request": withProgram(["--no-welcome"], async ({ open }) => {
    const page = await open();
    const made = await page.evaluate(() => {
      sockets.at(-1).dispatchEvent(new CloseEvent("close", { code: 1008, reason: "not for you" }));
      window.dispatchEvent(new Event("online"));
      document.dispatchEvent(new Event("visibilitychange"));
      return sockets.length;
    });
    await hasState(page, "closed");
    await sees(page, "Disconnected: not for you (1008).");
    await page.locator("#now").waitFor({ timeout: WAIT_MS });
    assert((await page.evaluate(() => sockets.length)) === made, "it has come back by itself");
    await page.locator("#now").click();
    await hasState(page, "open");
  }),

  "close code 1013 delays the reconnect, and the button skips the delay": withProgram(
    ["--no-welcome", "--max-rooms", "1"],
    async ({ open }) => {
      const page = await open({ room: "a" });
      const other = await open();
      await says(page, "#clients", "1 here");
      await other.keyboard.press("r");
      await other.locator("#room").fill("b");
      await other.locator("#room").press("Enter");
      await sees(other, "Disconnected: there are too many rooms (1013).");
      // After a first failure the button is shown only if the delay is long.
      await other.locator("#now").waitFor({ timeout: WAIT_MS });
      const made = await other.evaluate(() => {
        document.dispatchEvent(new Event("visibilitychange"));
        return sockets.length;
      });
      assert((await other.evaluate(() => sockets.length)) === made, "it has come back early");
      await other.locator("#now").click();
      await other.waitForFunction((made) => sockets.length > made, made, { timeout: WAIT_MS });
    },
  ),

  "a silent server is detected, and the page reconnects": withProgram(
    ["--no-welcome", "--history", "5"],
    async ({ open, program, publish }) => {
      const page = await open({ room: "a" });
      await fallsSilent(page, program);
      await sees(page, "Reconnected. No lines were missed.");
      await publish("a", "here again");
      await sees(page, "here again");
    },
  ),

  "a silent server without a history is detected, too": withProgram(["--no-welcome", "--history", "0"], async ({ open, program }) => {
    const page = await open();
    await fallsSilent(page, program);
    await sees(page, "Reconnected. Lines sent in the meantime are not shown");
    program.say("here again");
    await sees(page, "here again");
  }),

  "messages missing from the history are reported": withProgram(
    ["--no-welcome", "--history", "2"],
    async ({ open, publish }) => {
      const page = await open({ room: "a" });
      await says(page, "#clients", "1 here");
      await publish("a", "before");
      await sees(page, "before");
      await offline(page, async () => {
        for (const n of [1, 2, 3]) await publish("a", `missed ${n}`);
      });
      await sees(page, "Reconnected. 2 lines received late.");
      const gap = "Lines are missing here: the server no longer keeps them (--history).";
      assert(String((await shown(page)).slice(-4, -1)) === `${gap},missed 2,missed 3`, `${await shown(page)}`);
      assert(String(await missed(page)) === "missed 2,missed 3", `marked: ${await missed(page)}`);
    },
  ),

  "skipped lines are counted, and loaded where they belong": withProgram(
    ["--no-welcome", "--history", "4"],
    async ({ program, open, publish }) => {
      const page = await open({ room: "a" });
      await says(page, "#clients", "1 here");
      await publish("a", "before");
      await sees(page, "before");
      await page.evaluate(() => (withheld = 5));
      for (const n of [1, 2, 3, 4, 5]) await publish("a", `skipped ${n}`);
      await publish("a", "after");
      await sees(page, "5 lines skipped, because this page or its connection is too slow.");
      await sees(page, "after");
      await page.locator("button.load").click();
      await sees(page, "skipped 5");
      const texts = (await shown(page)).slice(-6);
      // Of the last four lines, one came after the gap.
      const note = "3 skipped lines loaded. 2 lines are no longer kept by the server.";
      assert(String(texts) === `before,${note},skipped 3,skipped 4,skipped 5,after`, JSON.stringify(texts));
      program.say("to everyone");
      await sees(page, "to everyone");
      assert((await message(page, "lines skipped").count()) === 0, "a gap is told that there was not");
    },
  ),

  "rooms of the program's lines are listed with their new lines, under the page's title": withProgram(
    ["--no-welcome", "--prefix-room", "--title", "Shop & <more>"],
    async ({ program, open }) => {
      const page = await open();
      assert((await page.title()) === "Shop & <more>", `the title is ${await page.title()}`);
      program.say("web: GET /\napi: reserved");
      await sees(page, "reserved");
      assert(String(await shown(page)) === "web: GET /,api: reserved", `${await shown(page)}`);
      await page.locator("#rooms a", { hasText: "web" }).click();
      await hasState(page, "open");
      await sees(page, "GET /");
      assert(new URL(page.url()).hash === "#web", `the address is ${page.url()}`);
      assert((await message(page, "reserved").count()) === 0, "a line of another room is shown");
      program.say("api: paid\napi: sent\nweb: GET /cart");
      await sees(page, "GET /cart");
      await says(page, "#rooms a", "api 2");
      await page.locator("#rooms a", { hasText: "api" }).click();
      await sees(page, "sent");
      await page.locator("#rooms a[aria-current]", { hasText: /^api$/ }).waitFor({ timeout: WAIT_MS });
    },
  ),

  "a server restart is reported, and the new history is shown": withProgram(
    ["--no-welcome", "--history", "50"],
    async (run) => {
      const page = await run.open({ room: "a" });
      await says(page, "#clients", "1 here");
      await run.publish("a", "before");
      await sees(page, "before");
      await run.program.end("SIGKILL");
      await hasState(page, "waiting");
      await page.context().setOffline(true);
      await run.restart();
      await run.publish("a", "since");
      await page.context().setOffline(false);
      await sees(page, "The server was restarted: lines may be missing here.");
      await sees(page, "Reconnected. 1 line received late.");
      assert(String(await missed(page)) === "since", `marked: ${await missed(page)}`);
      await run.publish("a", "after");
      await sees(page, "after");
    },
  ),

  "a reload shows the history again": withProgram(["--no-welcome", "--history", "50"], async ({ program, open }) => {
    const page = await open();
    program.say("first\nsecond");
    program.child.stdin.write(Buffer.from([0xff, 0xfe, 0x00, 0x0a]));
    await says(page, "#lines .row.text", "\ufffd\ufffd␀");
    await page.reload();
    await sees(page, "End of the history");
    assert(String((await shown(page)).slice(0, 3)) === "first,second,not UTF-8: \ufffd\ufffd␀", `${await shown(page)}`);
    await page.keyboard.press("m");
    await page.locator("#field").fill("an echo");
    await page.locator("#field").press("Enter");
    await page.locator("#lines .row.text", { hasText: "an echo" }).waitFor({ timeout: WAIT_MS });
  }),
};
