// Bun's own server, with its own publish and subscribe.
//
//     bun server.bun.mjs echo|fanout|blocked

import { isBlocking, job, PUBLISH } from './jobs.mjs';

const server = Bun.serve({
  hostname: '127.0.0.1',
  port: 0,
  fetch(request, server) {
    const publishes = new URL(request.url).pathname === PUBLISH;
    if (server.upgrade(request, { data: { publishes } })) return;
    return new Response('WebSocket only', { status: 426 });
  },
  websocket: {
    open(socket) {
      if (job === 'fanout') socket.subscribe('everyone');
    },
    message(socket, data) {
      if (job !== 'fanout') {
        if (isBlocking(data)) Bun.sleepSync(50);
        socket.send(data);
      } else if (socket.data.publishes) {
        server.publish('everyone', data);
      }
    },
  },
});

console.log(`READY 127.0.0.1:${server.port}`);
