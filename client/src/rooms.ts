import { CallError } from "./error.js";

/** How to join a room. */
export interface JoinOptions {
  /**
   * What to get first, where the room keeps a history: `new` (nothing, the default), `all` that is kept, or what came
   * after the message with this id (as in `info.id`).
   */
  since?: "new" | "all" | (string & {});
  /**
   * Messages are missing: more came than is kept, or the server has been started anew. What is kept follows. `since` is the
   * last id that was known here.
   */
  onGap?: (gap: { room: string; since: string }) => unknown;
  /** After a reconnect the server does not let us in any more. The first time, it is the promise that says so. */
  onRefused?: (error: CallError) => unknown;
}

/** A room that we are in, or are to be as soon as there is a connection. */
export class Room {
  readonly name: string;
  options: JoinOptions;
  /** The last message that has come, to resume from. */
  last: string | undefined;
  isJoined = false;
  readonly joined: Promise<string>;
  resolve!: (id: string) => void;
  reject!: (error: CallError) => void;

  constructor(name: string, options: JoinOptions) {
    this.name = name;
    this.options = options;
    this.joined = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
  }

  get since(): string {
    return this.last ?? this.options.since ?? "new";
  }
}

const EPOCHS_MAX = 1_000;

/** Which messages of histories have been seen: of each epoch, up to which sequence. */
export class Seen {
  #sequences = new Map<string, number>();

  /** Notes a message; false if it was seen before. */
  note(id: string): boolean {
    const [epoch, sequence] = split(id);
    if (sequence <= (this.#sequences.get(epoch) ?? -1)) return false;
    // The one that was heard of last is the last to be forgotten.
    this.#sequences.delete(epoch);
    this.#sequences.set(epoch, sequence);
    if (this.#sequences.size > EPOCHS_MAX) this.#sequences.delete(this.#sequences.keys().next().value!);
    return true;
  }

  forget(id: string): void {
    this.#sequences.delete(split(id)[0]);
  }
}

export function split(id: string): [epoch: string, sequence: number] {
  const at = id.lastIndexOf("-");
  return [id.slice(0, at), Number(id.slice(at + 1))];
}
