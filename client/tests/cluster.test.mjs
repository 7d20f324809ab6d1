// Rooms of a cluster: the client resumes on another node. Without redis-server, the tests are skipped.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { open, Proxy, redisServer, startNodes, until } from './support.mjs';

/** Two nodes, and a proxy in front of the first one. */
async function nodes(t, redis) {
  const both = await startNodes(t, redis, 'client_server', '100000');
  return { both, proxy: await Proxy.start(t, both[0].port) };
}

test('messages of one node reach the clients of another', async (t) => {
  const redis = redisServer(t);
  if (!redis) return;
  const { both } = await nodes(t, redis);
  const [one, other] = both.map(({ url }) => open(t, url));
  const got = [];
  other.messages((data, { room }) => got.push([room, data.text()]));
  other.on('topic', (data) => got.push(['notified', data.text()]));
  await other.join('topic');
  one.notify('publish', 'to the room');
  one.notify('notify', 'told');
  await until(() => got.length >= 2);
  // What one connection does arrives in its order.
  assert.deepEqual(got, [['topic', 'to the room'], ['notified', 'told']]);
});

test('client that changes nodes receives every message once and in order', async (t) => {
  const redis = redisServer(t);
  if (!redis) return;
  const { both, proxy } = await nodes(t, redis);
  const connection = open(t, proxy.url);
  const got = [];
  connection.messages((data, { id }) => got.push(id));
  const gaps = [];
  await connection.join('numbers', { since: 'new', onGap: (gap) => gaps.push(gap) });
  for (let change = 1; change <= 6; change += 1) {
    const before = got.length;
    await until(() => got.length >= before + 20);
    proxy.target = both[change % 2].port;
    proxy.cut();
    await connection.is('open', change + 1);
  }
  const last = got.length;
  await until(() => got.length >= last + 20);
  const [[epoch, first]] = got.map((id) => id.split('-'));
  const expected = got.map((_, at) => `${epoch}-${Number(first) + at}`);
  assert.deepEqual(got, expected);
  assert.deepEqual(gaps, []);
});

test('client whose node is killed goes on at another without a gap', async (t) => {
  const redis = redisServer(t);
  if (!redis) return;
  const { both, proxy } = await nodes(t, redis);
  const connection = open(t, proxy.url);
  const speaker = open(t, both[1].url);
  const got = [];
  connection.messages((data) => got.push(data.text()));
  const gaps = [];
  await connection.join('topic', { onGap: (gap) => gaps.push(gap) });
  speaker.notify('publish', 'before');
  await until(() => got.length === 1);
  proxy.target = both[1].port;
  await both[0].kill();
  speaker.notify('publish', 'meanwhile');
  await connection.is('open', 2);
  speaker.notify('publish', 'after');
  await until(() => got.length >= 3);
  assert.deepEqual(got, ['before', 'meanwhile', 'after']);
  assert.deepEqual(gaps, []);
});

test('members of a room on another node are told, and vanish with it', async (t) => {
  const redis = redisServer(t);
  if (!redis) return;
  const { both } = await nodes(t, redis);
  const [ada, bob] = both.map(({ url }, at) => open(t, `${url}?user=${['Ada', 'Bob'][at]}`));
  let told = [];
  await ada.join('lobby', { onPresence: (members) => (told = members.map(({ user }) => user)) });
  await bob.join('lobby');
  await until(() => told.join() === 'Ada,Bob');
  bob.close();
  await both[1].kill();
  await until(() => told.join() === 'Ada');
});
