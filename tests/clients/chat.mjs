// The page of the example `chat`, in windows of headless Chromium: `CHAT=PATH_TO_BINARY node chat.mjs [--screenshots DIR]`.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import WebSocket from 'ws';

import { DEADLINE, run } from './checks.mjs';
import { Server, watch } from './server.mjs';
import { launch } from './windows.mjs';

const KEPT = 50;

const browser = await launch();

const server = await new Server(process.env.CHAT).start();
const complaints = [];
const elsewhere = [];
let rooms = 0;
/** Each check has a room of its own. */
const newRoom = () => `room ${(rooms += 1)}`;

async function newBrowser(name, options) {
  const context = await browser.newContext({ viewport: { width: 1000, height: 700 }, ...options });
  context.setDefaultTimeout(DEADLINE);
  await context.addInitScript(name => {
    // The page's own WebSockets, the newest one last.
    window.sockets = [];
    window.WebSocket = class extends WebSocket {
      constructor(...args) {
        super(...args);
        window.sockets.push(this);
      }
    };
    if (location.protocol === 'http:' && !localStorage.getItem('chat.name')) localStorage.setItem('chat.name', JSON.stringify(name));
  }, name);
  return context;
}

async function newTab(context, room) {
  const page = await context.newPage();
  watch(page, server, { complaints, elsewhere });
  await page.goto(`http://${server.address}/#${encodeURIComponent(room)}`);
  await isConnected(page);
  return page;
}

/** A window of somebody else, who is connected. */
const enter = async (name, room, options) => newTab(await newBrowser(name, options), room);

const isConnected = page => page.locator('#state[data-state=open]').waitFor();

async function say(page, text) {
  await page.getByLabel('Message', { exact: true }).fill(text);
  await page.keyboard.press('Enter');
}

const message = (page, text) => page.locator('#log .what', { hasText: text });
const hears = (page, text) => message(page, text).first().waitFor();
const notes = (page, text) => page.locator('#log .note', { hasText: text }).first().waitFor();
const noted = (page, text) => page.locator('#log .note', { hasText: text }).count();
const said = page => page.locator('#log .what').allTextContents();

/** Writes in a page, and breaks off its connection at once. */
const sayAndBreakOff = (page, text) =>
  page.evaluate(text => {
    document.getElementById('text').value = text;
    document.getElementById('form').requestSubmit();
    sockets.at(-1).close();
  }, text);

/** The page loses its connection, and gets none for now. */
async function goOffline(page) {
  await page.context().setOffline(true);
  // One that is there stays.
  await page.evaluate(() => sockets.at(-1).close());
  await page.locator('#state:not([data-state=open])').waitFor();
}

const goOnline = page => page.context().setOffline(false);

/** What the people list says, when it says so many. */
async function here(page, count) {
  await page.waitForFunction(count => document.querySelectorAll('#names bdi').length === count, count);
  return page.locator('#names bdi').allTextContents();
}

const leave = (...pages) => Promise.all(pages.map(page => page.context().close()));

/** A program that says something many times, as somebody new each time its pace is used up. */
async function sayAll(room, texts) {
  for (let from = 0; from < texts.length; from += 20) {
    const query = new URLSearchParams({ room, name: `Bot ${from}` });
    const socket = new WebSocket(`ws://${server.address}/chat?${query}`);
    let left = texts.slice(from, from + 20).length;
    socket.on('open', () => texts.slice(from, from + 20).forEach(text => socket.send(JSON.stringify({ text, key: text }))));
    await new Promise((resolve, reject) => {
      socket.on('error', reject);
      socket.on('message', data => {
        const { type, key } = JSON.parse(data);
        if (type === 'refused') reject(new Error(String(data)));
        if (type === 'said' && texts.indexOf(key) >= from && (left -= 1) === 0) resolve();
      });
    });
    socket.close();
  }
}

const numbers = (count, from = 1) => Array.from({ length: count }, (_, n) => `number ${from + n}.`);

async function two_windows_talk_and_see_who_is_here() {
  const room = newRoom();
  const ada = await enter('Ada', room);
  const bob = await enter('Bob', room);
  await notes(ada, 'Bob has come in');
  assert.deepEqual(await here(ada, 2), ['Ada', 'Bob']);
  assert.deepEqual(await here(bob, 2), ['Bob', 'Ada']);
  await say(ada, 'Grüezi');
  await say(bob, 'Hello');
  for (const page of [ada, bob]) for (const text of ['Grüezi', 'Hello']) await hears(page, text);
  assert.equal(await ada.locator('#log .own .what').textContent(), 'Grüezi');
  assert.equal(await bob.locator('#log .own .what').textContent(), 'Hello');
  assert.equal(await ada.locator('#text').inputValue(), '');
  await leave(bob);
  await notes(ada, 'Bob has left');
  assert.deepEqual(await here(ada, 1), ['Ada']);
  await leave(ada);
}

async function a_newcomer_is_asked_for_a_name() {
  const context = await browser.newContext();
  context.setDefaultTimeout(DEADLINE);
  const page = await context.newPage();
  await page.goto(`http://${server.address}/#${encodeURIComponent(newRoom())}`);
  const name = page.getByLabel('Your name');
  await name.waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.id), 'name');
  await page.keyboard.type('Cy');
  await page.keyboard.press('Enter');
  await isConnected(page);
  assert.deepEqual(await here(page, 1), ['Cy']);
  await leave(page);
}

async function markup_is_shown_as_text_and_addresses_as_links() {
  const room = newRoom();
  const markup = '<img src=x onerror="document.title=1"><b>bold</b>';
  const ada = await enter(markup.slice(0, 24), room);
  const bob = await enter('Bob', room);
  await say(ada, `${markup} see https://example.com/a?b=c.`);
  await hears(bob, markup);
  assert.equal(await bob.locator('img, #log b b').count(), 0);
  const link = bob.locator('#log a');
  assert.equal(await link.getAttribute('href'), 'https://example.com/a?b=c');
  assert.match(await link.getAttribute('rel'), /noopener/);
  await say(ada, 'javascript:alert(1)');
  await hears(bob, 'javascript:alert(1)');
  assert.equal(await link.count(), 1);
  await leave(ada, bob);
}

async function of_two_with_one_name_the_second_gets_a_number() {
  const room = newRoom();
  const first = await enter('Ada', room);
  const second = await enter('ADA', room);
  await notes(first, 'ADA 2 has come in');
  assert.deepEqual(await here(second, 2), ['ADA 2', 'Ada']);
  await leave(first, second);
}

async function two_tabs_of_a_browser_are_one_person() {
  const room = newRoom();
  const ada = await enter('Ada', room);
  const bob = await enter('Bob', room);
  const tab = await newTab(bob.context(), room);
  await say(tab, 'from the second tab');
  for (const page of [ada, bob, tab]) {
    await hears(page, 'from the second tab');
    await here(page, 2);
  }
  assert.equal(await bob.locator('#log .own').count(), 1);
  await tab.close();
  await say(bob, 'from the first');
  await hears(ada, 'from the first');
  await leave(bob);
  await notes(ada, 'Bob has left');
  assert.equal(await noted(ada, 'Bob has come in'), 1);
  assert.equal(await noted(ada, 'Bob has left'), 1);
  await leave(ada);
}

async function what_is_private_is_shown_in_all_tabs_of_two_people_only() {
  const room = newRoom();
  const ada = await enter('Ada', room);
  const bob = await enter('Bob', room);
  const tab = await newTab(bob.context(), room);
  const cy = await enter('Cy', room);
  await here(ada, 3);
  await ada.getByRole('button', { name: 'Bob' }).click();
  await say(ada, 'only for you');
  for (const page of [ada, bob, tab]) await page.locator('#log .private', { hasText: 'only for you' }).waitFor();
  await ada.getByRole('button', { name: 'To all again' }).click();
  await say(ada, 'for everyone');
  for (const page of [ada, bob, tab, cy]) await hears(page, 'for everyone');
  assert.deepEqual(await said(cy), ['for everyone']);
  // It is not in the history, but this tab knows it.
  await bob.reload();
  await isConnected(bob);
  assert.deepEqual(await said(bob), ['only for you', 'for everyone']);
  await leave(ada, bob, cy);
}

async function who_writes_to_somebody_that_has_gone_is_told() {
  const room = newRoom();
  const ada = await enter('Ada', room);
  const bob = await enter('Bob', room);
  await ada.getByRole('button', { name: 'Bob' }).click();
  await leave(bob);
  await notes(ada, 'Bob has left');
  await say(ada, 'too late');
  await ada.locator('#outbox .why', { hasText: 'Bob is not here' }).waitFor();
  await ada.getByRole('button', { name: 'Remove' }).click();
  assert.equal(await ada.locator('#outbox li').count(), 0);
  await leave(ada);
}

async function a_reload_loses_nothing_and_shows_nothing_twice() {
  const room = newRoom();
  const ada = await enter('Ada', room);
  const bob = await enter('Bob', room);
  const all = numbers(20);
  for (const [n, text] of all.entries()) {
    // Said before, during and after the reload of the other.
    const reload = n % 4 === 1 ? bob.reload() : null;
    await say(ada, text);
    if (n % 4 === 2) await isConnected(bob);
    await reload;
  }
  for (const page of [ada, bob]) await hears(page, all.at(-1));
  assert.deepEqual(await said(bob), all);
  assert.deepEqual(await said(ada), all);
  assert.equal(await noted(ada, 'Bob has left'), 0);
  assert.equal(await noted(ada, 'Bob has come in'), 1);
  await leave(ada, bob);
}

async function what_is_written_while_disconnected_is_said_once() {
  const room = newRoom();
  const ada = await enter('Ada', room);
  const bob = await enter('Bob', room);
  await goOffline(bob);
  await say(bob, 'written in between');
  await bob.locator('#outbox li', { hasText: 'written in between' }).waitFor();
  await goOnline(bob);
  await hears(ada, 'written in between');
  await isConnected(bob);
  // Sent, and not known to have arrived.
  await sayAndBreakOff(bob, 'perhaps sent');
  await hears(ada, 'perhaps sent');
  await bob.locator('#outbox li').waitFor({ state: 'detached' });
  // So it may be sent once more, though it had arrived.
  await bob.evaluate(() => {
    for (let time = 0; time < 2; time += 1) sockets.at(-1).send(JSON.stringify({ text: 'sent twice', key: 'the same' }));
  });
  await say(bob, 'at last');
  for (const page of [ada, bob]) {
    await hears(page, 'at last');
    assert.deepEqual(await said(page), ['written in between', 'perhaps sent', 'sent twice', 'at last']);
  }
  await goOffline(bob);
  await say(bob, 'outlasts a reload');
  await goOnline(bob);
  await bob.reload();
  await hears(ada, 'outlasts a reload');
  await hears(bob, 'outlasts a reload');
  assert.equal(await bob.locator('#outbox li').count(), 0);
  await leave(ada, bob);
}

async function who_gets_no_answer_connects_again_and_nothing_is_said_twice() {
  const room = newRoom();
  const ada = await enter('Ada', room);
  const bob = await enter('Bob', room);
  server.child.kill('SIGSTOP');
  await say(ada, 'is anybody there?');
  await ada.locator('#state:not([data-state=open])').waitFor();
  // It hears now what was said to it before.
  server.child.kill('SIGCONT');
  await isConnected(ada);
  await say(ada, 'now');
  for (const page of [ada, bob]) {
    await hears(page, 'now');
    assert.deepEqual(await said(page), ['is anybody there?', 'now']);
  }
  assert.equal(await ada.locator('#outbox li').count(), 0);
  await leave(ada, bob);
}

async function who_comes_hears_the_last_messages() {
  const room = newRoom();
  await sayAll(room, numbers(KEPT + 3));
  const ada = await enter('Ada', room);
  await hears(ada, `number ${KEPT + 3}.`);
  assert.deepEqual(await said(ada), numbers(KEPT, 4));
  await leave(ada);
}

async function who_was_away_for_too_long_is_told_so() {
  const room = newRoom();
  const ada = await enter('Ada', room);
  await say(ada, 'number 0.');
  await hears(ada, 'number 0.');
  await ada.goto('about:blank');
  elsewhere.pop();
  await sayAll(room, numbers(KEPT));
  await ada.goBack();
  await hears(ada, `number ${KEPT}.`);
  assert.deepEqual(await said(ada), numbers(KEPT + 1, 0));
  assert.equal(await noted(ada, 'are missing here'), 0);
  await ada.goto('about:blank');
  elsewhere.pop();
  await sayAll(room, numbers(KEPT + 1, 101));
  await ada.goBack();
  await hears(ada, 'number 151.');
  await notes(ada, 'are missing here');
  assert.deepEqual(await said(ada), [...numbers(KEPT + 1, 0), ...numbers(KEPT, 102)]);
  await leave(ada);
}

async function rooms_have_people_and_messages_of_their_own() {
  const [one, two] = [newRoom(), newRoom()];
  const ada = await enter('Ada', one);
  const bob = await enter('Bob', one);
  await say(bob, 'in the first');
  await hears(ada, 'in the first');
  await bob.evaluate(room => (location.hash = room), two);
  await bob.locator('#room', { hasText: two }).waitFor();
  await notes(ada, 'Bob has left');
  await isConnected(bob);
  assert.deepEqual(await here(bob, 1), ['Bob']);
  await say(bob, 'in the second');
  await hears(bob, 'in the second');
  assert.deepEqual(await said(bob), ['in the second']);
  await bob.goBack();
  await notes(ada, 'Bob has come in');
  await hears(bob, 'in the first');
  assert.deepEqual(await said(bob), ['in the first']);
  assert.deepEqual(await said(ada), ['in the first']);
  await leave(ada, bob);
}

async function a_name_can_be_changed() {
  const room = newRoom();
  const ada = await enter('Ada', room);
  const bob = await enter('Bob', room);
  await bob.locator('#me').click();
  await bob.getByLabel('Your name').fill('Robert');
  await bob.getByRole('button', { name: 'Enter' }).click();
  await notes(ada, 'Bob is now Robert');
  assert.deepEqual(await here(ada, 2), ['Ada', 'Robert']);
  await leave(ada, bob);
}

async function what_the_server_refuses_can_be_sent_again() {
  const room = newRoom();
  const ada = await enter('Ada', room);
  // Faster than any pace, until something is refused.
  const all = await ada.evaluate(async () => {
    const texts = [];
    const field = document.getElementById('text');
    while (!document.querySelector('#outbox .failed')) {
      field.value = `number ${texts.length + 1}.`;
      document.getElementById('form').requestSubmit();
      // What finds no room stays in the field.
      if (field.value === '') texts.push(`number ${texts.length + 1}.`);
      else await new Promise(resolve => setTimeout(resolve));
    }
    field.value = '';
    return texts;
  });
  const again = ada.getByRole('button', { name: 'Send again' });
  await ada.locator('#outbox .why', { hasText: 'too fast' }).first().waitFor();
  await message(ada, 'number 20.').waitFor();
  while ((await ada.locator('#outbox li').count()) > 0) {
    if ((await again.count()) > 0) await again.first().click().catch(() => {});
    await ada.waitForFunction(() => !document.querySelector('#outbox li:not(.failed)'));
  }
  assert.deepEqual((await said(ada)).sort(), all.sort());
  await leave(ada);
}

async function after_a_restart_pages_come_back_and_say_what_is_gone() {
  const room = newRoom();
  const ada = await enter('Ada', room);
  const bob = await enter('Bob', room);
  await say(ada, 'before');
  await hears(bob, 'before');
  await server.kill();
  await ada.locator('#state[data-state=waiting]').waitFor();
  await say(bob, 'in between');
  await server.start();
  for (const page of [ada, bob]) {
    await isConnected(page);
    await hears(page, 'in between');
    await page.locator('#log .note', { hasText: 'what was said earlier is gone' }).waitFor();
    assert.deepEqual(await said(page), ['before', 'in between']);
  }
  // Of the waits that are drawn by chance, the longest, and one that leaves time to start the server.
  await ada.evaluate(() => (Math.random = () => 0.99));
  await server.kill();
  await ada.locator('#state-text', { hasText: /in ([7-9]|1\d) s/ }).waitFor();
  await server.start();
  await ada.locator('#now').click();
  await isConnected(ada);
  await ada.locator('#now').waitFor({ state: 'hidden' });
  await leave(ada, bob);
}

async function a_narrow_window_shows_everything() {
  const room = newRoom();
  const ada = await enter('Ada', room, { viewport: { width: 320, height: 560 } });
  const bob = await enter('Bob', room);
  await say(bob, 'w'.repeat(300));
  await hears(ada, 'www');
  const excess = await ada.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(excess <= 0, `${excess} pixels are out of sight`);
  await ada.getByRole('button', { name: '2 here' }).click();
  await ada.getByRole('button', { name: 'Bob' }).click();
  assert.ok(await ada.locator('#to').isVisible());
  assert.ok(!(await ada.locator('#people').isVisible()));
  await ada.keyboard.press('Escape');
  assert.ok(!(await ada.locator('#to').isVisible()));
  await leave(ada, bob);
}

async function who_reads_what_is_older_stays_there_and_is_told_of_what_is_new() {
  const room = newRoom();
  await sayAll(room, numbers(KEPT));
  const ada = await enter('Ada', room);
  await hears(ada, `number ${KEPT}.`);
  const fromEnd = () =>
    ada.evaluate(() => {
      const scroll = document.getElementById('scroll');
      return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight;
    });
  assert.ok((await fromEnd()) < 2);
  // A busy browser reports a scroll later than what arrives after it. This one reports it only when it is let.
  await ada.evaluate(() => {
    window.late = event => event.stopImmediatePropagation();
    addEventListener('scroll', late, true);
    document.getElementById('scroll').scrollTo(0, 0);
  });
  await sayAll(room, ['something new']);
  await hears(ada, 'something new');
  await ada.evaluate(() => removeEventListener('scroll', late, true));
  await ada.locator('#newest', { hasText: '1 new message' }).waitFor();
  assert.equal(await ada.locator('#scroll').evaluate(element => element.scrollTop), 0);
  await ada.locator('#newest').click();
  assert.ok((await fromEnd()) < 2);
  await leave(ada);
}

async function nothing_is_fetched_from_elsewhere_and_nothing_is_complained_about() {
  assert.deepEqual(elsewhere, []);
  assert.deepEqual(complaints, []);
}

/** A conversation, on a wide page and on a narrow one, light and dark. */
async function screenshots(directory) {
  const scene = async (colorScheme, narrow) => {
    const room = 'lobby';
    const options = { colorScheme, viewport: narrow ? { width: 390, height: 760 } : { width: 1000, height: 640 } };
    const ada = await enter('Ada', room, options);
    const grace = await enter('Grace', room);
    const jorg = await enter('Jörg', room);
    await say(ada, 'Good morning! Is the deploy through?');
    await hears(jorg, 'deploy through');
    await say(jorg, 'Almost. web-3 is still restarting.');
    await say(jorg, 'The list is at https://example.com/status');
    await hears(ada, 'example.com/status');
    await say(grace, 'I have looked: all checks are green.\nThe migration took 40 seconds.');
    await hears(ada, 'migration');
    await say(ada, 'Wonderful. Then I let everybody know.');
    await hears(grace, 'Wonderful');
    await grace.getByRole('button', { name: 'Ada' }).click();
    await say(grace, 'Please mention the new limits, too.');
    await hears(ada, 'new limits');
    const lin = await enter('Lin', room);
    await hears(lin, 'Wonderful');
    await say(lin, 'Grüezi mitenand!');
    await hears(ada, 'mitenand!');
    await ada.locator('#text').fill('Hello Lin, you are just in time');
    await ada.screenshot({ path: join(directory, `chat-${narrow ? 'narrow-' : ''}${colorScheme}.png`) });
    if (narrow) {
      await ada.getByRole('button', { name: '4 here' }).click();
      await ada.screenshot({ path: join(directory, `chat-people-${colorScheme}.png`) });
    }
    await ada.locator('#me').click();
    await ada.screenshot({ path: join(directory, `chat-enter-${narrow ? 'narrow-' : ''}${colorScheme}.png`) });
    await leave(ada, grace, jorg, lin);
    await server.kill();
    await server.start();
  };
  for (const colorScheme of ['light', 'dark']) for (const narrow of [false, true]) await scene(colorScheme, narrow);
}

const checks = [
  two_windows_talk_and_see_who_is_here,
  a_newcomer_is_asked_for_a_name,
  markup_is_shown_as_text_and_addresses_as_links,
  of_two_with_one_name_the_second_gets_a_number,
  two_tabs_of_a_browser_are_one_person,
  what_is_private_is_shown_in_all_tabs_of_two_people_only,
  who_writes_to_somebody_that_has_gone_is_told,
  a_reload_loses_nothing_and_shows_nothing_twice,
  what_is_written_while_disconnected_is_said_once,
  who_gets_no_answer_connects_again_and_nothing_is_said_twice,
  who_comes_hears_the_last_messages,
  who_was_away_for_too_long_is_told_so,
  rooms_have_people_and_messages_of_their_own,
  a_name_can_be_changed,
  what_the_server_refuses_can_be_sent_again,
  after_a_restart_pages_come_back_and_say_what_is_gone,
  a_narrow_window_shows_everything,
  who_reads_what_is_older_stays_there_and_is_told_of_what_is_new,
  nothing_is_fetched_from_elsewhere_and_nothing_is_complained_about,
];
let passed = false;
try {
  const at = process.argv.indexOf('--screenshots');
  if (at > 0) await screenshots(process.argv[at + 1]);
  else passed = await run(`chat in Chromium ${browser.version()}`, checks);
} finally {
  await server.kill();
  await browser.close();
}
process.exit(passed ? 0 : 1);
