// What both JavaScript servers know of the bench.

export const job = process.argv[2];
/** The compression mode: `none`; with Bun also `dedicated` or `shared`, with ws also `deflate`. */
export const compression = process.argv[3] ?? 'none';
/** The PEM files of a certificate and its key, with which Bun speaks TLS. */
export const certificate = process.argv[4];
export const key = process.argv[5];

if (!['echo', 'fanout', 'blocked', 'chat', 'round-robin'].includes(job)) {
  console.error('which job: echo, fanout, blocked, chat or round-robin?');
  process.exit(2);
}

/** The path whose connection is the publisher. */
export const PUBLISH = '/publish';
/** The first message of a client in the jobs `chat` and `round-robin`, which the server returns. */
export const HELLO = 'hello';
/** Number of rooms in the job `round-robin`. */
export const ROUND_ROBIN_ROOMS = 64;

const BLOCK = Buffer.from('sleep-50');

/** Whether a message is one whose handler blocks, as a handler that calls a database may. */
export function isBlocking(data) {
  return job === 'blocked' && BLOCK.equals(data.subarray(16, 16 + BLOCK.length));
}
