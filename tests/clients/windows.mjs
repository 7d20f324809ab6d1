// Headless Chromium, and windows of it that show the page of a small chat.

import { chromium } from 'playwright-core';

import { DEADLINE } from './checks.mjs';

export const launch = () =>
  chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: process.getuid() === 0 ? ['--no-sandbox'] : [],
  });

/** Opens a window of a site that is connected: it has heard itself. */
export async function open(browser, site, name) {
  const page = await browser.newPage();
  page.setDefaultTimeout(DEADLINE);
  await page.goto(site);
  await page.waitForFunction(() => ws.readyState === WebSocket.OPEN);
  await say(page, `${name} is here`);
  await hears(page, `${name} is here`);
  return page;
}

export async function say(page, text) {
  await page.getByLabel('Message').fill(text);
  await page.getByRole('button', { name: 'Send' }).click();
}

export const hears = (page, text) => page.getByText(text, { exact: true }).waitFor();
