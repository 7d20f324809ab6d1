// The page of the example `axum_chat`, in two windows of headless Chromium.

import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';

import { AXUM_CHAT_URL, DEADLINE, run } from './checks.mjs';

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: process.getuid() === 0 ? ['--no-sandbox'] : [],
});

/** Opens a window that is connected: it has heard itself. */
async function open(name) {
  const page = await browser.newPage();
  page.setDefaultTimeout(DEADLINE);
  await page.goto(AXUM_CHAT_URL.replace('ws:', 'http:'));
  await page.waitForFunction(() => ws.readyState === WebSocket.OPEN);
  await say(page, `${name} is here`);
  await hears(page, `${name} is here`);
  return page;
}

async function say(page, text) {
  await page.getByLabel('Message').fill(text);
  await page.getByRole('button', { name: 'Send' }).click();
}

const hears = (page, text) => page.getByText(text, { exact: true }).waitFor();

async function what_one_window_says_all_show() {
  const ada = await open('Ada');
  const bob = await open('Bob');
  await hears(ada, 'Bob is here');
  await say(bob, '<b>Grüezi</b>');
  for (const page of [ada, bob]) await hears(page, '<b>Grüezi</b>');
  assert.equal(await bob.getByLabel('Message').inputValue(), '');
  await Promise.all([ada.close(), bob.close()]);
}

async function a_window_that_was_disconnected_says_so_and_comes_back() {
  const page = await open('Cy');
  await page.evaluate(() => ws.close());
  await hears(page, 'The connection is closed.');
  await page.waitForFunction(() => ws.readyState === WebSocket.OPEN);
  await say(page, 'back again');
  await hears(page, 'back again');
  await page.close();
}

async function a_window_is_told_that_it_has_missed_something() {
  const page = await open('Dee');
  await page.evaluate(() => ws.onclose({ code: 1013 }));
  await hears(page, 'You have missed some messages.');
  await page.close();
}

const passed = await run(`axum_chat in Chromium ${browser.version()}`, [
  what_one_window_says_all_show,
  a_window_that_was_disconnected_says_so_and_comes_back,
  a_window_is_told_that_it_has_missed_something,
]);
await browser.close();
process.exit(passed ? 0 : 1);
