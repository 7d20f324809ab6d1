// An example that is ended and started again in between, and what its pages ask for and complain about.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect } from 'node:net';

/** An example at an address of its own, which stays the same. */
export class Server {
  constructor(binary) {
    this.binary = binary;
  }

  async start() {
    for (;;) {
      this.address ??= `127.0.0.1:${10_000 + Math.floor(Math.random() * 10_000)}`;
      const child = (this.child = spawn(this.binary, [this.address], { stdio: 'ignore' }));
      while (child.exitCode === null) if (await accepts(this.address)) return this;
      // Somebody else has the port.
      this.address = undefined;
    }
  }

  async kill() {
    const ended = once(this.child, 'exit');
    this.child.kill('SIGKILL');
    await ended;
  }
}

function accepts(address) {
  const [host, port] = address.split(':');
  return new Promise(resolve => {
    const socket = connect(Number(port), host, () => resolve(true));
    socket.on('error', () => resolve(false));
    socket.on('connect', () => socket.end());
  });
}

/** Notes what a page complains about, and what it fetches from anywhere but the server. */
export function watch(page, server, { complaints, elsewhere }) {
  page.on('pageerror', error => complaints.push(String(error)));
  page.on('console', entry => {
    // That the server is gone is what some checks are about.
    if (entry.type() === 'error' && !/ERR_CONNECTION|WebSocket connection/.test(entry.text())) complaints.push(entry.text());
  });
  page.on('request', request => {
    const url = request.url();
    if (!url.startsWith(`http://${server.address}/`) && !url.startsWith('data:')) elsewhere.push(url);
  });
}
