// What the JavaScript clients share: where the examples are, and how checks are run.

import { writeFile } from 'node:fs/promises';

export const { AXUM_CHAT_URL, ECHO_URL, BROADCAST_URL, BROADCAST_INPUT, EVENTS_URL, EVENTS_INPUT, LINKED_URL } = process.env;

// How long anything may take, in milliseconds. Whoever waits so long waits for nothing.
export const DEADLINE = 60_000;

/** Writes a line to the standard input of the example `broadcast`. */
export const typeLine = line => writeFile(BROADCAST_INPUT, `${line}\n`, { flag: 'a' });

/** Writes a line to the standard input of the example `server_sent_events`. */
export const typeEvent = line => writeFile(EVENTS_INPUT, `${line}\n`, { flag: 'a' });

/** Runs checks one after the other. Each prints one line; the last line sums up. */
export async function run(client, checks) {
  let passed = 0;
  let failed = 0;
  for (const check of checks) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`not done in ${DEADLINE} ms`)), DEADLINE);
    });
    try {
      await Promise.race([check(), late]);
      passed += 1;
      console.log(`ok      ${client}: ${check.name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED  ${client}: ${check.name}\n${error.stack}`);
    } finally {
      clearTimeout(timer);
    }
  }
  console.log(`${passed} passed, ${failed} failed`);
  return failed === 0;
}
