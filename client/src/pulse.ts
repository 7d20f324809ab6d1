/**
 * Notices that nobody is there any more, though no connection has ended: after a time without a message it asks, and
 * where nothing has come for a time after that, it says so.
 */
export class Pulse {
  readonly #interval: number;
  readonly #timeout: number;
  readonly #ask: () => void;
  readonly #dead: () => void;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #heardAt = 0;
  #askedAt = 0;

  constructor(interval: number, timeout: number, ask: () => void, dead: () => void) {
    this.#interval = interval;
    this.#timeout = timeout;
    this.#ask = ask;
    this.#dead = dead;
  }

  start(): void {
    this.heard();
    this.#watch();
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  heard(): void {
    this.#heardAt = performance.now();
  }

  /** Asks now, unless it has asked already. */
  check(isAgain = false): void {
    if (!this.#timer || (this.#askedAt > this.#heardAt && !isAgain)) return;
    this.stop();
    const due = (this.#askedAt = performance.now()) + this.#timeout;
    this.#timer = setTimeout(() => {
      if (this.#heardAt >= this.#askedAt) this.#watch();
      // A page that was frozen, or a computer that has slept, may have the answer before it: it is asked once more.
      else if (performance.now() - due > 1_000 && !isAgain) this.check(true);
      else this.#dead();
    }, this.#timeout);
    this.#ask();
  }

  #watch(): void {
    if (!(this.#interval > 0)) return;
    const rest = this.#heardAt + this.#interval - performance.now();
    this.#timer = setTimeout(() => (this.#heardAt + this.#interval <= performance.now() ? this.check() : this.#watch()), rest);
  }
}
