import { Data } from "./data.js";
import { guarded } from "./error.js";
import { PLAIN, PROTOCOL } from "./frames.js";
import { absolute, type Address, type Settings, type State } from "./options.js";
import { after, now } from "./timer.js";

/** What a link tells. */
export interface LinkEvents {
  /** A WebSocket has been opened, or an event stream. */
  open(transport: "websocket" | "events", protocol: string): void;
  /** A message, with its id in a history where it came as an event. */
  arrived(data: Data, eventId?: string): void;
  /** The last messages that came, the very last in front, for an event stream to begin behind them. */
  lastIds(): string[];
  /** The event stream says of which rooms it is, by the epochs of their histories, and where it begins. */
  named(names: Record<string, string>, eventId: string): void;
  /** The event stream says that messages are missing, and where it goes on. */
  gap(eventId: string): void;
  /** A WebSocket that was open is gone, or closed from here. */
  lost(why: "disconnected" | "closed"): void;
  /** It is worth a look whether the server is there still. */
  check(): void;
  changed(state: State): void;
}

/** A connection that comes back: when, and over what. It knows nothing of what is sent over it. */
export interface Link {
  /** What was sent and has not left yet. */
  buffered(): number;
  write(data: string | Uint8Array): void;
  /** Begins an attempt, whatever is going on or was found out. An event stream goes on until it has succeeded. */
  connect(): void;
  /** Something was asked for that the server seems not to speak: it is made sure of, now and then. */
  doubt(): void;
  /** Ends the connection as one that was lost. */
  fail(reason: string): void;
  /** Closes for good: until `connect`. */
  close(code: number, reason: string): void;
}

// What the server has found wrong, and its own wish for peace: more haste would help nobody.
const LATE = [1002, 1003, 1007, 1010, 1013];
const enum Code {
  /** The code of no code: the connection was cut. */
  None = 1006,
  /** The session has expired: the address may give a fresh token. */
  Unauthorized = 3000,
}

// With the subprotocols; if that fails, without; if that opens, twice with them, lest every other attempt had failed.
const enum Step {
  Offered,
  Without,
  Again,
  OnceMore,
}
const AFTER_FAILURE = [Step.Without, Step.Offered, Step.OnceMore, Step.Offered] as const;

const halfJittered = (delay: number) => delay * (0.5 + Math.random() / 2);

const resolve = async (address: Address, isSocket: boolean) =>
  absolute(await (typeof address === "function" ? address() : address), isSocket);

export function makeLink(address: Address, settings: Settings, events: LinkEvents): Link {
  const { procedures, delayMax, openTimeout, eventsRetry, WebSocket: Socket, EventSource: Source } = settings;
  let state: State = { name: "connecting" };
  let socket: WebSocket | undefined;
  let source: EventSource | undefined;
  let timer: ReturnType<typeof setTimeout> | undefined;
  /** Counts attempts: what an older one still does is for nothing. */
  let attempt = 0;
  let failures = 0;
  /** Attempts in a row that never opened, or on which nothing came before they were cut. */
  let fruitless = 0;
  let openedAt = 0;
  /** Whether anything has come, or the connection has lasted. */
  let isGood = false;
  let isHasty = true;
  let isListening = false;
  /** Whether the server has chosen one of the subprotocols. */
  let isKnown = false;
  /** A browser calls it a failure if the server chooses none. So a first failure is followed by attempts of its own: */
  let step: Step = Step.Offered;
  /** Until when it is taken for one that chooses none. Never for good: a network that fails looks the same. */
  let plainUntil = 0;
  let isOffered = false;

  function setState(next: State): void {
    if (next.name === "connecting" && state.name === "connecting") return;
    state = next;
    events.changed(next);
  }

  function connect(): void {
    listen(true);
    if (!drop()) return;
    const own = attempt;
    if (!source) setState({ name: "connecting" });
    if (own !== attempt) return;
    timer = after(openTimeout, () => fail("no connection in time"));
    resolve(address, true).then((url) => own === attempt && open(url)).catch((error) => {
      if (own === attempt) fail(String(error));
    });
  }

  function open(url: string): void {
    isOffered = procedures && step !== Step.Without && plainUntil <= now();
    const protocols = isOffered ? [PROTOCOL, ...settings.protocols, PLAIN] : settings.protocols;
    let own: WebSocket;
    try {
      own = socket = new Socket(url, [...new Set(protocols)]) as WebSocket;
    } catch (error) {
      // Where the address can't be another one the next time, neither can this.
      if (typeof address === "function") throw error;
      return end(Code.None, String(error));
    }
    own.binaryType = "arraybuffer";
    own.onopen = () => {
      if (own !== socket) return;
      if (step === Step.Without) {
        step = Step.Again;
        return connect();
      }
      step = Step.Offered;
      if (isOffered) {
        isKnown = true;
        plainUntil = 0;
      }
      stopSource();
      clearTimeout(timer);
      openedAt = now();
      const protocol = own.protocol === PLAIN ? "" : own.protocol ?? "";
      events.open("websocket", protocol);
      // Who has heard of it may have ended it.
      if (own === socket) setState({ name: "open", transport: "websocket", protocol });
    };
    own.onmessage = ({ data }) => {
      if (own !== socket) return;
      isGood = true;
      events.arrived(typeof data === "string" ? Data.ofText(data) : Data.ofBytes(data));
    };
    own.onclose = ({ code, reason }) => own === socket && lost(code, reason);
    // Not everywhere is it followed by the end where nothing was opened.
    own.onerror = () => own === socket && !openedAt && fail("");
  }

  const fail = (reason: string) => lost(Code.None, reason);

  function lost(code: number, reason: string): void {
    const wasOpen = openedAt > 0;
    const wasTried = socket && !wasOpen;
    const at = now();
    const hasLasted = wasOpen && at - openedAt >= settings.lasted;
    // A close frame has come, too.
    const wasGood = isGood || hasLasted || (wasOpen && code !== Code.None);
    if (!drop()) return;
    const own = attempt;
    if (wasTried && procedures && !isKnown && plainUntil <= at) {
      const failed = step;
      step = AFTER_FAILURE[failed]!;
      if (failed === Step.OnceMore) plainUntil = at + 60_000;
      if (failed !== Step.Without) return connect();
    }
    const verdict = guarded(() => settings.reconnect?.(code, reason)) ?? (code !== 1000 && code !== 1008 && code <= Code.Unauthorized);
    // It may have been closed there.
    if (own !== attempt) return;
    if (verdict === false) return end(code, reason);
    fruitless = wasGood ? 0 : fruitless + 1;
    if (hasLasted) failures = 0;
    isHasty = verdict === true && !LATE.includes(code);
    const delay = typeof verdict === "number" ? verdict
      : isHasty ? Math.random() * Math.min(delayMax, settings.delayFirst * 2 ** failures)
      : halfJittered(delayMax);
    failures = Math.min(failures + 1, 30);
    const retry = () => wait(delay, code, reason);
    if (source) wait(halfJittered(eventsRetry));
    else if (settings.events && Source && fruitless >= settings.eventsAfter) follow(settings.events, retry);
    else retry();
  }

  /** Listens to server-sent events, until a WebSocket can be had. */
  function follow(address: Address, retry: () => void): void {
    const own = attempt;
    const giveUp = () => {
      stopSource();
      drop();
      retry();
    };
    setState({ name: "connecting" });
    if (own !== attempt) return;
    const openTimer = (timer = after(openTimeout, giveUp));
    resolve(address, false).then((href) => {
      if (own !== attempt) return;
      const url = new URL(href);
      const query = url.searchParams;
      for (const id of events.lastIds()) query.append("lastEventId", id);
      query.set("eventRooms", "");
      const stream = (source = new Source(url.href) as EventSource);
      const on = (type: string, act: (data: string, id: string) => void) =>
        stream.addEventListener(type, (event) => {
          if (stream !== source) return;
          const { data, lastEventId } = event as MessageEvent<string>;
          guarded(() => act(data, lastEventId));
        });
      on("open", () => {
        if (state.name === "open") return;
        if (timer === openTimer) {
          clearTimeout(timer);
          timer = after(halfJittered(eventsRetry), connect);
        }
        events.open("events", "");
        if (stream === source) setState({ name: "open", transport: "events", protocol: "" });
      });
      on("message", (data, id) => events.arrived(Data.ofText(data), id));
      on("binary", (data, id) => events.arrived(Data.ofBytes(Uint8Array.from(atob(data), (char) => char.charCodeAt(0))), id));
      on("rooms", (data, id) => events.named(JSON.parse(data), id));
      on("reset", (_, id) => events.gap(id));
      // It comes back by itself, unless the server has answered with something else.
      on("error", () => (stream.readyState === 2 ? giveUp() : setState({ name: "connecting" })));
    }).catch(() => own === attempt && giveUp());
  }

  function wait(delay: number, code = Code.None, reason = ""): void {
    const own = attempt;
    if (!source) setState({ name: "waiting", until: Date.now() + delay, attempts: failures, code, reason });
    if (own === attempt && delay < Infinity) timer = after(delay, connect);
  }

  /** Lets go of the WebSocket and of what is planned; false if who has heard of it has begun or ended something. */
  function drop(why: "disconnected" | "closed" = "disconnected"): boolean {
    const old = socket;
    const wasOpen = openedAt > 0;
    clearTimeout(timer);
    const own = (attempt += 1);
    openedAt = 0;
    isGood = false;
    socket = undefined;
    // Of a half-open one the end would come much later.
    if (old && old.readyState < 2) old.close();
    if (wasOpen) events.lost(why);
    return own === attempt;
  }

  function stopSource(): void {
    source?.close();
    source = undefined;
  }

  function end(code: number, reason: string): void {
    stopSource();
    if (!drop("closed")) return;
    listen(false);
    setState({ name: "closed", code, reason });
  }

  /** The browser's own news: the network is back, the page is seen again, put away or taken out again. */
  function listen(isOn: boolean): void {
    if (isOn === isListening || !globalThis.addEventListener) return;
    isListening = isOn;
    const change = isOn ? "addEventListener" : "removeEventListener";
    for (const type of ["online", "pagehide", "pageshow"]) globalThis[change](type, heard);
    for (const type of ["visibilitychange", "resume"]) globalThis.document?.[change](type, heard);
  }

  function heard({ type }: Event): void {
    const isAway = state.name === "waiting" && state.until === Infinity;
    if (type === "pagehide") {
      // A page with a connection could not be kept by the browser.
      stopSource();
      if (drop()) wait(Infinity);
    } else if (type === "pageshow" ? isAway : globalThis.document?.visibilityState !== "hidden") {
      if (state.name === "waiting" && (isHasty || isAway)) connect();
      else if (state.name === "open") events.check();
    }
  }

  // A faulty address that is known is the caller's error.
  if (typeof address !== "function") absolute(address, true);
  // The caller wants to hear of everything.
  queueMicrotask(() => attempt || state.name === "closed" || connect());

  return {
    buffered: () => socket?.bufferedAmount ?? 0,
    write: (data) => socket?.send(data as Uint8Array<ArrayBuffer>),
    connect() {
      plainUntil = 0;
      step = Step.Offered;
      connect();
    },
    doubt() {
      if (plainUntil && plainUntil <= now()) connect();
    },
    fail,
    close(code, reason) {
      // A wrong code or reason is the caller's error, and leaves everything as it is.
      socket?.close(code, reason);
      end(code, reason);
    },
  };
}
