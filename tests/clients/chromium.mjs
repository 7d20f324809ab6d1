// The WebSocket of a browser: headless Chromium.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { once } from 'node:events';

import { BROADCAST_URL, DEADLINE, ECHO_URL, run, typeLine } from './checks.mjs';
import { launch } from './windows.mjs';

const SIZES = [0, 1, 125, 126, 65_535, 65_536, 1 << 20];
const PIPELINED = 10_000;
const CLIENTS = 20;

// A page of an origin of its own, as a site has.
const site = createServer((_, response) => {
  response.setHeader('Content-Type', 'text/html');
  response.end('<!doctype html><title>Client</title>');
});
site.listen(0, '127.0.0.1');
await once(site, 'listening');

const browser = await launch();
const page = await browser.newPage();
page.setDefaultTimeout(DEADLINE);
await page.goto(`http://127.0.0.1:${site.address().port}/`);

await page.evaluate(() => {
  /** A client whose messages wait until they are asked for. */
  window.Client = class {
    #arrived = [];
    #asked = [];

    static open(url) {
      return new Promise((resolve, reject) => {
        const client = new Client();
        client.socket = new WebSocket(url);
        client.socket.binaryType = 'arraybuffer';
        client.socket.onopen = () => resolve(client);
        client.socket.onmessage = ({ data }) => {
          const asked = client.#asked.shift();
          if (asked) asked.resolve(data);
          else client.#arrived.push(data);
        };
        client.closed = new Promise(closed => {
          client.socket.onclose = ({ code, reason, wasClean }) => {
            const error = new Error(`closed with ${code}`);
            reject(error);
            for (const asked of client.#asked) asked.reject(error);
            closed({ code, reason, wasClean });
          };
        });
      });
    }

    send(data) {
      this.socket.send(data);
    }

    async receive() {
      if (this.#arrived.length > 0) return this.#arrived.shift();
      return new Promise((resolve, reject) => this.#asked.push({ resolve, reject }));
    }

    close(code = 1000, reason = '') {
      this.socket.close(code, reason);
      return this.closed;
    }
  };
});

async function handshake() {
  const seen = await page.evaluate(async url => {
    const client = await Client.open(url);
    const { extensions, protocol } = client.socket;
    await client.close();
    return { extensions, protocol };
  }, ECHO_URL);
  assert.deepEqual(seen, { extensions: '', protocol: '' });
}

async function text_and_binary_of_every_size() {
  const wrong = await page.evaluate(async ([url, sizes]) => {
    const client = await Client.open(url);
    const wrong = [];
    for (const size of sizes) {
      const text = 'x'.repeat(size);
      client.send(text);
      if ((await client.receive()) !== text) wrong.push(`text of ${size}`);
      client.send(new Uint8Array(size).fill(255));
      const received = await client.receive();
      const same = received instanceof ArrayBuffer
        && received.byteLength === size
        && new Uint8Array(received).every(byte => byte === 255);
      if (!same) wrong.push(`binary of ${size}`);
    }
    await client.close();
    return wrong;
  }, [ECHO_URL, SIZES]);
  assert.deepEqual(wrong, []);
}

async function pipelined_messages_in_order() {
  const inOrder = await page.evaluate(async ([url, count]) => {
    const client = await Client.open(url);
    for (let number = 0; number < count; number++) client.send(`${number}`);
    let inOrder = 0;
    while (inOrder < count && (await client.receive()) === `${inOrder}`) inOrder += 1;
    await client.close();
    return inOrder;
  }, [ECHO_URL, PIPELINED]);
  assert.equal(inOrder, PIPELINED);
}

async function close_1000_and_4000() {
  for (const code of [1000, 4000]) {
    const closed = await page.evaluate(async ([url, code]) => {
      const client = await Client.open(url);
      return client.close(code, 'done');
    }, [ECHO_URL, code]);
    assert.equal(closed.code, code);
    assert.equal(closed.wasClean, true);
  }
}

async function broadcast_to_many_clients() {
  const open = () => page.evaluate(async url => {
    window.clients ??= [];
    window.clients.push(await Client.open(url));
  }, BROADCAST_URL);
  const receiveAll = () =>
    page.evaluate(() => Promise.all(window.clients.map(client => client.receive())));

  for (let count = 1; count <= CLIENTS; count++) {
    await open();
    const welcomes = await receiveAll();
    assert.match(welcomes[0], /^Welcome, 127\.0\.0\.1:\d+!$/);
    assert.deepEqual(welcomes, Array(count).fill(welcomes[0]));
  }
  for (const line of ['one', 'two', '', 'three']) {
    await typeLine(line);
    assert.deepEqual(await receiveAll(), Array(CLIENTS).fill(line));
  }
  const closed = await page.evaluate(() =>
    Promise.all(window.clients.map(client => client.close())));
  assert.ok(closed.every(({ wasClean }) => wasClean));
}

async function others_go_on_when_a_page_is_left() {
  const other = await browser.newPage();
  await other.goto(page.url());
  await other.evaluate(url => new Promise((resolve, reject) => {
    window.socket = new WebSocket(url);
    window.socket.onmessage = resolve;
    window.socket.onclose = () => reject(new Error('closed'));
  }), BROADCAST_URL);
  await other.close();
  const echoed = await page.evaluate(async url => {
    const client = await Client.open(url);
    await client.receive();
    client.send('still here');
    const echoed = await client.receive();
    await client.close();
    return echoed;
  }, BROADCAST_URL);
  assert.equal(echoed, 'still here');
}

const passed = await run(`Chromium ${browser.version()}`, [
  handshake,
  text_and_binary_of_every_size,
  pipelined_messages_in_order,
  close_1000_and_4000,
  broadcast_to_many_clients,
  others_go_on_when_a_page_is_left,
]);
await browser.close();
site.close();
process.exit(passed ? 0 : 1);
