/** `setTimeout` with the delay capped at its maximum: it would run longer ones, such as `Infinity`, at once. */
export const after = (delay: number, act: () => void) => setTimeout(act, Math.min(delay, 2 ** 31 - 1));

/** A monotonic clock in milliseconds: the time of day may be changed. */
export const now = () => performance.now();
