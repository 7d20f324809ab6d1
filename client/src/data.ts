import { throwTypeError } from "./error.js";

/** Data to send: bytes and strings unchanged, other values as JSON. `undefined` is sent as no bytes. */
export type Payload = Uint8Array | ArrayBuffer | ArrayBufferView | string | unknown;

export const encoder = new TextEncoder();
// A byte order mark is part of the text.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Received data: bytes that can be read as text or JSON. */
export class Data extends Uint8Array<ArrayBuffer> {
  #text?: string;
  #isText = false;

  /** Whether it was received as a text message. */
  get isText(): boolean {
    return this.#isText;
  }

  /** Decodes the bytes as UTF-8; invalid sequences become U+FFFD. */
  text(): string {
    return (this.#text ??= decoder.decode(this));
  }

  /** Parses the text as JSON. Throws a `SyntaxError` if it is invalid. */
  json<T = any>(): T {
    return JSON.parse(this.text());
  }

  /** @internal */
  static ofText(text: string): Data {
    return Data.ofBytes(encoder.encode(text), true, text);
  }

  /** @internal Wraps the bytes without copying them. */
  static ofBytes(bytes: ArrayBuffer | Uint8Array, isText = false, text?: string): Data {
    const { buffer, byteOffset, byteLength } = bytesOf(bytes)!;
    const data = new Data(buffer as ArrayBuffer, byteOffset, byteLength);
    data.#isText = isText;
    data.#text = text;
    return data;
  }
}

/** The class name of a built-in value, such as `Blob`, also if it belongs to another window. */
const kind = (value: unknown): string => ({}).toString.call(value).slice(8, -1);

const refuse = (what: string): never => throwTypeError(`${what} can't be sent: make it text, bytes or JSON`);

/** Checks that a value is a string without lone surrogates, which UTF-8 cannot encode. */
export function checkedText(text: unknown): string {
  if (typeof text !== "string") refuse(kind(text));
  if (/\p{Cs}/u.test(text as string)) refuse("a lone surrogate");
  return text as string;
}

/**
 * Encodes data to send; bytes are not copied. Throws a `TypeError` for values that the encoding would change.
 */
export function toBytes(payload: Payload): Uint8Array {
  return bytesOf(payload) ?? encoder.encode(
    payload === undefined ? "" : checkedText(typeof payload === "string" ? payload : JSON.stringify(payload, checkMember)));
}

/** A view of the same memory, if the value is bytes. */
export function bytesOf(payload: Payload): Uint8Array | undefined {
  if (ArrayBuffer.isView(payload)) return new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength);
  return /ArrayBuffer$/.test(kind(payload)) ? new Uint8Array(payload as ArrayBuffer) : undefined;
}

/** Rejects values that JSON would change or omit, other than `undefined` members of objects. */
function checkMember(this: unknown, key: string, value: unknown): unknown {
  const is = kind(value);
  if (is === "Number" && !isFinite(value as number)) refuse(`${value}`);
  // `JSON.stringify` turns an invalid date into null.
  if (value === null && kind((this as any)[key]) === "Date") refuse("an invalid date");
  if (!/^(Object|Array|String|Number|Boolean|Null)$/.test(is) && (value !== undefined || !key || Array.isArray(this))) refuse(is);
  return value;
}
