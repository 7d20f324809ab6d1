import { Data, encoder, toBytes, type Payload } from "./data.js";
import { CallError, CODES, guarded, type CallErrorCode } from "./error.js";
import { Form, named, withId, type Frame } from "./frames.js";
import { after } from "./timer.js";

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
  settle: Done;
  isSent: boolean;
}

/** Is told the end of a call at once, before what comes next. */
export type Done = (result: Data | CallError) => void;

/** Sends a frame, now or later, or throws. `sent` is called when it goes; what is returned takes it back before. */
export type Put = (frame: Uint8Array, sent: () => void) => (() => void) | undefined;

/** Calls in flight, of both directions. */
export interface Calls {
  readonly handlers: Map<string, Handler>;
  /** Makes a call, or throws. */
  make(name: string, data: Payload, options: CallOptions, put: Put, done: Done): void;
  /** Takes what is about a call; false if it is not. */
  received(frame: Frame): boolean;
  /** Ends calls: those that are sent, or not, or all. */
  fail(code: CallErrorCode, text: string, isSent?: boolean): void;
  /** The connection is lost: nobody waits for answers, on either side. */
  lost(why: "disconnected" | "closed"): void;
}

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
    let takeBack: ReturnType<Put>;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const call: Call = {
      onItem,
      isSent: false,
      settle(result) {
        if (!calls.delete(id)) return;
        takeBack?.();
        clearTimeout(timer);
        signal?.removeEventListener("abort", abort);
        done(result);
      },
    };
    if (signal?.aborted) throw aborted();
    do lastId = (lastId + 1) >>> 0;
    while (calls.has(lastId));
    const id = lastId;
    const frame = withId(Form.Request, id, named(name), toBytes(data));
    calls.set(id, call);
    try {
      takeBack = put(frame, () => (call.isSent = true));
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
      // Who has asked does not want the answer any more.
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
    // Half a character becomes U+FFFD: whatever a handler has thrown, the server gets an answer.
    const refuse = (code: number, text: string) => send(withId(Form.Error, id, Uint8Array.of(code), encoder.encode(text)));
    const handler = handlers.get(name);
    if (!handler) return refuse(1, `there is no ${name}`);
    // What the server asks of us at a time is bounded.
    if (answering.size >= 1_000) return refuse(5, "too many calls");
    const controller = new AbortController();
    answering.set(id, controller);
    // Once it is reset, or its connection is lost, nobody wants the answer.
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
