// The client's side of the protocol of server.rs, for WebSockets with the interface of browsers.

const CONNECTIONS = 3;
const HEADER = 16;

const TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let entry = index;
  for (let bit = 0; bit < 8; bit++) entry = (entry >>> 1) ^ (entry & 1 ? 0xedb88320 : 0);
  return entry;
});

function crc32(bytes, crc) {
  crc = ~crc;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return ~crc >>> 0;
}

const hex = crc => crc.toString(16).padStart(8, '0');
const encoder = new TextEncoder();
const decoder = new TextDecoder();

function checkOwn(bytes) {
  if (bytes.length < HEADER) return;
  const [, checksum] = /^\d{6} ([0-9a-f]{8}) $/.exec(decoder.decode(bytes.subarray(0, HEADER))) ?? [];
  if (checksum !== hex(crc32(bytes.subarray(HEADER), 0))) {
    throw new Error(`the checksum of message ${decoder.decode(bytes.subarray(0, 6))} differs`);
  }
}

/** Plays one connection. Resolves to the number of received messages, and whether the client must reconnect. */
function playConnection(url, open, hooks) {
  return new Promise((resolve, reject) => {
    const socket = open(url);
    socket.binaryType = 'arraybuffer';
    let begun = false;
    let count = 0;
    let hash = 0;
    let last;
    let ended;

    const receive = data => {
      const text = typeof data === 'string' ? data : undefined;
      if (!begun) {
        begun = text === 'begin';
        return;
      }
      if (text?.startsWith('end ')) {
        const [, expectedCount, expectedHash, what] = text.split(' ');
        if (Number(expectedCount) !== count || expectedHash !== hex(hash)) {
          throw new Error(`${count} messages with hash ${hex(hash)} instead of ${expectedCount} with ${expectedHash}`);
        }
        ended = { count, again: what === 'again' };
        const answer = `ended ${count} ${hex(hash)}`;
        socket.send(answer);
        if (hooks.leave) hooks.leave(socket, ended.again);
        else socket.close(1000);
        return;
      }
      const bytes = text === undefined ? new Uint8Array(data) : encoder.encode(text);
      count += 1;
      hash = crc32(bytes, crc32(encoder.encode(text === undefined ? 'b' : 't'), hash));
      hooks.onCounted?.(socket, count);
      if (text?.startsWith('mark ')) {
        socket.send(`${text} ${count} ${hex(hash)}`);
        if (last !== undefined) socket.send(last);
        return;
      }
      checkOwn(bytes);
      last = data;
    };

    socket.onopen = () => {
      hooks.onOpen?.(socket, reject);
      socket.send(`hello ${socket.extensions}`);
    };
    socket.onmessage = ({ data }) => {
      if (ended !== undefined) return;
      try {
        receive(data);
      } catch (error) {
        socket.send(`failed ${error.message}`);
        reject(error);
      }
    };
    socket.onerror = event => {
      if (ended === undefined) reject(new Error(`error: ${event.message ?? event.type}`));
    };
    socket.onclose = ({ code }) => {
      if (ended === undefined) reject(new Error(`closed with ${code}`));
      else resolve(ended);
    };
  });
}

/** Plays a run. Resolves to the number of received messages. */
export async function play(url, open = url => new WebSocket(url), hooks = {}) {
  const playSlot = async () => {
    let messages = 0;
    for (;;) {
      const { count, again } = await playConnection(url, open, hooks);
      messages += count;
      if (!again) return messages;
    }
  };
  const counts = await Promise.all(Array.from({ length: CONNECTIONS }, playSlot));
  return counts.reduce((sum, count) => sum + count);
}
