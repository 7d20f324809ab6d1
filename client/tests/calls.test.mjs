// Calls in both directions, notifications, and the outbox.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { CallError, Data, error, inTime, item, lost, Mock, notification, open, Proxy, request, reset, response, until } from './support.mjs';

async function connected(t, options) {
  const mock = await Mock.start(t);
  const connection = open(t, mock.url, options);
  await connection.is('open');
  return { mock, connection, peer: mock.peers[0] };
}

/** The error that a promise rejects with. */
const failure = (promise) => inTime(promise.then((data) => assert.fail(`it gave ${data}`), (reason) => reason));

test('data is sent as bytes, text or JSON and read back as either', async (t) => {
  const { connection, peer } = await connected(t);
  const sent = [
    ['bytes', Uint8Array.of(104, 105), 'hi'],
    ['part', new Uint8Array([0, 104, 105, 0]).subarray(1, 3), 'hi'],
    ['buffer', Uint8Array.of(104, 105).buffer, 'hi'],
    ['view', new DataView(Uint8Array.of(104, 105).buffer), 'hi'],
    ['text', 'zwöi', 'zwöi'],
    ['json', { a: [1, null] }, '{"a":[1,null]}'],
    ['number', 7, '7'],
    ['null', null, 'null'],
    ['false', false, 'false'],
    ['nothing', undefined, ''],
    ['', '', ''],
  ];
  for (const [name, data, payload] of sent) {
    connection.notify(name, data);
    assert.deepEqual(await peer.next(), { form: 1, name, payload });
  }
  const calling = connection.call('echo', { a: 1 });
  const { id } = await peer.next();
  peer.send(response(id, '{"ü":2}'));
  const data = await inTime(calling);
  assert.ok(data instanceof Data && data instanceof Uint8Array);
  assert.equal(data.text(), '{"ü":2}');
  assert.deepEqual(data.json(), { ü: 2 });
  assert.equal(data.length, 8);
  assert.equal(data.slice(1, 2).text(), '"');
});

test('notification reaches callbacks and iterators of its name', async (t) => {
  const { connection, peer } = await connected(t);
  const got = [];
  const end = connection.on('tick', (data, info) => got.push([data.text(), info]));
  const ticks = connection.on('tick');
  peer.send(notification('tick', '1'));
  peer.send(notification('other', '2'));
  peer.send(notification('tick', '3'));
  await until(() => got.length === 2);
  assert.deepEqual(got, [['1', { name: 'tick' }], ['3', { name: 'tick' }]]);
  const iterated = [];
  for await (const data of ticks) if (iterated.push(data.text()) === 2) break;
  assert.deepEqual(iterated, ['1', '3']);
  end();
  peer.send(notification('tick', '4'));
  await connection.call('$ping');
  assert.equal(got.length, 2);
});

test('binary message that is not a frame is a plain message', async (t) => {
  const { connection, peer } = await connected(t);
  const got = [];
  connection.messages((data, info) => got.push([data.isText, [...data], info]));
  const frames = [[], [0], [8, 1], [1], [1, 5, 97], [2, 0, 0], [4, 0, 0, 0], [5, 0, 0, 0, 1], [7, 1], [7, 0, 200]];
  for (const bytes of frames) peer.send(Buffer.from(bytes));
  peer.send('\x01\x01a');
  await until(() => got.length === frames.length + 1);
  assert.deepEqual(got.map(([, bytes]) => bytes), [...frames, [1, 1, 97]]);
  assert.deepEqual(got.map(([isText]) => isText), [...frames.map(() => false), true]);
  // Responses to calls that were never made are ignored.
  for (const frame of [response(77), error(78, 2), item(79), reset(80), error(81, 200)]) peer.send(frame);
  assert.equal((await connection.call('$ping')).length, 0);
});

test('responses out of order settle their own calls', async (t) => {
  const { connection, peer } = await connected(t);
  const calls = ['a', 'b', 'c'].map((name) => connection.call(name, name));
  const asked = [await peer.next(), await peer.next(), await peer.next()];
  assert.deepEqual(asked.map(({ form, name, payload }) => [form, name, payload]), [[2, 'a', 'a'], [2, 'b', 'b'], [2, 'c', 'c']]);
  for (const { id, name } of asked.reverse()) peer.send(response(id, name.toUpperCase()));
  assert.deepEqual((await inTime(Promise.all(calls))).map((data) => data.text()), ['A', 'B', 'C']);
});

test('server errors carry their code and text', async (t) => {
  const { connection, peer } = await connected(t);
  const codes = ['unknown', 'failed', 'aborted', 'unanswered', 'busy', 'refused', 'missed', 'failed'];
  for (const [n, code] of codes.entries()) {
    const calling = failure(connection.call('x'));
    const { id } = await peer.next();
    peer.send(error(id, n + 1, n === 0 ? '' : `text ${n}`));
    const thrown = await calling;
    assert.ok(thrown instanceof CallError && thrown instanceof Error);
    assert.deepEqual([thrown.code, thrown.message, thrown.sent], [code, n === 0 ? 'unknown' : `text ${n}`, true]);
  }
});

test('streamed items arrive in order before the response', async (t) => {
  const { connection, peer } = await connected(t);
  const items = [];
  const calling = connection.call('list', '', { onItem: (data) => items.push(data.text()) });
  const { id } = await peer.next();
  for (const text of ['1', '2', '3']) peer.send(item(id, text));
  peer.send(response(id, 'end'));
  assert.equal((await inTime(calling)).text(), 'end');
  assert.deepEqual(items, ['1', '2', '3']);
});

test('throwing item handler is reported; the call continues', async (t) => {
  const reported = t.mock.method(console, 'error', () => {});
  const { connection, peer } = await connected(t);
  const calling = connection.call('list', '', { onItem() { throw new Error('no'); } });
  const { id } = await peer.next();
  peer.send(item(id, '1'));
  peer.send(response(id));
  await inTime(calling);
  assert.equal(reported.mock.callCount(), 1);
});

test('aborted call sends one reset and ignores the late response', async (t) => {
  const { connection, peer } = await connected(t);
  const controller = new AbortController();
  const calling = failure(connection.call('long', '', { signal: controller.signal }));
  const { id } = await peer.next();
  const reason = new Error('enough');
  controller.abort(reason);
  const thrown = await calling;
  assert.deepEqual([thrown.code, thrown.sent, thrown.cause], ['aborted', true, reason]);
  assert.deepEqual(await peer.next(), { form: 3, id, payload: '' });
  peer.send(error(id, 3));
  await connection.call('$ping');
  assert.equal(peer.received.length, 2);
});

test('signal aborted before or after the call sends nothing', async (t) => {
  const { connection, peer } = await connected(t);
  const thrown = await failure(connection.call('never', '', { signal: AbortSignal.abort() }));
  assert.deepEqual([thrown.code, thrown.sent], ['aborted', false]);
  const controller = new AbortController();
  const calling = connection.call('once', '', { signal: controller.signal });
  const { id, name } = await peer.next();
  assert.equal(name, 'once');
  peer.send(response(id));
  await inTime(calling);
  controller.abort();
  await connection.call('$ping');
  assert.equal(peer.received.length, 1);
});

test('call past its timeout fails and sends a reset', async (t) => {
  const { connection, peer } = await connected(t, { timeout: 30 });
  const own = failure(connection.call('long'));
  const { id } = await peer.next();
  assert.deepEqual(await own.then(({ code, sent }) => [code, sent]), ['timeout', true]);
  assert.deepEqual(await peer.next(), { form: 3, id, payload: '' });
  // The call's own timeout takes precedence, and 0 disables it.
  const patient = [connection.call('a', '', { timeout: 0 }), connection.call('b', '', { timeout: 2 ** 40 })];
  const asked = [await peer.next(), await peer.next()];
  await failure(connection.call('c', '', { timeout: 60 }));
  for (const { id } of asked) peer.send(response(id));
  await inTime(Promise.all(patient));
});

test('server calls get a response, an error or unknown', async (t) => {
  const { connection, peer } = await connected(t);
  connection.handle('sum', (data) => data.json().reduce((a, b) => a + b));
  connection.handle('later', async (data, { name }) => `${name}: ${data.text()}`);
  connection.handle('wrong', async () => { throw new Error('it is wrong'); });
  connection.handle('odd', () => { throw 'odd'; });
  connection.handle('void', () => {});
  const end = connection.handle('gone', () => 'here');
  end();
  const asked = [['sum', '[1,2]'], ['later', 'x'], ['wrong', ''], ['odd', ''], ['void', ''], ['gone', '']];
  for (const [n, [name, data]] of asked.entries()) peer.send(request(n, name, data));
  const answers = new Map();
  for (const _ of asked) {
    const answer = await peer.next();
    answers.set(answer.id, answer);
  }
  assert.deepEqual([0, 1, 2, 3, 4, 5].map((id) => answers.get(id)), [
    { form: 4, id: 0, payload: '3' },
    { form: 4, id: 1, payload: 'later: x' },
    { form: 5, id: 2, code: 2, payload: 'it is wrong' },
    { form: 5, id: 3, code: 2, payload: 'odd' },
    { form: 4, id: 4, payload: '' },
    { form: 5, id: 5, code: 1, payload: 'there is no gone' },
  ]);
});

test('server call is answered whatever its handler throws', async (t) => {
  const { connection, peer } = await connected(t);
  const thrown = [new Error('half \ud83d'), '\ud83d', Object.create(null), Symbol('s'), undefined, null, 7n, { message: 5 }, new Error(),
    { get message() { throw new Error('none'); } }];
  const rejections = [];
  const rejected = (reason) => rejections.push(reason);
  process.on('unhandledRejection', rejected);
  t.after(() => process.off('unhandledRejection', rejected));
  t.mock.method(console, 'error', () => {});
  for (const [id, what] of thrown.entries()) {
    connection.handle('throws', async () => { throw what; });
    peer.send(request(id, 'throws'));
    const { form, id: answered, code, payload } = await peer.next();
    assert.deepEqual([form, answered, code], [5, id, 2]);
    assert.equal(payload, ['half \ufffd', '\ufffd', 'failed', 'Symbol(s)', 'undefined', 'null', '7', '5', '', 'failed'][id]);
  }
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(rejections, []);
});

test('server call that is reset or cut off is aborted, unanswered', async (t) => {
  const { connection, mock, peer } = await connected(t);
  const reasons = [];
  connection.handle('long', (_, { signal }) => new Promise((_, reject) => {
    signal.addEventListener('abort', () => {
      reasons.push(signal.reason.code);
      reject(signal.reason);
    });
  }));
  peer.send(request(1, 'long'));
  peer.send(request(2, 'long'));
  peer.send(reset(1));
  await until(() => reasons.length === 1);
  peer.socket.terminate();
  await until(() => reasons.length === 2);
  assert.deepEqual(reasons, ['aborted', 'disconnected']);
  const next = await mock.peer(1);
  await connection.is('open', 2);
  await connection.call('$ping');
  assert.deepEqual([...peer.received, ...next.received], []);
});

test('server calls in flight are bounded', async (t) => {
  const { connection, peer } = await connected(t);
  let running = 0;
  connection.handle('hang', () => new Promise(() => (running += 1)));
  for (let id = 0; id < 1_001; id += 1) peer.send(request(id, 'hang'));
  assert.deepEqual(await peer.next(), { form: 5, id: 1_000, code: 5, payload: 'too many calls' });
  assert.equal(running, 1_000);
});

test('name over 255 bytes throws; shorter names are sent', async (t) => {
  const { connection, peer } = await connected(t);
  assert.throws(() => connection.notify('ü'.repeat(128)), RangeError);
  await assert.rejects(connection.call('n'.repeat(256)), RangeError);
  await assert.rejects(connection.join('n'.repeat(256)), RangeError);
  for (const name of ['', 'ü'.repeat(127), 'n'.repeat(255)]) {
    connection.notify(name);
    assert.equal((await peer.next()).name, name);
  }
});

test('call in flight at a disconnect fails and is not resent', async (t) => {
  const { connection, mock, peer } = await connected(t);
  const calling = failure(connection.call('order', 'pizza'));
  await peer.next();
  peer.socket.terminate();
  const thrown = await calling;
  assert.deepEqual([thrown.code, thrown.sent], ['disconnected', true]);
  const next = await mock.peer(1);
  await connection.is('open', 2);
  await connection.call('$ping');
  assert.deepEqual(next.received, []);
});

test('queued messages are sent in order, after the rooms rejoin', async (t) => {
  const { connection, mock } = await connected(t);
  await mock.stop();
  await connection.is('waiting');
  connection.send('one');
  connection.notify('two', 2);
  const calling = connection.call('three');
  connection.send('four');
  connection.states(({ name }) => name === 'open' && connection.send('six'));
  connection.join('room').then(() => connection.send('after'));
  connection.send('five');
  await mock.listen();
  const peer = await mock.peer(1);
  const came = [];
  for (let n = 0; n < 8; n += 1) came.push(await peer.next());
  assert.deepEqual(came.map((frame) => frame.name ?? frame), ['$join', 'one', 'two', 'three', 'four', 'five', 'six', 'after']);
  peer.send(response(came[3].id, 'done'));
  assert.equal((await inTime(calling)).text(), 'done');
});

test('queued call that is aborted or times out is never sent', async (t) => {
  const { connection, mock } = await connected(t);
  await mock.stop();
  await connection.is('waiting');
  const controller = new AbortController();
  const failures = [
    failure(connection.call('aborted', '', { signal: controller.signal })),
    failure(connection.call('late', '', { timeout: 20 })),
  ];
  const calling = connection.call('good');
  controller.abort();
  assert.deepEqual((await Promise.all(failures)).map(({ code, sent }) => [code, sent]), [['aborted', false], ['timeout', false]]);
  await mock.listen();
  const peer = await mock.peer(1);
  const { name, id } = await peer.next();
  assert.equal(name, 'good');
  peer.send(response(id));
  await inTime(calling);
});

test('outbox is bounded in count and bytes; freed room is reused', async (t) => {
  const mock = await Mock.start(t);
  await mock.stop();
  const full = { name: 'CallError', code: 'full', sent: false };
  const few = open(t, mock.url, { outboxCount: 3 });
  for (const text of ['a', 'b']) few.send(text);
  const controller = new AbortController();
  const aborted = failure(few.call('c', '', { signal: controller.signal }));
  assert.throws(() => few.send('d'), full);
  assert.throws(() => few.notify('d'), full);
  await assert.rejects(few.call('d'), full);
  controller.abort();
  await aborted;
  few.send('e');
  assert.throws(() => few.send('f'), full);
  const small = open(t, mock.url, { outboxBytes: 100 });
  small.send('x'.repeat(60));
  assert.throws(() => small.send('x'.repeat(41)), full);
  small.send('y'.repeat(40));
  const large = open(t, mock.url, { outboxBytes: 100 });
  large.send('z'.repeat(1_000));
  assert.throws(() => large.send('z'), full);
  await mock.listen();
  const came = await until(() => {
    const all = mock.peers.flatMap(({ received }) => received);
    return all.length === 6 && all;
  });
  assert.deepEqual(came.map((text) => text[0]).sort(), ['a', 'b', 'e', 'x', 'y', 'z']);
});

test('socket buffer of a stalled server is bounded', async (t) => {
  const mock = await Mock.start(t, { connected: ({ socket }) => socket.pause() });
  const connection = open(t, mock.url, { outboxBytes: 1 << 20, pingInterval: 0 });
  await connection.is('open');
  let sent = 0;
  assert.throws(() => {
    for (; sent < 1_000; sent += 1) connection.send('x'.repeat(100_000));
  }, { code: 'full' });
  mock.peers[0].socket.resume();
  await until(() => mock.peers[0].received.length === sent);
  connection.send('again');
  await until(() => mock.peers[0].received.at(-1) === 'again');
});

test('close drops queued messages and fails pending and later calls', async (t) => {
  const { connection, mock, peer } = await connected(t);
  const inFlight = failure(connection.call('a'));
  await peer.next();
  const waiting = open(t, 'ws://127.0.0.1:9/');
  const unsent = failure(waiting.call('b'));
  const unjoined = failure(waiting.join('c'));
  connection.close();
  waiting.close();
  assert.deepEqual(await inFlight.then(({ code, sent }) => [code, sent]), ['closed', true]);
  assert.deepEqual(await unsent.then(({ code, sent }) => [code, sent]), ['closed', false]);
  assert.deepEqual(await unjoined.then(({ code, sent }) => [code, sent]), ['closed', false]);
  for (const send of [() => connection.send('x'), () => connection.notify('x')]) assert.throws(send, { code: 'closed' });
  for (const promise of [connection.call('x'), connection.join('x')]) await assert.rejects(promise, { code: 'closed' });
  await until(() => peer.closed);
  assert.equal(mock.peers.length, 1);
});

test('close code that stops reconnecting fails queued calls', async (t) => {
  const { connection, peer } = await connected(t);
  const calling = failure(connection.call('a'));
  await peer.next();
  peer.socket.close(1008, 'not you');
  await connection.is('closed');
  assert.equal((await calling).sent, true);
  await assert.rejects(connection.call('b'), { code: 'closed' });
});

test('bytes are sent only without the procedures subprotocol', async (t) => {
  const reported = t.mock.method(console, 'error', () => {});
  const { connection, mock, peer } = await connected(t);
  assert.throws(() => connection.send(Uint8Array.of(1)), { code: 'unsupported' });
  peer.socket.terminate();
  await lost(connection);
  connection.send(Uint8Array.of(1));
  connection.send('text');
  assert.equal(await (await mock.peer(1)).next(), 'text');
  assert.deepEqual(reported.mock.calls.map(({ arguments: [error] }) => error.code), ['unsupported']);
});

test('queued bytes are copied when they are sent', async (t) => {
  const mock = await Mock.start(t, { protocols: [] });
  const connection = open(t, mock.url, { procedures: false });
  const bytes = Uint8Array.of(1, 2);
  connection.send(bytes);
  bytes[0] = 9;
  const peer = await mock.peer();
  assert.deepEqual([...await peer.next()], [1, 2]);
});

test('silent server is detected by pings, and calls fail', async (t) => {
  const mock = await Mock.start(t);
  for (const sides of [['client'], ['server'], ['client', 'server']]) {
    const proxy = await Proxy.start(t, mock.port);
    const connection = open(t, proxy.url, { pingInterval: 20, pingTimeout: 40 });
    await connection.is('open');
    const calling = failure(connection.call('x'));
    proxy.swallow(...sides);
    assert.deepEqual(await calling.then(({ code, sent }) => [code, sent]), ['disconnected', true]);
    await connection.is('open', 2);
    assert.match(connection.seen.find(({ name }) => name === 'waiting').reason, /does not answer/);
  }
});

test('server that answers late or sends other data is not dead', async (t) => {
  const mock = await Mock.start(t);
  const proxy = await Proxy.start(t, mock.port);
  proxy.delay = 15;
  const connection = open(t, proxy.url, { pingInterval: 10, pingTimeout: 1_000 });
  await connection.is('open');
  let pings = 0;
  mock.answers.ping = () => (pings += 1) && '';
  await until(() => pings >= 5);
  // The server stops answering pings, but keeps sending.
  mock.answers.ping = () => undefined;
  const talker = setInterval(() => mock.peers[0].send('hm'), 5);
  let heard = 0;
  connection.messages(() => (heard += 1));
  await until(() => heard > 40);
  clearInterval(talker);
  assert.equal(connection.seen.filter(({ name }) => name === 'waiting').length, 0);
});

test('frames have the bytes that the guide documents', async (t) => {
  const { connection, mock } = await connected(t);
  const frames = [];
  mock.peers[0].socket.on('message', (data, isBinary) => isBinary && frames.push(data.toString('hex')));
  connection.notify('tick', '7');
  await until(() => frames.length === 1);
  assert.equal(frames[0], '01047469636b37');
  connection.handle('myip', () => 'ok');
  mock.peers[0].send(Buffer.from('0200000102046d796970', 'hex'));
  mock.peers[0].send(Buffer.from('02ffffffff0161', 'hex'));
  await until(() => frames.length === 3);
  assert.deepEqual(frames.slice(1).sort(), ['04000001026f6b', '05ffffffff01' + Buffer.from('there is no a').toString('hex')]);
  const got = [];
  connection.messages((data, { room, id }) => got.push([room, id, data.text()]));
  mock.peers[0].send(Buffer.from('07046e65777303612d31017261696e', 'hex'));
  await until(() => got.length);
  assert.deepEqual(got, [['news', 'a-1', 'rain']]);
});

test('client pings once more after its own sleep', async (t) => {
  const now = performance.now.bind(performance);
  let slept = 0;
  t.mock.method(performance, 'now', () => now() + slept);
  const mock = await Mock.start(t);
  let pings = 0;
  // Only the second ping, the repetition of the first, is answered.
  mock.answers.ping = () => {
    pings += 1;
    if (pings === 1 || pings === 3) slept += 60_000;
    return pings === 2 ? '' : undefined;
  };
  const connection = open(t, mock.url, { pingInterval: 20, pingTimeout: 100 });
  await connection.is('open');
  await until(() => pings === 3);
  assert.equal(connection.seen.length, 2, 'it is open still');
  await connection.is('open', 2);
  assert.ok(pings >= 4);
});
