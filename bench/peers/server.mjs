// `ws` on Node.js, as its own documentation shows it.
//
//     node server.mjs echo|fanout|blocked|chat [deflate]

import { WebSocketServer } from 'ws';
import { compression, HELLO, isBlocking, job, PUBLISH } from './jobs.mjs';

const server = new WebSocketServer({
  host: '127.0.0.1',
  port: 0,
  backlog: 4096,
  // By default, messages below 1,024 bytes are not compressed.
  perMessageDeflate: compression === 'none' ? false : { threshold: 0 },
});
const nap = new Int32Array(new SharedArrayBuffer(4));

server.on('connection', (socket, request) => {
  const publishes = request.url === PUBLISH;
  socket.on('error', () => {});
  socket.on('message', (data, binary) => {
    if (job === 'fanout') {
      if (publishes) for (const client of server.clients) client.send(data, { binary });
    } else if (job === 'chat' && data.toString() !== HELLO) {
      for (const client of server.clients) if (client !== socket) client.send(data, { binary });
    } else {
      if (isBlocking(data)) Atomics.wait(nap, 0, 0, 50);
      socket.send(data, { binary });
    }
  });
});

server.on('listening', () => console.log(`READY 127.0.0.1:${server.address().port}`));
