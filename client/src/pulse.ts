import { after, now } from "./timer.js";

/** Detects a server that is gone although the connection has not ended. */
export interface Pulse {
  start(): void;
  stop(): void;
  /** Records that something was received. */
  noteReceived(): void;
  /** Pings now, unless a ping is pending. */
  check(): void;
}

/**
 * Calls `ping` after `interval` milliseconds without a message, and `onDead` if nothing arrives within `timeout` after that.
 */
export function makePulse(interval: number, timeout: number, ping: () => void, onDead: () => void): Pulse {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let receivedAt = 0;
  let pingedAt = 0;

  function schedule(): void {
    const rest = receivedAt + interval - now();
    if (rest > 0) timer = after(rest, schedule);
    else probe();
  }

  function probe(isAgain = false): void {
    pingedAt = now();
    timer = after(timeout, () => {
      if (receivedAt >= pingedAt) schedule();
      // After a frozen page or a sleeping computer, the answer may still be unread: ping once more.
      else if (now() - pingedAt - timeout > 1_000 && !isAgain) probe(true);
      else onDead();
    });
    ping();
  }

  function stop(): void {
    clearTimeout(timer);
    timer = undefined;
  }

  return {
    start() {
      stop();
      pingedAt = 0;
      receivedAt = now();
      if (interval > 0) schedule();
    },
    stop,
    noteReceived: () => void (receivedAt = now()),
    check() {
      if (!timer || pingedAt > receivedAt) return;
      stop();
      probe();
    },
  };
}
