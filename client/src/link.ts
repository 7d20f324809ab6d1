import { Data } from "./data.js";
import { guarded } from "./error.js";
import { PROTOCOL } from "./frames.js";
import { absolute, type Address, type Settings, type State } from "./options.js";
import { after } from "./timer.js";

/** What a link tells. */
export interface LinkEvents {
  /** A WebSocket has been opened, or an event stream. */
  open(transport: "websocket" | "events", protocol: string): void;
  /** A message, with its id in a history where it came as an event. */
  message(data: Data, eventId?: string): void;
  /** The last message that came, for an event stream to begin behind it. */
  lastId(): string;
  /** The event stream says that messages are missing. */
  gap(): void;
  /** A WebSocket that was open is gone, or closed from here. */
  lost(why: "disconnected" | "closed"): void;
  /** It is worth a look whether the server is there still. */
  check(): void;
  state(state: State): void;
}

/** A connection that comes back: when, and over what. It knows nothing of what is sent over it. */
export interface Link {
  state(): State;
  /** What was sent and has not left yet. */
  buffered(): number;
  send(data: string | Uint8Array): void;
  /** Begins an attempt, whatever is going on. An event stream goes on until it has succeeded. */
  connect(): void;
  /** Ends the connection as one that was lost. */
  fail(reason: string): void;
  /** Closes for good: until `connect`. */
  close(code: number, reason: string): void;
}

// What the server has found wrong, and its own wish for peace: more haste would help nobody.
const LATE = [1002, 1003, 1007, 1010, 1013];
const NO_ANSWER = 1006;

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
  let neverOpened = 0;
  let openedAt = 0;
  let isHasty = true;
  let isListening = false;
  /** Whether the server speaks one of the subprotocols; if that is not known, what is tried to find out. */
  let speaks: boolean | undefined;
  let doubt: "" | "without" | "again" = "";

  function setState(next: State): void {
    if (next.name === "connecting" && state.name === "connecting") return;
    state = next;
    events.state(next);
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
    const isOffered = procedures && speaks !== false && doubt !== "without";
    const own = (socket = new Socket(url, isOffered ? [PROTOCOL, ...settings.protocols] : settings.protocols) as WebSocket);
    own.binaryType = "arraybuffer";
    own.onopen = () => {
      if (own !== socket) return;
      if (doubt === "without") {
        // Perhaps the server has but come up in between: once more with the subprotocol, to be sure.
        doubt = "again";
        return connect();
      }
      if (isOffered) speaks = true;
      stopSource();
      clearTimeout(timer);
      openedAt = Date.now();
      neverOpened = 0;
      const protocol = own.protocol ?? "";
      events.open("websocket", protocol);
      // Who has heard of it may have ended it.
      if (own === socket) setState({ name: "open", transport: "websocket", protocol });
    };
    own.onmessage = ({ data }) => {
      if (own === socket) events.message(typeof data === "string" ? Data.ofText(data) : Data.ofBytes(data));
    };
    own.onclose = ({ code, reason }) => own === socket && lost(code, reason);
    // Not everywhere is it followed by the end where nothing was opened.
    own.onerror = () => own === socket && !openedAt && fail("");
  }

  const fail = (reason: string) => lost(NO_ANSWER, reason);

  function lost(code: number, reason: string): void {
    const wasOpen = openedAt > 0;
    const wasTried = socket && !wasOpen;
    const duration = Date.now() - openedAt;
    if (!drop()) return;
    const own = attempt;
    // A browser calls it a failure if the server chooses no subprotocol. So it is tried without, to know which it is.
    if (wasTried && procedures && speaks === undefined) {
      if (doubt === "again") speaks = false;
      doubt = doubt ? "" : "without";
      if (doubt || speaks === false) return connect();
    }
    const verdict = guarded(() => settings.reconnect?.(code, reason)) ?? (code !== 1000 && code !== 1008 && code < 3000);
    // It may have been closed there.
    if (own !== attempt) return;
    if (verdict === false) return end(code, reason);
    if (!wasOpen) neverOpened += 1;
    else if (duration >= settings.lasted) failures = 0;
    isHasty = verdict === true && !LATE.includes(code);
    const delay = typeof verdict === "number" ? verdict
      : isHasty ? Math.random() * Math.min(delayMax, settings.delayFirst * 2 ** failures)
      : halfJittered(delayMax);
    failures = Math.min(failures + 1, 30);
    const retry = () => wait(delay, code, reason);
    if (source) wait(halfJittered(eventsRetry));
    else if (settings.events && Source && neverOpened >= settings.eventsAfter) follow(settings.events, retry);
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
    timer = after(openTimeout, giveUp);
    resolve(address, false).then((href) => {
      if (own !== attempt) return;
      const url = new URL(href);
      const last = events.lastId();
      if (last) url.searchParams.set("lastEventId", last);
      const stream = (source = new Source(url.href) as EventSource);
      const on = (type: string, act: (data: string, id: string) => void) =>
        stream.addEventListener(type, (event) => {
          if (stream !== source) return;
          const { data, lastEventId } = event as MessageEvent<string>;
          guarded(() => act(data, lastEventId));
        });
      on("open", () => {
        if (state.name === "open") return;
        clearTimeout(timer);
        timer = after(halfJittered(eventsRetry), connect);
        events.open("events", "");
        if (stream === source) setState({ name: "open", transport: "events", protocol: "" });
      });
      on("message", (data, id) => events.message(Data.ofText(data), id));
      on("binary", (data, id) => events.message(Data.ofBytes(Uint8Array.from(atob(data), (char) => char.charCodeAt(0))), id));
      on("reset", events.gap);
      // It comes back by itself, unless the server has answered with something else.
      on("error", () => (stream.readyState === 2 ? giveUp() : setState({ name: "connecting" })));
    }).catch(() => own === attempt && giveUp());
  }

  function wait(delay: number, code = NO_ANSWER, reason = ""): void {
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
    state: () => state,
    buffered: () => socket?.bufferedAmount ?? 0,
    send: (data) => socket?.send(data as Uint8Array<ArrayBuffer>),
    connect,
    fail,
    close(code, reason) {
      // A wrong code or reason is the caller's error, and leaves everything as it is.
      socket?.close(code, reason);
      end(code, reason);
    },
  };
}
