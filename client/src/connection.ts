import { makeCalls, type CallOptions, type Done, type Handler } from "./calls.js";
import { bytesOf, checkedText, Data, toBytes, type Payload } from "./data.js";
import { CallError, guarded, outcome, report } from "./error.js";
import { concat, encodeName, Form, Kind, parse, PROTOCOL, type Frame } from "./frames.js";
import { makeLink } from "./link.js";
import { makeListeners, type Listeners } from "./listeners.js";
import { CONNECTING, withDefaults, type Address, type Options, type State } from "./options.js";
import { makeOutbox, type Outgoing } from "./outbox.js";
import { makePulse } from "./pulse.js";
import { isAhead, makeRoom, makeSeen, since, split, type JoinOptions, type Member, type Room } from "./rooms.js";
import { after } from "./timer.js";

/** The metadata of a message. */
export interface Info {
  /** The notification's name; empty for a plain message. */
  readonly name: string;
  /** The room that the message was sent to, if that room keeps a history. */
  readonly room?: string;
  /** The message's id in the room's history. */
  readonly id?: string;
}

/** Called with each received message. An error that it throws is reported and affects nothing else. */
export type Listener = (data: Data, info: Info) => unknown;

/**
 * A connection that reconnects automatically. Created by {@link connect}.
 *
 * Calls and messages made while disconnected are queued, up to `outboxCount` and `outboxBytes`, and sent in order once the
 * connection is open and its rooms are rejoined. Nothing is ever sent twice.
 *
 * Messages that arrive before their first listener is added are held for it, up to `queue` messages and `outboxBytes`
 * bytes in all. Beyond that the oldest are dropped, which is reported when a listener is added.
 *
 * A rejected promise that nobody awaits is reported instead of ending the program, as Node would.
 */
export interface Connection {
  /** The current state. */
  readonly state: State;

  /** Calls `listener` with the current state and each new one. Returns a function that removes the listener. */
  states(listener: (state: State) => unknown): () => void;
  /** Iterates over the current state and each new one, until the connection is closed. */
  states(): AsyncIterableIterator<State, undefined>;

  /** Calls `listener` with each plain message: text, and binary messages that are not frames. Returns a function that removes it. */
  messages(listener: Listener): () => void;
  /**
   * Iterates over plain messages until the connection is closed. Fails with a {@link CallError} `full` if more than `queue`
   * messages are waiting to be read.
   */
  messages(): AsyncIterableIterator<Data, undefined>;

  /** Calls `listener` with each notification of this name. Returns a function that removes it. */
  on(name: string, listener: Listener): () => void;
  /**
   * Iterates over notifications of this name until the connection is closed. Fails with a {@link CallError} `full` if more
   * than `queue` notifications are waiting to be read.
   */
  on(name: string): AsyncIterableIterator<Data, undefined>;

  /**
   * Sends a plain message: a string as a text message, bytes as a binary one. Throws a `TypeError` for anything else, and a
   * {@link CallError} with the code `full`, `closed` or `unsupported`. With the procedures' subprotocol the server parses
   * binary messages as frames, so that only text can be sent.
   */
  send(message: string | ArrayBufferView | ArrayBuffer): void;

  /**
   * Sends a notification. Throws a {@link CallError} with the code `full`, `closed` or `unsupported`, and a `TypeError`
   * for data that JSON would change, such as a `Blob` or a `Map`.
   */
  notify(name: string, data?: Payload): void;

  /**
   * Calls a procedure of the server. Rejects with a {@link CallError}, whose `sent` says whether the server may have handled
   * the call. A call made while disconnected is queued; a call in flight when the connection is lost fails. `data` is
   * encoded as in {@link notify}.
   */
  call(name: string, data?: Payload, options?: CallOptions): Promise<Data>;

  /** Answers the server's calls of this name with `handler`. Returns a function that removes it. */
  handle(name: string, handler: Handler): () => void;

  /**
   * Joins a room, and rejoins it after each reconnect, resuming after the last message received. Resolves with the id of the
   * room's last message, or with an empty string if the room keeps no history; a listener added then still receives the
   * first messages. Rejects with a {@link CallError}, usually `refused`. For a room that is joined already, the given options
   * replace the previous ones, except `since`.
   */
  join(name: string, options?: JoinOptions): Promise<string>;

  /** Leaves a room that was joined with {@link join}. */
  leave(name: string): Promise<void>;

  /**
   * A handle of a room; the client need not have joined it. `presence()` asks the server for the members of the room. The promise
   * rejects with a {@link CallError} `refused` if the server would refuse a join.
   */
  room(name: string): { presence(): Promise<Member[]> };

  /** Connects now: ends the reconnect delay, replaces an open connection, or reopens a closed one. */
  reconnect(): void;

  /** Closes the connection until {@link reconnect}. Queued messages are dropped, and calls fail with `closed`. */
  close(code?: number, reason?: string): void;
}

/** A message that arrived before a listener for its name, or for plain messages, was added. */
interface Unheard {
  data: Data;
  info: Info;
  name: string | undefined;
}

/**
 * Connects to a server in the background, and reconnects whenever the connection is lost. Throws a `TypeError` if the
 * address, an option or a subprotocol is invalid, or if there is no WebSocket class.
 *
 * ```js
 * const connection = connect("/live");
 * connection.on("message", (data) => console.log(data.text()));
 * const sum = (await connection.call("add", [1, 2])).json();
 * ```
 */
export function connect(address: Address, options: Options = {}): Connection {
  // One long function: its inner functions share state that stays private, without `this`.
  const settings = withDefaults(options);
  const outbox = makeOutbox<Outgoing>(settings.outboxCount, settings.outboxBytes);
  const unheard = makeOutbox<Unheard>(settings.queue, settings.outboxBytes);
  /** The names under which held messages were dropped. */
  const unheardLost = new Set<string | undefined>();
  const states = makeListeners<[State]>();
  /** Listeners by notification name; `undefined` stands for plain messages. */
  const listeners = new Map<string | undefined, Listeners<[Data, Info]>>();
  const rooms = new Map<string, Room>();
  const seen = makeSeen();
  /** The ids of the last message and of the last event received. */
  let lastId = "";
  let lastEventId = "";
  /** The event stream's rooms by the epochs of their histories, if the server has named them. */
  let streamed: Record<string, string> | undefined;
  /** Rooms whose leave the server has not confirmed: their messages are ignored. */
  const leaving: string[] = [];
  /** Rooms still to join, and the number of joins in flight. */
  let toJoin: Room[] = [];
  let joining = 0;
  let state: State = CONNECTING;
  /** The subprotocol of the open WebSocket; `undefined` if none is open. */
  let protocol: string | undefined;
  /** Until the server needs a fresh token, if it has said when. */
  let refreshTimer: ReturnType<typeof setTimeout> | undefined;
  /** Whether the outbox is flushed, so that messages are sent at once. */
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
      expires(0);
      calls.lost(why);
    },
    check: () => pulse.check(),
    changed,
  });
  const calls = makeCalls((frame) => link.write(frame), outbox.remove);
  const pulse = makePulse(
    settings.pingInterval,
    settings.pingTimeout,
    () => request("$ping", "", () => {}),
    () => link.fail("the server does not answer"),
  );


  const hasProcedures = () => protocol === PROTOCOL;
  const isClosed = () => state.name === "closed";

  function iterate<Args extends [unknown, ...unknown[]]>(of: Listeners<Args>, first?: Args[0]): AsyncIterableIterator<Args[0], undefined> {
    const queue = of.iterate(settings.queue);
    if (first !== undefined) queue.enqueue(first);
    if (isClosed()) queue.end();
    return queue;
  }

  function listen(name: string | undefined, listener?: Listener): any {
    let own = listeners.get(name)!;
    if (!own) {
      listeners.set(name, (own = makeListeners()));
      // Listeners that are added in the same task receive the held messages, too.
      queueMicrotask(() => {
        own.isLive = true;
        if (unheardLost.delete(name)) report(new CallError("full", "messages were lost"));
        for (const item of [...unheard.items]) {
          if (item.name !== name) continue;
          unheard.remove(item);
          own.emit(item.data, item.info);
        }
      });
    }
    return listener ? own.listen(listener) : iterate(own);
  }

  /** Passes notifications to the listeners of their name, and other messages to those of plain messages. */
  function deliver(data: Data, info?: Pick<Info, "room" | "id">): void {
    const isFrame = !data.isText && data[0] === Form.Notification && settings.procedures;
    const frame = isFrame && (protocol === undefined || hasProcedures()) ? parse(data) : undefined;
    const name = frame?.name;
    const item = { data: frame?.payload ?? data, info: { name: name ?? "", ...info }, name };
    const own = listeners.get(name);
    if (own?.isLive) return own.emit(item.data, item.info);
    for (;;) {
      try {
        return unheard.enqueue(item);
      } catch {
        const oldest = unheard.take();
        if (!oldest) return;
        if (unheardLost.size < settings.queue) unheardLost.add(oldest.name);
      }
    }
  }

  function put(item: Outgoing): void {
    if (isClosed()) throw new CallError("closed", CLOSED);
    if (!isReady) return outbox.enqueue(item);
    if (!isSendable(item)) throw unsupported();
    outbox.check(item, link.buffered());
    transmit(item);
  }

  function transmit(item: Outgoing): void {
    item.isSent = true;
    link.write(item.data);
  }

  /** Whether the server will parse the message as it was meant. */
  const isSendable = ({ data, isFrame }: Outgoing) => typeof data === "string" || isFrame === hasProcedures();

  function unsupported(): CallError {
    link.renegotiate();
    return new CallError("unsupported", UNSUPPORTED);
  }

  /** Makes a call of the protocol itself, which is never queued and fails with the connection. */
  function request(name: string, data: Payload, done: Done, onItem?: CallOptions["onItem"]): void {
    calls.make(name, data, { onItem }, transmit, done);
  }

  function opened(chosen?: string): void {
    streamed = undefined;
    protocol = chosen;
    if (hasProcedures()) {
      pulse.start();
      toJoin = [...rooms.values()];
      for (const room of toJoin) room.isConfirmed = false;
    } else {
      if (chosen !== undefined) for (const room of rooms.values()) refused(room, new CallError("unsupported", UNSUPPORTED));
      calls.fail("unsupported", UNSUPPORTED, false);
    }
    join();
  }

  /** Joins the rooms, at most 64 at a time, which every server accepts; then flushes the outbox. */
  function join(): void {
    while (toJoin.length > 0 && joining < 64) {
      joining += 1;
      joinRoom(toJoin.shift()!);
    }
    // A refusal handler may have closed the connection.
    if (isReady || toJoin.length > 0 || protocol === undefined) return;
    isReady = true;
    for (let item; isReady && (item = outbox.take()); ) {
      if (isSendable(item)) transmit(item);
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
        // The room was left in the meantime.
      } else if (!isError) {
        const id = result.text();
        room.isJoined = true;
        room.isConfirmed = true;
        // The replay has arrived before this; if it was empty, resume from the room's last id.
        room.last ??= id || undefined;
        lastId ||= id;
        room.resolve(id);
      } else if (!["refused", "unknown"].includes(result.code)) {
        // The error is temporary: reconnect and rejoin.
        return link.fail(result.message);
      } else {
        refused(room, result);
      }
      join();
    };
    request(room.options.onPresence ? "$watch" : "$join", concat(encodeName(room.name), toBytes(since(room))), done, (item) => item.text() === "gap" && isWanted() && gap(room));
  }

  function refused(room: Room, error: CallError): void {
    rooms.delete(room.name);
    room.reject(error);
    if (room.isJoined) guarded(() => room.options.onRefused?.(error));
  }

  function gap(room: Room, last?: string): void {
    const gap = { room: room.name, since: since(room) };
    // Without an id the whole history follows. If the connection is lost before it has arrived, request it again.
    room.last = last;
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
    pulse.noteReceived();
    if (eventId) {
      // An event without an id repeats the previous event's id.
      const hasNone = eventId === lastEventId || eventId === lastId;
      lastEventId = eventId;
      if (hasNone) return deliver(data);
      if (!isNew(eventId)) return;
      const [epoch] = split(eventId);
      // If the server has not named the rooms, find the room whose history has this epoch.
      const name = streamed?.[epoch] ?? [...rooms.values()].find(({ last }) => last && split(last)[0] === epoch)?.name;
      const room = rooms.get(name!);
      if (room) room.last = eventId;
      return deliver(data, { room: name, id: eventId });
    }
    const frame = !data.isText && hasProcedures() ? parse(data) : undefined;
    if (frame?.form === Form.RoomMessage) roomMessage(frame);
    else if (frame?.name === "$expires") expires(+frame.payload.text());
    else if (!frame || !calls.received(frame)) deliver(data);
  }

  /** Refreshes the session in time. A tenth of the time is left for the call. */
  function expires(seconds: number): void {
    clearTimeout(refreshTimer);
    const { refresh } = settings;
    const timer = (refreshTimer = refresh && seconds > 0 ? after(seconds * 900, () => void outcome(async () => {
      const token = await refresh();
      // Another connection has begun with a token of its own.
      if (timer === refreshTimer) request("$refresh", token, (result) => result instanceof CallError && !isEnd(result) && report(result));
    })) : undefined);
  }

  function isNew(id: string): boolean {
    const isNew = seen.record(id);
    if (isNew) lastId = id;
    return isNew;
  }

  function roomMessage({ name, historyId, kind, payload }: Frame): void {
    const room = rooms.get(name);
    if (kind > Kind.Binary) {
      if (!room) return;
      if (kind < Kind.Silence) gap(room, historyId);
      else if (kind < Kind.Members) guarded(() => room.options.onSilence?.(!!payload[0]));
      else if (kind < Kind.Later) {
        guarded(() => {
          if (kind < Kind.Changes) room.members = new Map(payload.json());
          else for (const [key, member] of payload.json()) room.members[member ? "set" : "delete"](key, member);
          return room.options.onPresence?.([...room.members.values()]);
        });
      }
      return;
    }
    if (leaving.includes(name) || (room && isAhead(room, historyId)) || !isNew(historyId)) return;
    if (room) room.last = historyId;
    deliver(payload, { room: name, id: historyId });
  }

  const call: Connection["call"] = (name, data, options = {}) =>
    outcome(() => {
      if (state.name === "open" && state.transport === "events") throw unsupported();
      return new Promise((resolve, reject) => {
        calls.make(name, data, { timeout: settings.timeout, ...options }, put, (result) =>
          result instanceof CallError ? reject(result) : resolve(result));
      });
    });

  return {
    get state() {
      return state;
    },
    states(listener?: (state: State) => unknown): any {
      if (!listener) return iterate(states, state);
      const end = states.listen(listener);
      guarded(listener, state);
      return end;
    },
    messages: (listener?: Listener) => listen(undefined, listener),
    on: (name: string, listener?: Listener) => listen(checkedText(name), listener),
    send(message) {
      put({ data: bytesOf(message)?.slice() ?? checkedText(message), isFrame: false });
    },
    notify(name, data) {
      put({ data: concat([Form.Notification], encodeName(name), toBytes(data)), isFrame: true });
    },
    call,
    handle(name, handler) {
      const { handlers } = calls;
      handlers.set(name, handler);
      return () => void (handlers.get(name) === handler && handlers.delete(name));
    },
    join: (name, options = {}) =>
      outcome(() => {
        encodeName(name);
        let room = rooms.get(name);
        if (room) {
          room.options = { ...room.options, ...options, since: room.options.since };
          if (!options.onPresence) return room.joined;
        } else {
          if (isClosed()) throw new CallError("closed", CLOSED);
          if (protocol !== undefined && !hasProcedures()) throw unsupported();
          rooms.set(name, (room = makeRoom(name, options)));
        }
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
        room.reject(new CallError("aborted", "room left"));
        if (room.last) seen.forget(room.last);
        if (!hasProcedures()) return;
        leaving.push(name);
        return new Promise<void>((resolve, reject) => {
          request("$leave", name, (result) => {
            leaving.splice(leaving.indexOf(name), 1);
            // A connection that has ended is in no room.
            if (result instanceof CallError && !isEnd(result)) reject(result);
            else resolve();
          });
        });
      }),
    room: (name) => ({
      presence: () => outcome(async () => (await call("$presence", name)).json()),
    }),
    reconnect: link.connect,
    close: (code = 1000, reason = "") => link.close(code, reason),
  };
}

/** Whether a call failed because its connection ended. */
const isEnd = ({ code }: CallError) => code === "disconnected" || code === "closed";

const CLOSED = "the connection has ended";
const UNSUPPORTED = "not supported here";
