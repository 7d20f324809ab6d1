// The page of the example `linked`, in two windows of headless Chromium.

import { chromium } from 'playwright-core';

import { DEADLINE, LINKED_URL, run } from './checks.mjs';

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: process.getuid() === 0 ? ['--no-sandbox'] : [],
});

const SITE = LINKED_URL.replace('ws:', 'http:');

/** Opens a window that is connected: it has heard itself. */
async function open(name) {
  const page = await browser.newPage();
  page.setDefaultTimeout(DEADLINE);
  await page.goto(SITE);
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

async function what_one_window_writes_and_what_is_posted_all_show() {
  const pages = [await open('Ada'), await open('Bob')];
  await hears(pages[0], 'Bob is here');
  await say(pages[1], '<b>Grüezi</b>');
  for (const page of pages) await hears(page, '<b>Grüezi</b>');
  await fetch(new URL('/notify', SITE), { method: 'POST', body: 'Tea is ready.' });
  for (const page of pages) await hears(page, 'Tea is ready.');
  await Promise.all(pages.map(page => page.close()));
}

const passed = await run(`linked in Chromium ${browser.version()}`, [what_one_window_writes_and_what_is_posted_all_show]);
await browser.close();
process.exit(passed ? 0 : 1);
