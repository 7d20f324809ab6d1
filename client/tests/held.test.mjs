// Messages that arrive before a listener is added, and promises that nobody awaits.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { error, inTime, Mock, notification, ofRoom, open, Proxy, Server, until } from './support.mjs';

/** A server that sends a greeting, and whose rooms have three messages, one of them a notification. */
async function greeted(t, options) {
  const mock = await Mock.start(t, { connected: (peer) => ['hello', notification('note', 'n1'), Buffer.from([0, 1])].forEach((message) => peer.send(message)) });
  mock.answers.join = (room, since, peer) => {
    peer.send(ofRoom(room, 'a-1', 'one'));
    peer.send(ofRoom(room, 'a-2', notification('note', 'n2')));
    peer.send(ofRoom(room, 'a-3', 'three'));
    return 'a-3';
  };
  const connection = open(t, mock.url, options);
  return { mock, connection };
}

test('held messages go to all listeners added in one task', async (t) => {
  const { mock, connection } = await greeted(t);
  assert.equal(await connection.join('room', { since: 'all' }), 'a-3');
  await connection.call('$ping');
  const [first, second, notes, late] = [[], [], [], []];
  connection.messages((data, info) => first.push([data.text(), info]));
  connection.messages((data) => second.push(data.text()));
  const iterator = connection.messages();
  assert.deepEqual(first, [], 'not before what is returned can be used');
  await until(() => first.length === 4);
  assert.deepEqual(first, [
    ['hello', { name: '' }], ['\0\x01', { name: '' }], ['one', { name: '', room: 'room', id: 'a-1' }], ['three', { name: '', room: 'room', id: 'a-3' }],
  ]);
  assert.deepEqual(second, first.map(([text]) => text));
  for (const [text] of first) assert.equal((await inTime(iterator.next())).value.text(), text);
  // Notifications are held for the listeners of their name.
  connection.on('note', (data, { room, id }) => notes.push([data.text(), room, id]));
  await until(() => notes.length === 2);
  assert.deepEqual(notes, [['n1', undefined, undefined], ['n2', 'room', 'a-2']]);
  // After the first listener nothing is held, even when no listener is left.
  const end = connection.on('note', (data) => late.push(data.text()));
  await Promise.resolve();
  end();
  mock.peers[0].send(notification('note', 'n3'));
  await until(() => notes.length === 3);
  assert.deepEqual(late, []);
});

test('message during listener registration keeps its order', async (t) => {
  const mock = await Mock.start(t);
  const connection = open(t, mock.url);
  await connection.is('open');
  const got = [];
  connection.on('go', () => connection.messages((data) => got.push(data.text())));
  await Promise.resolve();
  // Sent in one TCP segment, so that the client receives them together.
  mock.peers[0].socket._socket.cork();
  for (const message of ['1', '2', notification('go'), '3', '4']) mock.peers[0].send(message);
  mock.peers[0].socket._socket.uncork();
  await until(() => got.length === 4);
  assert.deepEqual(got, ['1', '2', '3', '4']);
});

test('held messages are bounded; drops are reported to the listener', async (t) => {
  const reported = t.mock.method(console, 'error', () => {});
  for (const [options, expected] of [[{ queue: 3 }, ['3', '4', '5']], [{ outboxBytes: 2 }, ['4', '5']]]) {
    const mock = await Mock.start(t);
    const connection = open(t, mock.url, options);
    await connection.is('open');
    for (const text of ['1', '2', '3', '4', '5']) mock.peers[0].send(text);
    await connection.call('$ping');
    const notes = [];
    connection.on('other', (data) => notes.push(data));
    await connection.call('$ping');
    assert.equal(reported.mock.callCount(), 0, 'nothing of that name is missing');
    const got = [];
    connection.messages((data) => got.push(data.text()));
    await until(() => got.length === expected.length);
    assert.deepEqual(got, expected);
    assert.deepEqual(reported.mock.calls.map(({ arguments: [{ code }] }) => code), ['full']);
    reported.mock.resetCalls();
  }
});

test('room replay reaches a listener added after the join', async (t) => {
  const server = await Server.start(t, 'client_server', '200');
  const observer = open(t, server.url);
  let last = 0;
  observer.messages((data) => (last = +data.text()));
  await observer.join('numbers');
  await until(() => last > 250);
  const connection = open(t, server.url);
  const id = await inTime(connection.join('numbers', { since: 'all' }));
  const numbers = [];
  const sequences = [];
  connection.messages((data, info) => {
    numbers.push(+data.text());
    sequences.push(+info.id.split('-')[1]);
  });
  await until(() => sequences.at(-1) > +id.split('-')[1] + 50);
  // The whole replay is there, followed by the messages sent since.
  assert.ok(sequences[0] <= +id.split('-')[1] - 199, `${sequences[0]} ${id}`);
  assert.deepEqual(numbers, Array.from(numbers, (_, n) => numbers[0] + n));
});

/** Runs a program in its own process, and returns its exit status and output. */
async function run(t, url, body) {
  const module = fileURLToPath(new URL('../../src/client.js', import.meta.url));
  const ws = fileURLToPath(new URL('../node_modules/ws/wrapper.mjs', import.meta.url));
  const program = `import { connect } from '${module}'; import WebSocket from '${ws}'; const c = connect('${url}', { WebSocket, delayFirst: 10 });\n${body}`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: ['ignore', 'pipe', 'pipe'] });
  t.after(() => child.kill('SIGKILL'));
  let said = '';
  for (const pipe of [child.stdout, child.stderr]) pipe.on('data', (data) => (said += data));
  const [code] = await inTime(once(child, 'close'), 'the program to end');
  return { code, said };
}

// The program, and the error that is reported: none if the program itself closed or aborted.
for (const [body, reported] of [
  ["c.join('secret'); await c.call('echo'); c.close()", /refused|not allowed|may not/],
  ["c.call('nothing'); await c.call('echo'); c.close()", /CallError/],
  ["c.call('fail', 'so it is'); await c.call('echo'); c.close()", /so it is/],
  ["c.call('forget', new Map()); await c.call('echo'); c.close()", /TypeError/],
  ["c.call('hang', '', { timeout: 50 }); setTimeout(() => c.close(), 300)", /no answer in 50 ms/],
  ["c.join('n'.repeat(256)); await c.call('echo'); c.close()", /too long/],
  ["await c.call('echo'); c.leave('never'); c.call('hang'); c.notify('close', '1011'); c.states(({ name }) => name === 'waiting' && c.close())", /ended/],
  ["c.join('topic'); c.close()", undefined],
  ["c.join('topic'); c.leave('topic'); await c.call('echo'); c.close()", undefined],
  ["c.call('echo'); c.close(); c.call('echo'); c.join('topic'); c.leave('topic')", undefined],
  ["await c.join('topic'); c.leave('topic'); c.close()", undefined],
  ["const s = new AbortController(); c.call('hang', '', { signal: s.signal }); s.abort(); await c.call('echo'); c.close()", undefined],
  ["const i = c.messages(); await c.call('echo'); c.close(); for await (const _ of i);", undefined],
  ["c.states(({ name }) => name === 'open' && c.close()); c.join('topic')", undefined],
]) {
  test(`program continues and exits: ${body}`, async (t) => {
    const server = await Server.start(t, 'client_server');
    const { code, said } = await run(t, server.url, body);
    assert.equal(code, 0, said);
    if (reported) assert.match(said, reported);
    else assert.equal(said, '');
  });
}

test('awaited promise rejects, also when awaited later', async (t) => {
  const server = await Server.start(t, 'client_server');
  for (const body of ["await c.join('secret')", "c.join('secret').then(() => {})", "await Promise.all([c.call('nothing')])"]) {
    const { code } = await run(t, server.url, body);
    assert.equal(code, 1, body);
  }
  const { code, said } = await run(t, server.url, `
    for (const fails of [() => c.join('secret'), () => c.call('nothing'), () => c.call('x', 10n)]) {
      try { await fails(); console.log('no'); } catch (error) { console.log(error.name); }
    }
    c.call('nothing').catch(({ code }) => console.log(code)).finally(() => c.close());
  `);
  assert.deepEqual([code, said], [0, 'CallError\nCallError\nTypeError\nunknown\n']);
});

test('app without procedures gets one connection per reconnect', async (t) => {
  for (const [example, options] of [['echo', {}], ['echo', { protocols: ['own'] }], ['client_server', {}]]) {
    const server = await Server.start(t, example);
    const proxy = await Proxy.start(t, server.port);
    const connection = open(t, proxy.url, options);
    await connection.is('open');
    const messages = connection.messages();
    connection.send('text');
    assert.equal((await inTime(messages.next())).value.text(), 'text');
    assert.equal(connection.state.protocol, example === 'echo' ? '' : 'humphrey_ws.procedures.v1');
    assert.equal(proxy.connections, 1);
    proxy.cut();
    await connection.is('open', 2);
    assert.equal(proxy.connections, 2);
    if (example === 'echo') await assert.rejects(connection.call('x'), { code: 'unsupported' });
    assert.equal(connection.seen.filter(({ name }) => name === 'open').length, 2);
  }
  void error;
});
