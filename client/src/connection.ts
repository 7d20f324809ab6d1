import { makeCalls, type CallOptions, type Done, type Handler } from "./calls.js";
import { bytesOf, checked, Data, toBytes, type Payload } from "./data.js";
import { CallError, guarded, outcome, report } from "./error.js";
import { Form, joined, named, parse, PROTOCOL, type Frame } from "./frames.js";
import { makeLink } from "./link.js";
import { makeListeners, type Listeners } from "./listeners.js";
import { withDefaults, type Address, type Options, type State } from "./options.js";
import { makeOutbox, type Outgoing } from "./outbox.js";
import { makePulse } from "./pulse.js";
import { isAhead, makeRoom, makeSeen, since, split, type JoinOptions, type Room } from "./rooms.js";

/** What is known of a message besides its data. */
export interface Info {
  /** The notification's name; empty for a plain message. */
  readonly name: string;
  /** The room that it was sent to, where that keeps a history. */
  readonly room?: string;
  /** Its id there. */
  readonly id?: string;
}

/** Gets what is received. What it throws is reported, and the connection and other listeners go on. */
export type Listener = (data: Data, info: Info) => unknown;

/**
 * A connection to a server that comes back when it is lost. Made by {@link connect}.
 *
 * What is sent while there is no connection waits, within bounds, and leaves in order as soon as there is one and the
 * rooms are joined again. What was sent is never sent again.
 *
 * What comes before anybody listens to its kind is held for the first who does: as many messages as an iterator may hold
 * (`queue`), of as many bytes together as may wait to be sent (`outboxBytes`). Beyond that the oldest are dropped, which
 * is reported once somebody listens.
 *
 * Promises that nobody waits for end no program: what they fail with is reported then.
 */
export interface Connection {
  /** What the connection does now. */
  readonly state: State;

  /** Listens to what the connection does, beginning with what it does now. Returns what ends that. */
  states(listener: (state: State) => unknown): () => void;
  /** The same as an iterator, which ends when the connection is closed. */
  states(): AsyncIterableIterator<State, undefined>;

  /** Listens to plain messages: text, and binary ones that are no frames. Returns what ends that. */
  messages(listener: Listener): () => void;
  /** The same as an iterator, which ends when the connection is closed, and fails if it is read too slowly. */
  messages(): AsyncIterableIterator<Data, undefined>;

  /** Listens to notifications of this name. Returns what ends that. */
  on(name: string, listener: Listener): () => void;
  /** The same as an iterator, which ends when the connection is closed, and fails if it is read too slowly. */
  on(name: string): AsyncIterableIterator<Data, undefined>;

  /**
   * Sends a plain message: text as text, bytes as binary; a `TypeError` for anything else. Where procedures are spoken, the
   * server takes binary messages for frames: then only text can be sent. Throws a {@link CallError} that is `full`,
   * `closed` or `unsupported`.
   */
  send(message: string | ArrayBufferView | ArrayBuffer): void;

  /**
   * Sends a notification. Throws a {@link CallError} that is `full`, `closed` or `unsupported`, and a `TypeError` for data
   * that would arrive as something else, such as a `Blob` or a `Map`.
   */
  notify(name: string, data?: Payload): void;

  /**
   * Calls a procedure of the server. Fails with a {@link CallError}; its `sent` says whether the server may have begun.
   * A call that waits for a connection is sent when there is one; one that was in flight when it was lost has failed.
   * Data as in {@link notify}.
   */
  call(name: string, data?: Payload, options?: CallOptions): Promise<Data>;

  /** Answers calls from the server. Returns what ends that. */
  handle(name: string, handler: Handler): () => void;

  /**
   * Joins a room, now and whenever the connection comes back, from the last message on that was seen. Gives the room's
   * last id, or nothing where it keeps no history; what comes first can still be listened to then. Fails with a
   * {@link CallError}, mostly `refused`. Where it is joined already, what is named in the options takes the place of what
   * was, except `since`.
   */
  join(name: string, options?: JoinOptions): Promise<string>;

  /** Leaves a room that was joined with {@link join}. */
  leave(name: string): Promise<void>;

  /** Connects now: instead of waiting, anew where it is open, and also once it is closed. */
  reconnect(): void;

  /** Closes the connection for good: until {@link reconnect}. What waits is dropped, and calls fail as `closed`. */
  close(code?: number, reason?: string): void;
}

/** What has come before anybody listened to its kind: to notifications of that name, or to plain messages. */
interface Unheard {
  data: Data;
  info: Info;
  name: string | undefined;
}

/**
 * Connects to a server, in the background, and stays connected. Throws a `TypeError` for an address, an option or a
 * subprotocol that can't be one, and where there is no WebSocket.
 *
 * ```js
 * const connection = connect("/live");
 * connection.on("message", (data) => console.log(data.text()));
 * const sum = (await connection.call("add", [1, 2])).json();
 * ```
 */
export function connect(address: Address, options: Options = {}): Connection {
  const settings = withDefaults(options);
  const outbox = makeOutbox<Outgoing>(settings.outboxCount, settings.outboxBytes);
  const unheard = makeOutbox<Unheard>(settings.queue, settings.outboxBytes);
  /** Of which kinds some had to be dropped. */
  const unheardLost = new Set<string | undefined>();
  const states = makeListeners<[State]>();
  /** By the names of notifications, and of plain messages by none. */
  const listeners = new Map<string | undefined, Listeners<[Data, Info]>>();
  const rooms = new Map<string, Room>();
  const seen = makeSeen();
  /** The last message that has come, and the last event. */
  let lastId = "";
  let lastEventId = "";
  /** The rooms of the event stream, by the epochs of their histories, where the server has said so. */
  let streamed: Record<string, string> | undefined;
  /** Rooms that the server has not let us out of yet: what still comes of them is not wanted. */
  const leaving: string[] = [];
  /** Rooms that are to be joined, and how many are being joined. */
  let toJoin: Room[] = [];
  let joining = 0;
  let state: State = { name: "connecting" };
  /** Whether a WebSocket is open, and with which subprotocol. */
  let protocol: string | undefined;
  /** Whether what waited has left, so that messages go out at once. */
  let isReady = false;

  const link = makeLink(address, settings, {
    open: opened,
    arrived: received,
    lastIds: () => [lastId, ...[...rooms.values()].map(({ last }) => last!)].filter(Boolean),
    named(names, eventId) {
      streamed = names;
      lastEventId = eventId;
    },
    gap(eventId) {
      lastEventId = eventId;
      for (const room of rooms.values()) if (!streamed || Object.values(streamed).includes(room.name)) gap(room);
    },
    lost(why) {
      protocol = undefined;
      isReady = false;
      joining = 0;
      toJoin = [];
      pulse.stop();
      calls.lost(why);
    },
    check: () => pulse.check(),
    changed,
  });
  const calls = makeCalls((frame) => link.write(frame));
  const pulse = makePulse(
    settings.pingInterval,
    settings.pingTimeout,
    () => request("$ping", "", () => {}),
    () => link.fail("the server does not answer"),
  );

  const speaks = () => protocol === PROTOCOL;
  const isClosed = () => state.name === "closed";

  function iterate<Args extends [unknown, ...unknown[]]>(of: Listeners<Args>, first?: Args[0]): AsyncIterableIterator<Args[0], undefined> {
    const queue = of.iterate(settings.queue);
    if (first !== undefined) queue.give(first);
    if (isClosed()) queue.end();
    return queue;
  }

  function listen(name: string | undefined, listener?: Listener): any {
    let own = listeners.get(name)!;
    if (!own) {
      listeners.set(name, (own = makeListeners()));
      // Whoever else begins to listen now gets what was held, too.
      queueMicrotask(() => {
        own.isLive = true;
        if (unheardLost.delete(name)) report(new CallError("full", "too much came before anybody listened"));
        for (const item of [...unheard.items]) {
          if (item.name !== name) continue;
          unheard.remove(item);
          own.emit(item.data, item.info);
        }
      });
    }
    return listener ? own.listen(listener) : iterate(own);
  }

  /** To whom it is for: notifications to those of that name, everything else to those of plain messages. */
  function deliver(data: Data, info?: Pick<Info, "room" | "id">): void {
    const isFrame = !data.isText && data[0] === Form.Notification && settings.procedures;
    const frame = isFrame && (protocol === undefined || speaks()) ? parse(data) : undefined;
    const name = frame?.name;
    const item = { data: frame?.payload ?? data, info: { name: name ?? "", ...info }, name };
    const own = listeners.get(name);
    if (own?.isLive) return own.emit(item.data, item.info);
    for (;;) {
      try {
        return unheard.keep(item);
      } catch {
        const oldest = unheard.take();
        if (!oldest) return;
        if (unheardLost.size < settings.queue) unheardLost.add(oldest.name);
      }
    }
  }

  function put(item: Outgoing): void {
    if (isClosed()) throw new CallError("closed", CLOSED);
    if (!isReady) return outbox.keep(item);
    if (!fits(item)) throw unsupported();
    outbox.check(item, link.buffered());
    transmit(item);
  }

  function transmit({ data, sent }: Outgoing): void {
    sent?.();
    link.write(data);
  }

  /** Whether the server takes it for what it is. */
  const fits = ({ data, isFrame }: Outgoing) => typeof data === "string" || isFrame === speaks();

  function unsupported(): CallError {
    link.doubt();
    return new CallError("unsupported", UNSUPPORTED);
  }

  /** A call of the protocol's own, which waits for nothing and does not outlast the connection. */
  function request(name: string, data: Payload, done: Done, onItem?: CallOptions["onItem"]): void {
    calls.make(name, data, { onItem }, (frame, sent) => void transmit({ data: frame, isFrame: true, sent }), done);
  }

  function opened(transport: "websocket" | "events", chosen: string): void {
    streamed = undefined;
    if (transport === "events") return calls.fail("unsupported", UNSUPPORTED, false);
    protocol = chosen;
    if (speaks()) {
      pulse.start();
      toJoin = [...rooms.values()];
      for (const room of toJoin) room.isIn = false;
    } else {
      for (const room of rooms.values()) refused(room, new CallError("unsupported", UNSUPPORTED));
      calls.fail("unsupported", UNSUPPORTED, false);
    }
    join();
  }

  /** Joins what is to be joined, as many at a time as the server certainly takes; behind it goes what has waited. */
  function join(): void {
    while (toJoin.length > 0 && joining < 64) {
      joining += 1;
      joinRoom(toJoin.shift()!);
    }
    // Whoever was told of a refusal may have closed it.
    if (isReady || toJoin.length > 0 || protocol === undefined) return;
    isReady = true;
    for (let item; isReady && (item = outbox.take()); ) {
      if (fits(item)) transmit(item);
      else report(new CallError("unsupported", UNSUPPORTED));
    }
  }

  function joinRoom(room: Room): void {
    const isWanted = () => rooms.get(room.name) === room;
    const done = (result: Data | CallError) => {
      const isError = result instanceof CallError;
      if (isError && isEnd(result)) return;
      joining -= 1;
      if (!isWanted()) {
        // Left meanwhile.
      } else if (!isError) {
        const id = result.text();
        room.isJoined = true;
        room.isIn = true;
        // What is kept has come before: this is where the room is if there was nothing.
        room.last ??= id || undefined;
        lastId ||= id;
        room.resolve(id);
      } else if (room.isJoined && !["refused", "unknown"].includes(result.code)) {
        // Nothing is said against it: it is tried again, after a while.
        return link.fail(result.message);
      } else {
        refused(room, result);
      }
      join();
    };
    request("$join", joined(named(room.name), toBytes(since(room))), done, (item) => item.text() === "gap" && isWanted() && gap(room));
  }

  function refused(room: Room, error: CallError): void {
    rooms.delete(room.name);
    room.reject(error);
    if (room.isJoined) guarded(() => room.options.onRefused?.(error));
  }

  function gap(room: Room): void {
    const gap = { room: room.name, since: since(room) };
    // All that is kept follows: where the connection is lost before it has come, it is asked for again.
    room.last = undefined;
    room.options = { ...room.options, since: "all" };
    guarded(() => room.options.onGap?.(gap));
  }

  function changed(next: State): void {
    state = next;
    if (isClosed()) {
      while (outbox.take());
      calls.fail("closed", CLOSED);
      for (const room of rooms.values()) if (!room.isJoined) refused(room, new CallError("closed", CLOSED));
    }
    states.emit(next);
    if (next.name !== "closed" || !isClosed()) return;
    for (const own of [states, ...listeners.values()]) own.end();
  }

  function received(data: Data, eventId?: string): void {
    pulse.heard();
    if (eventId) {
      // An event without an id has that of the one before.
      const hasNone = eventId === lastEventId || eventId === lastId;
      lastEventId = eventId;
      if (hasNone) return deliver(data);
      if (!isNew(eventId)) return;
      const [epoch] = split(eventId);
      // A server that does not say of which room it is: of the one whose history it goes on with.
      const name = streamed?.[epoch] ?? [...rooms.values()].find(({ last }) => last && split(last)[0] === epoch)?.name;
      const room = rooms.get(name!);
      if (room) room.last = eventId;
      return deliver(data, { room: name, id: eventId });
    }
    const frame = !data.isText && speaks() ? parse(data) : undefined;
    if (frame?.form === Form.OfRoom) ofRoom(frame);
    else if (!frame || !calls.received(frame)) deliver(data);
  }

  function isNew(id: string): boolean {
    const isNew = seen.note(id);
    if (isNew) lastId = id;
    return isNew;
  }

  function ofRoom({ name, historyId, payload }: Frame): void {
    const room = rooms.get(name);
    if (leaving.includes(name) || (room && isAhead(room, historyId)) || !isNew(historyId)) return;
    if (room) room.last = historyId;
    deliver(payload, { room: name, id: historyId });
  }

  return {
    get state() {
      return state;
    },
    states(listener?: (state: State) => unknown): any {
      if (!listener) return iterate(states, state);
      const end = states.listen(listener);
      guarded(() => listener(state));
      return end;
    },
    messages: (listener?: Listener) => listen(undefined, listener),
    on: (name: string, listener?: Listener) => listen(checked(name), listener),
    send(message) {
      put({ data: bytesOf(message)?.slice() ?? checked(message), isFrame: false });
    },
    notify(name, data) {
      put({ data: joined(Uint8Array.of(Form.Notification), named(name), toBytes(data)), isFrame: true });
    },
    call: (name, data, options = {}) =>
      outcome(() => {
        if (state.name === "open" && state.transport === "events") throw unsupported();
        return new Promise((resolve, reject) => {
          const putCall = (frame: Uint8Array, sent: () => void) => {
            const item = { data: frame, isFrame: true, sent };
            put(item);
            return () => outbox.remove(item);
          };
          calls.make(name, data, { timeout: settings.timeout, ...options }, putCall, (result) =>
            result instanceof CallError ? reject(result) : resolve(result));
        });
      }),
    handle(name, handler) {
      const { handlers } = calls;
      handlers.set(name, handler);
      return () => void (handlers.get(name) === handler && handlers.delete(name));
    },
    join: (name, options = {}) =>
      outcome(() => {
        named(name);
        let room = rooms.get(name);
        if (room) {
          room.options = { ...room.options, ...options, since: room.options.since };
          return room.joined;
        }
        if (isClosed()) throw new CallError("closed", CLOSED);
        if (protocol !== undefined && !speaks()) throw unsupported();
        room = makeRoom(name, options);
        rooms.set(name, room);
        if (protocol !== undefined) {
          toJoin.push(room);
          join();
        }
        return room.joined;
      }),
    leave: (name) =>
      outcome(() => {
        const room = rooms.get(name);
        if (!room) return;
        rooms.delete(name);
        toJoin = toJoin.filter((other) => other !== room);
        room.reject(new CallError("aborted", "the room was left"));
        if (room.last) seen.forget(room.last);
        if (!speaks()) return;
        leaving.push(name);
        return new Promise<void>((resolve, reject) => {
          request("$leave", name, (result) => {
            leaving.splice(leaving.indexOf(name), 1);
            // Who is not connected is in no room.
            if (result instanceof CallError && !isEnd(result)) reject(result);
            else resolve();
          });
        });
      }),
    reconnect: link.connect,
    close: (code = 1000, reason = "") => link.close(code, reason),
  };
}

/** Whether it has failed since the connection has ended. */
const isEnd = ({ code }: CallError) => code === "disconnected" || code === "closed";

const CLOSED = "the connection has ended";
const UNSUPPORTED = "the subprotocol has no such messages";
