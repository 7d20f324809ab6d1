import { CallError, guarded } from "./error.js";

/** Who listens to one kind of thing. */
export class Listeners<Args extends [unknown, ...unknown[]]> {
  #callbacks = new Set<(...args: Args) => unknown>();
  #queues = new Set<Queue<Args[0]>>();

  add(callback: (...args: Args) => unknown): () => void {
    // The same function twice is two listeners.
    const own = (...args: Args) => callback(...args);
    this.#callbacks.add(own);
    return () => void this.#callbacks.delete(own);
  }

  /** A queue of what comes from now on, of so many items at most. */
  queue(itemsMax: number, first?: Args[0]): Queue<Args[0]> {
    const queue = new Queue<Args[0]>(itemsMax, () => this.#queues.delete(queue));
    this.#queues.add(queue);
    if (first !== undefined) queue.push(first);
    return queue;
  }

  /** Tells everyone. What a listener throws is reported, and the others go on. */
  emit(...args: Args): void {
    for (const queue of this.#queues) queue.push(args[0]);
    for (const callback of [...this.#callbacks]) guarded(() => callback(...args));
  }

  /** Ends all queues. Callbacks stay: the connection may be opened again. */
  end(): void {
    for (const queue of this.#queues) queue.end();
  }
}

export class Queue<T> implements AsyncIterableIterator<T, undefined> {
  #items: T[] = [];
  #waiting: ((result: IteratorResult<T, undefined>) => void)[] = [];
  #ended = false;
  #error: CallError | undefined;
  readonly #itemsMax: number;
  readonly #forget: () => void;

  constructor(itemsMax: number, forget: () => void) {
    this.#itemsMax = itemsMax;
    this.#forget = forget;
  }

  push(item: T): void {
    const resolve = this.#waiting.shift();
    if (resolve) return resolve({ done: false, value: item });
    if (this.#items.push(item) <= this.#itemsMax) return;
    // Whoever reads too slowly is to know that something is missing.
    this.#items.pop();
    this.#error = new CallError("full", "read too slowly");
    this.end();
  }

  end(): void {
    this.#ended = true;
    this.#forget();
    for (const resolve of this.#waiting.splice(0)) resolve({ done: true, value: undefined });
  }

  async next(): Promise<IteratorResult<T, undefined>> {
    if (this.#items.length > 0) return { done: false, value: this.#items.shift()! };
    const error = this.#error;
    this.#error = undefined;
    if (error) throw error;
    if (this.#ended) return { done: true, value: undefined };
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  async return(): Promise<IteratorResult<T, undefined>> {
    this.#items = [];
    this.#error = undefined;
    this.end();
    return { done: true, value: undefined };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
