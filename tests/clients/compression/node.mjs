// Plays a run (server.rs) with npm's ws or undici: `node node.mjs ws|undici URL`.

import { createRequire } from 'node:module';

import { play } from './member.mjs';

const [, , name, url] = process.argv;
const { version } = createRequire(import.meta.url)(`${name}/package.json`);
console.log(`${name} ${version}`);

const PING_EVERY = 100;

function ping(socket) {
  socket.ping(`${socket.pings}`);
  socket.pings += 1;
}

// Only `ws` can send pings, and drop a connection without a closing handshake. Before it drops the connection, it waits for the
// pong to a last ping, which shows that the server has read the replies; unread ones could be lost. Each ping carries its
// number, and the pongs must return these in order. The server replaces a queued pong with a newer one only if 16 control frames
// are queued, and this client never has so many pings in flight.
const hooks = {
  ws: {
    onOpen: (socket, reject) => {
      socket.pings = 0;
      let pongs = 0;
      socket.on('pong', payload => {
        if (`${payload}` !== `${pongs}`) {
          reject(new Error(`pong ${payload} instead of ${pongs}`));
          return;
        }
        pongs += 1;
        if (pongs === socket.pings) socket.onAnswered?.();
      });
    },
    onCounted: (socket, count) => {
      if (count % PING_EVERY === 0) ping(socket);
    },
    leave: (socket, again) => {
      ping(socket);
      socket.onAnswered = () => (again ? socket.terminate() : socket.close(1000));
    },
  },
  undici: {},
};

const { WebSocket } = await import(name);
const messages = await play(url, url => new WebSocket(url), hooks[name]);
console.log(`${messages} messages`);
