import type { Payload } from "./data.js";
import { throwTypeError } from "./error.js";

/**
 * A URL, or a function that returns one and is called before each attempt, such as to add a fresh token. Relative URLs are
 * resolved against the page.
 */
export type Address = string | URL | (() => string | URL | Promise<string | URL>);

/** The state of a connection. */
export type State =
  /** Connecting. */
  | { readonly name: "connecting" }
  /** Open. Over `events` (server-sent events) nothing can be sent. `protocol` is the subprotocol, or empty. */
  | { readonly name: "open"; readonly transport: "websocket" | "events"; readonly protocol: string }
  /**
   * Disconnected, and reconnecting at `until` (milliseconds on the clock of `Date.now()`; `Infinity` while the page is in the
   * back/forward cache). `attempts` have failed in a row.
   */
  | { readonly name: "waiting"; readonly until: number; readonly attempts: number; readonly code: number; readonly reason: string }
  /** Closed until `reconnect()`. */
  | { readonly name: "closed"; readonly code: number; readonly reason: string };

/** One object, so that a repeated state is recognized. */
export const CONNECTING: State = { name: "connecting" };

/** Options of a connection. Times are in milliseconds. */
export interface Options {
  /** The application's subprotocols, offered after the procedures' subprotocol. */
  protocols?: string[];
  /**
   * Whether to offer the procedures' subprotocol. Default: `true`. Set it to `false` for other servers, which choose no
   * subprotocol: browsers fail a handshake that offers one then, so that connecting takes several attempts.
   */
  procedures?: boolean;
  /**
   * The first reconnect delay, which doubles up to `delayMax`. The actual delay is random between 0 and this (full jitter),
   * so that clients do not all reconnect at once. Default: 2,000.
   */
  delayFirst?: number;
  /** The longest reconnect delay. Default: 15,000. */
  delayMax?: number;
  /** A connection that lasts this long resets the reconnect delay. Default: 5,000. */
  lasted?: number;
  /** Timeout of a connection attempt. Default: 10,000. */
  openTimeout?: number;
  /**
   * Decides by the close code whether to reconnect: `false` stops, `true` reconnects, a number reconnects after that delay,
   * and `undefined` selects the default: wait as long as the reason of a 1012 says (`retry-after=1.5`, in seconds), stop after 1000, 1008 and application codes (3001–4999), reconnect after a long
   * delay after 1002, 1003, 1007, 1010 and 1013, and reconnect after all others. These include 3000: the session has expired,
   * and an address that is a function can return a new token.
   */
  reconnect?: (code: number, reason: string) => boolean | number | undefined;
  /** Ping a server that has been silent for this long; 0 disables pings. Default: 20,000. */
  pingInterval?: number;
  /** Reconnect if the server does not answer a ping within this time. Default: 10,000. */
  pingTimeout?: number;
  /** Maximum number of calls and messages queued while disconnected. Default: 1,000. */
  outboxCount?: number;
  /** Maximum bytes queued, here or in the browser's buffer. One larger message fits an empty queue. Default: 1 MiB. */
  outboxBytes?: number;
  /** Maximum items buffered by an iterator; one that falls further behind ends with an error. Default: 1,000. */
  queue?: number;
  /** Timeout of calls, including the time in the queue; 0 disables it. Default: 30,000. */
  timeout?: number;
  /**
   * Returns a fresh token, or a promise of one. Called when most of the session's time is over, if the server can prolong it (`$refresh`),
   * so that the connection stays. It is called once for each expiry. Without it, the server closes the connection with 3000, and the address is asked again.
   */
  refresh?: () => Payload | Promise<Payload>;
  /** URL of server-sent events to fall back to while no WebSocket can be opened. It should stream the rooms joined. */
  events?: Address;
  /**
   * Fall back to `events` after this many attempts in a row that did not open, or that broke before anything was received.
   * Default: 3.
   */
  eventsAfter?: number;
  /** How long to use `events` before trying a WebSocket again. Default: 60,000. */
  eventsRetry?: number;
  /** The WebSocket class, if there is no global one. */
  WebSocket?: new (url: string, protocols: string[]) => object;
  /** The EventSource class, if there is no global one. */
  EventSource?: new (url: string) => object;
}

/** Options with defaults applied. */
export type Settings = Required<Omit<Options, "events" | "reconnect" | "refresh">> & Options;

/** Applies the defaults. Throws a `TypeError` for an unknown option or an invalid value. */
export function withDefaults(options: Options): Settings {
  const settings: Settings = {
    protocols: [],
    procedures: true,
    delayFirst: 2_000,
    delayMax: 15_000,
    lasted: 5_000,
    openTimeout: 10_000,
    reconnect: undefined,
    refresh: undefined,
    pingInterval: 20_000,
    pingTimeout: 10_000,
    outboxCount: 1_000,
    outboxBytes: 1 << 20,
    queue: 1_000,
    timeout: 30_000,
    events: undefined,
    eventsAfter: 3,
    eventsRetry: 60_000,
    WebSocket: globalThis.WebSocket,
    EventSource: globalThis.EventSource,
  };
  const refuse = (name: string, value: unknown) => throwTypeError(`the option ${name} can't be ${value}`);
  const known = settings as unknown as Record<string, unknown>;
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined) continue;
    const type = name in known && (name === "events" ? typeof value : typeof (known[name] ?? toString));
    if (typeof value !== type || value < 0 || value !== value) refuse(name, value);
    known[name] = value;
  }
  for (const name of settings.protocols) {
    if (!/^[\w!#$%&'*+\-.^`|~]+$/.test(name)) refuse("protocols", name);
  }
  const needs = (name: "WebSocket" | "EventSource", from: string) =>
    settings[name] || throwTypeError(`no ${name}: npm install ${from}, and pass its class`);
  needs("WebSocket", "ws");
  const { events } = settings;
  if (events) {
    needs("EventSource", "eventsource");
    if (typeof events !== "function") absoluteUrl(events, false);
  }
  return settings;
}

/** Makes a URL absolute and converts its scheme to `ws(s)` or `http(s)`. Throws a `TypeError` if it is invalid. */
export function absoluteUrl(address: string | URL, isSocket: boolean): string {
  const url = new URL(address, globalThis.document?.baseURI ?? globalThis.location?.href);
  if (!/^(http|ws)s?:$/.test(url.protocol) || address == null) throwTypeError(`${address} is no ws or http URL`);
  url.protocol = url.protocol.replace(/^(http|ws)/, isSocket ? "ws" : "http");
  url.hash = "";
  return url.href;
}
