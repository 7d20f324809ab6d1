// Shared by the tests: deadlines, a scriptable mock server, the real servers, and a proxy with faults.

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { connect as tcpConnect, createServer } from 'node:net';
import { createServer as createHttpServer, request as httpRequest } from 'node:http';
import { readFile } from 'node:fs/promises';

import { WebSocketServer } from 'ws';

export * from '../../src/client.js';
import { connect as connectTo } from '../../src/client.js';

export const PROTOCOL = 'humphrey_ws.procedures.v1';

// The deadline of every wait, in milliseconds.
export const DEADLINE = Number(process.env.DEADLINE ?? 20_000);

/** Awaits a promise until the deadline. */
export async function inTime(promise, what = 'a promise', time = DEADLINE) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited in vain for ${what}`)), time);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Waits until a condition holds, and returns its value. */
export async function until(condition, what = String(condition)) {
  const end = Date.now() + DEADLINE;
  for (;;) {
    const result = await condition();
    if (result) return result;
    if (Date.now() > end) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Short delays and timeouts. */
export const QUICK = { delayFirst: 5, delayMax: 50, openTimeout: 5_000 };

/** Opens a connection that is closed at the end of the test. */
export function open(t, url, options = {}) {
  const connection = connectTo(url, { ...QUICK, ...options });
  const states = [];
  connection.states((state) => states.push(state));
  t.after(() => connection.close());
  return Object.assign(connection, {
    seen: states,
    is: (name, count = 1) => until(() => states.filter((state) => state.name === name).length >= count && connection.state.name === name, `state ${name}`),
  });
}

/** Waits for the state `waiting`, in which the next attempt has not started. */
export const lost = (connection) => inTime(new Promise((resolve) => {
  connection.states(({ name }) => name === 'waiting' && resolve());
}), 'the connection to be lost');

// ---- frames, written by hand ----

const name = (text) => [Buffer.from([Buffer.byteLength(text)]), Buffer.from(text)];
const u32 = (id) => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(id);
  return bytes;
};
const frame = (form, ...parts) => Buffer.concat([Buffer.from([form]), ...parts.flat().map((part) => Buffer.from(part))]);
export const notification = (text, payload = '') => frame(1, name(text), payload);
export const request = (id, text, payload = '') => frame(2, u32(id), name(text), payload);
export const reset = (id) => frame(3, u32(id));
export const response = (id, payload = '') => frame(4, u32(id), payload);
export const error = (id, code, text = '') => frame(5, u32(id), Buffer.from([code]), text);
export const item = (id, payload = '') => frame(6, u32(id), payload);
export const ofRoom = (room, id, message) =>
  frame(7, name(room), name(id), Buffer.from([typeof message === 'string' ? 1 : 2]), message);

/** Decodes a message from a client. */
export function parse(bytes) {
  const form = bytes[0];
  if (form === 1) return { form, name: bytes.toString('utf8', 2, 2 + bytes[1]), payload: bytes.toString('utf8', 2 + bytes[1]) };
  const id = bytes.readUInt32BE(1);
  if (form === 2) return { form, id, name: bytes.toString('utf8', 6, 6 + bytes[5]), payload: bytes.toString('utf8', 6 + bytes[5]) };
  if (form === 5) return { form, id, code: bytes[5], payload: bytes.toString('utf8', 6) };
  return { form, id, payload: bytes.toString('utf8', 5) };
}

/** A scriptable server. */
export class Mock {
  peers = [];
  /** Its responses: `join(room, since)` and `ping()` return payloads, or nothing if the test responds. */
  answers = { join: () => '', ping: () => '' };

  static async start(t, options = {}) {
    const mock = new Mock();
    mock.options = { protocols: [PROTOCOL], ...options };
    await mock.listen(0);
    t.after(() => mock.stop());
    return mock;
  }

  async listen(port = this.port) {
    this.http = createHttpServer((_, response) => response.writeHead(404).end());
    const chosen = (offered) => [...offered].find((protocol) => this.options.protocols.includes(protocol)) ?? false;
    this.server = new WebSocketServer({ server: this.http, handleProtocols: chosen });
    this.server.on('connection', (socket, request) => {
      const peer = new Peer(this, socket, request);
      this.peers.push(peer);
      this.options.connected?.(peer);
    });
    this.http.listen(port, '127.0.0.1');
    await once(this.http, 'listening');
    this.port = this.http.address().port;
    this.url = `ws://127.0.0.1:${this.port}/`;
  }

  stop() {
    for (const socket of this.server.clients) socket.terminate();
    this.http.closeAllConnections();
    return new Promise((resolve) => this.http.close(resolve));
  }

  /** The n-th connection. */
  peer(n = 0) {
    return until(() => this.peers[n], `connection ${n}`);
  }
}

class Peer {
  received = [];
  closed = undefined;
  #read = 0;

  constructor(mock, socket, request) {
    this.socket = socket;
    this.url = request.url;
    socket.on('message', (data, isBinary) => {
      if (!isBinary) return this.received.push(data.toString());
      const frame = socket.protocol === PROTOCOL ? parse(data) : data;
      const answer = frame.name === '$ping' ? mock.answers.ping()
        : frame.name === '$join' ? mock.answers.join(...splitJoin(frame.payload), this, frame.id)
        : frame.name === '$leave' ? '' : undefined;
      if (frame.name !== '$ping') this.received.push(frame);
      if (typeof answer === 'string') socket.send(response(frame.id, answer));
    });
    socket.on('close', (code, reason) => (this.closed = { code, reason: reason.toString() }));
  }

  /** The next message. */
  async next() {
    const n = this.#read++;
    return until(() => this.received[n], `message ${n}`);
  }

  send(data) {
    this.socket.send(data);
  }
}

/** The room and `since` of a join request. */
export const splitJoin = (payload) => [payload.slice(1, 1 + payload.charCodeAt(0)), payload.slice(1 + payload.charCodeAt(0))];

// ---- the real servers ----

const binaries = process.env.EXAMPLES;

/** A free port, outside the range of port 0, which clients' sockets use, too. */
export async function freePort() {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 10_000);
    const server = createServer();
    const isFree = await new Promise((resolve) => {
      server.on('error', () => resolve(false));
      server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
    });
    if (isFree) return port;
  }
}

/** A running example of the library, which can be killed and restarted on the same port. */
export class Server {
  static async start(t, example, ...options) {
    const server = new Server();
    Object.assign(server, { example, options, port: await freePort() });
    server.url = `ws://127.0.0.1:${server.port}/`;
    server.http = `http://127.0.0.1:${server.port}/`;
    await server.start();
    t.after(() => server.kill());
    return server;
  }

  async start() {
    const child = spawn(`${binaries}/${this.example}`, [`127.0.0.1:${this.port}`, ...this.options], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.child = child;
    this.output = '';
    child.stdout.on('data', (data) => (this.output += data));
    child.stdin.on('error', () => {});
    await until(() => reachable(this.port), `${this.example} to listen`);
  }

  type(line) {
    this.child.stdin.write(`${line}\n`);
  }

  async kill(signal = 'SIGKILL') {
    const { child } = this;
    if (child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, 'exit');
    child.kill(signal);
    await inTime(ended, 'the server to end');
  }
}

/** The Redis server to start; `undefined`, which skips a test, if none is installed and none was named. */
export function redisServer(t) {
  const named = process.env.HUMPHREY_WS_REDIS_SERVER;
  const program = named ?? 'redis-server';
  if (named || !spawnSync(program, ['--version']).error) return program;
  t.skip('redis-server is not installed');
}

/** Starts a Redis server without persistence, and two nodes of a cluster, which end before it. */
export async function startNodes(t, program, ...example) {
  const nodes = [];
  let port, child;
  t.after(async () => {
    for (const node of nodes) await node.kill();
    child.kill('SIGKILL');
  });
  // Redis ends if another program has taken the port meanwhile.
  do {
    port = await freePort();
    const options = ['--port', `${port}`, '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'];
    child = spawn(program, options, { stdio: ['ignore', 'ignore', 'inherit'] });
    await until(async () => child.exitCode !== null || reachable(port), 'Redis to listen');
  } while (child.exitCode !== null);
  for (let node = 0; node < 2; node += 1) nodes.push(await Server.start(t, ...example, `redis://127.0.0.1:${port}`));
  return nodes;
}

const reachable = (port) => new Promise((resolve) => {
  const socket = tcpConnect(port, '127.0.0.1');
  socket.on('connect', () => resolve(true) || socket.destroy());
  socket.on('error', () => resolve(false));
});

/** A proxy that can delay data, cut connections, refuse them, and discard the data of either side. */
export class Proxy {
  #pairs = new Set();
  #sockets = new Set();
  #isOpen = true;
  /** The delay of each chunk, in milliseconds. */
  delay = 0;
  /** Whether the data of the clients, or of the servers, is discarded on the current connections. */
  connections = 0;

  static async start(t, port) {
    const proxy = new Proxy();
    proxy.target = port;
    proxy.server = createServer((client) => proxy.#serve(client));
    proxy.server.listen(0, '127.0.0.1');
    await once(proxy.server, 'listening');
    proxy.url = `ws://127.0.0.1:${proxy.server.address().port}/`;
    proxy.http = proxy.url.replace('ws', 'http');
    t.after(() => {
      for (const socket of proxy.#sockets) socket.destroy();
      proxy.server.close();
    });
    return proxy;
  }

  #serve(client) {
    if (!this.#isOpen) return void client.destroy();
    this.connections += 1;
    const server = tcpConnect(this.target, '127.0.0.1');
    const pair = { client, server, lost: new Set() };
    this.#pairs.add(pair);
    for (const [from, to] of [[client, server], [server, client]]) {
      this.#sockets.add(from);
      from.setNoDelay();
      let last = Promise.resolve();
      from.on('data', (data) => {
        if (pair.lost.has(from === client ? 'client' : 'server')) return;
        const { delay } = this;
        if (delay === 0) return void (last = last.then(() => to.write(data)));
        const due = new Promise((resolve) => setTimeout(resolve, delay).unref());
        last = last.then(() => due).then(() => to.write(data));
      });
      from.on('error', () => {});
      from.on('close', () => {
        this.#pairs.delete(pair);
        this.#sockets.delete(from);
        if (pair.lost.size === 0) last.then(() => to.destroy());
      });
    }
  }

  /** Cuts all connections. While `isOpen` is false, new ones are refused. */
  cut(isOpen = true) {
    this.#isOpen = isOpen;
    for (const { client, server } of this.#pairs) {
      client.destroy();
      server.destroy();
    }
    this.#pairs.clear();
  }

  mend() {
    this.#isOpen = true;
  }

  /** Discards all further data of these sides of the current connections, which makes them half-open. */
  swallow(...sides) {
    for (const { lost } of this.#pairs) for (const side of sides) lost.add(side);
  }
}

/** An HTTP proxy with its own pages, which can refuse WebSockets. */
export async function httpProxy(t, port, pages = {}) {
  const proxy = { isOpen: false, upgrades: 0, requests: [], sockets: new Set() };
  const server = createHttpServer((incoming, outgoing) => {
    const page = pages[incoming.url.split('?')[0]];
    if (page) {
      outgoing.writeHead(200, { 'Content-Type': page.startsWith('<') ? 'text/html' : 'text/javascript' });
      return void outgoing.end(page);
    }
    proxy.requests.push(incoming.url);
    const onward = httpRequest({ port, host: '127.0.0.1', path: incoming.url, headers: incoming.headers }, (answer) => {
      outgoing.writeHead(answer.statusCode, answer.headers);
      answer.pipe(outgoing);
    });
    onward.on('error', () => outgoing.destroy());
    outgoing.on('close', () => onward.destroy());
    onward.end();
  });
  server.on('upgrade', (incoming, socket) => {
    proxy.upgrades += 1;
    socket.on('error', () => {});
    if (!proxy.isOpen) return void socket.end('HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n');
    const onward = httpRequest({ port, host: '127.0.0.1', path: incoming.url, headers: incoming.headers });
    onward.on('upgrade', (answer, other) => {
      socket.write(`HTTP/1.1 101 Switching Protocols\r\n${Object.entries(answer.headers).map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n`);
      for (const [from, to] of [[socket, other], [other, socket]]) {
        from.on('error', () => {}).on('close', () => to.destroy()).pipe(to);
      }
      proxy.sockets.add(socket);
    });
    onward.on('error', () => socket.destroy());
    onward.end();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  proxy.url = `http://127.0.0.1:${server.address().port}/`;
  proxy.cut = () => {
    server.closeAllConnections();
    for (const socket of proxy.sockets) socket.destroy();
  };
  t.after(() => {
    proxy.cut();
    server.close();
  });
  return proxy;
}

// ---- the guide ----

/** The rows of the guide's table whose header begins with this text, each as its cells' texts. */
export async function tableOfGuide(head) {
  const lines = (await readFile(new URL('../../docs/javascript.md', import.meta.url), 'utf8')).split('\n');
  const at = lines.findIndex((line) => line.startsWith(`| ${head}`));
  if (at < 0) throw new Error(`the guide has no table of ${head}`);
  const rows = lines.slice(at + 2);
  return rows.slice(0, rows.findIndex((line) => !line.startsWith('|'))).map((line) => line.split('|').slice(1, -1).map((cell) => cell.trim()));
}

/** An event-stream server that passes each request to `answer`. */
export async function eventServer(t, answer) {
  const server = createHttpServer((request, response) => {
    response.writeHead(200, { 'Content-Type': 'text/event-stream' });
    answer(response, request);
  });
  server.on('upgrade', (_, socket) => socket.destroy());
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${server.address().port}/`;
}
