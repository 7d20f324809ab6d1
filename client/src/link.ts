import { Data } from "./data.js";
import { report } from "./error.js";
import { PROTOCOL } from "./frames.js";
import { absolute, type Address, type Settings, type State } from "./options.js";

/** What a link tells. */
export interface LinkEvents {
  /** A WebSocket has been opened, or an event stream. */
  open(transport: "websocket" | "events", protocol: string): void;
  /** A message, with its id in a history where it came as an event. */
  message(data: Data, eventId: string): void;
  /** The event stream says that messages are missing. */
  gap(): void;
  /** A WebSocket that was open is gone. */
  lost(): void;
  /** It is worth a look whether the server is there still. */
  check(): void;
  state(state: State): void;
}

// What the server has found wrong, and its own wish for peace: more haste would help nobody.
const LATE = [1002, 1003, 1007, 1010, 1013];
const NO_ANSWER = 1006;

/** A connection that comes back: when, and over what. It knows nothing of what is sent over it. */
export class Link {
  state: State = { name: "connecting" };
  readonly #address: Address;
  readonly #settings: Settings;
  readonly #events: LinkEvents;
  #socket: WebSocket | undefined;
  #source: EventSource | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Counts attempts: what an older one still does is for nothing. */
  #attempt = 0;
  #failures = 0;
  #neverOpened = 0;
  #openedAt = 0;
  #isHasty = true;
  #isListening = false;
  /** Whether a server speaks one of the subprotocols; if not known, what is tried to find out. */
  #speaks: boolean | undefined;
  #doubt: "none" | "without" | "again" = "none";
  lastEventId = "";

  constructor(address: Address, settings: Settings, events: LinkEvents) {
    this.#address = address;
    this.#settings = settings;
    this.#events = events;
    // A faulty address that is known is the caller's error.
    if (typeof address !== "function") absolute(address, true);
    // The caller wants to hear of everything.
    queueMicrotask(() => this.state.name === "connecting" && this.connect());
  }

  get bufferedBytes(): number {
    return this.#socket?.bufferedAmount ?? 0;
  }

  send(data: string | Uint8Array): void {
    this.#socket?.send(data as Uint8Array<ArrayBuffer>);
  }

  /** Begins an attempt, whatever is going on. An event stream goes on until it has succeeded. */
  connect(): void {
    this.#listen(true);
    this.#drop();
    const attempt = this.#attempt;
    const isCurrent = () => attempt === this.#attempt;
    if (!this.#source) this.#setState({ name: "connecting" });
    if (!isCurrent()) return;
    this.#timer = setTimeout(() => this.fail("no connection in time"), this.#settings.openTimeout);
    this.#resolve(this.#address, true).then((url) => isCurrent() && this.#open(url)).catch((error) => {
      if (isCurrent()) this.#lost(NO_ANSWER, String(error));
    });
  }

  async #resolve(address: Address, isSocket: boolean): Promise<string> {
    return absolute(await (typeof address === "function" ? address() : address), isSocket);
  }

  #open(url: string): void {
    const { procedures, protocols, WebSocket: Socket } = this.#settings;
    const isOffered = procedures && this.#speaks !== false && this.#doubt !== "without";
    if (!Socket) throw new Error("there is no WebSocket here");
    const socket = new Socket(url, isOffered ? [PROTOCOL, ...protocols] : protocols) as WebSocket;
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    const isCurrent = () => socket === this.#socket;
    socket.onopen = () => {
      if (!isCurrent()) return;
      if (this.#doubt === "without") {
        // Perhaps the server has but come up in between: once more with the subprotocol, to be sure.
        this.#doubt = "again";
        return this.connect();
      }
      if (isOffered) this.#speaks = true;
      this.#stopSource();
      clearTimeout(this.#timer);
      this.#openedAt = Date.now();
      this.#neverOpened = 0;
      this.#events.open("websocket", socket.protocol ?? "");
      // Who has heard of it may have ended it.
      if (isCurrent()) this.#setState({ name: "open", transport: "websocket", protocol: socket.protocol ?? "" });
    };
    socket.onmessage = ({ data }) => {
      if (isCurrent()) this.#events.message(typeof data === "string" ? Data.ofText(data) : Data.ofBytes(data), "");
    };
    socket.onclose = ({ code, reason }) => isCurrent() && this.#lost(code, reason);
    // Not everywhere is it followed by the end where nothing was opened.
    socket.onerror = () => isCurrent() && !this.#openedAt && this.#lost(NO_ANSWER, "");
  }

  /** Ends the connection as one that was lost. */
  fail(reason: string): void {
    this.#lost(NO_ANSWER, reason);
  }

  #lost(code: number, reason: string): void {
    const { delayFirst, delayMax, lasted, procedures, events, eventsAfter, eventsRetry, EventSource } = this.#settings;
    const wasOpen = this.#openedAt > 0;
    const duration = Date.now() - this.#openedAt;
    this.#drop();
    // A browser calls it a failure if the server chooses no subprotocol. So it is tried without, to know which it is.
    if (!wasOpen && procedures && this.#speaks === undefined) {
      if (this.#doubt === "again") this.#speaks = false;
      this.#doubt = this.#doubt === "none" ? "without" : "none";
      if (this.#doubt === "without" || this.#speaks === false) return this.connect();
    }
    if (wasOpen && duration >= lasted) this.#failures = 0;
    if (!wasOpen) this.#neverOpened += 1;
    let verdict: boolean | number | undefined;
    try {
      verdict = this.#settings.reconnect?.(code, reason);
    } catch (error) {
      report(error);
    }
    verdict ??= code !== 1000 && code !== 1008 && code < 3000;
    if (verdict === false) return this.#end(code, reason);
    this.#isHasty = !LATE.includes(code) && verdict === true;
    const bound = Math.min(delayMax, delayFirst * 2 ** this.#failures);
    const delay = typeof verdict === "number" ? verdict
      : this.#isHasty ? Math.random() * bound
      : delayMax * (0.5 + Math.random() / 2);
    this.#failures = Math.min(this.#failures + 1, 30);
    if (this.#source) return this.#wait(eventsRetry * (0.5 + Math.random() / 2));
    if (events && EventSource && this.#neverOpened >= eventsAfter) return this.#follow(code, reason, delay);
    this.#wait(delay, code, reason);
  }

  /** Listens to server-sent events, until a WebSocket can be had. */
  #follow(code: number, reason: string, delay: number): void {
    const { events, eventsRetry, EventSource } = this.#settings;
    const attempt = this.#attempt;
    const giveUp = () => {
      this.#stopSource();
      this.#drop();
      this.#wait(delay, code, reason);
    };
    this.#setState({ name: "connecting" });
    if (attempt !== this.#attempt) return;
    this.#timer = setTimeout(giveUp, this.#settings.openTimeout);
    this.#resolve(events!, false).then((address) => {
      if (attempt !== this.#attempt) return;
      const url = new URL(address);
      if (this.lastEventId) url.searchParams.set("lastEventId", this.lastEventId);
      const source = new EventSource(url.href) as EventSource;
      this.#source = source;
      const on = (type: string, act: (event: MessageEvent<string>) => void) =>
        source.addEventListener(type, (event) => {
          if (source !== this.#source) return;
          this.lastEventId = (event as MessageEvent).lastEventId || this.lastEventId;
          act(event as MessageEvent<string>);
        });
      on("open", () => {
        if (this.state.name === "open") return;
        clearTimeout(this.#timer);
        this.#timer = setTimeout(() => this.connect(), eventsRetry * (0.5 + Math.random() / 2));
        this.#events.open("events", "");
        if (source === this.#source) this.#setState({ name: "open", transport: "events", protocol: "" });
      });
      on("message", ({ data, lastEventId }) => this.#events.message(Data.ofText(data), lastEventId));
      on("binary", ({ data, lastEventId }) => {
        const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
        this.#events.message(Data.ofBytes(bytes), lastEventId);
      });
      on("reset", () => this.#events.gap());
      // It comes back by itself, unless the server has answered with something else.
      on("error", () => (source.readyState === 2 ? giveUp() : this.#setState({ name: "connecting" })));
    }).catch((error) => {
      reason = String(error);
      if (attempt === this.#attempt) giveUp();
    });
  }

  #wait(delay: number, code = NO_ANSWER, reason = ""): void {
    const attempt = this.#attempt;
    if (!this.#source) {
      this.#setState({ name: "waiting", until: Date.now() + delay, attempts: this.#failures, code, reason });
    }
    if (attempt === this.#attempt && delay < Infinity) this.#timer = setTimeout(() => this.connect(), delay);
  }

  /** Lets go of the WebSocket and of what is planned. */
  #drop(code?: number, reason?: string): void {
    const socket = this.#socket;
    const wasOpen = this.#openedAt > 0;
    clearTimeout(this.#timer);
    this.#attempt += 1;
    this.#openedAt = 0;
    if (socket) {
      this.#socket = undefined;
      // Of a half-open one the end would come much later.
      if (socket.readyState < 2) socket.close(code, reason);
    }
    if (wasOpen) this.#events.lost();
  }

  #stopSource(): void {
    this.#source?.close();
    this.#source = undefined;
  }

  /** Closes for good: until `connect`. */
  close(code: number, reason: string): void {
    // A wrong code or reason is the caller's error, and leaves everything as it is.
    if ((code !== 1000 && !(code >= 3000 && code < 5000)) || new TextEncoder().encode(reason).length > 123) {
      throw new RangeError("close codes are 1000 and 3000 to 4999, reasons have up to 123 bytes");
    }
    this.#stopSource();
    this.#drop(code, reason);
    this.#end(code, reason);
  }

  #end(code: number, reason: string): void {
    this.#stopSource();
    this.#listen(false);
    this.#setState({ name: "closed", code, reason });
  }

  #setState(state: State): void {
    if (state.name === "connecting" && this.state.name === "connecting") return;
    this.state = state;
    this.#events.state(state);
  }

  /** The browser's own news: the network is back, the page is seen again, put away or taken out again. */
  #listen(isOn: boolean): void {
    if (isOn === this.#isListening || !globalThis.addEventListener) return;
    this.#isListening = isOn;
    const [target, page] = [globalThis, globalThis.document] as [EventTarget, EventTarget | undefined];
    const change = isOn ? "addEventListener" : "removeEventListener";
    for (const type of ["online", "pagehide", "pageshow"]) target[change](type, this.#heard);
    for (const type of ["visibilitychange", "resume"]) page?.[change](type, this.#heard);
  }

  #heard = (event: Event): void => {
    if (event.type === "pagehide") {
      // A page with a connection could not be kept by the browser.
      if (this.state.name === "closed") return;
      this.#stopSource();
      this.#drop();
      return this.#wait(Infinity);
    }
    const isAway = this.state.name === "waiting" && this.state.until === Infinity;
    if (event.type === "pageshow") return isAway ? this.connect() : undefined;
    if (isAway || globalThis.document?.visibilityState === "hidden") return;
    if (this.state.name === "waiting" && this.#isHasty) this.connect();
    else if (this.state.name === "open") this.#events.check();
  };
}
