/**
 * Why a call failed, or a message could not be sent:
 *
 * - From the server: `unknown` (no procedure of that name), `failed` (its handler's error), `aborted` (the handler saw the
 *   cancellation), `unanswered` (the handler sent no answer), `busy` (too many calls in flight, or a room that the server can't serve for now), `refused` (not permitted,
 *   such as joining a room), `missed`.
 * - From this client: `aborted` (by the signal, whose reason is the `cause`), `timeout`, `disconnected` (while the call was in
 *   flight), `closed` (the connection is closed), `full` (the outbox or queue is full), `unsupported` (the server does not
 *   support the procedures' subprotocol, or only server-sent events are available).
 */
export type CallErrorCode =
  | "unknown" | "failed" | "aborted" | "unanswered" | "busy" | "refused" | "missed"
  | "timeout" | "disconnected" | "closed" | "full" | "unsupported";

/** Error codes on the wire, starting at 1. */
export const CODES: readonly CallErrorCode[] = ["unknown", "failed", "aborted", "unanswered", "busy", "refused", "missed"];

/** The error of calls and sends. Its message is the server's text, if there is one. */
export class CallError extends Error {
  /** The cause. */
  declare readonly code: CallErrorCode;
  /** Whether the call was sent, so that the server may have handled it. The client never resends it. */
  declare readonly sent: boolean;

  constructor(code: CallErrorCode, message: string = code, sent = false, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "CallError";
    this.code = code;
    this.sent = sent;
  }
}

/** Calls a callback of the program, if there is one. Reports what it throws, as browsers do for event listeners. */
export function guarded<A extends unknown[], T>(callback: ((...args: A) => T) | undefined, ...args: A): T | undefined {
  try {
    const result = callback?.(...args);
    // An async function rejects instead of throwing.
    if (result instanceof Promise) result.catch(report);
    return result;
  } catch (error) {
    report(error);
    return undefined;
  }
}

/** Throws a `TypeError` for an invalid argument. */
export function throwTypeError(text: string): never {
  throw new TypeError(text);
}

export function report(error: unknown): void {
  (globalThis.reportError ?? console.error)(error);
}

/** A promise that may be ignored: an unhandled rejection is reported, and does not end a Node program. */
class Outcome<T> extends Promise<T> {
  declare isAwaited?: boolean;

  override then<A = T, B = never>(...args: Parameters<typeof Promise.prototype.then<A, B>>): Promise<A | B> {
    this.isAwaited = true;
    return super.then(...args) as Promise<A | B>;
  }
}

/** Runs `act` and reports its unhandled rejection, except those that the program caused itself by closing or aborting. */
export function outcome<T>(act: () => T | Promise<T>): Promise<T> {
  const own = new Outcome<T>((resolve) => resolve(act()));
  own.then(undefined, (error) => {
    // The caller may begin to await it in this task.
    setTimeout(() => own.isAwaited || /^(closed|aborted)$/.test(error.code) || report(error));
  });
  own.isAwaited = false;
  return own;
}
