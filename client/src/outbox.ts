import { CallError } from "./error.js";

/** What waits for a connection, or is to be sent. */
export interface Outgoing {
  data: string | Uint8Array;
  /** Whether it is a frame of the procedures' subprotocol. */
  isFrame: boolean;
  sent?: () => void;
}

/** What waits for a connection, bounded. */
export interface Outbox {
  /** Throws if, beside so many bytes that wait elsewhere, there is no room for it. */
  check(item: Outgoing, buffered: number): void;
  /** Throws if there is no room for it. */
  add(item: Outgoing): void;
  remove(item: Outgoing): void;
  /** The next one, which is out of it then. */
  take(): Outgoing | undefined;
}

export function makeOutbox(countMax: number, bytesMax: number): Outbox {
  const items = new Set<Outgoing>();
  let bytes = 0;
  const full = () => new CallError("full", "too much waits to be sent");
  // A text has up to three bytes for each of its units: it is bounded, not weighed.
  const size = ({ data }: Outgoing) => data.length;

  function check(item: Outgoing, buffered: number): void {
    if (buffered && buffered + size(item) > bytesMax) throw full();
  }

  function remove(item: Outgoing): void {
    if (items.delete(item)) bytes -= size(item);
  }

  return {
    check,
    add(item) {
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
