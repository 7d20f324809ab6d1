// The lines that the page keeps, in blocks. A block is added, removed and measured as a whole, so that neither costs
// anything for each line. No DOM here: blocks carry what the view attaches to them.

export const KEPT_LINES_MAX = 10_000;
/** Characters of all lines. */
export const KEPT_CHARS_MAX = 32 << 20;
const BLOCK_LINES = 100;
const BLOCK_CHARS = 256 << 10;
/** Blocks beyond what is read that stay when lines are left out there. */
const READ_AHEAD_BLOCKS = 2;

export class Lines {
  blocks = [];
  count = 0;
  chars = 0;
  /** Lines that were removed from the beginning. */
  removed = 0;

  /** Adds a line at the end, in a new block if the last one is full or closed. */
  push(line) {
    let block = this.blocks.at(-1);
    if (!block || block.isClosed || block.lines.length >= BLOCK_LINES || block.chars >= BLOCK_CHARS) {
      block = { lines: [], chars: 0, shown: 0, leftOut: 0, isClosed: false };
      this.blocks.push(block);
    }
    this.#add(block, line);
    return block;
  }

  #add(block, line) {
    block.lines.push(line);
    block.chars += line.text.length;
    this.count += 1;
    this.chars += line.text.length;
  }

  /** Puts lines behind a closed block. Returns the new blocks. */
  insertAfter(block, lines) {
    const made = [];
    for (let from = 0; from < lines.length; from += BLOCK_LINES) {
      const inserted = { lines: [], chars: 0, shown: 0, leftOut: 0, isClosed: true };
      for (const line of lines.slice(from, from + BLOCK_LINES)) this.#add(inserted, line);
      made.push(inserted);
    }
    this.blocks.splice(this.blocks.indexOf(block) + 1, 0, ...made);
    return made;
  }

  get isOver() {
    return this.blocks.length > 1 && (this.count - this.blocks[0].lines.length >= KEPT_LINES_MAX || this.chars > KEPT_CHARS_MAX);
  }

  /**
   * Removes blocks until the lines are within their bound, and returns them. `reading` gives the first and the last block that
   * a person reads, or null at the end of the list. What is read stays: then the blocks after it go first, and the block behind
   * them says how many lines were left out.
   */
  evict(reading) {
    const evicted = [];
    while (this.isOver) {
      const [first, last] = reading ? reading.map((block) => this.blocks.indexOf(block)) : [-1, -1];
      let at = 0;
      if (reading && first <= 1) {
        at = last + READ_AHEAD_BLOCKS;
        // There is nothing between what is read and the newest lines.
        if (at >= this.blocks.length - 1) at = 0;
        if (at === 0 && first === 0) break;
      }
      const [block] = this.blocks.splice(at, 1);
      this.count -= block.lines.length;
      this.chars -= block.chars;
      const missing = block.lines.length + block.leftOut;
      if (at === 0) this.removed += missing;
      else this.blocks[at].leftOut += missing;
      evicted.push(block);
    }
    return evicted;
  }

  clear() {
    Object.assign(this, { blocks: [], count: 0, chars: 0, removed: 0 });
  }

  *all() {
    for (const block of this.blocks) yield* block.lines;
  }
}
