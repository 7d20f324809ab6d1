import { Data, encoder, toBytes, type Payload } from "./data.js";
import { CallError, CODES, guarded, type CallErrorCode } from "./error.js";
import { encodeName, Form, withId, type Frame } from "./frames.js";
import type { Outgoing } from "./outbox.js";
import { after } from "./timer.js";

/** Options of a call. */
export interface CallOptions {
  /** Cancels the call. If the call was sent, the server is notified with a reset. */
  signal?: AbortSignal;
  /** Timeout in milliseconds, from the call on; 0 disables it. Default: the connection's `timeout`. */
  timeout?: number;
  /** Called with each part of a streamed response as it arrives. */
  onItem?: (data: Data) => unknown;
}

/** Answers a call from the server. The message of what it throws is sent as the error's text. */
export type Handler = (data: Data, call: { name: string; signal: AbortSignal }) => Payload | Promise<Payload>;

/** A call, which is also the message that is put. */
interface Call extends Outgoing {
  onItem: ((data: Data) => unknown) | undefined;
  settle: Done;
}

/** Called with the result of a call, before the next frame is handled. */
export type Done = (result: Data | CallError) => void;

/** The calls in flight, in both directions. */
export interface Calls {
  readonly handlers: Map<string, Handler>;
  /** Starts a call, which `put` sends or queues. Throws if it cannot be sent or queued. */
  make(name: string, data: Payload, options: CallOptions, put: (call: Outgoing) => void, done: Done): void;
  /** Handles a frame that belongs to a call. Returns false for any other frame. */
  received(frame: Frame): boolean;
  /** Fails the calls that were sent (`isSent`), those that were not, or by default all. */
  fail(code: CallErrorCode, text: string, isSent?: boolean): void;
  /** Fails the sent calls and aborts the running handlers: the connection is lost. */
  lost(why: "disconnected" | "closed"): void;
}

// One long function: its inner functions share state that stays private, without `this`.
export function makeCalls(send: (frame: Uint8Array) => void, unqueue: (call: Outgoing) => void): Calls {
  const calls = new Map<number, Call>();
  const answering = new Map<number, AbortController>();
  const handlers = new Map<string, Handler>();
  let lastId = 0;

  function make(name: string, data: Payload, { signal, timeout = 0, onItem }: CallOptions, put: (call: Outgoing) => void, done: Done): void {
    const aborted = (isSent?: boolean) => new CallError("aborted", undefined, isSent, signal!.reason);
    if (signal?.aborted) throw aborted();
    do lastId = (lastId + 1) >>> 0;
    while (calls.has(lastId));
    const id = lastId;
    const cancel = (error: CallError) => {
      if (call.isSent) send(withId(Form.Reset, id));
      call.settle(error);
    };
    const abort = () => cancel(aborted(call.isSent));
    let timer: ReturnType<typeof setTimeout> | undefined;
    const call: Call = {
      data: withId(Form.Request, id, encodeName(name), toBytes(data)),
      isFrame: true,
      isSent: false,
      onItem,
      settle(result) {
        if (!calls.delete(id)) return;
        unqueue(call);
        clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
        done(result);
      },
    };
    put(call);
    calls.set(id, call);
    signal?.addEventListener("abort", abort);
    if (timeout > 0) {
      timer = after(timeout, () => cancel(new CallError("timeout", `no answer in ${timeout} ms`, call.isSent)));
    }
  }

  function fail(code: CallErrorCode, text: string, isSent?: boolean): void {
    for (const call of [...calls.values()]) {
      if (call.isSent === (isSent ?? call.isSent)) call.settle(new CallError(code, text, call.isSent));
    }
  }

  /** Aborts the handler of a call, if it is running. Its result is no longer wanted. */
  function abortHandler(id: number, code: CallErrorCode): void {
    const controller = answering.get(id);
    answering.delete(id);
    controller?.abort(new CallError(code));
  }

  function received(frame: Frame): boolean {
    const { form, id, kind, payload } = frame;
    const call = calls.get(id);
    if (form === Form.Request) {
      void answer(frame);
    } else if (form === Form.Reset) {
      // The server has cancelled its call.
      abortHandler(id, "aborted");
    } else if (form === Form.Response) {
      call?.settle(payload);
    } else if (form === Form.Error) {
      const code = CODES[kind - 1] ?? "failed";
      call?.settle(new CallError(code, payload.text() || code, true));
    } else if (form === Form.Item) {
      guarded(call?.onItem, payload);
    } else {
      return false;
    }
    return true;
  }

  async function answer({ id, name, payload }: Frame): Promise<void> {
    // `encode` turns a lone surrogate into U+FFFD, so any thrown text can be sent.
    const refuse = (code: number, text: string) => send(withId(Form.Error, id, [code], encoder.encode(text)));
    const handler = handlers.get(name);
    if (!handler) return refuse(1, `there is no ${name}`);
    // Bounds the server's calls in flight.
    if (answering.size >= 1_000) return refuse(5, "too many calls");
    const controller = new AbortController();
    answering.set(id, controller);
    // False once the call was reset or its connection is lost.
    const isWanted = () => answering.get(id) === controller && answering.delete(id);
    try {
      const result = toBytes(await handler(payload, { name, signal: controller.signal }));
      if (isWanted()) send(withId(Form.Response, id, result));
    } catch (error) {
      if (isWanted()) refuse(2, guarded(() => String((error as Error)?.message ?? error)) ?? "failed");
    }
  }

  return {
    handlers,
    make,
    received,
    fail,
    lost(why) {
      fail(why, "the connection has ended", true);
      for (const id of answering.keys()) abortHandler(id, why);
    },
  };
}
