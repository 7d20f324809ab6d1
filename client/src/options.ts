import { mistake } from "./error.js";

/** An address, or what gives one, asked before each attempt: for a fresh token, say. Relative ones are of the page. */
export type Address = string | URL | (() => string | URL | Promise<string | URL>);

/** What a connection does now. */
export type State =
  /** It is being made. */
  | { readonly name: "connecting" }
  /** It is open. Over `events` (server-sent events) nothing can be sent. `protocol` is the subprotocol, or empty. */
  | { readonly name: "open"; readonly transport: "websocket" | "events"; readonly protocol: string }
  /**
   * It is lost, or could not be made, and is tried again at `until` (as `Date.now()` was when this state began;
   * `Infinity` while a page is put away by the browser). `attempts` have failed in a row.
   */
  | { readonly name: "waiting"; readonly until: number; readonly attempts: number; readonly code: number; readonly reason: string }
  /** It is closed, and stays so until `reconnect()`. */
  | { readonly name: "closed"; readonly code: number; readonly reason: string };

/** How a connection is to behave. Times are in milliseconds. */
export interface Options {
  /** Subprotocols of the program's own, offered behind the procedures'. */
  protocols?: string[];
  /**
   * Whether to offer the procedures' subprotocol. Default: `true`. Set it to `false` for servers of another kind that
   * choose no subprotocol: browsers can't connect to them while they offer any, so otherwise it takes further attempts to
   * find out that it goes without.
   */
  procedures?: boolean;
  /**
   * The first delay before another attempt, which doubles up to `delayMax`. Each is drawn by chance between nothing and
   * that (full jitter), so that not everyone comes back at once. Default: 500.
   */
  delayFirst?: number;
  /** The longest delay. Default: 15,000. */
  delayMax?: number;
  /** A connection that lasted so long was a success: the next delay is short again. Default: 5,000. */
  lasted?: number;
  /** How long an attempt may take. Default: 10,000. */
  openTimeout?: number;
  /**
   * What a close code means: `false` stops, `true` comes back, a number comes back after so many milliseconds, and
   * `undefined` leaves it to the defaults: 1000, 1008 and a program's own codes (3001–4999) stop, 1002, 1003, 1007, 1010
   * and 1013 come back late, all others come back. 3000 is among these: the session has expired, and an address that is
   * a function can give a fresh token.
   */
  reconnect?: (code: number, reason: string) => boolean | number | undefined;
  /** After so long without a message the server is asked whether it is there; 0 for never. Default: 20,000. */
  pingInterval?: number;
  /** A server that has not answered after so long is gone. Default: 10,000. */
  pingTimeout?: number;
  /** How many calls and messages may wait while there is no connection. Default: 1,000. */
  outboxCount?: number;
  /** How many bytes may wait, also in the browser's own buffer; a single larger one may if nothing else does. Default: 1 MiB. */
  outboxBytes?: number;
  /** How many items may wait in an iterator; one that falls further behind ends with an error. Default: 1,000. */
  queue?: number;
  /** How long calls may take, from the call on; 0 for as long as they like. Default: 30,000. */
  timeout?: number;
  /** Server-sent events to listen to while no WebSocket can be had. They should be of the rooms that are joined. */
  events?: Address;
  /**
   * After how many attempts in a row they are listened to that never opened, or on which nothing came before they were cut.
   * Default: 3.
   */
  eventsAfter?: number;
  /** How long to listen to them before a WebSocket is tried again. Default: 60,000. */
  eventsRetry?: number;
  /** The class to use, where it is not global. */
  WebSocket?: new (url: string, protocols: string[]) => object;
  /** The class to use, where it is not global. */
  EventSource?: new (url: string) => object;
}

/** Options with their defaults. */
export type Settings = Required<Omit<Options, "events" | "reconnect">> & Options;

/** Throws a `TypeError` for an option that there is not, or that can't be so. */
export function withDefaults(options: Options): Settings {
  const settings: Settings = {
    protocols: [],
    procedures: true,
    delayFirst: 500,
    delayMax: 15_000,
    lasted: 5_000,
    openTimeout: 10_000,
    reconnect: undefined,
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
  const known = settings as unknown as Record<string, unknown>;
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined) continue;
    const type = name in known && (name === "events" ? typeof value : typeof (known[name] ?? toString));
    if (typeof value !== type || value < 0 || value !== value) mistake(`the option ${name} can't be ${value}`);
    known[name] = value;
  }
  for (const name of settings.protocols) {
    if (!/^[\w!#$%&'*+\-.^`|~]+$/.test(name)) mistake(`the option protocols can't be ${name}`);
  }
  const needs = (name: "WebSocket" | "EventSource", from: string) =>
    settings[name] || mistake(`no ${name} here: npm install ${from}, and pass its class as an option`);
  needs("WebSocket", "ws");
  const { events } = settings;
  if (events) {
    needs("EventSource", "eventsource");
    if (typeof events !== "function") absolute(events, false);
  }
  return settings;
}

/** The absolute form of an address, with `ws` for `http`, or the other way round. Throws a `TypeError` where it is none. */
export function absolute(address: string | URL, isSocket: boolean): string {
  const url = new URL(address, globalThis.document?.baseURI ?? globalThis.location?.href);
  if (!/^(http|ws)s?:$/.test(url.protocol) || address == null) mistake(`${address} is no address of ws, wss, http or https`);
  url.protocol = url.protocol.replace(/^(http|ws)/, isSocket ? "ws" : "http");
  url.hash = "";
  return url.href;
}
