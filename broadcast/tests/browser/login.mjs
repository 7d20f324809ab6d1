// Tests in a real browser: the form of a server with --read-token-file.

import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { once } from "node:events";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { faults } from "./formats.mjs";
import { Program, WAIT_MS, assert, browser, collectComplaints, hasState } from "./support.mjs";

const TOKEN = "s3cret-for-readers";

/** Runs a test with a protected program, and a window of a browser that has no cookies. */
async function withProtected(test, options = {}, ...more) {
  const folder = await mkdtemp(join(tmpdir(), "humphrey-login-"));
  await writeFile(join(folder, "token"), TOKEN);
  const program = await Program.start(undefined, "--history", "9", "--read-token-file", join(folder, "token"), ...more);
  let context;
  try {
    context = await browser.newContext({ viewport: { width: 1000, height: 700 }, ...options });
    const page = await context.newPage();
    collectComplaints(page, /status of 401/);
    await test(program, page, context);
    assert(page.complaints.length === 0, `complaints: ${page.complaints.join("; ")}`);
  } finally {
    await context?.close();
    await program.end("SIGKILL");
    await rm(folder, { recursive: true });
  }
}

async function signIn(page, token) {
  await page.getByLabel("Token").fill(token);
  await page.keyboard.press("Enter");
}

/** Follows a link to a room from a page of another site. */
async function followLink(page, program) {
  const site = createServer((_, answer) => {
    answer.setHeader("Content-Type", "text/html");
    answer.end(`<a href="${program.url}#news">link</a>`);
  }).listen(0, "127.0.0.1");
  await once(site, "listening");
  try {
    // Another site than 127.0.0.1.
    await page.goto(`http://localhost:${site.address().port}/`);
    await page.getByText("link").click();
    await page.waitForURL(`${program.url}**`, { timeout: WAIT_MS });
  } finally {
    site.close();
    site.closeAllConnections();
  }
}

const hash = (page) => page.evaluate(() => location.hash);

export const loginTests = {
  async "the form leads to the room of the link, also after a wrong token"() {
    await withProtected(async (program, page) => {
      await page.goto(`${program.url}#news`);
      assert((await page.evaluate(() => document.activeElement.id)) === "token", "the field has no focus");
      await signIn(page, "wrong");
      await page.getByRole("alert").waitFor({ timeout: WAIT_MS });
      await signIn(page, TOKEN);
      await hasState(page, "open");
      assert((await hash(page)) === "#news", `the room is ${await hash(page)}`);
      assert((await page.evaluate(() => document.cookie)) === "", "scripts can read the cookie");
      await page.reload();
      await hasState(page, "open");
    });
  },

  async "a link on another site opens the page of a signed-in browser"() {
    await withProtected(async (program, page) => {
      await page.goto(program.url);
      await signIn(page, TOKEN);
      await hasState(page, "open");
      await followLink(page, program);
      await hasState(page, "open");
      assert((await hash(page)) === "#news", `the room is ${await hash(page)}`);
    });
  },

  async "a link on another site leads a stranger to the form"() {
    await withProtected(async (program, page) => {
      await followLink(page, program);
      await page.waitForURL(`${program.url}login#news`, { timeout: WAIT_MS });
      await signIn(page, TOKEN);
      await hasState(page, "open");
      assert((await hash(page)) === "#news", `the room is ${await hash(page)}`);
    });
  },

  async "signing out ends the session in all windows"() {
    await withProtected(async (program, page, context) => {
      await page.goto(program.url);
      await signIn(page, TOKEN);
      await hasState(page, "open");
      const other = await context.newPage();
      await other.goto(program.url);
      await hasState(other, "open");
      await other.evaluate(() => fetch("logout", { method: "POST" }));
      // Each window goes to the form by itself; the state before that may be too short to be seen.
      for (const window of [page, other]) {
        await window.getByLabel("Token").waitFor({ timeout: WAIT_MS });
      }
    });
  },

  async "the session of an open page is prolonged over the same connection"() {
    const lifetime = ["--session-lifetime", "5"];
    await withProtected(async (program, page) => {
      await page.goto(program.url);
      await signIn(page, TOKEN);
      await hasState(page, "open");
      // The second time is after the end of the first session.
      for (let times = 0; times < 2; times += 1) {
        const prolonged = await page.waitForResponse(`${program.url}session`, { timeout: WAIT_MS });
        assert(prolonged.status() === 200, `the status is ${prolonged.status()}`);
      }
      program.say("still here");
      await page.locator("#lines .row", { hasText: "still here" }).waitFor({ timeout: WAIT_MS });
      const lost = await page.getByText(/Disconnected|Reconnected/).count();
      assert(lost === 0, "the page has lost its connection");
    }, {}, ...lifetime);
  },

  async "signing out in the menu leaves no lines behind"() {
    await withProtected(async (program, page) => {
      await page.goto(program.url);
      await signIn(page, TOKEN);
      await hasState(page, "open");
      program.say("for readers only");
      await page.locator("#lines .row", { hasText: "for readers only" }).waitFor({ timeout: WAIT_MS });
      await page.locator("#more").click();
      await page.locator("#logout").click();
      await page.getByLabel("Token").waitFor({ timeout: WAIT_MS });
      await page.goBack().catch(() => {});
      await page.getByLabel("Token").waitFor({ timeout: WAIT_MS });
      assert((await page.getByText("for readers only").count()) === 0, "the lines are still there");
    });
  },

  async "the filters of a link are still there after the form"() {
    await withProtected(async (program, page) => {
      await page.goto(`${program.url}?filter=${encodeURIComponent("/a b|ü/")}&find=x#news`);
      await signIn(page, "wrong");
      await page.getByRole("alert").waitFor({ timeout: WAIT_MS });
      await signIn(page, TOKEN);
      await hasState(page, "open");
      assert((await page.inputValue("#filter")) === "/a b|ü/" && (await page.inputValue("#find")) === "x", `the address is ${page.url()}`);
      assert((await hash(page)) === "#news", `the address is ${page.url()}`);
    });
  },

  async "everybody can read the form"() {
    for (const colorScheme of ["light", "dark"]) {
      await withProtected(
        async (program, page) => {
          await page.goto(program.url);
          const found = await faults(page);
          await signIn(page, "wrong");
          await page.getByRole("alert").waitFor({ timeout: WAIT_MS });
          found.push(...(await faults(page)));
          assert(found.length === 0, `${colorScheme}: ${found.join(" | ")}`);
        },
        { colorScheme },
      );
    }
  },

  async "the form fits a narrow window and works without scripts"() {
    const options = { viewport: { width: 320, height: 480 }, javaScriptEnabled: false };
    await withProtected(async (program, page) => {
      await page.goto(program.url);
      await signIn(page, "wrong");
      const problem = await page.getByRole("alert").boundingBox();
      assert(problem.x >= 0 && problem.x + problem.width <= 320, "the problem is out of sight");
      await signIn(page, TOKEN);
      await page.waitForURL(program.url, { timeout: WAIT_MS });
    }, options);
  },
};
