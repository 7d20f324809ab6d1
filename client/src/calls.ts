import { Data, encoder, toBytes, type Payload } from "./data.js";
import { CallError, CODES, guarded, type CallErrorCode } from "./error.js";
import { encodeName, Form, withId, type Frame } from "./frames.js";
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

interface Call {
  onItem: ((data: Data) => unknown) | undefined;
  settle: Done;
  isSent: boolean;
}

/** Called with the result of a call, before the next frame is handled. */
export type Done = (result: Data | CallError) => void;

/** Sends or queues a frame, or throws. `sent` is called when it is sent. Returns a function that unqueues it. */
export type Put = (frame: Uint8Array, sent: () => void) => (() => void) | undefined;

/** The calls in flight, in both directions. */
export interface Calls {
  readonly handlers: Map<string, Handler>;
  /** Starts a call. Throws if it cannot be sent or queued. */
  make(name: string, data: Payload, options: CallOptions, put: Put, done: Done): void;
  /** Handles a frame that belongs to a call. Returns false for any other frame. */
  received(frame: Frame): boolean;
  /** Fails the calls that were sent (`isSent`), those that were not, or by default all. */
  fail(code: CallErrorCode, text: string, isSent?: boolean): void;
  /** Fails the sent calls and aborts the running handlers: the connection is lost. */
  lost(why: "disconnected" | "closed"): void;
}

// One long function: its inner functions share state that stays private, without `this`.
export function makeCalls(send: (frame: Uint8Array) => void): Calls {
  const calls = new Map<number, Call>();
  const answering = new Map<number, AbortController>();
  const handlers = new Map<string, Handler>();
  let lastId = 0;

  function make(name: string, data: Payload, { signal, timeout = 0, onItem }: CallOptions, put: Put, done: Done): void {
    const aborted = () => new CallError("aborted", undefined, call.isSent, signal!.reason);
    const cancel = (error: CallError) => {
      if (call.isSent) send(withId(Form.Reset, id));
      call.settle(error);
    };
    const abort = () => cancel(aborted());
    let unqueue: ReturnType<Put>;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const call: Call = {
      onItem,
      isSent: false,
      settle(result) {
        if (!calls.delete(id)) return;
        unqueue?.();
        clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
        done(result);
      },
    };
    if (signal?.aborted) throw aborted();
    do lastId = (lastId + 1) >>> 0;
    while (calls.has(lastId));
    const id = lastId;
    const frame = withId(Form.Request, id, encodeName(name), toBytes(data));
    calls.set(id, call);
    try {
      unqueue = put(frame, () => (call.isSent = true));
    } catch (error) {
      calls.delete(id);
      throw error;
    }
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

  function received(frame: Frame): boolean {
    const { form, id, kind, payload } = frame;
    const call = calls.get(id);
    if (form === Form.Request) {
      void answer(frame);
    } else if (form === Form.Reset) {
      // The server has cancelled its call.
      const controller = answering.get(id);
      answering.delete(id);
      controller?.abort(new CallError("aborted"));
    } else if (form === Form.Response) {
      call?.settle(payload);
    } else if (form === Form.Error) {
      const code = CODES[kind - 1] ?? "failed";
      call?.settle(new CallError(code, payload.text() || code, true));
    } else if (form === Form.Item) {
      guarded(() => call?.onItem?.(payload));
    } else {
      return false;
    }
    return true;
  }

  async function answer({ id, name, payload }: Frame): Promise<void> {
    // `encode` turns a lone surrogate into U+FFFD, so any thrown text can be sent.
    const refuse = (code: number, text: string) => send(withId(Form.Error, id, Uint8Array.of(code), encoder.encode(text)));
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
      const controllers = [...answering.values()];
      answering.clear();
      for (const controller of controllers) controller.abort(new CallError(why));
    },
  };
}
