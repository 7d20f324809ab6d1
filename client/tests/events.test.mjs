// The fallback to server-sent events.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { test } from 'node:test';

import { EventSource } from 'eventsource';

import { eventServer, httpProxy, lost, Mock, notification, open, Proxy, Server, until } from './support.mjs';

async function setUp(t, options) {
  const server = await Server.start(t, 'client_server');
  const proxy = await httpProxy(t, server.port);
  const connection = open(t, proxy.url, { EventSource, events: `${proxy.url}events`, eventsAfter: 2, ...options });
  const got = [];
  connection.messages((data, { id }) => got.push([data.isText, data.text(), id !== undefined]));
  connection.on('topic', (data, { id }) => got.push(['topic', data.text(), id !== undefined]));
  const publisher = open(t, server.url);
  await publisher.is('open');
  const overEvents = () => until(() => connection.state.transport === 'events', 'events');
  return { server, proxy, connection, got, publisher, overEvents };
}

test('events deliver text, bytes and notifications', async (t) => {
  const { proxy, connection, got, publisher, overEvents } = await setUp(t);
  const joining = connection.join('topic');
  joining.catch(() => {});
  const waiting = assert.rejects(connection.call('echo'), { code: 'unsupported', sent: false });
  await overEvents();
  await waiting;
  assert.ok(proxy.upgrades >= 2);
  assert.deepEqual(connection.state, { name: 'open', transport: 'events', protocol: '' });
  publisher.notify('publish', 'zwöi\nlines');
  publisher.notify('publish bytes', Uint8Array.of(0, 98));
  publisher.notify('notify', 'note');
  await until(() => got.length === 3);
  assert.deepEqual(got, [[true, 'zwöi\nlines', true], [false, '\0b', true], ['topic', 'note', true]]);
  await assert.rejects(connection.call('echo'), { code: 'unsupported' });
});

test('cut event stream resumes and reports the gap', async (t) => {
  const { proxy, connection, got, publisher, overEvents, server } = await setUp(t);
  const gaps = [];
  connection.join('topic', { onGap: (gap) => gaps.push(gap.room) }).catch(() => {});
  await overEvents();
  publisher.notify('publish', '1');
  await until(() => got.length === 1);
  proxy.cut();
  publisher.notify('publish', '2');
  await until(() => got.length === 2);
  assert.deepEqual(got.map(([, text]) => text), ['1', '2']);
  assert.deepEqual(gaps, []);
  await server.kill();
  await server.start();
  await until(() => gaps.length > 0);
  assert.deepEqual(new Set(gaps), new Set(['topic']));
});

test('return from events to a WebSocket loses and repeats nothing', async (t) => {
  const { proxy, connection, got, publisher, overEvents } = await setUp(t, { eventsRetry: 50 });
  connection.join('topic', { since: 'all' });
  await overEvents();
  for (const text of ['1', '2']) publisher.notify('publish', text);
  await until(() => got.length === 2);
  const tried = proxy.upgrades;
  await until(() => proxy.upgrades >= tried + 3);
  assert.equal(connection.state.transport, 'events');
  connection.notify('publish', 'mine');
  proxy.isOpen = true;
  await until(() => connection.state.transport === 'websocket');
  await until(() => got.length === 3);
  publisher.notify('publish', 'last');
  await until(() => got.length === 4);
  assert.deepEqual(got.map(([, text]) => text), ['1', '2', 'mine', 'last']);
  // When the WebSocket fails again, the client returns to events.
  proxy.isOpen = false;
  proxy.cut();
  await lost(connection);
  publisher.notify('publish', 'away');
  await overEvents();
  await until(() => got.length === 5);
  publisher.notify('publish', 'again');
  await until(() => got.length === 6);
  assert.deepEqual(got.slice(4).map(([, text]) => text), ['away', 'again']);
});

test('events resume where a lost WebSocket ended', async (t) => {
  const { proxy, connection, got, publisher, overEvents } = await setUp(t);
  proxy.isOpen = true;
  await connection.join('topic');
  publisher.notify('publish', '1');
  await until(() => got.length === 1);
  proxy.isOpen = false;
  proxy.cut();
  await lost(connection);
  publisher.notify('publish', '2');
  await publisher.call('echo');
  await overEvents();
  publisher.notify('publish', '3');
  await until(() => got.length === 3);
  assert.deepEqual(got.map(([, text]) => text), ['1', '2', '3']);
});

test('both transports are tried until one works', async (t) => {
  const { server, connection, overEvents } = await setUp(t);
  await overEvents();
  await server.kill();
  await until(() => connection.state.name !== 'open');
  await server.start();
  await overEvents();
  connection.close();
  assert.equal(connection.state.name, 'closed');
});

test('events of each type are decoded by type', async (t) => {
  let stream;
  const server = createServer((_, answer) => {
    answer.writeHead(200, { 'Content-Type': 'text/event-stream' });
    answer.write(':\n\n');
    stream = answer;
  });
  server.on('upgrade', (_, socket) => socket.destroy());
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  const reported = t.mock.method(console, 'error', () => {});
  const url = `http://127.0.0.1:${server.address().port}/`;
  const connection = open(t, url, { EventSource, events: () => url, eventsAfter: 1 });
  const got = [];
  connection.messages((data) => got.push(data.text()));
  connection.on('n', (data) => got.push(data.text()));
  await until(() => connection.state.transport === 'events');
  stream.write('event: binary\ndata: *\n\n');
  stream.write(`event: binary\ndata: ${notification('n', 'yes').toString('base64')}\n\n`);
  stream.write('data: end\n\n');
  await until(() => got.length === 2);
  assert.deepEqual(got, ['yes', 'end']);
  // An event without an id is new, although the browser repeats the previous event's id.
  for (const event of ['id: a-1\ndata: 1', 'data: 2', 'data: 3', 'id: a-2\ndata: 4', 'id: a-1\ndata: again', 'data: 5', 'id: a-3\ndata: 6']) {
    stream.write(`${event}\n\n`);
  }
  await until(() => got.length === 8);
  assert.deepEqual(got.slice(2), ['1', '2', '3', '4', '5', '6']);
  assert.equal(reported.mock.callCount(), 1);
});

/** Opens an event stream of two rooms, one of which is joined. */
async function streamed(t, options) {
  const server = await Server.start(t, 'client_server');
  const proxy = await httpProxy(t, server.port);
  const publisher = open(t, server.url);
  await publisher.is('open');
  const say = async (room, text) => {
    if (room) publisher.notify('publish to', `${room}\n${text}`);
    else publisher.notify('everyone', text);
    await publisher.call('echo');
  };
  const client = (more) => {
    const connection = open(t, proxy.url, { EventSource, events: `${proxy.url}two`, eventsAfter: 1, eventsRetry: 100, ...options, ...more });
    const [got, gaps] = [[], []];
    connection.messages((data, { room }) => got.push([room, data.text()]));
    const join = (room, joining) => connection.join(room, { onGap: (gap) => gaps.push(gap.room), ...joining });
    return { connection, got, gaps, join };
  };
  return { server, proxy, publisher, say, client };
}

const ONE = 'topic "one"';
const TWO = 'topic 2';

test('messages of two streamed rooms carry their own room', async (t) => {
  const { proxy, say, client } = await streamed(t);
  await say(ONE, 'early');
  const { connection, got, gaps, join } = client();
  join(ONE, { since: 'new' });
  await until(() => connection.state.transport === 'events');
  const sent = [[TWO, 'a'], [ONE, 'b'], [undefined, 'c'], [TWO, 'd'], [undefined, 'e'], [TWO, 'f']];
  for (const [room, text] of sent) await say(room, text);
  await until(() => got.length === sent.length);
  assert.deepEqual(got, sent);
  // The joined room resumes over the WebSocket after its own last message.
  proxy.isOpen = true;
  await until(() => connection.state.transport === 'websocket');
  await connection.call('echo');
  await say(ONE, 'g');
  await until(() => got.at(-1)[1] === 'g');
  assert.deepEqual(got.slice(sent.length).filter(([room]) => room === ONE), [[ONE, 'g']]);
  assert.deepEqual(gaps, []);
});

test('first streamed message to all clients has no room', async (t) => {
  const { say, client } = await streamed(t);
  await say(TWO, 'early');
  const { connection, got } = client();
  await until(() => connection.state.transport === 'events');
  for (const text of ['1', '2']) await say(undefined, text);
  await until(() => got.length === 2);
  assert.deepEqual(got, [[undefined, '1'], [undefined, '2']]);
});

test('unstreamed room reports no gap; streamed rooms resume', async (t) => {
  const { server, proxy, say, client } = await streamed(t, { eventsRetry: 60_000 });
  proxy.isOpen = true;
  const { connection, got, gaps, join } = client();
  await Promise.all([join(ONE), join(TWO), join('topic')]);
  for (const [room, text] of [[ONE, '1'], [TWO, '2'], ['topic', '3']]) await say(room, text);
  await until(() => got.length === 3);
  proxy.isOpen = false;
  proxy.cut();
  await lost(connection);
  for (const [room, text] of [[TWO, '4'], [ONE, '5'], [TWO, '6']]) await say(room, text);
  await until(() => got.length === 6);
  assert.deepEqual(got.slice(3), [[TWO, '4'], [ONE, '5'], [TWO, '6']]);
  assert.deepEqual(gaps, []);
  // After a restart only the streamed rooms report a gap.
  await server.kill();
  await server.start();
  await until(() => gaps.length >= 2);
  assert.deepEqual(new Set(gaps), new Set([ONE, TWO]));
});

test('unnamed event rooms get no message by guess', async (t) => {
  const asked = [];
  const url = await eventServer(t, (stream, { url }) => {
    asked.push(url);
    stream.write('id: b-1\ndata: 1\n\nid: a-1\ndata: 2\n\n');
  });
  const connection = open(t, url, { EventSource, events: `${url}?x=%20y`, eventsAfter: 1 });
  const [got, gaps] = [[], []];
  connection.join('room', { onGap: (gap) => gaps.push(gap) });
  connection.messages((data, { room, id }) => got.push([room, id, data.text()]));
  await until(() => got.length === 2);
  assert.deepEqual(got, [[undefined, 'b-1', '1'], [undefined, 'a-1', '2']]);
  assert.deepEqual(gaps, []);
  assert.deepEqual(new URL(asked[0], url).searchParams.get('x'), ' y');
});

test('repeatedly cut event stream does not delay the WebSocket', async (t) => {
  const mock = await Mock.start(t);
  const front = await Proxy.start(t, mock.port);
  front.cut(false);
  const url = await eventServer(t, (stream) => {
    stream.write('retry: 1\n\n');
    setTimeout(() => stream.destroy(), 20);
  });
  const connection = open(t, front.url, { EventSource, events: url, eventsAfter: 1, eventsRetry: 400 });
  await until(() => connection.state.transport === 'events');
  front.mend();
  await until(() => connection.state.transport === 'websocket');
});
