/**
 * Why a call has failed, or something could not be sent:
 *
 * - From the server: `unknown` (no procedure of that name), `failed` (its handler's error), `aborted` (it has seen the
 *   cancellation), `unanswered` (the answer was dropped), `busy` (too many calls in flight), `refused` (not allowed, such
 *   as joining a room), `missed`.
 * - From here: `aborted` (by the signal, which is the `cause`'s), `timeout`, `disconnected` (while it was in flight),
 *   `closed` (the connection is closed for good), `full` (too much waits already), `unsupported` (the server does not
 *   speak the procedures' subprotocol, or nothing can be sent over server-sent events).
 */
export type CallErrorCode =
  | "unknown" | "failed" | "aborted" | "unanswered" | "busy" | "refused" | "missed"
  | "timeout" | "disconnected" | "closed" | "full" | "unsupported";

/** Codes of errors on the wire, from 1 on. */
export const CODES: readonly CallErrorCode[] = ["unknown", "failed", "aborted", "unanswered", "busy", "refused", "missed"];

/** The one error of this module. Its message is the server's text, where there is one. */
export class CallError extends Error {
  /** Why. */
  declare readonly code: CallErrorCode;
  /** Whether it had been sent, so that the server may have handled it. It is never sent again by itself. */
  declare readonly sent: boolean;

  constructor(code: CallErrorCode, message: string = code, sent = false, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "CallError";
    this.code = code;
    this.sent = sent;
  }
}

/** Runs what the program has given us. What it throws is reported, as the browser does for listeners of its own. */
export function guarded<T>(act: () => T): T | undefined {
  try {
    const result = act();
    // An async function's error is its promise's.
    if (result instanceof Promise) result.catch(report);
    return result;
  } catch (error) {
    report(error);
    return undefined;
  }
}

/** The caller's mistake. */
export function mistake(text: string): never {
  throw new TypeError(text);
}

export function report(error: unknown): void {
  if (typeof reportError === "function") reportError(error);
  else console.error(error);
}

/** A promise that nobody has to wait for: its failure is reported then, and does not end a program in Node. */
class Outcome<T> extends Promise<T> {
  declare isAwaited?: boolean;

  override then<A = T, B = never>(...args: Parameters<typeof Promise.prototype.then<A, B>>): Promise<A | B> {
    this.isAwaited = true;
    return super.then(...args) as Promise<A | B>;
  }
}

/** What comes of it. What the program has ended itself, it need not be told of. */
export function outcome<T>(act: () => T | Promise<T>): Promise<T> {
  const own = new Outcome<T>((resolve) => resolve(act()));
  Promise.prototype.then.call(own, undefined, (error) => {
    // Whoever has it may begin to wait for it just now.
    setTimeout(() => own.isAwaited || /^(closed|aborted)$/.test(error.code) || report(error));
  });
  return own;
}
