import { Data } from "./data.js";
import { guarded } from "./error.js";
import { PLAIN, PROTOCOL } from "./frames.js";
import { absoluteUrl, CONNECTING, type Address, type Settings, type State } from "./options.js";
import { after, now } from "./timer.js";

/** Callbacks of a link. */
export interface LinkEvents {
  /** A WebSocket with this subprotocol is open, or an event stream. */
  open(protocol?: string): void;
  /** A message has arrived; an event has its id in a history, too. */
  arrived(data: Data, eventId?: string): void;
  /** The ids after which an event stream resumes, the most recent one first. */
  lastIds(): string[];
  /** The event stream has named its rooms, by the epochs of their histories, and its first id. */
  named(names: Record<string, string>, eventId: string): void;
  /** The event stream has reported missing messages, and the id at which it continues. */
  gap(eventId: string): void;
  /** An open WebSocket was lost, or closed by this client. */
  lost(why: "disconnected" | "closed"): void;
  /** The server may be gone: ping it. */
  check(): void;
  changed(state: State): void;
}

/** A reconnecting transport: decides when to connect, and over what. Independent of the messages. */
export interface Link {
  /** Bytes that the browser has buffered. */
  buffered(): number;
  write(data: string | Uint8Array): void;
  /** Connects now, and offers subprotocols again. An event stream stays open until the attempt has succeeded. */
  connect(): void;
  /** The server seems not to support the subprotocol: tries again to negotiate it, at most once a minute. */
  renegotiate(): void;
  /** Treats the connection as lost. */
  fail(reason: string): void;
  /** Closes the link until `connect`. */
  close(code: number, reason: string): void;
}

// Close codes for protocol errors and overload, after which a quick retry would not help.
const SLOW_RETRY_CODES = [1002, 1003, 1007, 1010, 1013];
const enum Code {
  /** Stands for a missing close code (RFC 6455 §7.1.5). */
  Abnormal = 1006,
  Restart = 1012,
  /** The session has expired; an address that is a function can return a new token. */
  Unauthorized = 3000,
}

// Whether to offer subprotocols: offer them; after a failure, withhold them once; if that opens, offer them twice more, in
// case the first failure had another cause.
const enum Step {
  Offer,
  Withhold,
  OfferAgain,
  OfferOnceMore,
}
const AFTER_FAILURE = [Step.Withhold, Step.Offer, Step.OfferOnceMore, Step.Offer] as const;

const halfJittered = (delay: number) => delay * (0.5 + Math.random() / 2);

const resolve = async (address: Address, isSocket: boolean) =>
  absoluteUrl(await (typeof address === "function" ? address() : address), isSocket);

// One long function: its inner functions share state that stays private, without `this`.
export function makeLink(address: Address, settings: Settings, events: LinkEvents): Link {
  const { procedures, delayMax, openTimeout, eventsRetry, WebSocket: Socket, EventSource: Source } = settings;
  let state: State = CONNECTING;
  let socket: WebSocket | undefined;
  let source: EventSource | undefined;
  let timer: ReturnType<typeof setTimeout> | undefined;
  /** Number of the current attempt: callbacks of older ones are ignored. */
  let attempt = 0;
  let failures = 0;
  /** Attempts in a row that did not open, or that broke before anything was received. */
  let emptyAttempts = 0;
  let openedAt = 0;
  /** Whether anything was received. */
  let hasReceived = false;
  let isFastRetry = true;
  /** Whether the server has chosen one of the subprotocols. */
  let isNegotiated = false;
  /** Browsers fail a handshake if the server chooses none of the offers: this tracks the attempts that find that out. */
  let step: Step = Step.Offer;
  /** Until when no subprotocols are offered. Temporary, since a network failure looks the same. */
  let plainUntil = 0;
  let isOffered = false;

  /** Reports the state. Returns false if a callback has started another attempt or closed the link. */
  function setState(next: State): boolean {
    const own = attempt;
    if (next !== state) events.changed((state = next));
    return own === attempt;
  }

  function connect(): void {
    listenToPage(true);
    if (drop()) start(address, true, open, fail);
  }

  /** Calls `act` with the URL, and `failed` if that fails or if nothing has opened in time. */
  function start(address: Address, isSocket: boolean, act: (url: string) => void, failed: (reason: string) => void): void {
    if (!source && !setState(CONNECTING)) return;
    const own = attempt;
    timer = after(openTimeout, () => failed("the attempt timed out"));
    resolve(address, isSocket).then((url) => own === attempt && act(url)).catch((error) => own === attempt && failed(String(error)));
  }

  function open(url: string): void {
    isOffered = procedures && step !== Step.Withhold && plainUntil <= now();
    const protocols = isOffered ? [PROTOCOL, ...settings.protocols, PLAIN] : settings.protocols;
    let own: WebSocket;
    try {
      own = socket = new Socket(url, [...new Set(protocols)]) as WebSocket;
    } catch (error) {
      // A fixed address fails the same way each time.
      if (typeof address === "function") throw error;
      return end(Code.Abnormal, String(error));
    }
    own.binaryType = "arraybuffer";
    own.onopen = () => {
      if (own !== socket) return;
      if (step === Step.Withhold) {
        step = Step.OfferAgain;
        return connect();
      }
      step = Step.Offer;
      if (isOffered) {
        isNegotiated = true;
        plainUntil = 0;
      }
      stopSource();
      clearTimeout(timer);
      openedAt = now();
      const protocol = own.protocol === PLAIN ? "" : own.protocol ?? "";
      opened("websocket", protocol);
    };
    own.onmessage = ({ data }) => {
      if (own !== socket) return;
      hasReceived = true;
      events.arrived(typeof data === "string" ? Data.ofText(data) : Data.ofBytes(data));
    };
    own.onclose = ({ code, reason }) => own === socket && lost(code, reason);
    // Some platforms fire no close event if the connection never opened.
    own.onerror = () => own === socket && !openedAt && fail("");
  }

  /** Reports that the transport is open; `protocol` is the subprotocol of a WebSocket. */
  function opened(transport: "websocket" | "events", protocol?: string): void {
    const own = attempt;
    events.open(protocol);
    // A callback may have ended the connection.
    if (own === attempt) setState({ name: "open", transport, protocol: protocol ?? "" });
  }

  const fail = (reason: string) => lost(Code.Abnormal, reason);

  function lost(code: number, reason: string): void {
    const wasOpen = openedAt > 0;
    const wasTried = socket && !wasOpen;
    const at = now();
    const hasLasted = wasOpen && at - openedAt >= settings.lasted;
    // A close code shows that a close frame was received.
    const wasUseful = hasReceived || hasLasted || (wasOpen && code !== Code.Abnormal);
    if (!drop()) return;
    const own = attempt;
    if (wasTried && procedures && !isNegotiated && plainUntil <= at) {
      const failed = step;
      step = AFTER_FAILURE[failed]!;
      if (failed === Step.OfferOnceMore) plainUntil = at + 60_000;
      if (failed !== Step.Withhold) return connect();
    }
    const verdict = guarded(() => settings.reconnect?.(code, reason)) ?? (code !== 1000 && code !== 1008 && code <= Code.Unauthorized);
    // The callback may have closed the connection.
    if (own !== attempt) return;
    if (verdict === false) return end(code, reason);
    emptyAttempts = wasUseful ? 0 : emptyAttempts + 1;
    if (hasLasted) failures = 0;
    // The wait in seconds that a restarting server has named, so that its clients do not all come back at once.
    const told = code === Code.Restart && reason.match(/retry-after=(\d+\.?\d*)/);
    isFastRetry = verdict === true && !told && !SLOW_RETRY_CODES.includes(code);
    const delay = typeof verdict === "number" ? verdict
      : told ? Math.min(+told[1]! * 1_000, 300_000)
      : isFastRetry ? Math.random() * Math.min(delayMax, settings.delayFirst * 2 ** failures)
      : halfJittered(delayMax);
    failures = Math.min(failures + 1, 30);
    const retry = () => wait(delay, code, reason);
    if (source) wait(halfJittered(eventsRetry));
    else if (settings.events && Source && emptyAttempts >= settings.eventsAfter) openEvents(settings.events, retry);
    else retry();
  }

  /** Uses server-sent events until a WebSocket can be opened. */
  function openEvents(address: Address, retry: () => void): void {
    const giveUp = () => {
      stopSource();
      drop();
      retry();
    };
    start(address, false, (href) => {
      const openTimer = timer;
      const url = new URL(href);
      const query = url.searchParams;
      for (const id of events.lastIds()) query.append("lastEventId", id);
      query.set("eventRooms", "");
      const stream = (source = new Source(url.href) as EventSource);
      const on = (type: string, act: (data: string, id: string) => unknown) =>
        stream.addEventListener(type, (event) => {
          if (stream !== source) return;
          const { data, lastEventId } = event as MessageEvent<string>;
          guarded(act, data, lastEventId);
        });
      on("open", () => {
        if (state.name === "open") return;
        if (timer === openTimer) {
          clearTimeout(timer);
          timer = after(halfJittered(eventsRetry), connect);
        }
        opened("events");
      });
      on("message", (data, id) => events.arrived(Data.ofText(data), id));
      on("binary", (data, id) => events.arrived(Data.ofBytes(Uint8Array.from(atob(data), (char) => char.charCodeAt(0))), id));
      on("rooms", (data, id) => events.named(JSON.parse(data), id));
      on("reset", (_, id) => events.gap(id));
      // EventSource reconnects by itself, unless the server's response was not an event stream.
      on("error", () => (stream.readyState === 2 ? giveUp() : setState(CONNECTING)));
    }, giveUp);
  }

  function wait(delay: number, code = Code.Abnormal, reason = ""): void {
    const isCurrent = source || setState({ name: "waiting", until: Date.now() + delay, attempts: failures, code, reason });
    if (isCurrent && delay < Infinity) timer = after(delay, connect);
  }

  /** Drops the WebSocket and the timer. Returns false if a callback has started another attempt or closed the link. */
  function drop(why: "disconnected" | "closed" = "disconnected"): boolean {
    const old = socket;
    const wasOpen = openedAt > 0;
    clearTimeout(timer);
    const own = (attempt += 1);
    openedAt = 0;
    hasReceived = false;
    socket = undefined;
    // Closes a half-open connection, whose own timeout would be much later. Does nothing if it is closed already.
    old?.close();
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
    listenToPage(false);
    setState({ name: "closed", code, reason });
  }

  /** Listens to browser events: network back, page visible, page entering or leaving the back/forward cache. */
  function listenToPage(isOn: boolean): void {
    const change = isOn ? "addEventListener" : "removeEventListener";
    // A listener that is added again is not added twice. Node has neither these methods nor a document.
    for (const type of ["online", "pagehide", "pageshow"]) globalThis[change]?.(type, onPageEvent);
    for (const type of ["visibilitychange", "resume"]) globalThis.document?.[change](type, onPageEvent);
  }

  function onPageEvent({ type }: Event): void {
    const isSuspended = state.name === "waiting" && state.until === Infinity;
    if (type === "pagehide") {
      // An open connection would keep the page out of the back/forward cache.
      stopSource();
      if (drop()) wait(Infinity);
    } else if (type === "pageshow" ? isSuspended : globalThis.document?.visibilityState !== "hidden") {
      if (state.name === "waiting" && (isFastRetry || isSuspended)) connect();
      else if (state.name === "open") events.check();
    }
  }

  // Throws for an invalid fixed address, which is the caller's error.
  if (typeof address !== "function") absoluteUrl(address, true);
  // Deferred, so that the caller can add its listeners first.
  queueMicrotask(() => attempt || state.name === "closed" || connect());

  return {
    buffered: () => socket?.bufferedAmount ?? 0,
    write: (data) => socket?.send(data as Uint8Array<ArrayBuffer>),
    connect() {
      plainUntil = 0;
      step = Step.Offer;
      connect();
    },
    renegotiate() {
      if (plainUntil && plainUntil <= now()) connect();
    },
    fail,
    close(code, reason) {
      // Throws for an invalid code or reason, and changes nothing.
      socket?.close(code, reason);
      end(code, reason);
    },
  };
}
