// Plays a run with npm's ws or undici: `node node.mjs ws|undici URL`.

import { createRequire } from 'node:module';

import { play } from './member.mjs';

const [, , name, url] = process.argv;
const { version } = createRequire(import.meta.url)(`${name}/package.json`);
console.log(`${name} ${version}`);

const PING_EVERY = 100;
let pings = 0;
let pongs = 0;

// Only `ws` can ping, and disappear without a closing handshake. It does so when the server has read the answer: what has not
// been read yet can be lost with the connection.
const hooks = {
  ws: {
    onOpen: socket => socket.on('pong', () => { pongs += 1; }),
    onCounted: (socket, count) => {
      if (count % PING_EVERY !== 0) return;
      pings += 1;
      socket.ping(`${count}`);
    },
    sendAndVanish: (socket, answer) => {
      socket.on('pong', payload => {
        if (`${payload}` === 'answered') socket.terminate();
      });
      socket.send(answer);
      socket.ping('answered');
    },
  },
  undici: {},
};

const { WebSocket } = await import(name);
const messages = await play(url, url => new WebSocket(url), hooks[name]);
// Pings shortly before the end may stay unanswered.
if (name === 'ws' && pongs < pings / 2) throw new Error(`${pongs} pongs for ${pings} pings`);
console.log(`${messages} messages`);
