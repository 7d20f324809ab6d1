// Values to send: each row of the guide's table is a test.

import assert from 'node:assert/strict';
import { createContext, runInContext } from 'node:vm';
import { test } from 'node:test';

import { error, inTime, Mock, open, request, tableOfGuide } from './support.mjs';

async function connected(t, options) {
  const mock = await Mock.start(t, options);
  const connection = open(t, mock.url);
  await connection.is('open');
  const frames = [];
  mock.peers.at(-1).socket.on('message', (data, isBinary) => frames.push([isBinary, data]));
  return { connection, peer: mock.peers.at(-1), frames };
}

const bytesOf = (value) => (ArrayBuffer.isView(value) ? Buffer.from(value.buffer, value.byteOffset, value.byteLength) : Buffer.from(value));

for (const [cell, goes] of await tableOfGuide('data |')) {
  for (const [, source] of cell.matchAll(/`((?:[^`])+)`/g)) {
    test(`${source}: ${goes.replace(/[:,].*/, '')}`, async (t) => {
      const value = new Function(`return (${source})`)();
      if (value instanceof Promise) value.catch(() => {});
      const { connection, peer } = await connected(t);
      connection.handle('ask', () => value);
      if (goes.startsWith('TypeError')) {
        assert.throws(() => connection.notify('n', value), TypeError);
        await assert.rejects(connection.call('c', value), TypeError);
        // A handler's invalid result is sent as an error.
        peer.send(request(7, 'ask'));
        const awaited = typeof value?.then === 'function';
        const answer = await peer.next();
        assert.equal(answer.form, awaited ? 4 : 5, JSON.stringify(answer));
        assert.equal(peer.received.length, 1);
        return;
      }
      const expected = goes.startsWith('bytes') ? bytesOf(value) : goes.startsWith('nothing') ? Buffer.alloc(0)
        : Buffer.from(typeof value === 'string' ? value : JSON.stringify(value));
      connection.notify('n', value);
      assert.equal((await peer.next()).payload, expected.toString());
      connection.call('c', value).catch(() => {});
      assert.equal((await peer.next()).payload, expected.toString());
      peer.send(request(7, 'ask'));
      assert.deepEqual(await peer.next(), { form: 4, id: 7, payload: expected.toString() });
    });
  }
}

test('all byte types arrive unchanged; plain data is text or bytes', async (t) => {
  const { connection, frames } = await connected(t, { protocols: ['humphrey_ws.plain.v1'] });
  const all = Uint8Array.from({ length: 256 }, (_, n) => n);
  const shared = new SharedArrayBuffer(3);
  new Uint8Array(shared).set([1, 255, 0]);
  const elsewhere = runInContext('new Uint8Array([5, 200]).buffer', createContext({}));
  const given = [all, all.buffer, all.subarray(3, 9), new DataView(all.buffer, 200), Buffer.from(all), shared, elsewhere, new Float32Array([1.5]), 'zwöi 🎉', ''];
  for (const value of given) connection.send(value);
  connection.send('end');
  const texts = given.map((value) => [typeof value !== 'string', bytesOf(value)]);
  await inTime((async () => { while (frames.length <= given.length) await new Promise((resolve) => setTimeout(resolve, 5)); })());
  assert.deepEqual(frames.slice(0, -1), texts);
  const refused = [undefined, null, 1, true, {}, [], { a: 1 }, new Map(), new Blob(['a']), new URLSearchParams('a=1'), new FormData(), () => 1, 1n, NaN, Symbol('s'), '\ud800', 'a\udc00b', new Date()];
  for (const value of refused) assert.throws(() => connection.send(value), TypeError, String(typeof value));
  assert.equal(frames.length, given.length + 1, 'nothing of them was sent');
});

test('name that is not a string throws', async (t) => {
  const { connection, peer } = await connected(t);
  for (const name of [undefined, null, 1, {}, new Map(), '\ud800']) {
    assert.throws(() => connection.notify(name, 'x'), TypeError);
    assert.throws(() => connection.on(name, () => {}), TypeError);
    await assert.rejects(connection.call(name, 'x'), TypeError);
    await assert.rejects(connection.join(name), TypeError);
  }
  await connection.call('$ping');
  assert.deepEqual(peer.received, []);
  void error;
});
