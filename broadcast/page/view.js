// The list of lines: what is in the document, where it is scrolled to, and which lines a filter hides.
//
// The rows of a block are made when they are needed. Blocks out of sight are not laid out (`content-visibility`), so that ten
// thousand lines cost no more than a window full of them, and the browser's own search finds all of them on a paused page.

import { KEPT_CHARS_MAX, KEPT_LINES_MAX, Lines } from "./lines.js";
import { FOLDED_CHARS, joinedText, makeRow, plainText } from "./row.js";

/** How near to the end counts as at the end, in pixels. */
const AT_END_PX = 40;
/** The time for rows out of sight, in each frame. */
const SLICE_MS = 6;
/** Names of clients that a folded note keeps. */
const NAMES_MAX = 50;
/** More lines than this in one frame are a flood. */
const FLOOD_LINES = 40;
/** A movement this soon after a person has used the list is theirs; one soon after a change of its size is the browser's. */
const SCROLLING_KEYS = ["ArrowUp", "PageUp", "Home"];
const BY_HAND_MS = 500;
const SETTLED_MS = 150;
/** The time between two frames of a flood. */
const FLOOD_FRAME_MS = 120;
/** The height of the lowest row, in pixels. */
const ROW_PX_MIN = 18;
/** Lines that wait for the next frame, or for the end of a pause. */
const QUEUE_MAX = KEPT_LINES_MAX;
/** A faster log is not read aloud. */
const ALOUD_PER_SECOND_MAX = 4;

/** Whether a line is text of a log or of a message, and not the page's own words. */
const isText = ({ kind }) => kind === "text" || kind === "own";

/** Whether a line is not shown as it should be. */
function isStale(line) {
  if (line.isHidden) return Boolean(line.row && !line.row.hidden);
  return !line.row || line.row.hidden || Boolean(line.isOutdated);
}

export class View {
  #log;
  #list;
  #lines = new Lines();
  #queue = [];
  #queueLeftOut = 0;
  #queueChars = 0;
  #frame = 0;
  #lastTop = 0;
  #rowsInSight = 100;
  #drawAfter = 0;
  /** When a person last used the list, and when its size last changed. */
  #touchedAt = -Infinity;
  #changedAt = -Infinity;
  #aloud = { second: 0, lines: 0 };
  #changed;
  #tag;
  include = null;
  exclude = null;
  find = null;
  isFollowing = true;
  isPaused = false;
  /** Lines that have arrived since the end was last in sight. */
  unseen = 0;
  /** Lines with what is searched for. */
  hits = 0;

  /** `changed` is called after each change of what is shown; `tag` names the label of a line. */
  constructor(log, list, { changed, tag }) {
    this.#log = log;
    this.#list = list;
    this.#changed = changed;
    this.#tag = tag;
    log.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    const touched = ({ type, buttons, key }) => {
      if (type === "pointermove" && !buttons) return;
      if (type === "keydown" && !SCROLLING_KEYS.includes(key)) return;
      this.#touchedAt = performance.now();
    };
    for (const type of ["wheel", "touchmove", "pointerdown", "pointermove", "keydown"]) log.addEventListener(type, touched, { passive: true });
    const resized = new ResizeObserver(() => {
      this.#rowsInSight = Math.ceil(log.clientHeight / ROW_PX_MIN) + 2;
      this.#changedAt = performance.now();
      if (this.#pinned) this.#toEnd();
    });
    resized.observe(log);
    resized.observe(this.#list);
    log.addEventListener("click", (event) => this.#clicked(event));
  }

  get count() {
    return this.#lines.count;
  }

  get queued() {
    return this.#queue.length + this.#queueLeftOut;
  }

  /** Whether there are lines, and the filters hide all of them. */
  get hidesAll() {
    return this.#lines.count > 0 && this.#lines.blocks.every((block) => block.shown === 0);
  }

  get removed() {
    return this.#lines.removed;
  }

  add(line) {
    this.#queue.push(line);
    this.#queueChars += line.text.length;
    if (this.#queue.length > 2 * QUEUE_MAX) this.#forget(this.#queue.length - QUEUE_MAX);
    while (this.#queueChars > KEPT_CHARS_MAX && this.#queue.length > 1) this.#forget(Math.ceil(this.#queue.length / 2));
    this.#schedule();
  }

  /** Leaves out the oldest lines of the queue. */
  #forget(count) {
    for (const { text } of this.#queue.splice(0, count)) this.#queueChars -= text.length;
    this.#queueLeftOut += count;
  }

  /** Whether the list is kept at its end. */
  get #pinned() {
    return this.isFollowing && !this.isPaused;
  }

  /** No frames are drawn while the page is hidden: the lines then wait in the queue. */
  #schedule() {
    const draw = () => {
      this.#frame = requestAnimationFrame(() => {
        this.#frame = 0;
        this.#draw();
      });
    };
    if (this.#frame) return;
    const wait = this.#drawAfter - performance.now();
    if (wait > 0) this.#frame = setTimeout(draw, wait);
    else draw();
  }

  #draw() {
    if (!this.isPaused) this.#changedAt = performance.now();
    const isFlood = !this.isPaused && this.#takeQueue() > FLOOD_LINES;
    // Nobody reads so fast: the time is better spent on receiving, and on what a person types.
    this.#drawAfter = isFlood ? performance.now() + FLOOD_FRAME_MS : 0;
    if (this.#fillSlice(isFlood)) this.#schedule();
    this.#changed();
  }

  /** Takes the lines that wait. Returns their number. */
  #takeQueue() {
    if (!this.#queue.length) return 0;
    const lines = this.#queue.length > QUEUE_MAX ? this.#queue.slice(-QUEUE_MAX) : this.#queue;
    const leftOut = this.#queueLeftOut + this.#queue.length - lines.length;
    this.#queue = [];
    this.#queueLeftOut = this.#queueChars = 0;
    this.#readAloud(lines.length);
    let isFirst = true;
    let visible = 0;
    for (const line of lines) {
      if (line.kind === "joined" && this.#joinsLast(line)) continue;
      const before = this.#lines.blocks.at(-1);
      // What was left out is said at the beginning of a block.
      if (isFirst && leftOut && before) before.isClosed = true;
      const block = this.#lines.push(line);
      if (!block.element) this.#attach(block, null);
      if (isFirst) block.leftOut += leftOut;
      isFirst = false;
      line.isHidden = this.#hides(line);
      if (this.#isHit(line)) this.hits += 1;
      block.shown += line.isHidden ? 0 : 1;
      visible += isText(line) && !line.isHidden ? 1 : 0;
      block.isStale = true;
      // The lines that were skipped may be loaded behind it.
      if (line.skipped) block.isClosed = true;
    }
    this.#evict();
    if (!this.isFollowing) this.unseen += visible + leftOut;
    return lines.length;
  }

  /** Folds an announcement with the one right before it. */
  #joinsLast(line) {
    const last = this.#lines.blocks.at(-1)?.lines.at(-1);
    if (last?.kind !== "joined") return false;
    last.count += line.count;
    if (last.names.length < NAMES_MAX) last.names.push(...line.names);
    last.text = joinedText(last);
    if (last.row) last.row.replaceWith((last.row = this.#row(last)));
    return true;
  }

  #readAloud(lines) {
    const second = Math.floor(performance.now() / 1000);
    if (second !== this.#aloud.second) this.#aloud = { second, lines: 0 };
    this.#aloud.lines += lines;
    const live = this.#aloud.lines > ALOUD_PER_SECOND_MAX ? "off" : "polite";
    // Setting the same value again would cost a new layout.
    if (this.#log.ariaLive !== live) this.#log.ariaLive = live;
  }

  #evict() {
    if (!this.#lines.isOver) return;
    const reading = this.isFollowing ? null : this.#reading();
    const anchor = reading && this.#anchor(reading[0]);
    const evicted = this.#lines.evict(reading);
    for (const block of evicted) {
      block.element?.remove();
      if (this.find) this.hits -= block.lines.filter((line) => this.#isHit(line)).length;
    }
    for (const block of this.#lines.blocks) if (block.leftOut) this.#showLeftOut(block);
    // The browser's own anchor fails when much is removed at once.
    if (anchor) this.#log.scrollTop += anchor.element.getBoundingClientRect().top - anchor.top;
    this.#lastTop = this.#log.scrollTop;
  }

  /** The first and the last block in sight. */
  #reading() {
    const { top, bottom } = this.#log.getBoundingClientRect();
    const blocks = this.#lines.blocks.filter((block) => block.element);
    const isIn = (block) => {
      const box = block.element.getBoundingClientRect();
      return box.bottom > top && box.top < bottom && box.height > 0;
    };
    const first = blocks.findIndex(isIn);
    if (first < 0) return null;
    let last = first;
    while (last + 1 < blocks.length && isIn(blocks[last + 1])) last += 1;
    return [blocks[first], blocks[last]];
  }

  /** The first row in sight, which is in this block. */
  #anchor(block) {
    const { top } = this.#log.getBoundingClientRect();
    const row = block.lines.find((line) => line.row && line.row.getBoundingClientRect().bottom > top)?.row;
    return row && { element: row, top: row.getBoundingClientRect().top };
  }

  #attach(block, before) {
    block.element = document.createElement("div");
    block.element.className = "block";
    this.#list.insertBefore(block.element, before);
  }

  #row(line) {
    const row = makeRow(line, { find: this.find, tag: this.#tag });
    row.hidden = line.isHidden;
    row.line = line;
    return row;
  }

  /** Brings the rows of a block up to date with its lines, of those from an index on. */
  #fill(block, from = 0) {
    block.element.hidden = block.shown === 0 && !block.leftOut;
    if (block.leftOut) this.#showLeftOut(block);
    let next = null;
    for (let at = block.lines.length - 1; at >= from; at -= 1) {
      const line = block.lines[at];
      if (line.isHidden) {
        if (line.row) line.row.hidden = true;
      } else if (!line.row || line.isOutdated) {
        const row = this.#row(line);
        if (line.row) line.row.replaceWith(row);
        else block.element.insertBefore(row, next);
        line.row = row;
        line.isOutdated = false;
      } else if (line.row.hidden) line.row.hidden = false;
      next = line.row ?? next;
    }
    block.isStale = block.lines.slice(0, from).some(isStale);
    const size = `auto ${block.shown * 1.3}rem`;
    if (block.size !== size) block.element.style.containIntrinsicBlockSize = block.size = size;
  }

  #showLeftOut(block) {
    if (!block.element) return;
    block.notice ??= document.createElement("div");
    block.notice.className = "row note left-out";
    block.notice.textContent = `${block.leftOut.toLocaleString()} lines are left out here.`;
    if (block.element.firstChild !== block.notice) block.element.prepend(block.notice);
    block.element.hidden = false;
  }

  /** Fills stale blocks: what is in sight at once, the rest as time allows. Returns whether some are left. */
  #fillSlice(isFlood) {
    const { blocks } = this.#lines;
    if (this.#pinned) {
      // The rows that fit into the window, from the end.
      let rows = this.#rowsInSight;
      for (let at = blocks.length - 1; at >= 0 && rows > 0; at -= 1) {
        const { lines } = blocks[at];
        let from = lines.length;
        for (; from > 0 && rows > 0; from -= 1) if (!lines[from - 1].isHidden) rows -= 1;
        if (blocks[at].isStale) this.#fill(blocks[at], from);
      }
    } else for (const block of this.#reading() ?? []) if (block.isStale) this.#fill(block);
    // Rows that scroll out of sight before they were seen need not be made now.
    if (!isFlood) {
      const deadline = performance.now() + SLICE_MS;
      for (let at = blocks.length - 1; at >= 0 && performance.now() < deadline; at -= 1) {
        if (blocks[at].isStale) this.#fill(blocks[at]);
      }
    }
    if (this.#pinned) this.#toEnd();
    return blocks.some((block) => block.isStale);
  }

  #hides(line) {
    if (line.kind === "note" || line.kind === "own") return false;
    if (!this.include && !this.exclude) return false;
    if (line.kind === "joined") return true;
    const text = plainText(line);
    return Boolean((this.include && !this.include.test(text)) || this.exclude?.test(text));
  }

  /** Applies the filters to all lines. */
  refilter() {
    for (const block of this.#lines.blocks) {
      block.shown = 0;
      for (const line of block.lines) {
        const isHidden = this.#hides(line);
        if (isHidden !== line.isHidden) block.isStale = true;
        line.isHidden = isHidden;
        block.shown += isHidden ? 0 : 1;
      }
      if (!block.leftOut) block.element.hidden = block.shown === 0;
    }
    this.#schedule();
  }

  #isHit(line) {
    return Boolean(this.find && !line.isHidden && isText(line) && this.find.test(plainText(line)));
  }

  /** Marks what is searched for. */
  mark(find) {
    const before = this.find;
    this.hits = 0;
    if (!find && !before) return;
    this.find = find;
    for (const block of this.#lines.blocks) {
      for (const line of block.lines.filter(isText)) {
        if (this.#isHit(line)) this.hits += 1;
        const text = plainText(line);
        if (find !== before && line.row && (find?.test(text) || before?.test(text))) line.isOutdated = block.isStale = true;
      }
    }
    this.#schedule();
  }

  /** Goes to the next line with what is searched for, or to the one before. Returns its number among them, from 1. */
  step(direction) {
    const hits = [...this.#lines.all()].filter((line) => this.#isHit(line));
    if (!hits.length) return 0;
    const at = hits.indexOf(this.current);
    const next = at < 0 ? (direction > 0 ? 0 : hits.length - 1) : (at + direction + hits.length) % hits.length;
    this.current?.row?.classList.remove("current");
    this.current = hits[next];
    this.isFollowing = false;
    const block = this.#lines.blocks.find((block) => block.lines.includes(this.current));
    const isInSight = this.find.test(plainText(this.current).slice(0, FOLDED_CHARS));
    if (!isInSight && !this.current.isUnfolded) {
      this.current.isUnfolded = this.current.isOutdated = block.isStale = true;
    }
    if (block.isStale || !this.current.row) this.#fill(block);
    this.current.row.classList.add("current");
    this.current.row.scrollIntoView({ block: "center" });
    this.#lastTop = this.#log.scrollTop;
    this.#changed();
    return next + 1;
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#log;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < AT_END_PX;
    const before = [this.isFollowing, this.unseen];
    const isByHand = performance.now() - this.#touchedAt < BY_HAND_MS;
    if (isAtEnd) this.#seen();
    else if (this.#pinned && !isByHand && performance.now() - this.#changedAt < SETTLED_MS) {
      // The browser has measured rows again, and moved what it shows.
      this.#toEnd();
      return;
    } else if (scrollTop < this.#lastTop - 2) this.isFollowing = false;
    this.#lastTop = scrollTop;
    if (!this.#pinned) this.#schedule();
    if (before[0] !== this.isFollowing || before[1] !== this.unseen) this.#changed();
  }

  #seen() {
    this.isFollowing = true;
    this.unseen = 0;
  }

  #toEnd() {
    this.#log.scrollTop = this.#log.scrollHeight;
    this.#lastTop = this.#log.scrollTop;
  }

  /** Goes to the end, and stays there. */
  follow() {
    this.#seen();
    this.#toEnd();
    this.#schedule();
  }

  setPaused(isPaused) {
    this.isPaused = isPaused;
    this.#schedule();
  }

  clear() {
    this.#lines.clear();
    this.#queue = [];
    this.#queueLeftOut = this.#queueChars = 0;
    this.#list.replaceChildren();
    this.current = null;
    this.hits = 0;
    this.#seen();
    this.#changed();
  }

  /** The text of all lines that no filter hides. */
  text() {
    const texts = [];
    for (const line of this.#lines.all()) {
      if (!line.isHidden && isText(line)) texts.push(plainText(line));
    }
    return texts.map((text) => `${text}\n`).join("");
  }

  /** Puts lines behind a note, which then is about those that are still missing. */
  insertBehind(note, lines, text) {
    const block = this.#lines.blocks.find((block) => block.lines.includes(note));
    if (!block) return;
    note.text = text;
    note.skipped = null;
    note.isOutdated = true;
    block.isStale = true;
    const before = this.#lines.blocks[this.#lines.blocks.indexOf(block) + 1]?.element ?? null;
    for (const made of this.#lines.insertAfter(block, lines)) {
      this.#attach(made, before);
      for (const line of made.lines) {
        line.isHidden = this.#hides(line);
        if (this.#isHit(line)) this.hits += 1;
        made.shown += line.isHidden ? 0 : 1;
      }
      made.isStale = true;
    }
    // They may exceed the bound until the next line arrives.
    this.#schedule();
  }

  /** The lines behind a note could not be loaded: it can be tried again. */
  loadFailed(note) {
    const button = note.row?.querySelector(".load");
    if (button) button.disabled = false;
  }

  #clicked({ target }) {
    const row = target.closest?.(".row");
    const line = row?.line;
    if (!line || !target.matches("button")) return;
    if (target.matches(".load")) {
      this.isFollowing = false;
      target.disabled = true;
      this.#log.dispatchEvent(new CustomEvent("load-skipped", { detail: line }));
      return;
    }
    // What was opened is read now.
    this.isFollowing = false;
    if (target.matches(".fold")) line.isUnfolded = true;
    if (target.matches(".json")) line.isExpanded = !line.isExpanded;
    const isJson = target.matches(".json");
    const made = this.#row(line);
    row.replaceWith(made);
    line.row = made;
    if (isJson) made.querySelector("button.json")?.focus();
  }
}
