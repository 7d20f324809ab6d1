// The client of npm's `ws`.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { WebSocket } from 'ws';

import { BROADCAST_URL, ECHO_URL, run, typeLine } from './checks.mjs';

const SIZES = [0, 1, 125, 126, 65_535, 65_536, 1 << 20, 16 << 20];
const PIPELINED = 10_000;
const CLIENTS = 20;

/** A client whose messages wait until they are asked for. */
class Client {
  #arrived = [];
  #asked = [];

  static async open(url, options) {
    const client = new Client();
    client.socket = new WebSocket(url, options);
    client.socket.on('message', (data, binary) => {
      const message = binary ? data : data.toString();
      const asked = client.#asked.shift();
      if (asked) asked.resolve(message);
      else client.#arrived.push(message);
    });
    client.closed = once(client.socket, 'close').then(([code, reason]) => {
      for (const asked of client.#asked) asked.reject(new Error(`closed with ${code}`));
      return { code, reason: reason.toString() };
    });
    await once(client.socket, 'open');
    return client;
  }

  send(data, options) {
    this.socket.send(data, options);
  }

  async receive() {
    if (this.#arrived.length > 0) return this.#arrived.shift();
    return new Promise((resolve, reject) => this.#asked.push({ resolve, reject }));
  }

  async close(code = 1000, reason = '') {
    this.socket.close(code, reason);
    return this.closed;
  }
}

async function handshake() {
  const client = await Client.open(ECHO_URL);
  assert.equal(client.socket.extensions, '');
  assert.equal(client.socket.protocol, '');
  await client.close();
}

async function text_and_binary_of_every_size() {
  const client = await Client.open(ECHO_URL);
  for (const size of SIZES) {
    const text = 'x'.repeat(size);
    client.send(text);
    assert.ok((await client.receive()) === text, `text of ${size}`);
    const binary = Buffer.alloc(size, 0xff);
    client.send(binary);
    const received = await client.receive();
    assert.ok(Buffer.isBuffer(received) && received.equals(binary), `binary of ${size}`);
  }
  await client.close();
}

async function pipelined_messages_in_order() {
  const client = await Client.open(ECHO_URL);
  for (let number = 0; number < PIPELINED; number++) client.send(`${number}`);
  for (let number = 0; number < PIPELINED; number++) {
    assert.equal(await client.receive(), `${number}`);
  }
  await client.close();
}

async function fragmented_messages() {
  const client = await Client.open(ECHO_URL);
  const text = Buffer.from('Grüezi');
  // The first fragment ends within the ü.
  client.send(text.subarray(0, 3), { binary: false, fin: false });
  client.socket.ping();
  client.send(Buffer.alloc(0), { fin: false });
  client.send(text.subarray(3), { fin: true });
  assert.equal(await client.receive(), 'Grüezi');

  client.send(Buffer.alloc(70_000, 1), { binary: true, fin: false });
  client.send(Buffer.alloc(70_000, 2), { fin: true });
  const expected = Buffer.concat([Buffer.alloc(70_000, 1), Buffer.alloc(70_000, 2)]);
  assert.ok(expected.equals(await client.receive()));
  await client.close();
}

async function ping_is_answered_with_its_payload() {
  const client = await Client.open(ECHO_URL);
  for (const payload of ['', 'hello', 'x'.repeat(125)]) {
    const pong = once(client.socket, 'pong');
    client.socket.ping(payload);
    assert.equal((await pong)[0].toString(), payload);
  }
  await client.close();
}

async function close_1000_and_4000() {
  for (const code of [1000, 4000]) {
    const client = await Client.open(ECHO_URL);
    // 1006 if the server had not answered with a close frame.
    assert.equal((await client.close(code, 'done')).code, code);
  }
}

async function replies_come_before_the_close() {
  const client = await Client.open(ECHO_URL);
  for (let number = 0; number < 100; number++) client.send(`${number}`);
  const { code } = await client.close(1000);
  assert.equal(code, 1000);
  for (let number = 0; number < 100; number++) assert.equal(await client.receive(), `${number}`);
}

async function broadcast_to_many_clients() {
  const clients = [];
  while (clients.length < CLIENTS) {
    clients.push(await Client.open(BROADCAST_URL));
    const welcomes = await Promise.all(clients.map(client => client.receive()));
    assert.match(welcomes[0], /^Welcome, 127\.0\.0\.1:\d+!$/);
    assert.deepEqual(welcomes, clients.map(() => welcomes[0]));
  }
  const lines = ['one', 'two', '', 'three'];
  for (const line of lines) await typeLine(line);
  for (const client of clients) {
    for (const line of lines) assert.equal(await client.receive(), line);
  }
  await Promise.all(clients.map(client => client.close()));
}

const passed = await run('npm ws', [
  handshake,
  text_and_binary_of_every_size,
  pipelined_messages_in_order,
  fragmented_messages,
  ping_is_answered_with_its_payload,
  close_1000_and_4000,
  replies_come_before_the_close,
  broadcast_to_many_clients,
]);
process.exit(passed ? 0 : 1);
