// The connection to one room: messages with their ids, what was missed, and the way around proxies that break WebSocket.
//
// A server with a history sends JSON with ids and times, over the subprotocol of the client library. Other servers send plain
// messages. Where no WebSocket gets through, server-sent events do.

import { connect } from "../../src/client.js";
import { between, mergeByTime } from "./ids.js";
import { decoded } from "./pieces.js";

const PLAIN_FORM = "plain.humphrey-broadcast";
/** A server that is silent for this long is pinged, and has as long to answer. */
export const SILENCE_MS = 10_000;
const CHECK_MS = 3_000;
/** A single failure may be accidental. */
const FAILURES_BEFORE_CHECK = 2;
const FAILURES_BEFORE_REASON = 3;
/** The time after which what was replayed is shown, although the end of the replay was not announced. */
const LIVE_MS = 15_000;
/** Messages of a replay that has not ended. */
const HELD_MAX = 20_000;

const WELCOME = /^Welcome, ([\d.:a-f[\]]+)!$/;

/** Prolongs the reader's session. The server wants the answer on the connection, too. */
async function prolongSession() {
  for (;;) {
    const options = { method: "POST", cache: "no-store", signal: AbortSignal.timeout(CHECK_MS) };
    const response = await fetch("session", options).catch(() => null);
    if (response?.ok) return response.text();
    // It has ended meanwhile. Otherwise, there is time left.
    if (response && [400, 401].includes(response.status)) throw new Error((await response.text()).trim());
    await new Promise((resolve) => setTimeout(resolve, SILENCE_MS));
  }
}

const plural = (count, what) => `${count.toLocaleString()} ${what}${count === 1 ? "" : "s"}`;

export class Connection {
  #room;
  #on;
  #socket = null;
  #events = null;
  #isLive = false;
  #wasOpen = false;
  #failures = 0;
  /** The server of the last connection. */
  #server = null;
  #seen = { everyone: null, room: null };
  #held = { everyone: [], room: [] };
  #isChecking = false;
  /** Whether the server has answered the last check, after which WebSocket was tried again. */
  #hasPassed = false;
  #beginsAnew = false;
  #liveTimer = 0;
  /** Whether server-sent events are used, or tried. */
  #tried = false;
  #unanswered = 0;
  state = { name: "connecting" };
  /** Why the server refuses this page, in its own words. */
  refusal = "";

  /** `on`: `line(line)`, `clear()`, `changed()`, `announce(text)` and `unauthorized()`. */
  constructor(room, on) {
    this.#room = room;
    this.#on = on;
    this.#openSocket();
  }

  #openSocket() {
    const options = { protocols: [PLAIN_FORM], pingInterval: SILENCE_MS, pingTimeout: SILENCE_MS, refresh: prolongSession };
    const socket = connect(() => this.#address(), options);
    this.#socket = socket;
    socket.states((state) => socket === this.#socket && this.#changed(state));
    socket.messages((data) => socket === this.#socket && this.#receive(data));
  }

  /** The URL to connect to, with the ids of the last messages. */
  #address() {
    const url = new URL(".", location.href);
    url.pathname += encodeURIComponent(this.#room);
    url.search = new URLSearchParams({ form: "json" });
    if (this.#server !== null) {
      url.searchParams.set("since", this.#seen.everyone ?? "");
      url.searchParams.set("room_since", this.#seen.room ?? "");
    }
    return url;
  }

  close() {
    const [socket, events] = [this.#socket, this.#events];
    this.#socket = this.#events = null;
    this.#stopLiveTimer();
    socket?.close();
    events?.close();
  }

  reconnect() {
    this.#failures = 0;
    if (this.#events) this.#leaveEvents();
    else this.#socket.reconnect();
  }

  /** Tries WebSocket again. The ids of what the events have shown are not known, so the list begins anew. */
  #leaveEvents() {
    this.#events.close();
    this.#events = null;
    this.#server = null;
    this.#seen = { everyone: null, room: null };
    this.#wasOpen = false;
    this.#beginsAnew = true;
    this.#openSocket();
  }

  /** Sends a message. Fails if it is too long for the connection. */
  send(text) {
    this.#socket.send(text);
  }

  get isOpen() {
    return this.state.name === "open";
  }

  get canSend() {
    return this.isOpen && !this.#events;
  }

  get isPlain() {
    return this.isOpen && (this.#events !== null || this.state.protocol === PLAIN_FORM || this.state.protocol === "");
  }

  get usesEvents() {
    return this.#events !== null;
  }

  /** Plain connections have no ping for scripts: requests that time out show that the server is gone. */
  unanswered() {
    this.#unanswered += 1;
    if (this.isPlain && !this.#events && this.#unanswered >= 3) this.#socket.reconnect();
  }

  answered() {
    this.#unanswered = 0;
  }

  #note(text, at = Date.now()) {
    this.#on.line({ kind: "note", text, at });
  }

  #changed(next) {
    const before = this.state;
    this.state = { ...next, retryAt: performance.now() + (next.until ?? NaN) - Date.now() };
    this.#stopLiveTimer();
    if (next.name === "open") {
      if (this.#beginsAnew) this.#on.clear();
      this.#beginsAnew = false;
      this.#isLive = false;
      this.#failures = 0;
      this.#hasPassed = false;
      this.#unanswered = 0;
      this.refusal = "";
      if (this.#wasOpen && this.isPlain) this.#note("Reconnected. Lines sent in the meantime are not shown: the server keeps no history (--history).");
      this.#wasOpen = true;
      this.#on.announce("Connected");
    } else if (next.name === "closed" || (before.name === "open" && next.until !== Infinity)) {
      // 1005 and 1006 stand for a missing close code.
      const code = next.code === 1005 || next.code === 1006 ? "" : ` (${next.code})`;
      const reason = next.name === "connecting" ? "the server does not answer" : next.reason + code;
      this.#note(next.reason === "" ? "Disconnected." : `Disconnected: ${reason}.`);
      this.#on.announce(next.name === "closed" ? "Disconnected." : "Disconnected. Trying to reconnect.");
    }
    if (next.name === "waiting") {
      this.#failures += 1;
      if (this.#failures >= FAILURES_BEFORE_CHECK) this.#check();
    }
    this.#on.changed();
  }

  /**
   * Browsers hide why a handshake was refused, so the page asks: a request is refused for the same reason, with a readable body.
   * If it is not refused, something on the way breaks WebSocket, and events may get through.
   */
  async #check() {
    if (this.#isChecking) return;
    this.#isChecking = true;
    try {
      // A POST has an Origin, as the handshake does.
      const response = await fetch("check", { method: "POST", cache: "no-store", signal: AbortSignal.timeout(CHECK_MS) });
      const isText = response.headers.get("Content-Type")?.startsWith("text/plain");
      const words = isText ? (await response.text()).trim() : `${response.status} ${response.statusText}`.trim();
      if (this.isOpen || !this.#socket) return;
      // The network may have come back just now, so WebSocket gets another attempt first.
      if (response.ok && this.#hasPassed) this.#useEvents();
      this.#hasPassed = response.ok;
      if (this.#failures >= FAILURES_BEFORE_REASON && words && words !== this.refusal) {
        this.refusal = words;
        this.#note(words);
        this.#on.announce(words);
        this.#on.changed();
      }
      if (response.status === 401) this.#on.unauthorized();
    } catch {
      // The server does not answer, which the state shows.
      this.#hasPassed = false;
    } finally {
      this.#isChecking = false;
    }
  }

  #useEvents() {
    if (this.#tried) return;
    this.#tried = true;
    const url = new URL(`events/${encodeURIComponent(this.#room)}`, new URL(".", location.href));
    // Ids of messages are not positions of an event stream: what was shown already is not asked for again.
    url.search = new URLSearchParams({ since: this.#wasOpen ? "now" : "all" });
    const events = new EventSource(url);
    let wasOpen = false;
    events.onopen = () => {
      // The page may have left the room, or WebSocket may have got through meanwhile.
      const isClosed = !this.#socket && this.#events !== events;
      if (isClosed || (this.isOpen && !wasOpen)) return events.close();
      const socket = this.#socket;
      this.#socket = null;
      socket?.close();
      this.#events = events;
      this.refusal = "";
      this.state = { name: "open", protocol: "" };
      if (!wasOpen) {
        this.#note("WebSocket does not get through to the server, probably because of a proxy. The lines now arrive as server-sent events; times are those of their arrival.");
        if (this.#wasOpen) this.#note("Lines sent since the connection was lost may be missing.");
      } else this.#note("Reconnected.");
      wasOpen = this.#wasOpen = true;
      this.#on.announce("Connected");
      this.#on.changed();
    };
    events.onerror = () => {
      if (events.readyState === EventSource.CLOSED || this.#events !== events) this.#tried = false;
      if (this.#events !== events) return events.close();
      this.state = { name: "waiting", attempts: 1, until: NaN, retryAt: performance.now() + 2_000 };
      // The browser reconnects by itself unless the server has refused it.
      if (events.readyState === EventSource.CLOSED) this.#leaveEvents();
      this.#on.changed();
    };
    events.onmessage = ({ data }) => this.#plain(data);
    events.addEventListener("binary", ({ data }) => this.#on.line({ kind: "text", text: decoded(data), at: Date.now(), isBytes: true }));
    events.addEventListener("reset", () => this.#note("Lines are missing here: the server no longer keeps them."));
  }

  #receive(data) {
    this.answered();
    if (!this.isPlain) this.#read(data.json());
    else if (data.isText) this.#plain(data.text());
    else this.#on.line({ kind: "text", text: new TextDecoder().decode(data.bytes()), at: Date.now(), isBytes: true });
  }

  #plain(text) {
    const welcome = WELCOME.exec(text);
    if (welcome) this.#joined(welcome[1], Date.now());
    else this.#on.line({ kind: "text", text, at: Date.now() });
  }

  #joined(name, at) {
    this.#on.line({ kind: "joined", names: [name], count: 1, text: `${name} joined`, at });
  }

  #read(message) {
    const to = message.room === null ? "everyone" : "room";
    if (message.kind === "live") {
      if (this.#isLive) this.#lost(message);
      else this.#live(message);
      this.#isLive = true;
    } else if (message.kind === "announcement") {
      const name = WELCOME.exec(message.text)?.[1];
      if (name) this.#joined(name, message.at);
      else this.#show(message, to, false);
    } else if (!this.#isLive && message.kind === "message") {
      const held = this.#held[to];
      const before = held.at(-1)?.id;
      held.push(message);
      if (held.length > HELD_MAX) held.splice(0, held.length - HELD_MAX);
      // A server that skips lines for this page may have skipped the end of the replay.
      if (between(before, message.id) > 0) this.#giveUpReplay();
      else this.#liveTimer ||= setTimeout(() => this.#giveUpReplay(), LIVE_MS);
    } else this.#show(message, to, false);
  }

  #stopLiveTimer() {
    clearTimeout(this.#liveTimer);
    this.#liveTimer = 0;
  }

  /** Shows what was replayed although its end was not announced. */
  #giveUpReplay() {
    if (this.#isLive || !this.isOpen) return;
    this.#stopLiveTimer();
    const messages = mergeByTime(this.#held.everyone, this.#held.room);
    this.#held = { everyone: [], room: [] };
    this.#isLive = true;
    for (const message of messages) this.#show(message, message.room === null ? "everyone" : "room", this.#server !== null);
  }

  /** The end of a replay: what was held is shown in the order of time. */
  #live({ server, complete, last }) {
    this.#stopLiveTimer();
    const isReconnect = this.#server !== null;
    const isRestarted = isReconnect && server !== this.#server;
    this.#server = server;
    const messages = mergeByTime(this.#held.everyone, this.#held.room);
    this.#held = { everyone: [], room: [] };
    // The gap lies before the replayed messages.
    const at = messages[0]?.at ?? Date.now();
    if (isRestarted) this.#note("The server was restarted: lines may be missing here.", at);
    else if (isReconnect && !complete) this.#note("Lines are missing here: the server no longer keeps them (--history).", at);
    if (isRestarted || !complete) this.#seen = { everyone: null, room: null };
    for (const message of messages) this.#show(message, message.room === null ? "everyone" : "room", isReconnect);
    // A message may arrive before the older id that the end of the replay names.
    for (const to of ["everyone", "room"]) if (between(this.#seen[to], last[to]) > 0 || !this.#seen[to]) this.#seen[to] = last[to];
    if (isReconnect) {
      const missed = messages.length ? ` ${plural(messages.length, "line")} received late.` : isRestarted || !complete ? "" : " No lines were missed.";
      this.#note(`Reconnected.${missed}`);
    } else if (messages.length) this.#note("End of the history. New lines follow.");
  }

  /** A later line of that kind: a cluster has lost messages, of everyone or of the room. It does not know the other id. */
  #lost({ complete, last }) {
    this.#seen = { everyone: last.everyone ?? this.#seen.everyone, room: last.room ?? this.#seen.room };
    if (!complete) this.#note("Lines are missing here: the server has lost them.");
  }

  #show(message, to, isMissed) {
    if (message.id) {
      const after = this.#seen[to];
      const count = between(after, message.id);
      if (count > 0) {
        const text = `${plural(count, "line")} skipped, because this page or its connection is too slow.`;
        this.#on.line({ kind: "note", text, at: message.at, skipped: { to, room: this.#room, after, before: message.id, count } });
      }
      this.#seen[to] = message.id;
    }
    this.#on.line(this.lineOf(message, isMissed));
  }

  /** A message of the server as a line. */
  lineOf(message, isMissed = false) {
    const line = { kind: "text", text: message.text, at: message.at, room: message.room, id: message.id, isMissed };
    if (typeof message.base64 === "string") return { ...line, text: decoded(message.base64), isBytes: true };
    if (typeof message.text !== "string") return { ...line, kind: "note", text: `A line of ${plural(message.omitted_bytes, "byte")}, which is too long to be sent with its id.` };
    return line;
  }

  /** Loads lines that were skipped. Returns the lines, and a note about them. */
  async load({ to, room, after, before, count }) {
    const path = room ? `history/${encodeURIComponent(room)}` : "history";
    const query = new URLSearchParams({ after, before });
    if (!room && to === "room") query.set("of", "sources");
    const url = `${to === "everyone" ? "history" : path}?${query}`;
    const response = await fetch(url, { cache: "no-store" });
    if (!response.ok) throw new Error((await response.text()).trim());
    const { messages } = await response.json();
    const lines = messages.filter((message) => between(after, message.id) < count).map((message) => this.lineOf(message, true));
    const missing = count - lines.length;
    const rest = missing > 0 ? ` ${plural(missing, "line")} are no longer kept by the server.` : "";
    return { lines, text: `${plural(lines.length, "skipped line")} loaded.${rest}` };
  }
}
