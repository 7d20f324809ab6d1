// `ws` on Node.js, as its own documentation shows it.
//
//     node server.mjs echo|fanout|blocked

import { WebSocketServer } from 'ws';
import { isBlocking, job, PUBLISH } from './jobs.mjs';

const server = new WebSocketServer({ host: '127.0.0.1', port: 0, backlog: 4096 });
const nap = new Int32Array(new SharedArrayBuffer(4));

server.on('connection', (socket, request) => {
  const publishes = request.url === PUBLISH;
  socket.on('error', () => {});
  socket.on('message', (data) => {
    if (job !== 'fanout') {
      if (isBlocking(data)) Atomics.wait(nap, 0, 0, 50);
      socket.send(data);
    } else if (publishes) {
      for (const client of server.clients) client.send(data);
    }
  });
});

server.on('listening', () => console.log(`READY 127.0.0.1:${server.address().port}`));
