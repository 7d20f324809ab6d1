import { CallError } from "./error.js";

/** What waits for a connection, or is to be sent. */
export interface Outgoing {
  data: string | Uint8Array;
  /** Whether it is a frame of the procedures' subprotocol. */
  isFrame: boolean;
  sent?: () => void;
}

/** What waits, for a connection or for somebody who listens, bounded. */
export interface Outbox<T> {
  readonly items: Set<T>;
  /** Throws if, beside so many bytes that wait elsewhere, there is no room for it. */
  check(item: T, buffered: number): void;
  /** Throws if there is no room for it. */
  keep(item: T): void;
  remove(item: T): void;
  /** The next one, which is out of it then. */
  take(): T | undefined;
}

export function makeOutbox<T extends { data: { length: number } }>(countMax: number, bytesMax: number): Outbox<T> {
  const items = new Set<T>();
  let bytes = 0;
  const full = () => new CallError("full", "too much waits to be sent");
  // A text has up to three bytes for each of its units: it is bounded, not weighed.
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
    keep(item) {
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
