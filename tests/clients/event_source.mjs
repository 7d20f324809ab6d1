// The EventSource of a browser: headless Chromium. It comes through a proxy, which cuts its connections.

import assert from 'node:assert/strict';
import { createServer, connect } from 'node:net';
import { once } from 'node:events';

import { DEADLINE, EVENTS_URL, run, typeEvent } from './checks.mjs';
import { launch } from './windows.mjs';

const { hostname, port } = new URL(EVENTS_URL);

/** Hands connections on, as long as it may. */
class Proxy {
  #sockets = new Set();
  #open = true;
  requests = [];

  static async start() {
    const proxy = new Proxy();
    proxy.server = createServer(client => proxy.#serve(client));
    proxy.server.listen(0, '127.0.0.1');
    await once(proxy.server, 'listening');
    proxy.url = `http://127.0.0.1:${proxy.server.address().port}`;
    return proxy;
  }

  #serve(client) {
    if (!this.#open) return void client.destroy();
    const server = connect(port, hostname);
    for (const [socket, other] of [[client, server], [server, client]]) {
      this.#sockets.add(socket);
      socket.on('close', () => {
        this.#sockets.delete(socket);
        other.destroy();
      });
      socket.on('error', () => {});
      socket.pipe(other);
    }
    client.once('data', data => this.requests.push(data.toString()));
  }

  /** Cuts all connections, and lets none in until `mend`. */
  cut() {
    this.#open = false;
    for (const socket of this.#sockets) socket.destroy();
  }

  mend() {
    this.#open = true;
  }
}

const proxy = await Proxy.start();
const browser = await launch();
const page = await browser.newPage();
page.setDefaultTimeout(DEADLINE);

const shown = () => page.$$eval('li', items => items.map(item => item.textContent));
const untilLast = line =>
  page.waitForFunction(line => document.querySelector('li:last-child')?.textContent === line, line);
const untilShown = count =>
  page.waitForFunction(count => document.querySelectorAll('li').length >= count, count);

async function lines_arrive_on_the_page() {
  await page.goto(proxy.url);
  // Behind what others have typed.
  await typeEvent('begin');
  for (const line of ['one', 'zwöi', '', ' three ', 'data: four']) await typeEvent(line);
  await untilLast('data: four');
  const lines = await shown();
  assert.deepEqual(lines.slice(lines.indexOf('begin') + 1), ['one', 'zwöi', '', ' three ', 'data: four']);
}

async function a_cut_connection_resumes_without_gap_or_duplicate() {
  for (let round = 0; round < 3; round++) {
    const before = await shown();
    proxy.cut();
    for (let n = 0; n < 10; n++) await typeEvent(`away ${round} ${n}`);
    proxy.mend();
    await typeEvent(`back ${round}`);
    await untilShown(before.length + 11);
    const away = Array.from({ length: 10 }, (_, n) => `away ${round} ${n}`);
    assert.deepEqual(await shown(), [...before, ...away, `back ${round}`]);
    assert.match(proxy.requests.at(-1), /\r\nLast-Event-ID: [0-9a-f]+-\d+\r\n/i);
  }
}

async function a_reload_gets_the_history() {
  const before = await shown();
  await page.reload();
  await untilShown(before.length);
  assert.deepEqual(await shown(), before);
}

async function who_missed_too_much_is_told_so() {
  proxy.cut();
  for (let n = 0; n < 150; n++) await typeEvent(`much ${n}`);
  proxy.mend();
  await untilLast('much 149');
  const lines = await shown();
  const reset = lines.indexOf('Some lines are missing here.');
  assert.ok(reset > 0, 'there is a reset');
  assert.deepEqual(lines.slice(reset + 1), Array.from({ length: 100 }, (_, n) => `much ${n + 50}`));
}

async function a_page_of_another_origin_may_read_and_its_source_opens_at_once() {
  const seen = await page.evaluate(url => new Promise((resolve, reject) => {
    const source = new EventSource(url);
    source.onopen = () => {
      resolve(source.readyState);
      source.close();
    };
    source.onerror = () => reject(new Error('it may not'));
  }), `${EVENTS_URL}events`);
  assert.equal(seen, 1);
}

const passed = await run(`EventSource of Chromium ${browser.version()}`, [
  lines_arrive_on_the_page,
  a_cut_connection_resumes_without_gap_or_duplicate,
  a_reload_gets_the_history,
  who_missed_too_much_is_told_so,
  a_page_of_another_origin_may_read_and_its_source_opens_at_once,
]);
await browser.close();
proxy.cut();
proxy.server.close();
process.exit(passed ? 0 : 1);
