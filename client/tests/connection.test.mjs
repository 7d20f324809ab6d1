// Connecting, reconnecting and closing.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import WebSocket from 'ws';

import { connect, inTime, Mock, open, Proxy, request, until } from './support.mjs';

test('states are reported from connecting to closed', async (t) => {
  const mock = await Mock.start(t);
  const connection = open(t, mock.url);
  assert.deepEqual(connection.state, { name: 'connecting' });
  await connection.is('open');
  connection.close();
  assert.deepEqual(connection.seen, [
    { name: 'connecting' },
    { name: 'open', transport: 'websocket', protocol: 'humphrey_ws.procedures.v1' },
    { name: 'closed', code: 1000, reason: '' },
  ]);
});

test('state iterator ends when the connection is closed', async (t) => {
  const mock = await Mock.start(t);
  const connection = connect(mock.url);
  t.after(() => connection.close());
  const names = [];
  for await (const { name } of connection.states()) {
    names.push(name);
    if (name === 'open') connection.close();
  }
  assert.deepEqual(names, ['connecting', 'open', 'closed']);
});

test('address may be URL, function or promise; an invalid one throws', async (t) => {
  const mock = await Mock.start(t);
  const http = mock.url.replace('ws:', 'http:');
  for (const address of [http, new URL('path?token=1#part', mock.url), () => http, async () => new URL(http)]) {
    await open(t, address).is('open');
  }
  assert.deepEqual(mock.peers.map(({ url }) => url), ['/', '/path?token=1', '/', '/']);
  assert.throws(() => connect('/live'), { name: 'TypeError' }, 'there is no page here');
});

test('address function runs before each attempt, may fail or hang', async (t) => {
  const mock = await Mock.start(t);
  const answers = [
    () => Promise.reject(new Error('no token')),
    () => { throw new Error('nothing'); },
    () => 'not an address',
    () => new Promise(() => {}),
    () => mock.url,
  ];
  let asked = 0;
  const connection = open(t, () => answers[asked++](), { openTimeout: 500 });
  await connection.is('open');
  assert.equal(asked, 5);
  const reasons = connection.seen.filter(({ name }) => name === 'waiting').map(({ reason }) => reason);
  assert.equal(reasons.length, 4);
  assert.match(reasons[0], /no token/);
  assert.match(reasons[1], /nothing/);
  assert.match(reasons[3], /attempt timed out/);
});

test('lost connection reconnects', async (t) => {
  const mock = await Mock.start(t);
  const connection = open(t, mock.url);
  for (let n = 0; n < 5; n += 1) {
    const peer = await mock.peer(n);
    await connection.is('open', n + 1);
    peer.socket.terminate();
  }
  await connection.is('open', 6);
  const lost = connection.seen.filter(({ name }) => name === 'waiting');
  assert.ok(lost.every(({ code, until }) => code === 1006 && until > 0));
});

test('server started later is reached', async (t) => {
  const mock = await Mock.start(t);
  await mock.stop();
  const connection = open(t, mock.url);
  await connection.is('waiting', 3);
  await mock.listen();
  await connection.is('open');
  assert.equal(connection.state.protocol, 'humphrey_ws.procedures.v1');
});

for (const [code, reconnects] of [
  [1000, false], [1001, true], [1002, true], [1003, true], [1007, true], [1008, false], [1009, true], [1011, true],
  [1012, true], [1013, true], [1014, true], [3000, true], [3001, false], [4000, false], [4999, false],
]) {
  test(`close code ${code} ${reconnects ? 'reconnects' : 'stops'}`, async (t) => {
    const mock = await Mock.start(t);
    const connection = open(t, mock.url);
    await connection.is('open');
    mock.peers[0].socket.close(code, 'because');
    if (reconnects) {
      await connection.is('open', 2);
      const { code: told, reason } = connection.seen.find(({ name }) => name === 'waiting');
      assert.deepEqual([told, reason], [code, 'because']);
    } else {
      await connection.is('closed');
      assert.deepEqual(connection.state, { name: 'closed', code, reason: 'because' });
    }
  });
}

test('close frame without a code reconnects', async (t) => {
  const mock = await Mock.start(t);
  const connection = open(t, mock.url);
  await connection.is('open');
  mock.peers[0].socket.close();
  await connection.is('open', 2);
});

test('reconnect option stops, reconnects or sets the delay', async (t) => {
  const mock = await Mock.start(t);
  const asked = [];
  const verdicts = { 1001: false, 1000: true, 4000: 1, 1008: undefined, 1012: 60_000 };
  const options = {
    reconnect(code, reason) {
      asked.push([code, reason]);
      return verdicts[code];
    },
  };
  const connection = open(t, mock.url, options);
  for (const [n, code] of [1000, 4000, 1012].entries()) {
    (await mock.peer(n)).socket.close(code, String(n));
    if (code !== 1012) await connection.is('open', n + 2);
  }
  await connection.is('waiting', 3);
  const { until } = connection.state;
  assert.ok(until - Date.now() > 50_000 && until - Date.now() <= 60_000);
  assert.deepEqual(asked, [[1000, '0'], [4000, '1'], [1012, '2']]);
  connection.reconnect();
  (await mock.peer(3)).socket.close(1008);
  await connection.is('closed');
  connection.reconnect();
  (await mock.peer(4)).socket.close(1001);
  await connection.is('closed', 2);
});

test('delay bound doubles up to a cap; 1013 waits long', async (t) => {
  const mock = await Mock.start(t);
  await mock.stop();
  t.mock.method(Math, 'random', () => 0.999);
  const connection = open(t, mock.url, { procedures: false, delayFirst: 8, delayMax: 40 });
  const waits = [];
  connection.states(({ name, until }) => name === 'waiting' && waits.push(until - Date.now()));
  await until(() => waits.length >= 6);
  for (const [n, bound] of [8, 16, 32, 40, 40, 40].entries()) {
    assert.ok(waits[n] <= bound && waits[n] >= bound / 2, `wait ${n} is ${waits[n]} of ${bound}`);
  }
  t.mock.method(Math, 'random', () => 0.25);
  const count = waits.length;
  await until(() => waits.length >= count + 3);
  assert.ok(waits.at(-1) <= 10, 'jitter goes down to nothing');
  await mock.listen();
  t.mock.method(Math, 'random', () => 0);
  await connection.is('open');
  connection.reconnect();
  await connection.is('open', 2);
  waits.length = 0;
  mock.peers.at(-1).socket.close(1013);
  await until(() => waits.length);
  assert.ok(waits[0] >= 19, 'not less than half the cap');
});

test('delay resets after a lasting connection only', async (t) => {
  for (const [lasted, isShort] of [[0, true], [60_000, false]]) {
    const mock = await Mock.start(t);
    await mock.stop();
    const connection = open(t, mock.url, { lasted });
    await connection.is('waiting', 8);
    await mock.listen();
    await connection.is('open');
    mock.peers.at(-1).socket.terminate();
    await connection.is('open', 2);
    const { attempts } = connection.seen.findLast(({ name }) => name === 'waiting');
    assert.equal(attempts === 1, isShort, String(attempts));
  }
});

test('delay beyond the timer maximum is waited for', async (t) => {
  const mock = await Mock.start(t);
  let asked = 0;
  const slow = async () => {
    asked += 1;
    await new Promise((resolve) => setTimeout(resolve, 50));
    return mock.url;
  };
  const connection = open(t, slow, { openTimeout: Infinity, pingInterval: Infinity, pingTimeout: Infinity, reconnect: () => 2 ** 40 });
  await connection.is('open');
  assert.equal(asked, 1);
  mock.peers[0].socket.terminate();
  await connection.is('waiting');
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(asked, 1);
});

test('close in a state listener is final', async (t) => {
  const mock = await Mock.start(t);
  const asked = open(t, mock.url, { reconnect: () => void asked.close(4000) });
  await asked.is('open');
  const answering = open(t, mock.url);
  const isAsked = new Promise((resolve) =>
    answering.handle('hold', (_, { signal }) => new Promise(() => {
      signal.addEventListener('abort', () => answering.close(4000));
      resolve();
    })));
  await answering.is('open');
  mock.peers[1].send(request(1, 'hold'));
  await inTime(isAsked);
  for (const [n, connection] of [asked, answering].entries()) {
    mock.peers[n].socket.terminate();
    await until(() => connection.seen.some(({ name }) => name === 'closed'));
    assert.deepEqual([connection.state.name, connection.state.code], ['closed', 4000]);
    assert.equal(connection.seen.at(-1).name, 'closed');
  }
});

test('attempt past openTimeout is abandoned', async (t) => {
  const mock = await Mock.start(t);
  const proxy = await Proxy.start(t, mock.port);
  proxy.delay = 60_000;
  const connection = open(t, proxy.url, { openTimeout: 50 });
  await connection.is('waiting', 2);
  proxy.delay = 0;
  await connection.is('open');
});

test('reconnect works while waiting, open and closed', async (t) => {
  const mock = await Mock.start(t);
  await mock.stop();
  const connection = open(t, mock.url, { reconnect: () => 60_000 });
  await connection.is('waiting');
  await mock.listen();
  connection.reconnect();
  await connection.is('open');
  connection.reconnect();
  await connection.is('open', 2);
  await until(() => mock.peers[0].closed);
  connection.close(4000, 'enough');
  assert.deepEqual(connection.state, { name: 'closed', code: 4000, reason: 'enough' });
  await until(() => mock.peers[1].closed);
  assert.deepEqual(mock.peers[1].closed, { code: 4000, reason: 'enough' });
  connection.reconnect();
  await connection.is('open', 3);
});

test('close with an invalid code throws and changes nothing', async (t) => {
  const mock = await Mock.start(t);
  const connection = open(t, mock.url);
  await connection.is('open');
  assert.throws(() => connection.close(1001));
  assert.throws(() => connection.close(4000, 'x'.repeat(124)));
  assert.equal(connection.state.name, 'open');
  assert.equal(await connection.call('$ping').then((data) => data.length), 0);
});

test('connection closed before opening never opens', async (t) => {
  const mock = await Mock.start(t);
  const first = open(t, mock.url);
  first.close();
  const second = open(t, () => new Promise((resolve) => setTimeout(resolve, 20, mock.url)));
  await Promise.resolve();
  second.close();
  const third = open(t, mock.url);
  await third.is('open');
  await third.call('$ping');
  assert.equal(mock.peers.length, 1);
  assert.deepEqual(first.seen.map(({ name }) => name), ['connecting', 'closed']);
});

test('application subprotocols are offered last and carry plain data', async (t) => {
  const mock = await Mock.start(t, { protocols: ['plain'] });
  const connection = open(t, mock.url, { protocols: ['plain', 'other'] });
  await connection.is('open');
  assert.equal(connection.state.protocol, 'plain');
  assert.equal(mock.peers.length, 1);
  connection.send('text');
  connection.send(Uint8Array.of(1, 2, 3));
  assert.equal(await mock.peers[0].next(), 'text');
  assert.deepEqual([...await mock.peers[0].next()], [1, 2, 3]);
  const got = [];
  connection.messages((data) => got.push([data.isText, data.text()]));
  mock.peers[0].send('up');
  mock.peers[0].send(Buffer.from('\x01\x01a'));
  await until(() => got.length === 2);
  assert.deepEqual(got, [[true, 'up'], [false, '\x01\x01a']]);
  for (const failing of [connection.call('a'), connection.join('a')]) {
    await assert.rejects(failing, { name: 'CallError', code: 'unsupported', sent: false });
  }
  assert.throws(() => connection.notify('a'), { code: 'unsupported' });
});

test('server that chooses no subprotocol gets plain messages', async (t) => {
  const mock = await Mock.start(t, { protocols: [] });
  const connection = open(t, mock.url);
  const call = assert.rejects(connection.call('a'), { code: 'unsupported', sent: false });
  connection.send('early');
  await connection.is('open');
  assert.equal(connection.state.protocol, '');
  await call;
  assert.equal(await mock.peers.at(-1).next(), 'early');
  // The client remembers the result: it needs one attempt only.
  const before = mock.peers.length;
  mock.peers.at(-1).socket.terminate();
  await connection.is('open', 2);
  assert.equal(mock.peers.length, before + 1);
  assert.deepEqual(connection.seen.map(({ name }) => name), ['connecting', 'open', 'waiting', 'connecting', 'open']);
});

test('server started between attempts keeps its subprotocols', async (t) => {
  const mock = await Mock.start(t);
  await mock.stop();
  let asked = 0;
  // The first attempt, with the subprotocol, fails; the server starts before the second.
  const connection = open(t, async () => {
    asked += 1;
    if (asked === 2) await mock.listen();
    return mock.url;
  });
  await connection.is('open');
  assert.equal(connection.state.protocol, 'humphrey_ws.procedures.v1');
});

test('procedures: false offers nothing and passes binary through', async (t) => {
  const mock = await Mock.start(t);
  const connection = open(t, mock.url, { procedures: false });
  await connection.is('open');
  assert.equal(connection.state.protocol, '');
  assert.equal(mock.peers.length, 1);
  const got = [];
  connection.messages((data) => got.push([...data]));
  mock.peers[0].send(Buffer.from([1, 1, 97, 0]));
  await until(() => got.length);
  assert.deepEqual(got, [[1, 1, 97, 0]]);
});

test('WebSocket class of the ws package works as an option', async (t) => {
  const mock = await Mock.start(t);
  const connection = open(t, mock.url, { WebSocket });
  await connection.is('open');
  mock.peers[0].socket.terminate();
  await connection.is('open', 2);
  assert.equal((await connection.call('$ping')).length, 0);
  // An attempt that times out works with this class, too.
  const proxy = await Proxy.start(t, mock.port);
  proxy.delay = 60_000;
  const other = open(t, proxy.url, { WebSocket, openTimeout: 30 });
  await other.is('waiting', 2);
});

test('throwing or rejecting listener is reported; others still run', async (t) => {
  const mock = await Mock.start(t);
  const reported = t.mock.method(console, 'error', () => {});
  const connection = open(t, mock.url);
  const got = [];
  connection.states(() => { throw new Error('state'); });
  connection.messages(() => { throw new Error('sync'); });
  connection.messages(async () => { throw new Error('async'); });
  connection.messages((data) => got.push(data.text()));
  await connection.is('open');
  mock.peers[0].send('one');
  mock.peers[0].send('two');
  await until(() => got.length === 2);
  await until(() => reported.mock.callCount() >= 6);
  const texts = new Set(reported.mock.calls.map(({ arguments: [error] }) => error.message));
  assert.deepEqual(texts, new Set(['state', 'sync', 'async']));
});

test('listener is removable; the same function twice is called twice', async (t) => {
  const mock = await Mock.start(t);
  const connection = open(t, mock.url);
  await connection.is('open');
  const got = [];
  const listen = (data) => got.push(data.text());
  const [endOne, endTwo] = [connection.messages(listen), connection.messages(listen)];
  mock.peers[0].send('a');
  await until(() => got.length === 2);
  endOne();
  mock.peers[0].send('b');
  await until(() => got.length === 3);
  endTwo();
  const seen = connection.messages();
  mock.peers[0].send('c');
  assert.equal((await inTime(seen.next())).value.text(), 'c');
  assert.deepEqual(got, ['a', 'a', 'b']);
});

test('iterator ends on close, on break, and with full when slow', async (t) => {
  const mock = await Mock.start(t);
  const connection = open(t, mock.url, { queue: 3 });
  await connection.is('open');
  const [ended, broken, slow] = [connection.messages(), connection.messages(), connection.messages()];
  for (const text of ['a', 'b', 'c']) mock.peers[0].send(text);
  for await (const data of broken) {
    assert.equal(data.text(), 'a');
    break;
  }
  assert.deepEqual(await broken.next(), { done: true, value: undefined });
  for (const text of ['a', 'b', 'c']) assert.equal((await inTime(ended.next())).value.text(), text);
  mock.peers[0].send('d');
  assert.equal((await inTime(ended.next())).value.text(), 'd');
  const got = [];
  await assert.rejects(async () => {
    for await (const data of slow) got.push(data.text());
  }, { code: 'full' });
  assert.deepEqual(got, ['a', 'b', 'c']);
  const waiting = ended.next();
  connection.close();
  assert.deepEqual(await inTime(waiting), { done: true, value: undefined });
  assert.deepEqual(await connection.messages().next(), { done: true, value: undefined });
});
