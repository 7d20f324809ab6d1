import { after, now } from "./timer.js";

/** Detects a server that is gone although the connection has not ended. */
export interface Pulse {
  start(): void;
  stop(): void;
  /** Records that something was received. */
  heard(): void;
  /** Pings now, unless a ping is pending. */
  check(): void;
}

/**
 * Calls `ask` after `interval` milliseconds without a message, and `dead` if nothing arrives within `timeout` after that.
 */
export function makePulse(interval: number, timeout: number, ask: () => void, dead: () => void): Pulse {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let heardAt = 0;
  let askedAt = 0;

  function watch(): void {
    const rest = heardAt + interval - now();
    timer = after(rest, () => (heardAt + interval <= now() ? probe() : watch()));
  }

  function probe(isAgain = false): void {
    askedAt = now();
    timer = after(timeout, () => {
      if (heardAt >= askedAt) watch();
      // After a frozen page or a sleeping computer, the answer may still be unread: ping once more.
      else if (now() - askedAt - timeout > 1_000 && !isAgain) probe(true);
      else dead();
    });
    ask();
  }

  function stop(): void {
    clearTimeout(timer);
    timer = undefined;
  }

  return {
    start() {
      stop();
      askedAt = 0;
      heardAt = now();
      if (interval > 0) watch();
    },
    stop,
    heard: () => void (heardAt = now()),
    check() {
      if (!timer || askedAt > heardAt) return;
      stop();
      probe();
    },
  };
}
