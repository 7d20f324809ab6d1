import { checked, Data, toBytes } from "./data.js";

/** The procedures' subprotocol. Binary messages are frames of it, big-endian; their first byte is their form. */
export const PROTOCOL = "humphrey_ws.procedures.v1";

/**
 * The subprotocol of plain messages, which servers of the library choose where they choose no other: browsers fail a
 * handshake in which the server chooses none.
 */
export const PLAIN = "humphrey_ws.plain.v1";

/** The first byte of a frame. */
export const enum Form {
  Notification = 1,
  Request,
  Reset,
  Response,
  Error,
  Item,
  OfRoom,
}

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
  const bytes = toBytes(checked(name));
  if (bytes.length > 255) throw new RangeError("the name is too long");
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
  if (form < Form.Notification || form > Form.OfRoom) return undefined;
  let at = 1;
  // What lies behind the end is noticed there.
  const byte = () => data[at++] ?? 0;
  const text = () => {
    const end = byte() + at;
    return Data.ofBytes(data.subarray(at, (at = end))).text();
  };
  const frame: Frame = { form, id: 0, name: "", historyId: "", kind: 0, payload: data };
  if (form > Form.Notification && form < Form.OfRoom) for (; at < 5; ) frame.id = frame.id * 256 + byte();
  if (form < Form.Reset || form === Form.OfRoom) frame.name = text();
  if (form === Form.OfRoom) frame.historyId = text();
  if (form === Form.Error || form === Form.OfRoom) frame.kind = byte();
  if (at > data.length) return undefined;
  frame.payload = Data.ofBytes(data.subarray(at), form === Form.OfRoom && frame.kind === 1);
  return frame;
}
