// Tests in a real browser: logs of real programs, followed as files, and whether everybody can read them (WCAG 2.2, by axe-core).

import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Program, WAIT_MS, assert, hasState, message, open, says, sees } from "./support.mjs";
import { writeLogs } from "./logs.mjs";

const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core"), "utf8");

/** Runs a test with a program that follows the logs, and their paths. */
export async function withLogs(test) {
  const directory = await mkdtemp(join(tmpdir(), "humphrey-logs-"));
  let program;
  try {
    const paths = await writeLogs(directory);
    program = await Program.start(undefined, "--no-welcome", ...paths);
    await test(program, directory);
  } finally {
    await program?.end("SIGKILL");
    await rm(directory, { recursive: true });
  }
}

/** The first row with a text. */
async function row(page, text) {
  const found = message(page, text).first();
  await found.waitFor({ timeout: WAIT_MS });
  return found;
}

/** The classes of a part of the row with a text. */
const classes = async (page, text, part) => (await row(page, text)).locator("span", { hasText: part }).last().getAttribute("class", { timeout: WAIT_MS });

/** What axe finds on a page, in words. */
export async function faults(page) {
  // As a person's tools do it, which the page's policy does not concern.
  await page.evaluate(`${AXE}; undefined`);
  const { violations } = await page.evaluate(() =>
    axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }),
  );
  return violations.map(({ id, help, nodes }) => `${id}: ${help} (${nodes.slice(0, 3).map(({ target, any }) => `${target}${any[0] ? ` ${any[0].message}` : ""}`).join("; ")})`);
}

export const formatTests = {
  async "logs of nginx, cargo, pytest, journald and JSON lines are shown as what they are"() {
    await withLogs(async (program, directory) => {
      // Rows are made when they come into sight.
      const page = await open(program, { viewport: { width: 1000, height: 3000 } });
      for (const name of ["nginx.log", "cargo.log", "pytest.log", "app.json", "journal.export"]) await says(page, "#rooms", name);
      const level = async (text) => (await row(page, text)).getAttribute("data-level");
      for (const [text, expected] of [
        ['"GET /missing?seat=12 HTTP/1.1" 404', "warn"],
        ['"GET /down HTTP/1.1" 502', "error"],
        ["mismatched types", "error"],
        ["unused variable", "warn"],
        ["ticket reserved", "info"],
        ["queue is deep", "warn"],
        ["payment failed", "error"],
        ["cut of", "info"],
        ["PRIORITY=3", "error"],
      ]) {
        assert((await level(text)) === expected, `${text} has the level ${await level(text)}`);
      }
      for (const [text, part, expected] of [
        ["test_reserve", "PASSED", "fg-c2"],
        ["test_pay ", "FAILED", "fg-c1"],
        ["error[E0308]", "error[E0308]", "fg-c9"],
        ["error[E0308]", "error[E0308]", "bold"],
      ]) {
        const has = await classes(page, text, part);
        assert(has.split(" ").includes(expected), `${part} has the classes ${has}`);
      }
      assert(!/\[\d+m|\x1b/.test(await page.locator("#lines").innerText()), "sequences of the terminal are shown");
      await says(page, "#lines a", "https://wiki.example.com/runbooks/mail");
      // Integers that JavaScript can't hold.
      const payment = await row(page, "payment failed");
      await payment.locator("button.json").click();
      await says(page, "#lines pre", "9007199254740993");
      await page.locator("#rooms a", { hasText: "nginx.log" }).click();
      await hasState(page, "open");
      await sees(page, "GET /down");
      assert((await message(page, "payment failed").count()) === 0, "the room of a file shows another one's lines");
      await writeFile(join(directory, "nginx.log"), "a new beginning\n");
      await sees(page, "a new beginning");
      await page.context().close();
    });
  },

  async "everybody can read the page: light, dark and on a phone"() {
    await withLogs(async (program) => {
      const phone = { viewport: { width: 320, height: 640 } };
      for (const [name, options] of [["light", {}], ["dark", { colorScheme: "dark" }], ["phone", phone], ["dark phone", { ...phone, colorScheme: "dark" }]]) {
        const page = await open(program, options);
        await sees(page, "payment failed");
        await page.keyboard.press("s");
        await page.keyboard.type("ticket");
        await page.keyboard.press("Escape");
        const check = async (what) => {
          const found = await faults(page);
          assert(found.length === 0, `${name}, ${what}: ${found.join(" | ")}`);
        };
        await check("the lines");
        await page.locator("#more").click();
        await check("the menu");
        await page.keyboard.press("Escape");
        await page.keyboard.press("?");
        await check("the keys");
        await page.keyboard.press("Escape");
        await page.context().close();
      }
    });
  },
};
