import { CallError, guarded } from "./error.js";

/** The listeners of one kind of event. */
export interface Listeners<Args extends [unknown, ...unknown[]]> {
  /** Whether messages are passed on at once instead of being held. */
  isLive: boolean;
  listen(callback: (...args: Args) => unknown): () => void;
  /** Creates an iterator over future events that buffers at most `itemsMax` of them. */
  iterate(itemsMax: number): Queue<Args[0]>;
  /** Calls every listener. An error that one throws is reported, and the others are called. */
  emit(...args: Args): void;
  /** Ends all iterators. Callbacks stay, since the connection may be reopened. */
  end(): void;
}

export function makeListeners<Args extends [unknown, ...unknown[]]>(): Listeners<Args> {
  const callbacks = new Set<(...args: Args) => unknown>();
  const queues = new Set<Queue<Args[0]>>();
  return {
    isLive: false,
    listen(callback) {
      // A function that is added twice is called twice.
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
      for (const queue of queues) queue.enqueue(args[0]);
      for (const callback of [...callbacks]) guarded(callback, ...args);
    },
    end() {
      for (const queue of queues) queue.end();
    },
  };
}

export interface Queue<T> extends AsyncIterableIterator<T, undefined> {
  enqueue(item: T): void;
  end(): void;
}

function makeQueue<T>(itemsMax: number, forget: () => void): Queue<T> {
  const done = { done: true, value: undefined } as const;
  /** Functions that return an item, or throw the error at which the iterator ends. */
  let items: (() => IteratorResult<T, undefined>)[] = [];
  let waiting: ((result: IteratorResult<T, undefined>) => void)[] = [];
  let isEnded = false;

  function end(): void {
    isEnded = true;
    forget();
    for (const resolve of waiting) resolve(done);
    waiting = [];
  }

  return {
    enqueue(value) {
      const item = { done: false, value } as const;
      const resolve = waiting.shift();
      if (resolve) return resolve(item);
      if (items.length < itemsMax) return void items.push(() => item);
      // The consumer must learn that items are missing.
      items.push(() => {
        throw new CallError("full", "read too slowly");
      });
      end();
    },
    end,
    async next() {
      const item = items.shift();
      if (item) return item();
      return isEnded ? done : new Promise((resolve) => waiting.push(resolve));
    },
    async return() {
      items = [];
      end();
      return done;
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}
