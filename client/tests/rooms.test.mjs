// Rooms: join, leave, rejoin and resume.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { error, inTime, item, lost, Mock, notification, ofRoom, open, response, splitJoin, until } from './support.mjs';

async function connected(t, options) {
  const mock = await Mock.start(t);
  mock.answers.join = () => undefined;
  const connection = open(t, mock.url, options);
  await connection.is('open');
  return { mock, connection, peer: mock.peers[0] };
}

/** The next join request that a peer sends. */
async function joinAt(peer) {
  const { name, id, payload } = await peer.next();
  assert.equal(name, '$join');
  const [room, since] = splitJoin(payload);
  return { id, room, since };
}

function heard(connection) {
  const got = [];
  connection.messages((data, { room, id }) => got.push([room, id, data.text()]));
  return got;
}

test('join replays nothing, all, or messages after an id', async (t) => {
  const { connection, peer } = await connected(t);
  for (const [since, sent] of [[undefined, 'new'], ['new', 'new'], ['all', 'all'], ['ab-7', 'ab-7']]) {
    const joining = connection.join(`room ${sent} ${since}`, { since });
    const join = await joinAt(peer);
    assert.deepEqual([join.room, join.since], [`room ${sent} ${since}`, sent]);
    peer.send(response(join.id, 'ab-9'));
    assert.equal(await inTime(joining), 'ab-9');
  }
});

test('room message carries its room and id for every type', async (t) => {
  const { connection, peer } = await connected(t);
  const got = [];
  connection.messages((data, info) => got.push([data.isText, data.text(), info]));
  connection.on('tick', (data, info) => got.push(['tick', data.text(), info]));
  peer.send(ofRoom('news', 'a-1', 'rain'));
  peer.send(ofRoom('news', 'a-2', Buffer.from([0, 98])));
  peer.send(ofRoom('news', 'a-3', notification('tick', '7')));
  peer.send(ofRoom('news', 'a-4', '\x01\x01a'));
  peer.send(ofRoom('news', 'a-5', response(1, 'x')));
  await until(() => got.length === 5);
  assert.deepEqual(got, [
    [true, 'rain', { name: '', room: 'news', id: 'a-1' }],
    [false, '\0b', { name: '', room: 'news', id: 'a-2' }],
    ['tick', '7', { name: 'tick', room: 'news', id: 'a-3' }],
    [true, '\x01\x01a', { name: '', room: 'news', id: 'a-4' }],
    [false, response(1, 'x').toString(), { name: '', room: 'news', id: 'a-5' }],
  ]);
});

test('reconnect rejoins each room after its last message', async (t) => {
  const { connection, mock, peer } = await connected(t);
  const got = heard(connection);
  const joins = [connection.join('seen'), connection.join('silent'), connection.join('none'), connection.join('unanswered', { since: 'all' })];
  const asked = [await joinAt(peer), await joinAt(peer), await joinAt(peer), await joinAt(peer)];
  peer.send(response(asked[0].id, 'a-4'));
  peer.send(response(asked[1].id, 'b-2'));
  peer.send(response(asked[2].id, ''));
  assert.deepEqual(await inTime(Promise.all(joins.slice(0, 3))), ['a-4', 'b-2', '']);
  peer.send(ofRoom('seen', 'a-5', 'x'));
  peer.send(ofRoom('unanswered', 'c-1', 'y'));
  await until(() => got.length === 2);
  peer.socket.terminate();
  const next = await mock.peer(1);
  const again = [await joinAt(next), await joinAt(next), await joinAt(next), await joinAt(next)];
  assert.deepEqual(again.map(({ room, since }) => [room, since]), [['seen', 'a-5'], ['silent', 'b-2'], ['none', 'new'], ['unanswered', 'c-1']]);
  next.send(response(again[3].id, 'c-1'));
  assert.equal(await inTime(joins[3]), 'c-1');
});

test('duplicate message is delivered once', async (t) => {
  const { connection, mock, peer } = await connected(t);
  const got = heard(connection);
  connection.join('room', { since: 'all' });
  const { id } = await joinAt(peer);
  for (const n of [1, 2, 2, 1, 3]) peer.send(ofRoom('room', `a-${n}`, String(n)));
  peer.send(response(id, 'a-3'));
  peer.send(ofRoom('other', 'b-1', '1'));
  await until(() => got.length === 4);
  peer.socket.terminate();
  const next = await mock.peer(1);
  const again = await joinAt(next);
  for (const n of [2, 3, 4]) next.send(ofRoom('room', `a-${n}`, String(n)));
  next.send(response(again.id, 'a-4'));
  next.send(ofRoom('room', 'a-10', '10'));
  next.send(ofRoom('room', 'a-9', '9'));
  next.send(ofRoom('other', 'b-1', '1'));
  next.send('end');
  await until(() => got.at(-1)[2] === 'end');
  assert.deepEqual(got.map(([room, id]) => [room, id]), [
    ['room', 'a-1'], ['room', 'a-2'], ['room', 'a-3'], ['other', 'b-1'], ['room', 'a-4'], ['room', 'a-10'], [undefined, undefined],
  ]);
});

test('gap is reported before the replay, and the room resumes', async (t) => {
  const { connection, mock, peer } = await connected(t);
  const got = heard(connection);
  connection.join('room', { onGap: (gap) => got.push(gap) });
  peer.send(response((await joinAt(peer)).id, 'a-8'));
  peer.send(ofRoom('room', 'a-9', 'nine'));
  await until(() => got.length);
  peer.socket.terminate();
  const next = await mock.peer(1);
  const again = await joinAt(next);
  assert.equal(again.since, 'a-9');
  next.send(item(again.id, 'gap'));
  next.send(ofRoom('room', 'b-3', 'three'));
  next.send(response(again.id, 'b-3'));
  await until(() => got.length === 3);
  assert.deepEqual(got, [['room', 'a-9', 'nine'], { room: 'room', since: 'a-9' }, ['room', 'b-3', 'three']]);
  next.socket.terminate();
  const third = await mock.peer(2);
  assert.equal((await joinAt(third)).since, 'b-3');
});

test("gap with an empty history resumes at the server's id", async (t) => {
  const { connection, mock, peer } = await connected(t);
  connection.join('room', { since: 'a-1' });
  peer.send(response((await joinAt(peer)).id, 'a-3'));
  await connection.join('room');
  peer.socket.terminate();
  const next = await mock.peer(1);
  const { id, since } = await joinAt(next);
  assert.equal(since, 'a-3');
  next.send(item(id, 'gap'));
  next.send(response(id, 'b-0'));
  await connection.call('$ping');
  next.socket.terminate();
  assert.equal((await joinAt(await mock.peer(2))).since, 'b-0');
});

test('message that overtakes the replay does not hide it', async (t) => {
  const { connection, mock, peer } = await connected(t);
  const got = heard(connection);
  const gaps = [];
  connection.join('room', { onGap: (gap) => gaps.push(gap.since) });
  peer.send(response((await joinAt(peer)).id, 'a-1'));
  await connection.join('room');
  peer.socket.terminate();
  // The server itself adds its clients to the room.
  const second = await mock.peer(1);
  const { id } = await joinAt(second);
  for (const n of [4, 2, 3, 4, 5]) second.send(ofRoom('room', `a-${n}`, String(n)));
  second.send(response(id, 'a-5'));
  second.send(ofRoom('room', 'a-6', '6'));
  await until(() => got.length === 5);
  second.socket.terminate();
  // The same server after a restart.
  const third = await mock.peer(2);
  const again = await joinAt(third);
  third.send(ofRoom('room', 'b-2', '2'));
  third.send(item(again.id, 'gap'));
  for (const n of [1, 2, 3]) third.send(ofRoom('room', `b-${n}`, String(n)));
  third.send(response(again.id, 'b-3'));
  await until(() => got.at(-1)[1] === 'b-3');
  assert.deepEqual(got.map(([, id]) => id), ['a-2', 'a-3', 'a-4', 'a-5', 'a-6', 'b-1', 'b-2', 'b-3']);
  assert.deepEqual(gaps, ['a-6']);
});

test('replay cut off after a gap is requested again', async (t) => {
  const { connection, mock, peer } = await connected(t);
  const gap = new Promise((resolve) => connection.join('room', { onGap: resolve }));
  peer.send(response((await joinAt(peer)).id, 'a-1'));
  await connection.join('room');
  peer.socket.terminate();
  const next = await mock.peer(1);
  next.send(item((await joinAt(next)).id, 'gap'));
  assert.deepEqual(await inTime(gap), { room: 'room', since: 'a-1' });
  next.socket.terminate();
  assert.equal((await joinAt(await mock.peer(2))).since, 'all');
});

test('second join replaces only the options it names', async (t) => {
  const { connection, peer } = await connected(t);
  const gaps = [];
  connection.join('room', { since: 'a-1', onGap: (gap) => gaps.push(gap) });
  const again = connection.join('room', { since: 'all', onRefused() {} });
  const { id, since } = await joinAt(peer);
  assert.equal(since, 'a-1');
  peer.send(item(id, 'gap'));
  peer.send(response(id, 'b-0'));
  assert.equal(await inTime(again), 'b-0');
  assert.deepEqual(gaps, [{ room: 'room', since: 'a-1' }]);
});

test('refused room rejects and is not rejoined', async (t) => {
  const { connection, mock, peer } = await connected(t);
  const refused = assert.rejects(connection.join('secret'), { code: 'refused', message: 'not you' });
  peer.send(error((await joinAt(peer)).id, 6, 'not you'));
  await refused;
  const asked = connection.join('secret');
  peer.send(response((await joinAt(peer)).id, ''));
  assert.equal(await asked, '', 'it may be asked for again');
  const told = new Promise((resolve) => connection.join('other', { onRefused: resolve }));
  peer.send(response((await joinAt(peer)).id, ''));
  peer.socket.terminate();
  const next = await mock.peer(1);
  const again = [await joinAt(next), await joinAt(next)];
  assert.deepEqual(again.map(({ room }) => room), ['secret', 'other']);
  next.send(error(again[1].id, 6, 'any more'));
  const { code, message } = await inTime(told);
  assert.deepEqual([code, message], ['refused', 'any more']);
  next.socket.terminate();
  const third = await mock.peer(2);
  assert.equal((await joinAt(third)).room, 'secret');
  connection.send('end');
  assert.equal(await third.next(), 'end');
});

test('temporary join failure is retried until it succeeds', async (t) => {
  const { connection, mock, peer } = await connected(t);
  const got = heard(connection);
  connection.join('room');
  peer.send(response((await joinAt(peer)).id, 'a-1'));
  await connection.join('room');
  peer.socket.terminate();
  for (const [n, code] of [5, 2, 4].entries()) {
    const next = await mock.peer(n + 1);
    next.send(error((await joinAt(next)).id, code, 'not now'));
  }
  const last = await mock.peer(4);
  last.send(ofRoom('room', 'a-2', 'here'));
  last.send(response((await joinAt(last)).id, 'a-2'));
  await until(() => got.length);
  assert.deepEqual(got, [['room', 'a-2', 'here']]);
});

test('left room is not rejoined and its messages are ignored', async (t) => {
  const { connection, mock, peer } = await connected(t);
  mock.answers.join = () => '';
  const got = heard(connection);
  await connection.join('room');
  await connection.join('other');
  peer.send(ofRoom('room', 'a-2', 'before'));
  await until(() => got.length === 1);
  const leaving = connection.leave('room');
  // This message was sent before the server received the leave.
  peer.send(ofRoom('room', 'a-3', 'late'));
  await inTime(leaving);
  peer.send('behind');
  await until(() => got.length === 2);
  assert.deepEqual(got.map(([, , text]) => text), ['before', 'behind']);
  peer.socket.terminate();
  const next = await mock.peer(1);
  const again = await joinAt(next);
  assert.equal(again.room, 'other');
  connection.send('end');
  assert.equal(await next.next(), 'end');
});

test('left room joined with since all replays everything', async (t) => {
  const { connection, mock, peer } = await connected(t);
  const got = heard(connection);
  connection.join('room', { since: 'all' });
  const first = await joinAt(peer);
  for (const n of [1, 2]) peer.send(ofRoom('room', `a-${n}`, String(n)));
  peer.send(response(first.id, 'a-2'));
  await until(() => got.length === 2);
  // The responses and the replay arrive in one TCP segment.
  const tcp = peer.socket._socket;
  tcp.cork();
  mock.answers.join = (room, since, peer) => {
    for (const n of [1, 2]) peer.send(ofRoom('room', `a-${n}`, String(n)));
    setImmediate(() => tcp.uncork());
    return 'a-2';
  };
  connection.leave('room');
  connection.join('room', { since: 'all' });
  await until(() => got.length === 4);
  assert.deepEqual(got.map(([, id]) => id), ['a-1', 'a-2', 'a-1', 'a-2']);
});

test('close in onRefused is final', async (t) => {
  const { connection, mock, peer } = await connected(t);
  mock.answers.join = () => '';
  await connection.join('room', { onRefused: () => connection.close() });
  mock.answers.join = () => undefined;
  peer.socket.terminate();
  const next = await mock.peer(1);
  next.send(error((await joinAt(next)).id, 6, 'no'));
  await connection.is('closed');
  assert.throws(() => connection.send('x'), { code: 'closed' });
  mock.answers.join = () => '';
  connection.reconnect();
  connection.send('early');
  await connection.is('open', 3);
  assert.equal(await mock.peers[2].next(), 'early');
});

test('leave works during a join and while disconnected', async (t) => {
  const { connection, mock, peer } = await connected(t);
  const joining = assert.rejects(connection.join('room'), { code: 'aborted' });
  const { id } = await joinAt(peer);
  await inTime(connection.leave('room'));
  peer.send(response(id, 'a-1'));
  await joining;
  await connection.leave('never joined');
  peer.socket.terminate();
  await lost(connection);
  const other = assert.rejects(connection.join('other'), { code: 'aborted' });
  await connection.leave('other');
  await other;
  const next = await mock.peer(1);
  connection.send('end');
  assert.equal(await next.next(), 'end');
});

test('many rooms rejoin 64 at a time, before queued messages', async (t) => {
  const { connection, mock, peer } = await connected(t);
  mock.answers.join = () => 'a-1';
  await Promise.all(Array.from({ length: 300 }, (_, n) => connection.join(`room ${n}`)));
  let inFlight = 0;
  let most = 0;
  mock.answers.join = (room, since, peer, id) => {
    most = Math.max(most, (inFlight += 1));
    setTimeout(() => {
      inFlight -= 1;
      peer.send(response(id, 'a-1'));
    }, 1);
  };
  peer.socket.terminate();
  await lost(connection);
  connection.send('end');
  const next = await mock.peer(1);
  await until(() => next.received.at(-1) === 'end');
  assert.equal(next.received.length, 301);
  assert.ok(most <= 64, String(most));
});

test('server-side join replays only what the server sends', async (t) => {
  const { connection, mock, peer } = await connected(t);
  const got = heard(connection);
  for (let n = 0; n < 1_500; n += 1) peer.send(ofRoom(`room ${n}`, `${n.toString(16)}-1`, 'x'));
  await until(() => got.length === 1_500);
  // The client remembers at most 1,000 epochs: only the oldest message is delivered again.
  for (const n of [1_499, 600, 0]) peer.send(ofRoom(`room ${n}`, `${n.toString(16)}-1`, 'again'));
  await until(() => got.length === 1_501);
  assert.equal(got.at(-1)[0], 'room 0');
  peer.socket.terminate();
  const next = await mock.peer(1);
  connection.send('end');
  assert.equal(await next.next(), 'end', 'nothing is joined');
});

/** What there is to know of a room: a gap (3), whether it is silent (4), or something of a newer server. */
const knowledge = (kind, room, id, ...rest) => {
  const bytes = ofRoom(room, id, '');
  bytes[bytes.length - 1] = kind;
  return Buffer.concat([bytes, Buffer.from(rest)]);
};

test('gap on the side of the server is told, and the room resumes after it', async (t) => {
  const { mock, connection, peer } = await connected(t);
  const gaps = [];
  const got = heard(connection);
  const joining = connection.join('news', { onGap: (gap) => gaps.push(gap) });
  peer.send(response((await joinAt(peer)).id, 'a-4'));
  await joining;
  peer.send(ofRoom('news', 'a-5', 'rain'));
  peer.send(knowledge(3, 'news', 'b-2'));
  peer.send(knowledge(3, 'other', 'c-1'));
  peer.send(knowledge(7, 'news', 'd-1', 1));
  await until(() => gaps.length === 1);
  assert.deepEqual(gaps, [{ room: 'news', since: 'a-5' }]);
  peer.socket.terminate();
  await until(() => mock.peers.length === 2);
  const rejoin = await joinAt(mock.peers[1]);
  assert.deepEqual([rejoin.room, rejoin.since], ['news', 'b-2']);
  mock.peers[1].send(ofRoom('news', 'b-3', 'sun'));
  await until(() => got.length === 2);
  assert.deepEqual(got[1], ['news', 'b-3', 'sun']);
});

test('silence of a room is told when it begins and when it ends', async (t) => {
  const { connection, peer } = await connected(t);
  const told = [];
  const joining = connection.join('news', { onSilence: (isSilent) => told.push(isSilent) });
  peer.send(response((await joinAt(peer)).id, 'a-4'));
  await joining;
  peer.send(knowledge(4, 'news', '', 1));
  peer.send(knowledge(4, 'other', '', 1));
  peer.send(knowledge(4, 'news', '', 0));
  await until(() => told.length === 2);
  assert.deepEqual(told, [true, false]);
});

test('members of a room are told as a list, and then their changes', async (t) => {
  const { mock, connection, peer } = await connected(t);
  const told = [];
  const joining = connection.join('news', { onPresence: (members) => told.push(members) });
  const watch = await peer.next();
  assert.deepEqual([watch.name, splitJoin(watch.payload)], ['$watch', ['news', 'new']]);
  const tell = (kind, room, json) => peer.send(knowledge(kind, room, '', ...Buffer.from(JSON.stringify(json))));
  const ada = { user: 'Ada', connections: 2, state: '{"away":true}' };
  const [bob, guest] = [{ user: 'Bob', connections: 1 }, { connection: '1-2', connections: 1, base64: '/w==' }];
  tell(5, 'news', [['user:Ada', ada], ['user:Bob', bob]]);
  peer.send(response(watch.id, 'a-4'));
  await joining;
  tell(6, 'other', [['user:Bob', null]]);
  tell(6, 'news', [['user:Bob', null], ['connection:1-2', guest], ['user:Ada', { ...ada, connections: 0 }]]);
  await until(() => told.length === 2);
  assert.deepEqual(told, [[ada, bob], [{ ...ada, connections: 0 }, guest]]);
  // After a reconnect, the list is told anew.
  peer.socket.terminate();
  await until(() => mock.peers.length === 2);
  const again = await mock.peers[1].next();
  assert.deepEqual([again.name, splitJoin(again.payload)], ['$watch', ['news', 'a-4']]);
  mock.peers[1].send(knowledge(5, 'news', '', ...Buffer.from(JSON.stringify([['user:Bob', bob]]))));
  await until(() => told.length === 3);
  assert.deepEqual(told[2], [bob]);
});

test('room that was joined without watching can be watched later', async (t) => {
  const { connection, peer } = await connected(t);
  const joining = connection.join('news', { since: 'all' });
  peer.send(response((await joinAt(peer)).id, 'a-4'));
  assert.equal(await joining, 'a-4');
  const told = [];
  assert.equal(await connection.join('news', { onPresence: (members) => told.push(members) }), 'a-4');
  const watch = await peer.next();
  assert.deepEqual([watch.name, splitJoin(watch.payload)], ['$watch', ['news', 'a-4']]);
  peer.send(knowledge(5, 'news', '', ...Buffer.from('[]')));
  peer.send(response(watch.id, 'a-4'));
  await until(() => told.length === 1);
  assert.deepEqual(told, [[]]);
});

test('presence that is no JSON is reported, and changes nothing else', async (t) => {
  const { connection, peer } = await connected(t);
  const got = heard(connection);
  const report = t.mock.method(console, 'error', () => {});
  const joining = connection.join('news', { onPresence: () => {} });
  const watch = await peer.next();
  peer.send(knowledge(6, 'news', '', 1));
  peer.send(response(watch.id, ''));
  await joining;
  peer.send(ofRoom('news', 'a-5', 'rain'));
  await until(() => got.length === 1);
  assert.equal(report.mock.callCount(), 1);
});

test('join that the server can not serve for now is tried again', async (t) => {
  const { mock, connection, peer } = await connected(t);
  const joining = connection.join('news');
  peer.send(error((await joinAt(peer)).id, 5, 'later'));
  await until(() => mock.peers.length === 2);
  mock.peers[1].send(response((await joinAt(mock.peers[1])).id, 'a-4'));
  assert.equal(await inTime(joining), 'a-4');
});
