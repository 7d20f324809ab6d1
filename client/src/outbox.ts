import { CallError } from "./error.js";

/** What waits for a connection, or is to be sent. */
export interface Outgoing {
  data: string | Uint8Array;
  /** Whether it is a frame of the procedures' subprotocol. */
  isFrame: boolean;
  sent?: () => void;
}

/** What waits for a connection, bounded. */
export class Outbox {
  readonly #countMax: number;
  readonly #bytesMax: number;
  #items = new Set<Outgoing>();
  #bytes = 0;

  constructor(countMax: number, bytesMax: number) {
    this.#countMax = countMax;
    this.#bytesMax = bytesMax;
  }

  /** Throws if, with so many bytes that wait elsewhere, there is no room for it. */
  check(item: Outgoing, bytes = this.#bytes): void {
    if (this.#items.size >= this.#countMax) throw new CallError("full", "too many messages wait to be sent");
    if (bytes > 0 && bytes + size(item) > this.#bytesMax) throw new CallError("full", "too many bytes wait to be sent");
  }

  add(item: Outgoing): void {
    this.check(item);
    this.#items.add(item);
    this.#bytes += size(item);
  }

  remove(item: Outgoing): void {
    if (this.#items.delete(item)) this.#bytes -= size(item);
  }

  clear(): void {
    this.#items.clear();
    this.#bytes = 0;
  }

  /** The next one, which is out of it then. */
  take(): Outgoing | undefined {
    const [item] = this.#items;
    if (item) this.remove(item);
    return item;
  }
}

// A text has up to three bytes for each of its units: it is bounded, not weighed.
const size = ({ data }: Outgoing) => (typeof data === "string" ? data.length : data.byteLength);
