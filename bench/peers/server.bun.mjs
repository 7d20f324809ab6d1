// Bun's own server, with its own publish and subscribe.
//
//     bun server.bun.mjs echo|fanout|blocked|chat|round-robin [none|dedicated|shared [CERTIFICATE KEY]]

import {
  certificate,
  compression,
  HELLO,
  isBlocking,
  job,
  key,
  PUBLISH,
  ROUND_ROBIN_ROOMS,
} from './jobs.mjs';

const compress = compression !== 'none';
let messages = 0;

const server = Bun.serve({
  hostname: '127.0.0.1',
  port: 0,
  tls: certificate ? { cert: Bun.file(certificate), key: Bun.file(key) } : undefined,
  fetch(request, server) {
    const path = new URL(request.url).pathname;
    if (server.upgrade(request, { data: { publishes: path === PUBLISH, path } })) return;
    return new Response('WebSocket only', { status: 426 });
  },
  websocket: {
    perMessageDeflate: compress ? { compress: compression, decompress: 'shared' } : false,
    open(socket) {
      if (job === 'fanout' || job === 'chat') socket.subscribe('everyone');
      if (job === 'round-robin') socket.subscribe(socket.data.path);
    },
    message(socket, data) {
      if (job === 'fanout') {
        if (socket.data.publishes) server.publish('everyone', data, compress);
      } else if ((job === 'chat' || job === 'round-robin') && data !== HELLO) {
        if (job === 'chat') socket.publish('everyone', data, compress);
        else server.publish(`/${messages++ % ROUND_ROBIN_ROOMS}`, data, compress);
      } else {
        if (isBlocking(data)) Bun.sleepSync(50);
        socket.send(data);
      }
    },
  },
});

console.log(`READY 127.0.0.1:${server.port}`);
