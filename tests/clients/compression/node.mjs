// Plays a run with npm's ws or undici: `node node.mjs ws|undici URL`.

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

// Only `ws` can ping, and disappear without a closing handshake. It does so when the server has read the answer: what has not
// been read yet can be lost with the connection. Each ping carries its number, and so does its pong: the server answers all
// of them in order, as fewer are on their way than it would merge.
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
