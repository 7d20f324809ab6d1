#!/usr/bin/env node
// What a deploy does to thousands of clients: each second's handshakes, lost and repeated messages, and waits.
//
//     bench/drain.mjs PROGRAM [--clients 5000] [--drain 10] [--case cluster|restart|loss]
//
// `cluster`: the clients are at one of two nodes behind HAProxy, which stops with --drain; the other takes over. A room with a
// history must lose nothing, and no client may wait longer than it was told.
// `restart`: the clients' only server stops with --drain, and is started again.
// `loss`: the clients' only server is killed, and is started again at once.
//
// Fails if a second has more than 1.5 times the even share of the handshakes (`loss`: 250 ms, of the two seconds of the first wait), if a
// message is lost or repeated, or if a client waits too long.
// Needs haproxy and redis-server, and Node 22 or the flag --experimental-websocket.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';

import { connect } from '../src/client.js';

const { values: options, positionals: [program] } = parseArgs({
  allowPositionals: true,
  options: {
    clients: { type: 'string', default: '5000' },
    drain: { type: 'string', default: '10' },
    case: { type: 'string', multiple: true, default: ['cluster', 'restart', 'loss'] },
  },
});
if (!program) {
  console.error('usage: bench/drain.mjs PROGRAM [--clients N] [--drain SECONDS] [--case cluster|restart|loss]');
  process.exit(2);
}
const COUNT = Number(options.clients);
const DRAIN = Number(options.drain);
const DEADLINE_MS = 60_000;
/** What timers and the event loop of the one process of all clients may add to a wait. */
const LATENESS_MS = 500;

const children = new Set();
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(what, holds) {
  const end = Date.now() + DEADLINE_MS;
  while (!(await holds())) {
    if (Date.now() > end) throw new Error(`waited in vain: ${what}`);
    await sleep(20);
  }
}

function start(command, args, stdio = ['pipe', 'ignore', 'pipe']) {
  const child = spawn(command, args, { stdio });
  children.add(child);
  child.once('exit', () => children.delete(child));
  return child;
}

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  return port;
}

/** A server of the program. */
async function node(port, args) {
  const child = start(program, ['--listen', `127.0.0.1:${port}`, '--no-welcome', '--heartbeat', '0', ...args]);
  const lines = createInterface(child.stderr);
  for await (const line of lines) {
    if (line.includes('open http')) break;
  }
  child.stderr.resume();
  return child;
}

/** The clients, and what they notice. */
class Clients {
  /** When each client was open, and which messages each has received. */
  opened = [];
  waits = [];
  all = [];

  constructor(url) {
    for (let n = 0; n < COUNT; n += 1) this.all.push(this.#client(url));
  }

  #client(url) {
    const client = { numbers: [], last: undefined, isOpen: false };
    let told;
    const socket = connect(
      () => `${url}/?${new URLSearchParams({ form: 'json', ...(client.last === undefined ? {} : { since: client.last }) })}`,
      { protocols: ['json.humphrey-broadcast'], pingInterval: 0, delayMax: 2_000 },
    );
    socket.states((state) => {
      client.isOpen = state.name === 'open';
      if (client.isOpen) this.opened.push(performance.now());
      if (state.name === 'waiting') {
        const wait = /retry-after=([\d.]+)/.exec(state.reason)?.[1];
        told = wait && { seconds: Number(wait), since: performance.now() };
      } else if (told) {
        this.waits.push({ told: told.seconds * 1_000, waited: performance.now() - told.since });
        told = undefined;
      }
    });
    socket.messages((data) => {
      const message = JSON.parse(data.text());
      if (message.id) client.last = message.id;
      if (/^\d+$/.test(message.text)) client.numbers.push(Number(message.text));
    });
    return Object.assign(client, { socket });
  }

  get open() {
    return this.all.filter(({ isOpen }) => isOpen).length;
  }

  close() {
    for (const { socket } of this.all) socket.close();
  }
}

/** The number of times in each bin, from an instant on. */
function histogram(times, from, binMs) {
  const bins = [];
  for (const time of times) {
    const bin = Math.floor((time - from) / binMs);
    bins[bin] = (bins[bin] ?? 0) + 1;
  }
  return Array.from(bins, (count) => count ?? 0);
}

const failures = [];
function check(holds, what) {
  console.log(`  ${holds ? 'ok    ' : 'FAILED'} ${what}`);
  if (!holds) failures.push(what);
}

function checkEven(opened, from) {
  const bins = histogram(opened, from, 1_000);
  const even = COUNT / DRAIN;
  console.log(`  handshakes by second after the signal: ${bins.join(' ')}`);
  const worst = Math.max(...bins) / even;
  check(worst <= 1.5, `at most 1.5 times the even share of ${even} handshakes in a second: ${worst.toFixed(2)}`);
}

function checkWaits(waits) {
  const late = waits.map(({ told, waited }) => waited - told);
  const worst = Math.max(...late);
  check(waits.length >= COUNT, `all clients were told how long to wait: ${waits.length} times, ${waits[0]?.told} ms`);
  check(worst <= LATENESS_MS, `no client waits longer than it was told: at most ${worst.toFixed(0)} ms more`);
}

async function cluster(folder) {
  const [redisPort, front, a, b] = await Promise.all([freePort(), freePort(), freePort(), freePort()]);
  start('redis-server', ['--port', redisPort, '--save', '', '--dir', folder]);
  const config = join(folder, 'haproxy.cfg');
  await writeFile(config, `
global
  # It does not start without two descriptors for each.
  maxconn ${COUNT + 500}
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend front
  bind 127.0.0.1:${front}
  default_backend nodes
backend nodes
  balance leastconn
  option httpchk GET /ready
  default-server check inter 200ms fall 1 rise 1
  server a 127.0.0.1:${a}
  server b 127.0.0.1:${b}
`);
  const args = ['--cluster', `redis://127.0.0.1:${redisPort}`, '--history', '1000', '--drain', String(DRAIN)];
  const first = await node(a, args);
  start('haproxy', ['-f', config]);
  const clients = new Clients(`ws://127.0.0.1:${front}`);
  await until('all clients are connected', () => clients.open === COUNT);
  const second = await node(b, args);
  await until('the second node is ready', async () => (await fetch(`http://127.0.0.1:${b}/ready`).catch(() => ({}))).ok);
  await sleep(1_000);
  // Everybody gets two numbers a second from the node that stays.
  let sent = 0;
  const sending = setInterval(() => second.stdin.write(`${(sent += 1)}\n`), 500);
  await sleep(1_000);
  const before = clients.opened.length;
  const from = performance.now();
  first.kill('SIGTERM');
  await once(first, 'exit');
  const took = (performance.now() - from) / 1_000;
  await until('all clients are back', () => clients.open === COUNT);
  clearInterval(sending);
  await until('everybody has the last number', () => clients.all.every(({ numbers }) => numbers.at(-1) === sent));
  const opened = clients.opened.slice(before);
  console.log(`  the node has exited after ${took.toFixed(1)} s`);
  checkEven(opened, from);
  checkWaits(clients.waits);
  check(opened.length === COUNT, `each client has reconnected once: ${opened.length} handshakes`);
  const wrong = clients.all.filter(({ numbers }) => numbers.length !== sent || numbers.some((number, at) => number !== at + 1));
  check(wrong.length === 0, `each client has each of ${sent} messages once, in order: ${wrong.length} have not`);
  clients.close();
}

async function restart() {
  const port = await freePort();
  const args = ['--drain', String(DRAIN)];
  const first = await node(port, args);
  const clients = new Clients(`ws://127.0.0.1:${port}`);
  await until('all clients are connected', () => clients.open === COUNT);
  const before = clients.opened.length;
  const from = performance.now();
  first.kill('SIGTERM');
  await once(first, 'exit');
  await node(port, args);
  await until('all clients are back', () => clients.open === COUNT);
  checkEven(clients.opened.slice(before), from);
  checkWaits(clients.waits);
  check(clients.opened.length - before === COUNT, `each client has reconnected once: ${clients.opened.length - before} handshakes`);
  clients.close();
}

async function loss() {
  const port = await freePort();
  const first = await node(port, []);
  const clients = new Clients(`ws://127.0.0.1:${port}`);
  await until('all clients are connected', () => clients.open === COUNT);
  const before = clients.opened.length;
  const from = performance.now();
  first.kill('SIGKILL');
  await once(first, 'exit');
  await node(port, []);
  await until('all clients are back', () => clients.open === COUNT);
  const bins = histogram(clients.opened.slice(before), from, 250);
  console.log(`  handshakes by 250 ms after the loss: ${bins.join(' ')}`);
  // The first wait is random, up to two seconds.
  const even = COUNT / 8;
  const worst = Math.max(...bins) / even;
  check(worst <= 1.5, `no peak: at most 1.5 times the even share of ${even} handshakes in a quarter of a second: ${worst.toFixed(2)}`);
  clients.close();
}

const folder = await mkdtemp(join(tmpdir(), 'drain-'));
try {
  for (const name of options.case) {
    console.log(`${name}: ${COUNT} clients${name === 'loss' ? '' : `, --drain ${DRAIN}`}`);
    await { cluster: () => cluster(folder), restart, loss }[name]();
    for (const child of [...children]) {
      child.kill('SIGKILL');
      await once(child, 'exit');
    }
  }
} finally {
  for (const child of children) child.kill('SIGKILL');
  await rm(folder, { recursive: true, force: true });
}
process.exit(failures.length ? 1 : 0);
