// What both JavaScript servers know of the bench.

export const job = process.argv[2];
/** How messages are compressed: none; by Bun, dedicated or shared; by ws, deflate. */
export const compression = process.argv[3] ?? 'none';

if (!['echo', 'fanout', 'blocked', 'chat', 'turns'].includes(job)) {
  console.error('which job: echo, fanout, blocked, chat or turns?');
  process.exit(2);
}

/** The path whose connection is the publisher. */
export const PUBLISH = '/publish';
/** The first message of a client in a chat, or of rooms in turn: it is returned. */
export const HELLO = 'hello';
/** Number of rooms that are sent messages in turn. */
export const TURNS = 64;

const BLOCK = Buffer.from('sleep-50');

/** Whether a message is one whose handler blocks, as a handler that calls a database may. */
export function isBlocking(data) {
  return job === 'blocked' && BLOCK.equals(data.subarray(16, 16 + BLOCK.length));
}
