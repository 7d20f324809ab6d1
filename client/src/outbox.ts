import { CallError } from "./error.js";

/** A message to send. */
export interface Outgoing {
  data: string | Uint8Array;
  /** Whether it is a frame of the procedures' subprotocol. */
  isFrame: boolean;
  /** Set when it is sent. */
  isSent?: boolean;
}

/** A bounded queue of messages that wait for a connection or for a listener. */
export interface Outbox<T> {
  readonly items: Set<T>;
  /** Throws if the item does not fit beside `buffered` bytes that wait elsewhere. */
  check(item: T, buffered: number): void;
  /** Queues the item. Throws if the queue is full. */
  enqueue(item: T): void;
  remove(item: T): void;
  /** Removes and returns the first item. */
  take(): T | undefined;
}

export function makeOutbox<T extends { data: { length: number } }>(countMax: number, bytesMax: number): Outbox<T> {
  const items = new Set<T>();
  let bytes = 0;
  const full = () => new CallError("full", "the outbox is full: see outboxCount and outboxBytes");
  // A string counts its UTF-16 units, each of up to three bytes: a bound without encoding it.
  const size = ({ data }: T) => data.length;

  function check(item: T, buffered: number): void {
    if (buffered && buffered + size(item) > bytesMax) throw full();
  }

  function remove(item: T): void {
    if (items.delete(item)) bytes -= size(item);
  }

  return {
    items,
    check,
    enqueue(item) {
      if (items.size >= countMax) throw full();
      check(item, bytes);
      items.add(item);
      bytes += size(item);
    },
    remove,
    take() {
      const [item] = items;
      if (item) remove(item);
      return item;
    },
  };
}
