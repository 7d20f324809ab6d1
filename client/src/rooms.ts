import type { CallError } from "./error.js";

/** Options of {@link Connection.join}. */
export interface JoinOptions {
  /**
   * Which kept messages to replay first, if the room has a history: `new` (none, the default), `all`, or those after the
   * message with this id (as in `info.id`).
   */
  since?: "new" | "all" | (string & {});
  /**
   * Called when messages are missing: the history no longer has them, or the server was restarted. All kept messages follow
   * if the client has been away, and otherwise those that were sent after the gap. `since` is the last id that the client
   * received.
   */
  onGap?: (gap: { room: string; since: string }) => unknown;
  /**
   * Called with `true` when the server can't deliver the room's messages for now, because it has lost its connection to the
   * broker of its cluster, and with `false` when it can again. Messages that are sent meanwhile arrive later.
   */
  onSilence?: (isSilent: boolean) => unknown;
  /**
   * Called with the members of the room, on all servers: first, after each reconnect, and whenever they or their states change, at
   * most four times a second. The server has to keep the presence of the room.
   */
  onPresence?: (members: Member[]) => unknown;
  /** Called if the server refuses to rejoin the room after a reconnect. A refused first join rejects the promise instead. */
  onRefused?: (error: CallError) => unknown;
}

/** A member of a room: a user with all connections, or a connection without a user. */
export interface Member {
  readonly user?: string;
  readonly connection?: string;
  /** The number of connections; 0 while the user may come back, as after a reload. */
  readonly connections: number;
  /** The state that the server has set, if it is text and not empty. */
  readonly state?: string;
  /** The state that the server has set, if it is not text. */
  readonly base64?: string;
}

/** A room that is joined, or will be once the connection is open. */
export interface Room {
  readonly name: string;
  options: JoinOptions;
  /** The id of the last message received, to resume after. */
  last: string | undefined;
  /** The members by user or connection, if there is an `onPresence`. */
  members: Map<string, Member>;
  isJoined: boolean;
  /** Whether the server has confirmed the join on the current connection. */
  isConfirmed: boolean;
  joined: Promise<string>;
  resolve(id: string): void;
  reject(error: CallError): void;
}

export function makeRoom(name: string, options: JoinOptions): Room {
  const room = { name, options } as unknown as Room;
  room.joined = new Promise((resolve, reject) => {
    room.resolve = resolve;
    room.reject = reject;
  });
  // The promise may be ignored.
  room.joined.catch(() => {});
  return room;
}

/** The position to join at: after the last message received, or as the options say. */
export const since = ({ last, options }: Room) => last ?? options.since ?? "new";

/**
 * Whether a message overtook the replay that contains it: the server itself added the client to the room before it read the
 * client's join.
 */
export function isAhead({ isConfirmed, last }: Room, id: string): boolean {
  if (isConfirmed || !last) return false;
  const [epoch, sequence] = split(last);
  return id !== `${epoch}-${sequence + 1}`;
}

/** The received messages of histories: the last sequence number of each epoch. */
export interface Seen {
  /** Records a message. Returns false if it is a duplicate. */
  record(id: string): boolean;
  forget(id: string): void;
}

export function makeSeen(): Seen {
  const sequences = new Map<string, number>();
  return {
    record(id) {
      const [epoch, sequence] = split(id);
      if (sequence <= (sequences.get(epoch) ?? -1)) return false;
      // Reinserted last, so that the least recently used epoch is evicted first.
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
