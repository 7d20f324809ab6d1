import { CallError, guarded } from "./error.js";

/** Who listens to one kind of thing. */
export interface Listeners<Args extends [unknown, ...unknown[]]> {
  /** Whether what comes is given to them, and not held. */
  isLive: boolean;
  listen(callback: (...args: Args) => unknown): () => void;
  /** A queue of what comes from now on, of so many items at most. */
  iterate(itemsMax: number): Queue<Args[0]>;
  /** Tells everyone. What a listener throws is reported, and the others go on. */
  emit(...args: Args): void;
  /** Ends all queues. Callbacks stay: the connection may be opened again. */
  end(): void;
}

export function makeListeners<Args extends [unknown, ...unknown[]]>(): Listeners<Args> {
  const callbacks = new Set<(...args: Args) => unknown>();
  const queues = new Set<Queue<Args[0]>>();
  return {
    isLive: false,
    listen(callback) {
      // The same function twice is two listeners.
      const own = (...args: Args) => callback(...args);
      callbacks.add(own);
      return () => void callbacks.delete(own);
    },
    iterate(itemsMax) {
      const queue = makeQueue<Args[0]>(itemsMax, () => queues.delete(queue));
      queues.add(queue);
      return queue;
    },
    emit(...args) {
      for (const queue of queues) queue.give(args[0]);
      for (const callback of [...callbacks]) guarded(() => callback(...args));
    },
    end() {
      for (const queue of queues) queue.end();
    },
  };
}

export interface Queue<T> extends AsyncIterableIterator<T, undefined> {
  give(item: T): void;
  end(): void;
}

function makeQueue<T>(itemsMax: number, forget: () => void): Queue<T> {
  const done = { done: true, value: undefined } as const;
  let items: T[] = [];
  let waiting: ((result: IteratorResult<T, undefined>) => void)[] = [];
  let isEnded = false;
  let error: CallError | undefined;

  function end(): void {
    isEnded = true;
    forget();
    for (const resolve of waiting) resolve(done);
    waiting = [];
  }

  return {
    give(value) {
      const resolve = waiting.shift();
      if (resolve) return resolve({ done: false, value });
      if (items.push(value) <= itemsMax) return;
      // Whoever reads too slowly is to know that something is missing.
      items.pop();
      error = new CallError("full", "read too slowly");
      end();
    },
    end,
    async next() {
      if (items.length > 0) return { done: false, value: items.shift()! };
      const failed = error;
      error = undefined;
      if (failed) throw failed;
      return isEnded ? done : new Promise((resolve) => waiting.push(resolve));
    },
    async return() {
      items = [];
      error = undefined;
      end();
      return done;
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}
