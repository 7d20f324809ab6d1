// Tests against the library's server: procedures, rooms and close codes.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { inTime, open, Proxy, Server, until } from './support.mjs';

const failure = (promise) => inTime(promise.then((data) => assert.fail(`it gave ${data}`), (reason) => reason));

test('example server answers each of its procedures', async (t) => {
  const server = await Server.start(t, 'procedures');
  const [one, two] = [open(t, server.url), open(t, server.url)];
  assert.match((await inTime(one.call('myip'))).text(), /^127\.0\.0\.1:\d+$/);
  assert.equal((await inTime(one.call('uppercase', 'grüezi'))).text(), 'GRÜEZI');
  const pongs = one.on('pong');
  one.notify('ping', 'p');
  assert.equal((await inTime(pongs.next())).value.text(), 'p');
  await inTime(Promise.all([one.join('main'), two.join('main')]));
  const messages = [one.on('message'), two.on('message')];
  one.notify('broadcast', { hello: 'all' });
  for (const iterator of messages) assert.deepEqual((await inTime(iterator.next())).value.json(), { hello: 'all' });
  const parts = [];
  const end = await inTime(one.call('report', '3', { onItem: (data) => parts.push(data.text()) }));
  assert.deepEqual([...parts, end.text()], ['1', '2', '3', 'A report of 3 pages.']);
});

test('server handler sees abort, timeout and disconnect', async (t) => {
  const server = await Server.start(t, 'procedures');
  const observer = open(t, server.url);
  const reports = () => observer.call('reports').then((data) => data.text());
  const client = open(t, server.url);
  const controller = new AbortController();
  const aborted = failure(client.call('report', '1000', { signal: controller.signal }));
  await until(async () => (await reports()) === '1 0');
  controller.abort();
  assert.equal((await aborted).code, 'aborted');
  await until(async () => (await reports()) === '0 1');
  assert.equal((await failure(client.call('report', '1000', { timeout: 100 }))).code, 'timeout');
  await until(async () => (await reports()) === '0 2');
  const lost = failure(client.call('report', '1000'));
  await until(async () => (await reports()) === '1 2');
  client.close();
  assert.deepEqual(await lost.then(({ code, sent }) => [code, sent]), ['closed', true]);
  await until(async () => (await reports()) === '0 3');
});

test('each server error has its code', async (t) => {
  const server = await Server.start(t, 'client_server');
  const connection = open(t, server.url);
  const outcome = (name, data) => failure(connection.call(name, data)).then(({ code, message, sent }) => [code, message, sent]);
  const [unknown] = await outcome('nothing');
  assert.equal(unknown, 'unknown');
  assert.deepEqual(await outcome('fail', 'so it is'), ['failed', 'so it is', true]);
  assert.equal((await outcome('forget'))[0], 'unanswered');
  assert.equal((await failure(connection.join('secret'))).code, 'refused');
  // More calls than a connection may have in flight.
  const calls = Array.from({ length: 1_030 }, () => connection.call('hang', '', { timeout: 0 }));
  const busy = await inTime(Promise.any(calls.map((call) => call.then(() => assert.fail('it answered'), ({ code }) => code))));
  assert.equal(busy, 'busy');
  connection.close();
  const codes = await Promise.all(calls.map((call) => call.catch(({ code }) => code)));
  assert.deepEqual(new Set(codes), new Set(['busy', 'closed']));
});

test('data of every kind and size is echoed unchanged', async (t) => {
  const server = await Server.start(t, 'client_server');
  const connection = open(t, server.url, { outboxBytes: 1 << 24 });
  for (const size of [0, 1, 125, 126, 65_535, 65_536, 1_000_000]) {
    const bytes = Uint8Array.from({ length: size }, (_, n) => n * 7);
    assert.deepEqual([...await inTime(connection.call('echo', bytes))], [...bytes], String(size));
  }
  assert.deepEqual((await inTime(connection.call('echo', { a: ['ü', null, 1.5] }))).json(), { a: ['ü', null, 1.5] });
  const answers = await inTime(Promise.all(Array.from({ length: 500 }, (_, n) => connection.call('echo', n))));
  assert.deepEqual(answers.map((data) => data.json()), Array.from({ length: 500 }, (_, n) => n));
  const texts = connection.messages();
  connection.send('plain');
  assert.equal((await inTime(texts.next())).value.text(), 'plain');
});

test('client answers server calls; error, unknown, timeout', async (t) => {
  const server = await Server.start(t, 'client_server');
  const connection = open(t, server.url);
  const ask = async (name) => (await inTime(connection.call('ask', name))).text();
  connection.handle('good', async (data) => `${data.text()}: 42`);
  connection.handle('bad', () => { throw new Error('no idea'); });
  let aborted = false;
  connection.handle('slow', (_, { signal }) => new Promise(() => signal.addEventListener('abort', () => (aborted = true))));
  assert.equal(await ask('good'), 'question: 42');
  assert.match(await ask('bad'), /no idea/);
  assert.match(await ask('other'), /no such procedure/);
  assert.match(await ask('slow'), /the call timed out/);
  await until(() => aborted);
});

test('room with a history gives ids to every message type', async (t) => {
  const server = await Server.start(t, 'client_server');
  const [connection, late] = [open(t, server.url), open(t, server.url)];
  const got = [];
  const listen = (connection, got) => {
    connection.messages((data, { room, id }) => got.push([room, data.isText, data.text(), id]));
    connection.on('topic', (data, { room, id }) => got.push([room, 'topic', data.text(), id]));
  };
  listen(connection, got);
  const first = await inTime(connection.join('topic'));
  connection.notify('publish', 'text');
  connection.notify('publish bytes', Uint8Array.of(0, 98));
  connection.notify('notify', 'note');
  await until(() => got.length === 3);
  assert.deepEqual(got.map((entry) => entry.slice(0, 3)), [['topic', true, 'text'], ['topic', false, '\0b'], ['topic', 'topic', 'note']]);
  const ids = got.map(([, , , id]) => id);
  assert.equal(new Set([first, ...ids]).size, 4);
  // A late joiner chooses to receive the rest of the history, all of it, or none.
  const rest = [];
  listen(late, rest);
  await inTime(late.join('topic', { since: ids[0] }));
  assert.deepEqual(rest, got.slice(1));
  await late.leave('topic');
  await inTime(late.join('topic', { since: 'all' }));
  assert.deepEqual(rest.slice(2), got);
  await late.leave('topic');
  assert.equal(await inTime(late.join('topic', { since: 'new' })), ids[2]);
  assert.equal(rest.length, 5);
  await late.leave('topic');
  const gaps = [];
  await inTime(late.join('topic', { since: 'abc-1', onGap: (gap) => gaps.push(gap) }));
  assert.deepEqual(gaps, [{ room: 'topic', since: 'abc-1' }]);
  assert.deepEqual(rest.slice(5), got);
});

test('cut room resumes without gap; queued messages are sent once', async (t) => {
  const server = await Server.start(t, 'client_server');
  const proxy = await Proxy.start(t, server.port);
  const [connection, other] = [open(t, proxy.url), open(t, server.url)];
  const got = [];
  connection.messages((data) => got.push(data.text()));
  await inTime(connection.join('topic'));
  await other.is('open');
  for (let round = 1; round <= 3; round += 1) {
    proxy.cut(false);
    await connection.is('waiting', round);
    for (let n = 0; n < 10; n += 1) other.notify('publish', `away ${round} ${n}`);
    await other.call('echo');
    connection.notify('publish', `own ${round}`);
    const calling = connection.call('echo', round);
    proxy.mend();
    assert.equal((await inTime(calling)).json(), round);
    await until(() => got.length === 11 * round);
  }
  const expected = [1, 2, 3].flatMap((round) => [...Array.from({ length: 10 }, (_, n) => `away ${round} ${n}`), `own ${round}`]);
  assert.deepEqual(got, expected);
});

test('client behind the history gets a gap and the kept messages', async (t) => {
  const server = await Server.start(t, 'client_server');
  const proxy = await Proxy.start(t, server.port);
  const [connection, other] = [open(t, proxy.url), open(t, server.url)];
  const got = [];
  connection.messages((data) => got.push(data.text()));
  await inTime(connection.join('topic', { onGap: () => got.push('gap') }));
  proxy.cut(false);
  await connection.is('waiting');
  for (let n = 0; n < 80; n += 1) other.notify('publish', String(n));
  await inTime(other.call('echo'));
  proxy.mend();
  await until(() => got.length === 51);
  assert.deepEqual(got, ['gap', ...Array.from({ length: 50 }, (_, n) => String(n + 30))]);
});

for (const [code, reconnects] of [[1000, false], [1001, true], [1008, false], [1011, true], [1012, true], [1013, true], [4000, false]]) {
  test(`server closing with ${code}: the connection ${reconnects ? 'reconnects' : 'stops'}`, async (t) => {
    const server = await Server.start(t, 'client_server');
    const connection = open(t, server.url);
    connection.notify('close', code);
    await connection.is(reconnects ? 'open' : 'closed', reconnects ? 2 : 1);
    const { code: told, reason } = connection.seen.find(({ name }) => name === (reconnects ? 'waiting' : 'closed'));
    assert.deepEqual([told, reason], [code, 'as requested']);
  });
}

test('server without procedures exchanges plain messages', async (t) => {
  const server = await Server.start(t, 'echo');
  for (const options of [{}, { procedures: false }]) {
    const connection = open(t, server.url, options);
    await connection.is('open');
    const messages = connection.messages();
    connection.send('text');
    connection.send(Uint8Array.of(1, 1, 97));
    assert.equal((await inTime(messages.next())).value.text(), 'text');
    assert.deepEqual([...(await inTime(messages.next())).value], [1, 1, 97]);
    assert.equal((await failure(connection.call('x'))).code, 'unsupported');
  }
});

/** The members of a room as a text: users, number of connections, states. */
const seen = (members) => members.map(({ user, connections, state = '' }) => `${user} ${connections} ${state}`).sort().join(', ');

test('members of a room are told with their states, on every connection that watches', async (t) => {
  const server = await Server.start(t, 'client_server');
  const ada = open(t, `${server.url}?user=Ada`);
  const bob = open(t, `${server.url}?user=Bob`);
  let told = [];
  assert.equal(await inTime(ada.join('lobby', { onPresence: (members) => (told = members) })), '');
  // The list comes before the join has succeeded.
  assert.equal(seen(told), 'Ada 1 ');
  await inTime(bob.join('lobby'));
  bob.notify('state', 'lobby\naway');
  await until(() => seen(told) === 'Ada 1 , Bob 1 away');
  const stranger = open(t, server.url);
  assert.equal(seen(await inTime(stranger.room('lobby').presence())), 'Ada 1 , Bob 1 away');
  await inTime(bob.leave('lobby'));
  await until(() => seen(told) === 'Ada 1 ');
  assert.equal((await failure(stranger.room('secret').presence())).code, 'refused');
  assert.equal((await failure(stranger.join('topic', { onPresence() {} }))).code, 'refused');
  // A promise that nobody awaits is reported, and ends nothing.
  const report = t.mock.method(console, 'error', () => {});
  void stranger.room('secret').presence();
  await until(() => report.mock.callCount() === 1);
});

test('session is prolonged in time, again and again, over the same connection', async (t) => {
  const server = await Server.start(t, 'client_server');
  let asked = 0;
  const refresh = async () => {
    asked += 1;
    return asked < 4 ? '0.5' : '600';
  };
  const connection = open(t, `${server.url}?expires=0.5`, { refresh });
  await connection.is('open');
  await until(() => asked === 4);
  await inTime(connection.call('echo', 'still'));
  assert.deepEqual(connection.seen.map(({ name }) => name), ['connecting', 'open']);
});

test('session that is not prolonged expires with 3000', async (t) => {
  const server = await Server.start(t, 'client_server');
  const report = t.mock.method(console, 'error', () => {});
  const failing = [undefined, () => 'nonsense', () => { throw new Error('mine'); }, async () => { throw new Error('mine'); }];
  const connections = failing.map((refresh) => open(t, `${server.url}?expires=0.4`, { refresh, reconnect: () => false }));
  for (const connection of connections) {
    await connection.is('closed');
    assert.equal(connection.state.code, 3000);
  }
  // What the program has caused is reported, once each.
  await until(() => report.mock.callCount() === 3);
  assert.deepEqual(report.mock.calls.map(({ arguments: [error] }) => error.message).sort(), ['mine', 'mine', 'the token is not valid']);
});
