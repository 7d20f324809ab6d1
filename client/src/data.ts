import { mistake } from "./error.js";

/** What can be sent: bytes and text as they are, what JSON can say as JSON. `undefined` is nothing, no bytes. */
export type Payload = Uint8Array | ArrayBuffer | ArrayBufferView | string | unknown;

export const encoder = new TextEncoder();
// A byte order mark is part of the text.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** What has been received: bytes that can be read as text or JSON. */
export class Data extends Uint8Array<ArrayBuffer> {
  #text?: string;
  #isText = false;

  /** Whether it came as a text message. */
  get isText(): boolean {
    return this.#isText;
  }

  /** As text. What is not UTF-8 is replaced by U+FFFD. */
  text(): string {
    return (this.#text ??= decoder.decode(this));
  }

  /** As JSON. Throws a `SyntaxError` where it is none. */
  json<T = any>(): T {
    return JSON.parse(this.text());
  }

  /** @internal */
  static ofText(text: string): Data {
    return Data.ofBytes(encoder.encode(text), true, text);
  }

  /** @internal The same memory. */
  static ofBytes(bytes: ArrayBuffer | Uint8Array, isText = false, text?: string): Data {
    const { buffer, byteOffset, byteLength } = bytesOf(bytes)!;
    const data = new Data(buffer as ArrayBuffer, byteOffset, byteLength);
    data.#isText = isText;
    data.#text = text;
    return data;
  }
}

/** What a value is, such as `Blob`: also one of another window. */
const kind = (value: unknown): string => ({}).toString.call(value).slice(8, -1);

const refuse = (what: string): never => mistake(`${what} can't be sent: make it text, bytes or JSON`);

/** A text, where it is one. UTF-8 has no halves of a character that takes two units: they would become another one. */
export function checked(text: unknown): string {
  if (typeof text !== "string") refuse(kind(text));
  if (/\p{Cs}/u.test(text as string)) refuse("half a character");
  return text as string;
}

/**
 * The bytes of what is to be sent; not a copy where they are bytes already. Throws a `TypeError` for what would arrive as
 * something else.
 */
export function toBytes(payload: Payload): Uint8Array {
  return bytesOf(payload) ?? encoder.encode(
    payload === undefined ? "" : checked(typeof payload === "string" ? payload : JSON.stringify(payload, checkMember)));
}

/** The same memory, where it is bytes. */
export function bytesOf(payload: Payload): Uint8Array | undefined {
  if (ArrayBuffer.isView(payload)) return new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength);
  return /ArrayBuffer$/.test(kind(payload)) ? new Uint8Array(payload as ArrayBuffer) : undefined;
}

/** Sees to it that JSON makes nothing up: of what it leaves out, only members that are `undefined` are as good as none. */
function checkMember(this: unknown, key: string, value: unknown): unknown {
  const is = kind(value);
  if (is === "Number" && !isFinite(value as number)) refuse(`${value}`);
  // A time that is none says so.
  if (value === null && kind((this as any)[key]) === "Date") refuse("no time");
  if (!/^(Object|Array|String|Number|Boolean|Null)$/.test(is) && (value !== undefined || !key || Array.isArray(this))) refuse(is);
  return value;
}
