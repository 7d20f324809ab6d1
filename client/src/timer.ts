/** As `setTimeout`, which does at once what is to wait longer than it can, such as `Infinity`. */
export const after = (delay: number, act: () => void) => setTimeout(act, Math.min(delay, 2 ** 31 - 1));

/** For durations: the time of day may be set. */
export const now = () => performance.now();
