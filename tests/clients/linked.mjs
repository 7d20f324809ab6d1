// The page of the example `linked`, in two windows of headless Chromium.

import { LINKED_URL, run } from './checks.mjs';
import { hears, launch, open, say } from './windows.mjs';

const browser = await launch();

const SITE = LINKED_URL.replace('ws:', 'http:');

async function what_one_window_writes_and_what_is_posted_all_show() {
  const pages = [await open(browser, SITE, 'Ada'), await open(browser, SITE, 'Bob')];
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
