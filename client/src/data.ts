/** What can be sent: bytes and text as they are, everything else as JSON. `undefined` is nothing, no bytes. */
export type Payload = Uint8Array | ArrayBuffer | ArrayBufferView | string | unknown;

const encoder = new TextEncoder();
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
    const { buffer, byteOffset, byteLength } = toBytes(bytes);
    const data = new Data(buffer as ArrayBuffer, byteOffset, byteLength);
    data.#isText = isText;
    data.#text = text;
    return data;
  }
}

/** The bytes of what is to be sent; not a copy where they are bytes already. */
export function toBytes(payload: Payload): Uint8Array {
  if (payload instanceof ArrayBuffer) return new Uint8Array(payload);
  if (ArrayBuffer.isView(payload)) return new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength);
  if (payload === undefined) return new Uint8Array();
  return encoder.encode(typeof payload === "string" ? payload : JSON.stringify(payload));
}
