// In headless Chromium, against the library's server.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { after, before, test } from 'node:test';

import { chromium } from 'playwright-core';

import { DEADLINE, httpProxy, Mock, Proxy, Server, until } from './support.mjs';

const code = await readFile(new URL('../../src/client.js', import.meta.url), 'utf8');
const PAGES = {
  '/page': `<!doctype html><meta charset="utf-8"><title>page</title><link rel="icon" href="data:,"><script type="module">
    import * as client from '/client.js';
    Object.assign(globalThis, client, { QUICK: { delayFirst: 5, delayMax: 50 } });
    // Opens a connection and records its states and messages.
    globalThis.open = (url, options) => {
      const connection = connect(url, { ...QUICK, ...options });
      Object.assign(globalThis, { connection, states: [], got: [] });
      connection.states((state) => states.push(state));
      connection.messages((data) => got.push(data.text()));
    };
    globalThis.count = (name) => states.filter((state) => state.name === name).length;
  </script>`,
  '/other': '<!doctype html><title>other</title><link rel="icon" href="data:,">',
  '/client.js': code,
};

let browser;
before(async () => {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: process.getuid() === 0 ? ['--no-sandbox'] : [],
    ignoreDefaultArgs: ['--disable-back-forward-cache'],
  });
});
after(() => browser?.close());

/** Starts a server and opens a page, whose console output is recorded. */
async function setUp(t, { example = 'client_server', isOpen = true } = {}) {
  const server = await Server.start(t, example);
  const site = await httpProxy(t, server.port, PAGES);
  site.isOpen = isOpen;
  const context = await browser.newContext();
  t.after(() => context.close());
  const page = await context.newPage();
  page.setDefaultTimeout(DEADLINE);
  const said = [];
  page.on('console', (message) => said.push(message.text()));
  page.on('pageerror', (error) => said.push(String(error)));
  await page.goto(`${site.url}page`);
  await page.waitForFunction(() => globalThis.open && globalThis.connect);
  const run = (act, arg) => page.evaluate(act, arg);
  const wait = (condition, arg) => page.waitForFunction(condition, arg, { polling: 20 });
  return { server, site, page, context, said, run, wait };
}

test('page connects by relative URL, calls, listens, joins, answers', async (t) => {
  const { run, wait, said } = await setUp(t);
  const results = await run(async () => {
    open('/live?token=1#part');
    const echo = (await connection.call('echo', { a: 'ü' })).json();
    connection.handle('good', async (data) => `${data.text()}: 42`);
    const asked = (await connection.call('ask', 'good')).text();
    const back = connection.on('back');
    connection.notify('back', 'b');
    const notified = (await back.next()).value.text();
    await connection.join('topic');
    connection.notify('publish', 'text');
    const refused = await connection.join('secret').catch(({ code }) => code);
    return [echo, asked, notified, refused, connection.state];
  });
  assert.deepEqual(results, [
    { a: 'ü' }, 'question: 42', 'b', 'refused',
    { name: 'open', transport: 'websocket', protocol: 'humphrey_ws.procedures.v1' },
  ]);
  await wait(() => got.includes('text'));
  assert.equal(await run(() => {
    connection.close(4000, 'bye');
    return connection.state.code;
  }), 4000);
  assert.deepEqual(said, []);
});

test('aborted or timed-out call of a page is reset on the server', async (t) => {
  const { run, said } = await setUp(t, { example: 'procedures' });
  await run(() => {
    open('/');
    globalThis.observer = connect('/');
    globalThis.controller = new AbortController();
    globalThis.calling = connection.call('report', '1000', { signal: controller.signal }).catch(({ code, sent }) => [code, sent]);
  });
  const reports = () => run(async () => (await observer.call('reports')).text());
  await until(async () => (await reports()) === '1 0');
  assert.deepEqual(await run(() => (controller.abort(), calling)), ['aborted', true]);
  await until(async () => (await reports()) === '0 1');
  const timedOut = run(() => connection.call('report', '1000', { signal: AbortSignal.timeout(100) }).catch(({ code, cause }) => [code, cause.name]));
  assert.deepEqual(await timedOut, ['aborted', 'TimeoutError']);
  await until(async () => (await reports()) === '0 2');
  assert.deepEqual(said, []);
});

test('half-open connection is detected and its room resumed', async (t) => {
  const { server, run, wait } = await setUp(t);
  const proxy = await Proxy.start(t, server.port);
  await run(async (url) => {
    open(url, { pingInterval: 50, pingTimeout: 100 });
    await connection.join('numbers');
  }, proxy.url);
  await wait(() => got.length > 50);
  proxy.swallow('client', 'server');
  await wait(() => count('open') === 2);
  const length = await run(() => got.length);
  await wait((length) => got.length > length + 50, length);
  const numbers = (await run(() => got)).map(Number);
  assert.deepEqual(numbers, Array.from(numbers, (_, n) => numbers[0] + n));
  assert.match(await run(() => states.find(({ name }) => name === 'waiting').reason), /does not answer/);
});

test('page reconnects to a restarted server and reports the gap', async (t) => {
  const { server, run, wait } = await setUp(t);
  await run(async (url) => {
    open(url);
    globalThis.gaps = [];
    await connection.join('numbers', { onGap: (gap) => gaps.push(gap.room) });
  }, server.url);
  await wait(() => got.length > 10);
  await server.kill();
  await wait(() => count('waiting') >= 1);
  await server.start();
  await wait(() => gaps.length === 1 && got.at(-1) > 10);
});

test('app without procedures gets one connection per page load', async (t) => {
  const { run, wait, said, site, page } = await setUp(t, { example: 'echo' });
  for (let load = 1; load <= 3; load += 1) {
    await run(() => {
      open('/');
      connection.send('text');
    });
    await wait(() => got.includes('text'));
    assert.deepEqual(await run(() => [connection.state.protocol, states.map(({ name }) => name)]), ['', ['connecting', 'open']]);
    assert.equal(await run(() => connection.call('x').catch(({ code }) => code)), 'unsupported');
    assert.equal(site.upgrades, load);
    await page.reload();
    await page.waitForFunction(() => globalThis.open && globalThis.connect);
  }
  assert.deepEqual(said, []);
});

test('foreign server without subprotocols gets plain messages', async (t) => {
  const { run, wait } = await setUp(t, { example: 'echo' });
  const mock = await Mock.start(t, { protocols: [], connected: ({ socket }) => socket.on('message', (data) => socket.send(data.toString())) });
  await run((url) => {
    open(url);
    connection.send('text');
  }, mock.url);
  await wait(() => got.includes('text'));
  assert.deepEqual(await run(() => [connection.state.protocol, states.map(({ name }) => name)]), ['', ['connecting', 'open']]);
});

test('unsendable data throws; early messages are held in a page', async (t) => {
  const { run, wait, said } = await setUp(t);
  const thrown = await run(async () => {
    open('/');
    const names = [];
    const values = [new Blob(['a']), new File(['a'], 'a'), new FormData(), new URLSearchParams('a=1'), new Map(), document.body, document.body.childNodes, new ImageData(1, 1), crypto];
    const frame = document.body.appendChild(document.createElement('iframe'));
    values.push(new frame.contentWindow.Map(), new frame.contentWindow.Blob(['a']));
    for (const value of values) {
      for (const act of [() => connection.send(value), () => connection.notify('n', value), () => connection.notify('n', [value])]) {
        try { act(); names.push(String(value)); } catch ({ name }) { if (name !== 'TypeError') names.push(name); }
      }
    }
    const bytes = new frame.contentWindow.Uint8Array([1, 2]);
    names.push([...await connection.call('echo', bytes)].join(), [...await connection.call('echo', bytes.buffer)].join());
    names.push((await connection.call('echo', new frame.contentWindow.Object())).text());
    connection.notify('back', 'early');
    await connection.call('echo');
    globalThis.back = connection.on('back');
    names.push((await back.next()).value.text());
    return names;
  });
  assert.deepEqual(thrown, ['1,2', '1,2', '{}', 'early']);
  await run(() => void connection.join('secret'));
  await wait(() => true);
  await until(() => said.length > 0);
  assert.match(said[0], /CallError/);
});

test('procedures: false leaves the console empty', async (t) => {
  const { run, wait, said } = await setUp(t, { example: 'echo' });
  await run(() => {
    open('/', { procedures: false });
    connection.send('text');
  });
  await wait(() => got.includes('text'));
  assert.deepEqual(said, []);
});

test('page falls back to events, then returns to a WebSocket', async (t) => {
  const { run, wait, site, server } = await setUp(t, { isOpen: false });
  await run(() => {
    open('/', { events: '/events', eventsAfter: 2, eventsRetry: 300 });
    connection.join('topic', { since: 'all' });
  });
  await wait(() => connection.state.transport === 'events');
  assert.equal(await run(() => connection.call('x').catch(({ code }) => code)), 'unsupported');
  const publish = (text) => run(async ([url, text]) => {
    const other = connect(url);
    other.notify('publish', text);
    await other.call('echo');
    other.close();
  }, [server.url, text]);
  await publish('zwöi');
  await wait(() => got.length === 1);
  site.isOpen = true;
  await wait(() => connection.state.transport === 'websocket');
  await publish('drü');
  await wait(() => got.length === 2);
  assert.deepEqual(await run(() => got), ['zwöi', 'drü']);
});

test('event without an id is not taken for a duplicate', async (t) => {
  const { run, wait } = await setUp(t, { isOpen: false });
  const ids = ['a-1', '', '', 'a-2', 'a-1', '', 'a-3'];
  const stream = createServer((_, answer) => {
    answer.writeHead(200, { 'Content-Type': 'text/event-stream', 'Access-Control-Allow-Origin': '*' });
    answer.write(ids.map((id, n) => `${id && `id: ${id}\n`}data: ${n}\n\n`).join(''));
  });
  stream.listen(0, '127.0.0.1');
  await once(stream, 'listening');
  t.after(() => {
    stream.closeAllConnections();
    stream.close();
  });
  await run((events) => open('/', { events, eventsAfter: 1 }), `http://127.0.0.1:${stream.address().port}/`);
  await wait(() => got.at(-1) === '6');
  // Only the message that repeats an earlier id is dropped.
  assert.deepEqual(await run(() => got), ['0', '1', '2', '3', '5', '6']);
});

test('page in the back/forward cache disconnects, then resumes', async (t) => {
  const { run, wait, page, site, server } = await setUp(t);
  await run(async () => {
    open('/');
    globalThis.isSame = true;
    await connection.join('topic');
    globalThis.persisted = [];
    addEventListener('pageshow', (event) => persisted.push(event.persisted));
  });
  await page.goto(`${site.url}other`);
  await page.evaluate(async ([url, path]) => {
    const { connect } = await import(path);
    const other = connect(url);
    other.notify('publish', 'missed');
    await other.call('echo');
    other.close();
  }, [server.url, `${site.url}client.js`]);
  await page.goBack({ waitUntil: 'commit' });
  await page.waitForFunction(() => globalThis.connect);
  assert.equal(await run(() => globalThis.isSame), true, 'the browser has kept the page');
  await wait(() => persisted.length === 1 && connection.state.name === 'open');
  assert.deepEqual(await run(() => persisted), [true]);
  await wait(() => got.includes('missed'));
  const states = await run(() => globalThis.states.map(({ name, until }) => name + (until === Infinity ? ' away' : '')));
  assert.deepEqual(states, ['connecting', 'open', 'waiting away', 'connecting', 'open']);
});

test('frozen page does not take its server for dead', async (t) => {
  const { run, wait, page, context, server } = await setUp(t);
  const proxy = await Proxy.start(t, server.port);
  // Slow enough that the page usually freezes between a ping and its answer.
  proxy.delay = 300;
  await run((url) => {
    open(url, { pingInterval: 50, pingTimeout: 2_000 });
    return connection.call('echo').then(() => {});
  }, proxy.url);
  const session = await context.newCDPSession(page);
  for (let round = 0; round < 2; round += 1) {
    await session.send('Page.setWebLifecycleState', { state: 'frozen' });
    await new Promise((resolve) => setTimeout(resolve, 3_300));
    await session.send('Page.setWebLifecycleState', { state: 'active' });
    // Longer than the timeout of the repeated ping.
    await run(() => new Promise((resolve) => setTimeout(resolve, 2_300)));
    await run(() => connection.call('echo').then(() => {}));
  }
  await wait(() => connection.state.name === 'open');
  assert.deepEqual(await run(() => states.map(({ name }) => name)), ['connecting', 'open']);
});

test('online and visible pages retry early, except after overload', async (t) => {
  const { run, wait, page, context, server } = await setUp(t);
  const proxy = await Proxy.start(t, server.port);
  await run(async (url) => {
    Math.random = () => 0.99;
    open(url, { delayFirst: 600_000, delayMax: 600_000 });
    await connection.call('echo');
  }, proxy.url);
  proxy.cut();
  await wait(() => connection.state.name === 'waiting');
  await context.setOffline(true);
  await context.setOffline(false);
  await wait(() => count('open') === 2);
  proxy.cut();
  await wait(() => count('waiting') === 2);
  await run(() => document.dispatchEvent(new Event('visibilitychange')));
  await wait(() => count('open') === 3);
  await run(() => connection.notify('close', 1013));
  await wait(() => count('waiting') === 3);
  await run(() => document.dispatchEvent(new Event('visibilitychange')));
  await run(() => new Promise((resolve) => setTimeout(resolve)));
  assert.equal(await run(() => connection.state.name), 'waiting');
  await run(() => connection.reconnect());
  await wait(() => count('open') === 4);
  void page;
});

test('throwing listener is a page error; other listeners still run', async (t) => {
  const { run, wait, said } = await setUp(t);
  await run(() => {
    open('/');
    connection.on('back', () => { throw new Error('mine'); });
    connection.on('back', (data) => got.push(data.text()));
    connection.notify('back', 'b');
  });
  await wait(() => got.includes('b'));
  await until(() => said.length > 0);
  assert.deepEqual(said, ['Error: mine']);
});
