// Ids of messages: the epoch of the history, and the number of the message in it, as `EPOCH-NUMBER`.

export function split(id) {
  const at = id.lastIndexOf("-");
  return { epoch: id.slice(0, at), number: Number(id.slice(at + 1)) };
}

/** How many messages lie between two ids of one history; 0 if they follow each other, or belong to different ones. */
export function between(before, after) {
  if (!before || !after) return 0;
  const [from, to] = [split(before), split(after)];
  return from.epoch === to.epoch ? Math.max(0, to.number - from.number - 1) : 0;
}

/** How many messages came after an id, if it is the last one that was seen. */
export function unread(seen, last) {
  if (!last) return 0;
  const { epoch, number } = split(last);
  if (!seen) return number;
  const from = split(seen);
  return from.epoch === epoch ? Math.max(0, number - from.number) : number;
}

/** Merges two lists of messages, each in order, by time. */
export function mergeByTime(these, those) {
  const both = [];
  let n = 0;
  for (const one of these) {
    while (n < those.length && those[n].at < one.at) both.push(those[n++]);
    both.push(one);
  }
  return both.concat(those.slice(n));
}
