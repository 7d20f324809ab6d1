// The page of the example `procedures`, in windows of headless Chromium:
// `PROCEDURES=PATH_TO_BINARY node procedures.mjs [--screenshots DIR]`.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import WebSocket from 'ws';

import { connect } from '../../src/client.js';
import { DEADLINE, run } from './checks.mjs';
import { Server, watch } from './server.mjs';
import { launch } from './windows.mjs';

const browser = await launch();
const server = await new Server(process.env.PROCEDURES).start();
const complaints = [];
const elsewhere = [];

/** A window that is connected. */
async function open(options) {
  const context = await browser.newContext({ viewport: { width: 1000, height: 700 }, ...options });
  context.setDefaultTimeout(DEADLINE);
  const page = await context.newPage();
  watch(page, server, { complaints, elsewhere });
  await page.goto(`http://${server.address}/`);
  await isConnected(page);
  return page;
}

const close = (...pages) => Promise.all(pages.map(page => page.context().close()));
const isConnected = page => page.locator('#state[data-state=open]').waitFor();
const press = (page, name) => page.getByRole('button', { name }).click();
const says = (page, id, text) => page.locator(`#${id}`, { hasText: text }).waitFor();
const isText = (page, id, text) =>
  page.waitForFunction(([id, text]) => document.getElementById(id).textContent === text, [id, text]);
const shown = page => page.locator('#log .message span').allTextContents();

async function send(page, text) {
  await page.getByLabel('Message', { exact: true }).fill(text);
  await page.keyboard.press('Enter');
}

/** The message is there, behind all that has come before. */
const hears = (page, text) => page.locator('#log .message', { hasText: text }).first().waitFor();

async function write(page, pages, timeout = 0) {
  await page.getByLabel('Pages, ten a second').fill(String(pages));
  await page.getByLabel('May take').selectOption(String(timeout));
  await press(page, 'Write a report');
}

/** How many reports are being written and how many were cancelled, as the server says to somebody else. */
async function reports() {
  const connection = connect(`ws://${server.address}/`, { WebSocket });
  try {
    const data = await connection.call('reports');
    return data.text().split(' ').map(Number);
  } finally {
    connection.close();
  }
}

/** Until no report is being written, and so many were cancelled. The server says nothing of it to those who have gone. */
async function cancelled(count) {
  for (;;) {
    const [running, cancelled] = await reports();
    if (running === 0 && cancelled === count) return;
    assert.ok(cancelled <= count, `${cancelled} were cancelled`);
  }
}

async function each_short_call_is_answered() {
  const page = await open();
  await press(page, 'Ping');
  await page.locator('#ping-result', { hasText: /^Back after \d+\.\d ms$/ }).waitFor();
  await press(page, 'My address');
  await page.locator('#address-result', { hasText: /^127\.0\.0\.1:\d+$/ }).waitFor();
  await press(page, 'In capitals');
  await isText(page, 'uppercase-result', 'GRÜEZI MITENAND!');
  await page.getByLabel('Text').fill('with <b>Enter</b>');
  await page.keyboard.press('Enter');
  await isText(page, 'uppercase-result', 'WITH <B>ENTER</B>');
  await close(page);
}

async function the_server_calls_the_page() {
  const page = await open({ viewport: { width: 777, height: 555 } });
  await press(page, 'Have the server ask');
  await isText(page, 'ask-result', 'Window: 777 × 555');
  await close(page);
}

async function two_windows_hear_each_other_and_a_third_what_was_sent_before() {
  const [one, two] = [await open(), await open()];
  const markup = '<img src=x onerror="document.title=1">';
  await send(one, 'Hello');
  await hears(two, 'Hello');
  await send(two, markup);
  for (const page of [one, two]) {
    await hears(page, markup);
    assert.deepEqual(await shown(page), ['Hello', markup]);
    assert.equal(await page.locator('#log img').count(), 0);
  }
  const three = await open();
  await hears(three, markup);
  assert.deepEqual(await shown(three), ['Hello', markup]);
  assert.deepEqual(await three.locator('#log small').allTextContents(), ['1', '2']);
  await close(one, two, three);
}

async function a_report_comes_page_by_page() {
  const page = await open();
  await page.evaluate(() => {
    window.texts = [];
    const note = changes => changes.forEach(({ addedNodes }) => addedNodes.forEach(node => texts.push(node.data)));
    new MutationObserver(note).observe(document.getElementById('report-result'), { childList: true });
  });
  await write(page, 5);
  await isText(page, 'report-result', 'A report of 5 pages.');
  const pages = [1, 2, 3, 4, 5].map(number => `Page ${number} of 5`);
  assert.deepEqual(await page.evaluate(() => texts), ['…', ...pages, 'A report of 5 pages.']);
  assert.equal(await page.locator('#progress').evaluate(progress => progress.value), 5);
  assert.ok(await page.locator('#begin').isVisible());
  assert.deepEqual(await reports(), [0, 0]);
  await close(page);
}

async function a_cancelled_report_is_cancelled_on_the_server_and_every_window_hears_of_it() {
  const [one, two] = [await open(), await open()];
  await write(one, 1000);
  await says(one, 'report-result', 'Page 1');
  for (const page of [one, two]) await isText(page, 'running', '1');
  // It holds up nothing else.
  await press(one, 'In capitals');
  await isText(one, 'uppercase-result', 'GRÜEZI MITENAND!');
  assert.equal(await one.evaluate(() => document.activeElement.textContent), 'In capitals');
  await one.locator('#cancel').focus();
  await one.keyboard.press('Enter');
  await says(one, 'report-result', '(aborted)');
  for (const page of [one, two]) {
    await isText(page, 'running', '0');
    await isText(page, 'cancelled', '1');
  }
  assert.deepEqual(await reports(), [0, 1]);
  assert.equal(await one.evaluate(() => document.activeElement.id), 'begin');
  await close(one, two);
}

async function a_report_that_takes_too_long_is_given_up_and_cancelled_on_the_server() {
  const page = await open();
  await write(page, 1000, 1000);
  await says(page, 'report-result', 'no answer in 1000 ms (timeout)');
  await isText(page, 'cancelled', '2');
  assert.deepEqual(await reports(), [0, 2]);
  // One that is quick enough is not.
  await write(page, 2, 10000);
  await isText(page, 'report-result', 'A report of 2 pages.');
  await close(page);
}

async function who_closes_the_window_has_cancelled_its_report() {
  const page = await open();
  await write(page, 1000);
  await says(page, 'report-result', 'Page 1');
  await close(page);
  await cancelled(3);
}

async function what_the_server_refuses_is_said() {
  const page = await open();
  // The field itself would refuse it first.
  await page.locator('#report-form').evaluate(form => (form.noValidate = true));
  await write(page, 0);
  await says(page, 'report-result', 'the number of pages must be from 1 to 1000 (failed)');
  await close(page);
}

async function after_a_restart_windows_come_back_and_what_waited_is_done() {
  const [one, two] = [await open(), await open()];
  await send(one, 'before');
  await hears(two, 'before');
  await write(one, 1000);
  await says(one, 'report-result', 'Page 1');
  // Of the waits that are drawn by chance, the longest.
  await one.evaluate(() => (Math.random = () => 0.99));
  await server.kill();
  await says(one, 'report-result', '(disconnected)');
  await one.locator('#state:not([data-state=open])').waitFor();
  await send(one, 'in between');
  await press(one, 'In capitals');
  await isText(one, 'uppercase-result', '…');
  await one.locator('#state-text', { hasText: /in ([7-9]|1\d) s/ }).waitFor();
  await server.start();
  await press(one, 'Reconnect now');
  await isText(one, 'uppercase-result', 'GRÜEZI MITENAND!');
  for (const page of [one, two]) {
    await isConnected(page);
    await hears(page, 'in between');
    await page.locator('#log .note', { hasText: 'missing' }).waitFor();
    assert.deepEqual((await shown(page)).slice(-2), ['before', 'in between']);
  }
  await isText(one, 'running', '0');
  await isText(one, 'cancelled', '0');
  await one.locator('#now').waitFor({ state: 'hidden' });
  await close(one, two);
}

async function everything_can_be_reached_with_the_keyboard() {
  const page = await open();
  const order = [];
  await page.locator('#ping').focus();
  for (let n = 0; n < 10; n += 1) {
    order.push(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent));
    await page.keyboard.press('Tab');
  }
  assert.deepEqual(order, ['ping', 'address', 'ask', 'uppercase', 'In capitals', 'pages', 'timeout', 'begin', 'log', 'message']);
  await close(page);
}

async function a_narrow_window_shows_everything() {
  const page = await open({ viewport: { width: 320, height: 560 } });
  await send(page, 'w'.repeat(300));
  await hears(page, 'www');
  await press(page, 'Have the server ask');
  await isText(page, 'ask-result', 'Window: 320 × 560');
  const excess = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(excess <= 0, `${excess} pixels are out of sight`);
  await close(page);
}

async function nothing_is_fetched_from_elsewhere_and_nothing_is_complained_about() {
  assert.deepEqual(elsewhere, []);
  assert.deepEqual(complaints, []);
}

/** Two windows at work, wide and narrow, light and dark. */
async function screenshots(directory) {
  for (const colorScheme of ['light', 'dark']) {
    for (const narrow of [false, true]) {
      const page = await open({ colorScheme, viewport: narrow ? { width: 390, height: 1000 } : { width: 1000, height: 660 } });
      const other = await open();
      await press(page, 'Ping');
      await says(page, 'ping-result', 'Back after');
      await press(page, 'My address');
      await says(page, 'address-result', '127.0.0.1');
      await press(page, 'Have the server ask');
      await says(page, 'ask-result', 'Window');
      await press(page, 'In capitals');
      await says(page, 'uppercase-result', 'GRÜEZI');
      const lines = ['Good morning!', 'The list is on the second page.', 'Is anybody else here?'];
      for (const [n, line] of lines.entries()) {
        await send(n % 2 ? other : page, line);
        await hears(page, line);
      }
      await write(other, 1000);
      await says(other, 'report-result', 'Page 1');
      await other.getByRole('button', { name: 'Cancel' }).click();
      await isText(page, 'running', '0');
      await write(page, 50);
      await says(page, 'report-result', /Page [23]\d /);
      await page.screenshot({ path: join(directory, `procedures-${narrow ? 'narrow-' : ''}${colorScheme}.png`), fullPage: narrow });
      await close(page, other);
      await server.kill();
      await server.start();
    }
  }
}

const checks = [
  each_short_call_is_answered,
  the_server_calls_the_page,
  two_windows_hear_each_other_and_a_third_what_was_sent_before,
  a_report_comes_page_by_page,
  a_cancelled_report_is_cancelled_on_the_server_and_every_window_hears_of_it,
  a_report_that_takes_too_long_is_given_up_and_cancelled_on_the_server,
  who_closes_the_window_has_cancelled_its_report,
  what_the_server_refuses_is_said,
  after_a_restart_windows_come_back_and_what_waited_is_done,
  everything_can_be_reached_with_the_keyboard,
  a_narrow_window_shows_everything,
  nothing_is_fetched_from_elsewhere_and_nothing_is_complained_about,
];
let passed = false;
try {
  const at = process.argv.indexOf('--screenshots');
  if (at > 0) await screenshots(process.argv[at + 1]);
  else passed = await run(`procedures in Chromium ${browser.version()}`, checks);
} finally {
  await server.kill();
  await browser.close();
}
process.exit(passed ? 0 : 1);
