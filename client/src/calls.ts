import { Data, toBytes, type Payload } from "./data.js";
import { CallError, CODES } from "./error.js";
import { ERROR, named, REQUEST, RESET, RESPONSE, withId, type Frame } from "./frames.js";

/** How a call is to be made. */
export interface CallOptions {
  /** Cancels it: the server is told, if it knows of it already. */
  signal?: AbortSignal;
  /** How long it may take in milliseconds, from now on; 0 for as long as it likes. Default: the connection's `timeout`. */
  timeout?: number;
  /** Gets the parts of a streamed response, as they come. */
  onItem?: (data: Data) => unknown;
}

/** Answers a call from the server. What it throws is the error's text. */
export type Handler = (data: Data, call: { name: string; signal: AbortSignal }) => Payload | Promise<Payload>;

interface Call {
  onItem: ((data: Data) => unknown) | undefined;
  settle(result: Data | CallError): void;
  isSent: boolean;
}

// What the server asks of us at a time, at most.
const ANSWERING_MAX = 1_000;

/** Calls in flight, of both directions. */
export class Calls {
  readonly handlers = new Map<string, Handler>();
  readonly #send: (frame: Uint8Array) => void;
  readonly #report: (error: unknown) => void;
  #calls = new Map<number, Call>();
  #answering = new Map<number, AbortController>();
  #id = 0;

  constructor(send: (frame: Uint8Array) => void, report: (error: unknown) => void) {
    this.#send = send;
    this.#report = report;
  }

  /**
   * Makes a call. `put` sends its frame, now or later, or throws; it is told when it was sent, and gives what takes it back.
   */
  make(
    name: string,
    data: Payload,
    { signal, timeout = 0, onItem }: CallOptions,
    put: (frame: Uint8Array, sent: () => void) => () => void,
  ): Promise<Data> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) throw aborted(signal, false);
      do this.#id = (this.#id + 1) >>> 0;
      while (this.#calls.has(this.#id));
      const id = this.#id;
      let takeBack = () => {};
      let timer: ReturnType<typeof setTimeout> | undefined;
      const call: Call = {
        onItem,
        isSent: false,
        settle: (result) => {
          if (!this.#calls.delete(id)) return;
          takeBack();
          clearTimeout(timer);
          signal?.removeEventListener("abort", abort);
          if (result instanceof CallError) reject(result);
          else resolve(result);
        },
      };
      const cancel = (error: CallError) => {
        if (call.isSent) this.#send(withId(RESET, id));
        call.settle(error);
      };
      const abort = () => cancel(aborted(signal!, call.isSent));
      this.#calls.set(id, call);
      try {
        takeBack = put(withId(REQUEST, id, named(name), toBytes(data)), () => (call.isSent = true));
      } catch (error) {
        this.#calls.delete(id);
        throw error;
      }
      signal?.addEventListener("abort", abort);
      if (timeout > 0 && timeout < 2 ** 31) {
        const late = () => cancel(new CallError("timeout", `no answer in ${timeout} ms`, call.isSent));
        timer = setTimeout(late, timeout);
      }
    });
  }

  /** Ends all calls, or those that are not sent, or those that are. */
  fail(code: "disconnected" | "closed" | "unsupported", text: string, which?: { isSent: boolean }): void {
    for (const call of [...this.#calls.values()]) {
      if (which && which.isSent !== call.isSent) continue;
      call.settle(new CallError(code, text, call.isSent));
    }
  }

  /** The connection is lost: nobody waits for answers, on either side. */
  lost(): void {
    this.fail("disconnected", "the connection was lost during the call", { isSent: true });
    const answering = [...this.#answering.values()];
    this.#answering.clear();
    for (const controller of answering) controller.abort(new CallError("disconnected"));
  }

  answered({ id, payload }: Frame): void {
    this.#calls.get(id)?.settle(payload);
  }

  failed({ id, kind, payload }: Frame): void {
    const code = CODES[kind - 1] ?? "failed";
    this.#calls.get(id)?.settle(new CallError(code, payload.text() || code, true));
  }

  item({ id, payload }: Frame): void {
    try {
      this.#calls.get(id)?.onItem?.(payload);
    } catch (error) {
      this.#report(error);
    }
  }

  /** Who has asked does not want the answer any more. */
  reset({ id }: Frame): void {
    const controller = this.#answering.get(id);
    this.#answering.delete(id);
    controller?.abort(new CallError("aborted"));
  }

  /** Answers a call from the server. */
  async asked({ id, name, payload }: Frame): Promise<void> {
    const refuse = (code: number, text: string) => this.#send(withId(ERROR, id, Uint8Array.of(code), toBytes(text)));
    const handler = this.handlers.get(name);
    if (!handler) return refuse(1, `no procedure is called ${name}`);
    if (this.#answering.size >= ANSWERING_MAX) return refuse(5, "too many calls in flight");
    const controller = new AbortController();
    this.#answering.set(id, controller);
    // Once it is reset, or asked over a connection that is lost, nobody wants the answer.
    const isWanted = () => this.#answering.get(id) === controller && this.#answering.delete(id);
    try {
      const result = toBytes(await handler(payload, { name, signal: controller.signal }));
      if (isWanted()) this.#send(withId(RESPONSE, id, result));
    } catch (error) {
      if (isWanted()) refuse(2, error instanceof Error ? error.message : String(error));
    }
  }
}

function aborted(signal: AbortSignal, sent: boolean): CallError {
  return new CallError("aborted", "the call was aborted", sent, signal.reason);
}
