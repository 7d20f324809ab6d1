import { makeCalls, type CallOptions, type Calls, type Done, type Handler } from "./calls.js";
import { Data, toBytes, type Payload } from "./data.js";
import { CallError, guarded, report } from "./error.js";
import { joined, named, NOTIFICATION, OF_ROOM, parse, PROTOCOL, type Frame } from "./frames.js";
import { makeLink, type Link } from "./link.js";
import { Listeners } from "./listeners.js";
import { withDefaults, type Address, type Options, type Settings, type State } from "./options.js";
import { makeOutbox, type Outbox, type Outgoing } from "./outbox.js";
import { makePulse, type Pulse } from "./pulse.js";
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

// As many as the server certainly takes at a time.
const JOINING_MAX = 64;

/**
 * A connection to a server that comes back when it is lost. Made by {@link connect}.
 *
 * What is sent while there is no connection waits, within bounds, and leaves in order as soon as there is one and the
 * rooms are joined again. What was sent is never sent again.
 */
export class Connection {
  readonly #settings: Settings;
  readonly #link: Link;
  readonly #calls: Calls;
  readonly #pulse: Pulse;
  readonly #outbox: Outbox;
  readonly #states = new Listeners<[State]>();
  readonly #messages = new Listeners<[Data, Info]>();
  readonly #notifications = new Map<string, Listeners<[Data, Info]>>();
  readonly #rooms = new Map<string, Room>();
  readonly #seen = makeSeen();
  /** The last message that has come, and the last event. */
  #lastId = "";
  #eventId = "";
  /** Rooms that the server has not let us out of yet: what still comes of them is not wanted. */
  readonly #leaving = new Map<string, number>();
  /** Rooms that are to be joined, and how many are being joined. */
  #toJoin: Room[] = [];
  #joining = 0;
  /** Whether a WebSocket is open, and with which subprotocol. */
  #protocol: string | undefined;
  /** Whether what waited has left, so that messages go out at once. */
  #isReady = false;

  /** @internal */
  constructor(address: Address, options: Options) {
    const settings = (this.#settings = withDefaults(options));
    this.#outbox = makeOutbox(settings.outboxCount, settings.outboxBytes);
    this.#link = makeLink(address, settings, {
      open: (transport, protocol) => this.#opened(transport, protocol),
      message: (data, eventId) => this.#received(data, eventId),
      lastId: () => this.#lastId,
      gap: () => this.#rooms.forEach((room) => this.#gap(room)),
      lost: (why) => this.#lost(why),
      check: () => this.#pulse.check(),
      state: (state) => this.#changed(state),
    });
    this.#calls = makeCalls((frame) => this.#link.send(frame));
    this.#pulse = makePulse(
      settings.pingInterval,
      settings.pingTimeout,
      () => this.#request("$ping", "", () => {}),
      () => this.#link.fail("the server does not answer"),
    );
  }

  /** What the connection does now. */
  get state(): State {
    return this.#link.state();
  }

  /** Listens to what the connection does, beginning with what it does now. Returns what ends that. */
  states(listener: (state: State) => unknown): () => void;
  /** The same as an iterator, which ends when the connection is closed. */
  states(): AsyncIterableIterator<State, undefined>;
  states(listener?: (state: State) => unknown): (() => void) | AsyncIterableIterator<State, undefined> {
    if (!listener) return this.#queue(this.#states, this.state);
    const end = this.#states.add(listener);
    guarded(() => listener(this.state));
    return end;
  }

  /** Listens to plain messages: text, and binary ones that are no frames. Returns what ends that. */
  messages(listener: Listener): () => void;
  /** The same as an iterator, which ends when the connection is closed, and fails if it is read too slowly. */
  messages(): AsyncIterableIterator<Data, undefined>;
  messages(listener?: Listener): (() => void) | AsyncIterableIterator<Data, undefined> {
    return listener ? this.#messages.add(listener) : this.#queue(this.#messages);
  }

  /** Listens to notifications of this name. Returns what ends that. */
  on(name: string, listener: Listener): () => void;
  /** The same as an iterator, which ends when the connection is closed, and fails if it is read too slowly. */
  on(name: string): AsyncIterableIterator<Data, undefined>;
  on(name: string, listener?: Listener): (() => void) | AsyncIterableIterator<Data, undefined> {
    let listeners = this.#notifications.get(name);
    if (!listeners) this.#notifications.set(name, (listeners = new Listeners()));
    return listener ? listeners.add(listener) : this.#queue(listeners);
  }

  #queue<Args extends [unknown, ...unknown[]]>(listeners: Listeners<Args>, first?: Args[0]): AsyncIterableIterator<Args[0], undefined> {
    const queue = listeners.queue(this.#settings.queue, first);
    if (this.state.name === "closed") queue.end();
    return queue;
  }

  /**
   * Sends a plain message: text as text, bytes as binary. Where procedures are spoken, the server takes binary messages
   * for frames: then only text can be sent. Throws a {@link CallError} that is `full`, `closed` or `unsupported`.
   */
  send(message: string | Uint8Array | ArrayBuffer): void {
    this.#put({ data: typeof message === "string" ? message : toBytes(message).slice(), isFrame: false });
  }

  /** Sends a notification. Throws a {@link CallError} that is `full`, `closed` or `unsupported`. */
  notify(name: string, data?: Payload): void {
    const frame = joined(Uint8Array.of(NOTIFICATION), named(name), toBytes(data));
    this.#put({ data: frame, isFrame: true });
  }

  /**
   * Calls a procedure of the server. Fails with a {@link CallError}; its `sent` says whether the server may have begun.
   * A call that waits for a connection is sent when there is one; one that was in flight when it was lost has failed.
   */
  async call(name: string, data?: Payload, options: CallOptions = {}): Promise<Data> {
    if (this.state.name === "open" && this.state.transport === "events") throw unsupported();
    return new Promise((resolve, reject) => {
      const put = (frame: Uint8Array, sent: () => void) => {
        const item = { data: frame, isFrame: true, sent };
        this.#put(item);
        return () => this.#outbox.remove(item);
      };
      this.#calls.make(name, data, { timeout: this.#settings.timeout, ...options }, put, (result) =>
        result instanceof CallError ? reject(result) : resolve(result));
    });
  }

  /** Answers calls from the server. Returns what ends that. */
  handle(name: string, handler: Handler): () => void {
    const { handlers } = this.#calls;
    handlers.set(name, handler);
    return () => void (handlers.get(name) === handler && handlers.delete(name));
  }

  /**
   * Joins a room, now and whenever the connection comes back, from the last message on that was seen. Gives the room's
   * last id, or nothing where it keeps no history. Fails with a {@link CallError}, mostly `refused`. Where it is joined
   * already, what is named in the options takes the place of what was, except `since`.
   */
  async join(name: string, options: JoinOptions = {}): Promise<string> {
    named(name);
    let room = this.#rooms.get(name);
    if (room) {
      room.options = { ...room.options, ...options, since: room.options.since };
      return room.joined;
    }
    if (this.state.name === "closed") throw new CallError("closed", CLOSED);
    if (this.#protocol !== undefined && !this.#speaks) throw unsupported();
    room = makeRoom(name, options);
    this.#rooms.set(name, room);
    if (this.#protocol !== undefined) {
      this.#toJoin.push(room);
      this.#join();
    }
    return room.joined;
  }

  /** Leaves a room that was joined with {@link join}. */
  async leave(name: string): Promise<void> {
    const room = this.#rooms.get(name);
    if (!room) return;
    this.#rooms.delete(name);
    this.#toJoin = this.#toJoin.filter((other) => other !== room);
    room.reject(new CallError("aborted", "the room was left"));
    if (room.last) this.#seen.forget(room.last);
    if (!this.#speaks) return;
    const leaving = this.#leaving;
    leaving.set(name, (leaving.get(name) ?? 0) + 1);
    return new Promise((resolve, reject) => {
      this.#request("$leave", name, (result) => {
        const rest = leaving.get(name)! - 1;
        if (rest) leaving.set(name, rest);
        else leaving.delete(name);
        // Who is not connected is in no room.
        if (result instanceof CallError && !isEnd(result)) reject(result);
        else resolve();
      });
    });
  }

  /** Connects now: instead of waiting, anew where it is open, and also once it is closed. */
  reconnect(): void {
    this.#link.connect();
  }

  /** Closes the connection for good: until {@link reconnect}. What waits is dropped, and calls fail as `closed`. */
  close(code = 1000, reason = ""): void {
    this.#link.close(code, reason);
  }

  get #speaks(): boolean {
    return this.#protocol === PROTOCOL;
  }

  #put(item: Outgoing): void {
    if (this.state.name === "closed") throw new CallError("closed", CLOSED);
    if (!this.#isReady) return this.#outbox.add(item);
    if (!this.#fits(item)) throw unsupported();
    this.#outbox.check(item, this.#link.buffered());
    this.#transmit(item);
  }

  #transmit({ data, sent }: Outgoing): void {
    sent?.();
    this.#link.send(data);
  }

  /** Whether the server takes it for what it is. */
  #fits({ data, isFrame }: Outgoing): boolean {
    return typeof data === "string" || isFrame === this.#speaks;
  }

  /** A call of the protocol's own, which waits for nothing and does not outlast the connection. */
  #request(name: string, data: Payload, done: Done, onItem?: CallOptions["onItem"]): void {
    const put = (frame: Uint8Array, sent: () => void) => void this.#transmit({ data: frame, isFrame: true, sent });
    this.#calls.make(name, data, { onItem }, put, done);
  }

  #opened(transport: "websocket" | "events", protocol: string): void {
    if (transport === "events") return this.#calls.fail("unsupported", UNSUPPORTED, false);
    this.#protocol = protocol;
    if (this.#speaks) {
      this.#pulse.start();
      this.#toJoin = [...this.#rooms.values()];
      for (const room of this.#toJoin) room.isIn = false;
    } else {
      for (const room of this.#rooms.values()) this.#refused(room, unsupported());
      this.#calls.fail("unsupported", UNSUPPORTED, false);
    }
    this.#join();
  }

  /** Joins what is to be joined, not too much at a time; behind it goes what has waited. */
  #join(): void {
    while (this.#toJoin.length > 0 && this.#joining < JOINING_MAX) {
      this.#joining += 1;
      this.#joinRoom(this.#toJoin.shift()!);
    }
    // Whoever was told of a refusal may have closed it.
    if (this.#isReady || this.#toJoin.length > 0 || this.#protocol === undefined) return;
    this.#isReady = true;
    for (let item; this.#isReady && (item = this.#outbox.take()); ) {
      if (this.#fits(item)) this.#transmit(item);
      else report(unsupported());
    }
  }

  #joinRoom(room: Room): void {
    const isWanted = () => this.#rooms.get(room.name) === room;
    const payload = joined(named(room.name), toBytes(since(room)));
    const done = (result: Data | CallError) => {
      const isError = result instanceof CallError;
      if (isError && isEnd(result)) return;
      this.#joining -= 1;
      if (!isWanted()) {
        // Left meanwhile.
      } else if (!isError) {
        const id = result.text();
        room.isJoined = true;
        room.isIn = true;
        // What is kept has come before: this is where the room is if there was nothing.
        room.last ??= id || undefined;
        this.#lastId ||= id;
        room.resolve(id);
      } else if (room.isJoined && !["refused", "unknown"].includes(result.code)) {
        // Nothing is said against it: it is tried again, after a while.
        return this.#link.fail(result.message);
      } else {
        this.#refused(room, result);
      }
      this.#join();
    };
    this.#request("$join", payload, done, (item) => item.text() === "gap" && isWanted() && this.#gap(room));
  }

  #refused(room: Room, error: CallError): void {
    this.#rooms.delete(room.name);
    room.reject(error);
    if (room.isJoined) guarded(() => room.options.onRefused?.(error));
  }

  #gap(room: Room): void {
    const gap = { room: room.name, since: since(room) };
    // All that is kept follows: where the connection is lost before it has come, it is asked for again.
    room.last = undefined;
    room.options = { ...room.options, since: "all" };
    guarded(() => room.options.onGap?.(gap));
  }

  #lost(why: "disconnected" | "closed"): void {
    this.#protocol = undefined;
    this.#isReady = false;
    this.#joining = 0;
    this.#toJoin = [];
    this.#pulse.stop();
    this.#calls.lost(why);
  }

  #changed(state: State): void {
    if (state.name === "closed") {
      while (this.#outbox.take());
      this.#calls.fail("closed", CLOSED);
      for (const room of this.#rooms.values()) if (!room.isJoined) this.#refused(room, new CallError("closed", CLOSED));
    }
    this.#states.emit(state);
    if (state.name !== "closed" || this.state.name !== "closed") return;
    for (const listeners of [this.#states, this.#messages, ...this.#notifications.values()]) listeners.end();
  }

  #received(data: Data, eventId?: string): void {
    this.#pulse.heard();
    if (eventId) {
      // An event without an id has that of the one before.
      const hasNone = eventId === this.#eventId || eventId === this.#lastId;
      this.#eventId = eventId;
      if (hasNone) return this.#deliver(data, { name: "" });
      if (!this.#isNew(eventId)) return;
      // Which room it is of is known by its history.
      const rooms = [...this.#rooms.values()];
      const room = rooms.find(({ last }) => last && split(last)[0] === split(eventId)[0])
        ?? (rooms.length === 1 ? rooms[0] : undefined);
      if (room) room.last = eventId;
      return this.#deliver(data, { name: "", room: room?.name, id: eventId });
    }
    const frame = !data.isText && this.#speaks ? parse(data) : undefined;
    if (frame?.form === OF_ROOM) this.#ofRoom(frame);
    else if (!frame || !this.#calls.received(frame)) this.#deliver(data, { name: "" });
  }

  #isNew(id: string): boolean {
    const isNew = this.#seen.note(id);
    if (isNew) this.#lastId = id;
    return isNew;
  }

  #ofRoom({ name, historyId, payload }: Frame): void {
    const room = this.#rooms.get(name);
    if (this.#leaving.has(name) || (room && isAhead(room, historyId)) || !this.#isNew(historyId)) return;
    if (room) room.last = historyId;
    this.#deliver(payload, { name: "", room: name, id: historyId });
  }

  /** To whom it is for: notifications to those of that name, everything else to those of plain messages. */
  #deliver(data: Data, info: Info): void {
    const isFrame = !data.isText && data[0] === NOTIFICATION && this.#settings.procedures;
    const frame = isFrame && (this.#protocol === undefined || this.#speaks) ? parse(data) : undefined;
    if (frame) this.#notifications.get(frame.name)?.emit(frame.payload, { ...info, name: frame.name });
    else this.#messages.emit(data, info);
  }
}

/** Whether it has failed since the connection has ended. */
const isEnd = ({ code }: CallError) => code === "disconnected" || code === "closed";

const CLOSED = "the connection has ended";
const UNSUPPORTED = "the subprotocol has no such messages";
const unsupported = () => new CallError("unsupported", UNSUPPORTED);

/**
 * Connects to a server, in the background, and stays connected.
 *
 * ```js
 * const connection = connect("/live");
 * connection.on("message", (data) => console.log(data.text()));
 * const sum = (await connection.call("add", [1, 2])).json();
 * ```
 */
export function connect(address: Address, options: Options = {}): Connection {
  return new Connection(address, options);
}
