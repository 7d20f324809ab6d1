import { checkedText, Data, toBytes } from "./data.js";

/** The procedures' subprotocol. Its frames are binary messages with big-endian numbers; the first byte is the form. */
export const PROTOCOL = "humphrey_ws.procedures.v1";

/**
 * The subprotocol of plain messages, which the library's servers choose if they choose no other: browsers fail a handshake
 * if the client offers subprotocols and the server chooses none.
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
  RoomMessage,
}

/** What a frame of a room is: a message, or something to know of the room. Those of newer servers are ignored. */
export const enum Kind {
  Text = 1,
  Binary,
  Gap,
  /** With a byte 1 from now on, with a byte 0 no longer. */
  Silence,
  /** All members of the room. */
  Members,
  /** The members that have changed. */
  Changes,
  Later,
}

/** A received frame. Fields that its form lacks are empty. */
export interface Frame {
  form: number;
  id: number;
  name: string;
  historyId: string;
  /** The error's code, or the {@link Kind} of a room's message. */
  kind: number;
  payload: Data;
}

/** Encodes a name, preceded by its length in one byte. Throws a `RangeError` if it is longer than 255 bytes. */
export function encodeName(name: string): Uint8Array {
  const bytes = toBytes(checkedText(name));
  if (bytes.length > 255) throw new RangeError("the name is too long");
  return concat([bytes.length], bytes);
}

/** Concatenates the parts. */
export function concat(...parts: ArrayLike<number>[]): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** Encodes a frame with an id. */
export function withId(form: number, id: number, ...parts: ArrayLike<number>[]): Uint8Array<ArrayBuffer> {
  return concat([form, id >>> 24, id >>> 16, id >>> 8, id], ...parts);
}

/** Parses a frame. Returns `undefined` if it is an ordinary binary message. */
export function parse(data: Data): Frame | undefined {
  const form = data[0] ?? 0;
  if (form < Form.Notification || form > Form.RoomMessage) return undefined;
  let at = 1;
  // Reading past the end is detected below.
  const byte = () => data[at++] ?? 0;
  const text = () => {
    const end = byte() + at;
    return Data.ofBytes(data.subarray(at, (at = end))).text();
  };
  const isOfRoom = form === Form.RoomMessage;
  let id = 0;
  if (form > Form.Notification && !isOfRoom) while (at < 5) id = id * 256 + byte();
  const name = form < Form.Reset || isOfRoom ? text() : "";
  const historyId = isOfRoom ? text() : "";
  const kind = form === Form.Error || isOfRoom ? byte() : 0;
  if (at > data.length) return undefined;
  return { form, id, name, historyId, kind, payload: Data.ofBytes(data.subarray(at), isOfRoom && kind === Kind.Text) };
}
