// What both JavaScript servers know of the bench.

export const job = process.argv[2];

if (!['echo', 'fanout', 'blocked'].includes(job)) {
  console.error('which job: echo, fanout or blocked?');
  process.exit(2);
}

/** The path whose connection is the publisher. */
export const PUBLISH = '/publish';

const BLOCK = Buffer.from('sleep-50');

/** Whether a message is one whose handler blocks, as a handler that calls a database may. */
export function isBlocking(data) {
  return job === 'blocked' && BLOCK.equals(data.subarray(16, 16 + BLOCK.length));
}
