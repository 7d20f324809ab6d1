// Failures and recovery: each row of the guide's table is a test.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { EventSource } from 'eventsource';
import WebSocket from 'ws';

import { connect, error, inTime, lost, Mock, open, PROTOCOL, Proxy, eventServer, tableOfGuide, until } from './support.mjs';

const failure = (promise) => inTime(promise.then(() => assert.fail('it did not fail'), (reason) => reason));

/** Starts a mock server and opens a connection to it. */
async function connected(t, options, mockOptions) {
  const mock = await Mock.start(t, mockOptions);
  const connection = open(t, mock.url, options);
  await connection.is('open');
  return { mock, connection, peer: mock.peers.at(-1) };
}

/** Closes with each code, from separate servers, and returns the outcome, which must be the same for all. */
async function closing(t, codes) {
  const outcomes = new Set();
  for (const code of codes) {
    const { connection, peer } = await connected(t, { delayMax: 60_000 });
    if (code === 1006) peer.socket.terminate();
    else if (code === 1005) peer.socket.close();
    else peer.socket.close(code);
    await until(() => connection.seen.length > 2);
    const state = connection.seen[2];
    assert.equal(state.code, code);
    outcomes.add(state.name === 'closed' ? 'closed' : state.until - Date.now() > 20_000 ? 'late' : 'again');
  }
  assert.equal(outcomes.size, 1, [...outcomes].join());
  return [...outcomes][0];
}

/** Starts a proxy that cuts each connection after the given number of milliseconds, or never. */
async function fronted(t, target, judge) {
  const proxy = await Proxy.start(t, target);
  const serve = proxy.server.listeners('connection')[0];
  let n = 0;
  proxy.server.removeAllListeners('connection');
  proxy.server.on('connection', (socket) => {
    const time = judge((n += 1));
    if (time === 0) return socket.destroy();
    serve(socket);
    if (time) setTimeout(() => socket.destroy(), time);
  });
  return proxy;
}

/** Tests by failure. Each returns the outcome that the guide's table names. */
const ROWS = {
  async 'the address, an option or a subprotocol is invalid, or a class is missing'(t) {
    const { url } = await Mock.start(t);
    for (const [address, options] of [
      ['localhost:8080'], ['wss//x'], ['/live'], ['ftp://a/'], ['file:///a'], ['javascript:1'], ['http://'], [undefined], [null], [new URL('mailto:a@b')],
      [url, { protocols: ['no token'] }], [url, { protocols: [''] }], [url, { protocols: ['a,b'] }], [url, { protocols: 'own' }], [url, { protocols: ['ü'] }],
      [url, { WebSocket: null }], [url, { WebSocket: 'ws' }], [url, { events: 'localhost:80/events', EventSource }], [url, { events: `${url}e`, EventSource: null }],
      [url, { delayFirst: -1 }], [url, { delayMax: NaN }], [url, { timeout: '5' }], [url, { procedures: 0 }], [url, { reconnect: true }], [url, { delayfirst: 5 }],
      [url, null],
    ]) {
      assert.throws(() => connect(address, options), TypeError, `${address} ${JSON.stringify(options)}`);
    }
    // An undefined option selects the default.
    open(t, url, { protocols: undefined, timeout: undefined, events: undefined, delayMax: Infinity });
    return 'throws';
  },

  async "the WebSocket's constructor throws, as for `ws` on a page of `https`"(t) {
    let made = 0;
    class Unwilling {
      constructor() {
        made += 1;
        throw new DOMException('not from here', 'SecurityError');
      }
    }
    const connection = open(t, 'ws://127.0.0.1:9/', { WebSocket: Unwilling });
    await connection.is('closed');
    assert.match(connection.state.reason, /not from here/);
    assert.equal(made, 1);
    const asked = open(t, () => 'ws://127.0.0.1:9/', { WebSocket: Unwilling });
    await asked.is('waiting', 2);
    return connection.state.name;
  },

  async 'the function that returns the address throws, hangs or returns none'(t) {
    const mock = await Mock.start(t);
    const answers = [() => Promise.reject(new Error('no token')), () => { throw new Error('no'); }, () => 'localhost:80', () => undefined, () => new Promise(() => {})];
    let asked = 0;
    const connection = open(t, () => (answers[asked++] ?? (() => mock.url))(), { openTimeout: 500 });
    await connection.is('open');
    assert.ok(asked > answers.length);
    return 'again';
  },

  async 'the connection is not established: no server, a refusal, or a timeout (`openTimeout`)'(t) {
    const mock = await Mock.start(t);
    const silent = await Proxy.start(t, mock.port);
    silent.delay = 60_000;
    const refusing = await Proxy.start(t, mock.port);
    refusing.cut(false);
    for (const url of [silent.url, refusing.url, 'ws://127.0.0.1:9/']) {
      const connection = open(t, url, { openTimeout: 30, delayFirst: 1 });
      await connection.is('waiting', 3);
      const attempts = connection.seen.filter(({ name }) => name === 'waiting').map((state) => state.attempts);
      assert.deepEqual(attempts.slice(0, 3), [1, 2, 3]);
    }
    return 'again';
  },

  async 'the connection is lost before anything arrived on it'(t) {
    const mock = await Mock.start(t, { connected: ({ socket }) => socket.terminate() });
    const connection = open(t, mock.url, { eventsAfter: 2, EventSource, events: await eventServer(t, (stream) => stream.write(':\n\n')) });
    await until(() => connection.state.transport === 'events');
    assert.equal(connection.seen.filter(({ transport }) => transport === 'websocket').length, 2);
    return 'again';
  },

  'the connection is lost or closed with 1001, 1005, 1006, 1011, 1012 or 1014': (t) => closing(t, [1001, 1005, 1006, 1011, 1012, 1014]),
  async 'the server restarts, and says how long (1012 with a reason such as `retry-after=1.5`, in seconds)'(t) {
    const mock = await Mock.start(t);
    for (const [options, code, reason, delay] of [
      [{}, 1012, 'server is restarting, retry-after=7.250', 7_250],
      [{ reconnect: () => true }, 1012, 'retry-after=30', 30_000],
      [{ reconnect: () => 20_000 }, 1012, 'retry-after=30', 20_000],
      // Anyone may say so, but only this code means it.
      [{}, 1011, 'retry-after=30', null],
      [{}, 1012, 'retry-after=soon', null],
    ]) {
      const connection = open(t, mock.url, options);
      await connection.is('open');
      let wait;
      connection.states(({ name, until }) => name === 'waiting' && (wait ??= until - Date.now()));
      mock.peers.at(-1).socket.close(code, reason);
      await until(() => wait !== undefined);
      if (delay === null) assert.ok(wait <= 50, `${code} ${reason}: ${wait}`);
      else assert.ok(wait <= delay && wait > delay - 1_000, `${code} ${reason}: ${wait}`);
      connection.close();
    }
    return 'late';
  },
  'the server is overloaded (1013)': (t) => closing(t, [1013]),
  'the server detected a protocol error (1002, 1003, 1007, 1010)': (t) => closing(t, [1002, 1003, 1007, 1010]),

  async 'a message was too long for the server (1009)'(t) {
    // Behaves like a server with a message limit of 100,000 bytes.
    const bounded = ({ socket }) => socket.on('message', (data) => data.length > 100_000 && socket.close(1009, 'too long'));
    const { mock, connection } = await connected(t, { outboxBytes: 1 << 22 }, { connected: bounded });
    connection.send('x'.repeat(200_000));
    const calling = failure(connection.call('behind'));
    await lost(connection);
    assert.deepEqual(connection.state.code, 1009);
    assert.deepEqual(await calling.then(({ code, sent }) => [code, sent]), ['disconnected', true]);
    connection.send('next');
    // A message from the outbox is not resent either.
    connection.send('y'.repeat(200_000));
    assert.equal(await (await mock.peer(1)).next(), 'next');
    await connection.is('open', 3);
    await connection.call('$ping');
    assert.deepEqual(mock.peers[2].received, []);
    return closing(t, [1009]);
  },

  async 'the session has expired (3000)'(t) {
    const mock = await Mock.start(t);
    let tokens = 0;
    const connection = open(t, () => `${mock.url}?token=${(tokens += 1)}`);
    await connection.is('open');
    mock.peers.at(-1).socket.close(3000, 'session expired');
    await connection.is('open', 2);
    assert.equal(tokens, 2);
    return closing(t, [3000]);
  },

  'the server closed with 1000, 1008 or 3001–4999': (t) => closing(t, [1000, 1008, 3001, 4000, 4999]),

  async 'the server does not respond to a ping'(t) {
    const mock = await Mock.start(t);
    const proxy = await Proxy.start(t, mock.port);
    const connection = open(t, proxy.url, { pingInterval: 20, pingTimeout: 40 });
    await connection.is('open');
    proxy.swallow('server');
    await connection.is('open', 2);
    return 'again';
  },

  async 'the server chooses none of the offered subprotocols'(t) {
    const { mock, connection } = await connected(t, {}, { protocols: [] });
    assert.equal(connection.state.protocol, '');
    const [first, second] = [connection.call('a'), connection.call('b')].map(failure);
    assert.equal((await first).code, 'unsupported');
    assert.equal((await second).code, 'unsupported');
    // The client remembers this for a while,
    const before = mock.peers.length;
    mock.peers.at(-1).socket.terminate();
    await connection.is('open', 2);
    assert.equal(mock.peers.length, before + 1);
    // but not for ever.
    mock.options.protocols = [PROTOCOL];
    connection.reconnect();
    await connection.is('open', 3);
    assert.equal(connection.state.protocol, PROTOCOL);
    const later = await connected(t, {}, { protocols: [] });
    later.mock.options.protocols = [PROTOCOL];
    const now = performance.now.bind(performance);
    t.mock.method(performance, 'now', () => now() + 61_000);
    assert.equal((await failure(later.connection.call('a'))).code, 'unsupported');
    await later.connection.is('open', 2);
    assert.equal(later.connection.state.protocol, PROTOCOL);
    t.mock.restoreAll();
    return 'again';
  },

  async 'every other attempt fails'(t) {
    const mock = await Mock.start(t);
    for (const lets of [(n) => n % 2 === 0, (n) => n % 2 === 1, (n) => n > 1 && n !== 3, (n) => n % 3 === 0, (n) => n > 4, (n) => n % 4 > 1]) {
      const front = await fronted(t, mock.port, (n) => (lets(n) ? undefined : 0));
      const connection = open(t, front.url);
      assert.equal((await inTime(connection.call('$ping', 'x'))).length, 0);
      assert.equal(connection.state.protocol, PROTOCOL);
    }
    return 'again';
  },

  async 'each WebSocket opens and is lost immediately'(t) {
    const mock = await Mock.start(t);
    const front = await fronted(t, mock.port, () => 50);
    const connection = open(t, front.url, { WebSocket, EventSource, events: await eventServer(t, (stream) => stream.write(':\n\n')), eventsAfter: 3, eventsRetry: 200 });
    await until(() => connection.state.transport === 'events');
    const opened = () => connection.seen.filter(({ transport }) => transport === 'websocket').length;
    assert.equal(opened(), 3);
    // The next WebSocket attempt follows after eventsRetry, and events resume at once.
    await until(() => opened() === 4);
    await until(() => connection.state.transport === 'events');
    assert.equal(opened(), 4);
    return 'again';
  },

  async 'the event stream is lost'(t) {
    const asked = [];
    const url = await eventServer(t, (stream, { headers }) => {
      asked.push(headers['last-event-id']);
      stream.write(`retry: 10\n\nid: a-${asked.length}\ndata: ${asked.length}\n\n`);
      setTimeout(() => stream.destroy(), 20);
    });
    const connection = open(t, url, { EventSource, events: url, eventsAfter: 1 });
    const got = [];
    connection.messages((data) => got.push(data.text()));
    await until(() => got.length >= 3);
    assert.deepEqual(asked.slice(0, 3), [undefined, 'a-1', 'a-2']);
    return 'again';
  },

  async 'the event stream is refused'(t) {
    const mock = await Mock.start(t);
    let isOpen = false;
    const front = await fronted(t, mock.port, () => (isOpen ? undefined : 0));
    // The mock answers requests for event streams with 404.
    const connection = open(t, front.url, { EventSource, events: mock.url, eventsAfter: 1 });
    await connection.is('waiting', 2);
    isOpen = true;
    await connection.is('open');
    assert.equal(connection.state.transport, 'websocket');
    return 'again';
  },

  async 'a room is refused'(t) {
    const { mock, connection, peer } = await connected(t);
    mock.answers.join = (_, since, peer, id) => void peer.send(error(id, 6, 'not you'));
    const { code, message } = await failure(connection.join('secret'));
    assert.deepEqual([code, message], ['refused', 'not you']);
    peer.socket.terminate();
    await connection.is('open', 2);
    await connection.call('$ping');
    assert.deepEqual(mock.peers[1].received, []);
    return 'fails';
  },

  async 'a room is refused after a reconnect'(t) {
    const { mock, connection, peer } = await connected(t);
    const refused = new Promise((resolve) => connection.join('room', { onRefused: resolve }));
    await connection.join('room');
    mock.answers.join = (_, since, peer, id) => void peer.send(error(id, 6, 'no more'));
    peer.socket.terminate();
    assert.equal((await inTime(refused)).code, 'refused');
    return 'fails';
  },

  async 'a room cannot be rejoined temporarily (`busy`, `failed`)'(t) {
    const { mock, connection, peer } = await connected(t);
    await connection.join('room');
    const codes = [5, 2];
    mock.answers.join = (_, since, peer, id) => {
      const code = codes.shift();
      if (!code) return '';
      peer.send(error(id, code, 'not now'));
    };
    peer.socket.terminate();
    await connection.is('open', 4);
    await until(() => mock.peers[3].received.length === 1);
    return 'again';
  },

  async 'a call was in flight when the connection was lost'(t) {
    const { mock, connection, peer } = await connected(t);
    const calling = failure(connection.call('order'));
    await peer.next();
    peer.socket.terminate();
    assert.deepEqual(await calling.then(({ code, sent }) => [code, sent]), ['disconnected', true]);
    await connection.is('open', 2);
    await connection.call('$ping');
    assert.deepEqual(mock.peers[1].received, []);
    return 'fails';
  },

  async 'a message or a call is still queued'(t) {
    const { mock, connection, peer } = await connected(t);
    peer.socket.terminate();
    await lost(connection);
    connection.send('text');
    connection.call('later').catch(() => {});
    const next = await mock.peer(1);
    assert.equal(await next.next(), 'text');
    assert.equal((await next.next()).name, 'later');
    return 'waits';
  },

  async 'the queue is full'(t) {
    const connection = open(t, 'ws://127.0.0.1:9/', { outboxCount: 1 });
    connection.send('a');
    assert.throws(() => connection.send('b'), { code: 'full' });
    assert.equal((await failure(connection.call('c'))).code, 'full');
    return 'fails';
  },
};

const table = await tableOfGuide('what fails');

test("guide's table has a row for each tested failure", () => {
  assert.deepEqual(table.map(([what]) => what), Object.keys(ROWS));
});

for (const [what, canPass, happens, next] of table) {
  test(`${what}: ${happens}`, async (t) => {
    assert.ok(['yes', 'no', 'perhaps'].includes(canPass) && next, `${canPass}, ${next}`);
    assert.equal(await ROWS[what](t), happens);
    // The client must not give up after a temporary failure.
    if (canPass === 'yes') assert.notEqual(happens, 'closed');
  });
}

test('durations are unaffected by clock changes', async (t) => {
  const mock = await Mock.start(t);
  const date = Date.now.bind(Date);
  for (const hours of [-1, 1]) {
    const front = await Proxy.start(t, mock.port);
    front.cut(false);
    const connection = open(t, front.url, { lasted: 100, delayMax: 20 });
    await connection.is('waiting', 4);
    front.mend();
    await connection.is('open');
    const clock = t.mock.method(Date, 'now', () => date() + hours * 3_600_000);
    await new Promise((resolve) => setTimeout(resolve, 150));
    front.cut();
    await lost(connection);
    assert.equal(connection.state.attempts, 1, `${hours}: it has lasted`);
    await connection.is('open', 2);
    clock.mock.mockImplementation(() => date() + 2 * hours * 3_600_000);
    front.cut();
    await lost(connection);
    assert.equal(connection.state.attempts, 2, `${hours}: it has not lasted`);
    clock.mock.restore();
  }
});

test('message or close frame resets the count for events', async (t) => {
  for (const good of [({ socket }) => { socket.send('hi'); socket.terminate(); }, ({ socket }) => socket.close(1012)]) {
    const mock = await Mock.start(t, { connected: good });
    const connection = open(t, mock.url, { delayMax: 5, eventsAfter: 2, EventSource, events: await eventServer(t, (stream) => stream.write(':\n\n')) });
    await connection.is('open', 6);
    assert.ok(connection.seen.every(({ transport }) => transport !== 'events'));
  }
});

test('missing WebSocket class names the package to install', async (t) => {
  const own = globalThis.WebSocket;
  t.after(() => (globalThis.WebSocket = own));
  delete globalThis.WebSocket;
  assert.throws(() => connect('ws://127.0.0.1:9/'), /npm install ws/);
  assert.throws(() => connect('ws://127.0.0.1:9/', { WebSocket, events: 'http://127.0.0.1:9/' }), /npm install eventsource/);
});
