// Many clients with a failing server and a failing network.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { open, Proxy, Server, until } from './support.mjs';

const CLIENTS = 50;

/** A client that checks the received numbers: each once, in order, and none missing except after a reported gap. */
class Counter {
  faults = [];
  received = 0;
  gaps = 0;
  last = undefined;

  constructor(t, url) {
    this.connection = open(t, url, { delayMax: 200, pingInterval: 100, pingTimeout: 200 });
    this.connection.messages((data) => this.#take(Number(data.text())));
    this.connection.join('numbers', { since: 'new', onGap: () => this.#gap() });
  }

  #take(n) {
    this.received += 1;
    if (this.last !== undefined && n !== this.last + 1) this.faults.push(`${n} after ${this.last}`);
    this.last = n;
  }

  #gap() {
    this.gaps += 1;
    this.last = undefined;
  }

  /** Waits until this many more numbers have arrived. */
  async more(count) {
    const target = this.received + count;
    await until(() => this.received >= target, `${count} more numbers, with ${JSON.stringify(this.connection.state)}`);
  }
}

const all = (counters, act) => Promise.all(counters.map(act));

test('cut, half-open and slow connections lose and repeat nothing', async (t) => {
  const server = await Server.start(t, 'client_server');
  const proxy = await Proxy.start(t, server.port);
  const counters = Array.from({ length: CLIENTS }, () => new Counter(t, proxy.url));
  const faults = [
    () => proxy.cut(),
    () => proxy.swallow('server'),
    () => proxy.swallow('client', 'server'),
    () => (proxy.delay = 20),
    () => proxy.cut(),
    () => (proxy.delay = 0),
  ];
  await all(counters, (counter) => counter.more(50));
  for (const [n, fault] of faults.entries()) {
    const opened = counters.map(({ connection }) => connection.seen.filter(({ name }) => name === 'open').length);
    fault();
    const isLost = n < 3 || n === 4;
    if (isLost) await all(counters, ({ connection }, client) => connection.is('open', opened[client] + 1));
    await all(counters, (counter) => counter.more(50));
  }
  for (const { faults, gaps } of counters) assert.deepEqual([faults, gaps], [[], 0]);
});

test('server killed under load: clients reconnect, report the gap', async (t) => {
  const server = await Server.start(t, 'client_server');
  const counters = Array.from({ length: CLIENTS }, () => new Counter(t, server.url));
  const rounds = 3;
  for (let round = 1; round <= rounds; round += 1) {
    await all(counters, (counter) => counter.more(50));
    const calls = counters.map(({ connection }) => connection.call('hang', '', { timeout: 0 }).catch((error) => error));
    await server.kill(round === 2 ? 'SIGTERM' : 'SIGKILL');
    const ended = await Promise.all(calls);
    for (const { code, sent } of ended) assert.deepEqual([code, sent], ['disconnected', true]);
    // Calls made while disconnected are queued.
    const waiting = counters.map(({ connection }) => connection.call('echo', round));
    await server.start();
    for (const data of await Promise.all(waiting)) assert.equal(data.json(), round);
  }
  await all(counters, (counter) => counter.more(50));
  for (const { faults, gaps } of counters) assert.deepEqual([faults, gaps], [[], rounds]);
});

test('history too short: every client reports the gap and resumes', async (t) => {
  const server = await Server.start(t, 'client_server', '20');
  const proxy = await Proxy.start(t, server.port);
  const counters = Array.from({ length: 10 }, () => new Counter(t, proxy.url));
  await all(counters, (counter) => counter.more(10));
  proxy.cut(false);
  const observer = new Counter(t, server.url);
  await observer.more(100);
  proxy.mend();
  await all(counters, (counter) => counter.more(50));
  for (const { faults, gaps } of counters) assert.deepEqual([faults, gaps], [[], 1]);
});
