import { Data, toBytes } from "./data.js";

/** The procedures' subprotocol. Binary messages are frames of it, big-endian; their first byte is their form. */
export const PROTOCOL = "humphrey_ws.procedures.v1";

export const NOTIFICATION = 1;
export const REQUEST = 2;
export const RESET = 3;
export const RESPONSE = 4;
export const ERROR = 5;
export const ITEM = 6;
export const OF_ROOM = 7;

const NAME_BYTES_MAX = 255;

/** A frame that was received. What its form has not is empty. */
export interface Frame {
  form: number;
  id: number;
  name: string;
  historyId: string;
  /** The error's code, or whether the message of a room is text (1) or binary (2). */
  kind: number;
  payload: Data;
}

/** A name behind its length, which is one byte. Throws a `RangeError` if it is too long. */
export function named(name: string): Uint8Array {
  const bytes = toBytes(name);
  if (bytes.length > NAME_BYTES_MAX) throw new RangeError("the name is too long");
  return joined(Uint8Array.of(bytes.length), bytes);
}

/** Parts in one piece of memory of its own. */
export function joined(...parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** A frame with an id. */
export function withId(form: number, id: number, ...parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  return joined(Uint8Array.of(form, id >>> 24, id >>> 16, id >>> 8, id), ...parts);
}

/** Reads a frame. What is none is `undefined`: a binary message as any other. */
export function parse(data: Data): Frame | undefined {
  const form = data[0] ?? 0;
  if (form < NOTIFICATION || form > OF_ROOM) return undefined;
  let at = 1;
  const byte = () => {
    if (at >= data.length) throw 0;
    return data[at++]!;
  };
  const text = () => {
    const length = byte();
    if (at + length > data.length) throw 0;
    return Data.ofBytes(data.subarray(at, (at += length))).text();
  };
  const frame: Frame = { form, id: 0, name: "", historyId: "", kind: 0, payload: data };
  try {
    if (form > NOTIFICATION && form < OF_ROOM) for (; at < 5; ) frame.id = frame.id * 256 + byte();
    if (form < RESET || form === OF_ROOM) frame.name = text();
    if (form === OF_ROOM) frame.historyId = text();
    if (form === ERROR || form === OF_ROOM) frame.kind = byte();
  } catch {
    return undefined;
  }
  frame.payload = Data.ofBytes(data.subarray(at), form === OF_ROOM && frame.kind === 1);
  return frame;
}
