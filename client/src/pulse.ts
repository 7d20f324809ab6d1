import { after, now } from "./timer.js";

/** Notices that nobody is there any more, though no connection has ended. */
export interface Pulse {
  start(): void;
  stop(): void;
  /** Something has come. */
  heard(): void;
  /** Asks now, unless it has asked already. */
  check(): void;
}

/**
 * After `interval` without anything that came it asks, and where nothing has come within `timeout` after that, all is
 * `dead`.
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
      // A page that was frozen, or a computer that has slept, may have the answer before it: it is asked once more.
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
