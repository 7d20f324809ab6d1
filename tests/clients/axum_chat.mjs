// The page of the example `axum_chat`, in two windows of headless Chromium.

import assert from 'node:assert/strict';

import { AXUM_CHAT_URL, run } from './checks.mjs';
import { hears, launch, open, say } from './windows.mjs';

const browser = await launch();

const SITE = AXUM_CHAT_URL.replace('ws:', 'http:');

async function what_one_window_says_all_show() {
  const ada = await open(browser, SITE, 'Ada');
  const bob = await open(browser, SITE, 'Bob');
  await hears(ada, 'Bob is here');
  await say(bob, '<b>Grüezi</b>');
  for (const page of [ada, bob]) await hears(page, '<b>Grüezi</b>');
  assert.equal(await bob.getByLabel('Message').inputValue(), '');
  await Promise.all([ada.close(), bob.close()]);
}

async function a_window_that_was_disconnected_says_so_and_comes_back() {
  const page = await open(browser, SITE, 'Cy');
  await page.evaluate(() => ws.close());
  await hears(page, 'The connection is closed.');
  await page.waitForFunction(() => ws.readyState === WebSocket.OPEN);
  await say(page, 'back again');
  await hears(page, 'back again');
  await page.close();
}

async function a_window_is_told_that_it_has_missed_something() {
  const page = await open(browser, SITE, 'Dee');
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
