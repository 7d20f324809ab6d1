import type { CallError } from "./error.js";

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
export interface Room {
  readonly name: string;
  options: JoinOptions;
  /** The last message that has come, to resume from. */
  last: string | undefined;
  isJoined: boolean;
  /** Whether the server has said so on the connection that there is. */
  isIn: boolean;
  readonly joined: Promise<string>;
  resolve(id: string): void;
  reject(error: CallError): void;
}

export function makeRoom(name: string, options: JoinOptions): Room {
  const room = { name, options } as unknown as Room;
  const joined = new Promise<string>((resolve, reject) => Object.assign(room, { resolve, reject }));
  // Nobody has to wait for it.
  joined.catch(() => {});
  return Object.assign(room, { joined });
}

/** Since when a room is joined: behind what has come, or as it was wished. */
export const since = ({ last, options }: Room) => last ?? options.since ?? "new";

/**
 * Whether a message has come before what was missed, which it is part of: the server has put us into the room by itself,
 * before it has read that we join it.
 */
export function isAhead({ isIn, last }: Room, id: string): boolean {
  if (isIn || !last) return false;
  const [epoch, sequence] = split(last);
  return id !== `${epoch}-${sequence + 1}`;
}

/** Which messages of histories have been seen: of each epoch, up to which sequence. */
export interface Seen {
  /** Notes a message; false if it was seen before. */
  note(id: string): boolean;
  forget(id: string): void;
}

export function makeSeen(): Seen {
  const sequences = new Map<string, number>();
  return {
    note(id) {
      const [epoch, sequence] = split(id);
      if (sequence <= (sequences.get(epoch) ?? -1)) return false;
      // The one that was heard of last is the last to be forgotten.
      sequences.delete(epoch);
      sequences.set(epoch, sequence);
      if (sequences.size > 1_000) sequences.delete(sequences.keys().next().value!);
      return true;
    },
    forget: (id) => void sequences.delete(split(id)[0]),
  };
}

export function split(id: string): [epoch: string, sequence: number] {
  const at = id.lastIndexOf("-");
  return [id.slice(0, at), Number(id.slice(at + 1))];
}
