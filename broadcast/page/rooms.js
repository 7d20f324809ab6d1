// The rooms: which one is shown, which ones there are, and how many lines of each have not been shown.

import { unread } from "./ids.js";

const ROOM_BYTES_MAX = 240;
/** Rooms that were opened by name and stay in the list. */
const VISITED_MAX = 12;

export function isRoom(name) {
  return !/(^|[/\\])\.\.?([/\\]|$)|\0/.test(name) && new TextEncoder().encode(name).length <= ROOM_BYTES_MAX;
}

/** Why a name is not that of a room. */
export function whyNot(name) {
  return name.length > 2 ? `A room’s name can have at most ${ROOM_BYTES_MAX} bytes.` : "A room’s name can’t be “.” or “..”.";
}

/** The room in the fragment of the address; null if that is not a name. No fragment: everyone. */
export function roomInAddress() {
  try {
    const name = decodeURIComponent(location.hash.slice(1));
    return isRoom(name) ? name : null;
  } catch {
    return null;
  }
}

export const addressOf = (room) => location.pathname + location.search + (room ? `#${encodeURIComponent(room)}` : "");

export class RoomList {
  #element;
  #visited = [];
  #seen = new Map();
  #listed = [];
  #shown = "";
  current = "";

  constructor(element) {
    this.#element = element;
  }

  /** What to ask the server for. */
  get query() {
    return new URLSearchParams(this.#visited.map((name) => ["room", name]));
  }

  open(room) {
    this.current = room;
    if (room && !this.#visited.includes(room)) this.#visited = [room, ...this.#visited].slice(0, VISITED_MAX);
    this.#show();
  }

  /** Takes the server's answer. What the page shows now counts as read. */
  update(rooms) {
    const isFirst = (name) => !this.#seen.has(name);
    this.#listed = rooms.filter(({ name }, at) => rooms.findIndex((other) => other.name === name) === at);
    for (const { name, last, source } of this.#listed) {
      // In the view of everyone, the lines of all sources are shown.
      if (isFirst(name) || name === this.current || (source && this.current === "")) this.#seen.set(name, last);
    }
    this.#show();
  }

  #show() {
    // Links that are made anew lose the focus.
    const state = JSON.stringify([this.current, this.#visited, this.#listed.map(({ name, last }) => [name, unread(this.#seen.get(name), last)]), location.search]);
    if (state === this.#shown) return;
    this.#shown = state;
    const names = [...new Set([...this.#listed.map(({ name }) => name), ...this.#visited])];
    this.#element.hidden = names.length === 0;
    this.#element.replaceChildren(...[{ name: "" }, ...names.map((name) => this.#listed.find((room) => room.name === name) ?? { name })].map((room) => this.#link(room)));
  }

  #link({ name, last }) {
    const link = document.createElement("a");
    link.href = addressOf(name);
    link.textContent = name || "everyone";
    if (name === this.current) link.setAttribute("aria-current", "page");
    const count = name && name !== this.current ? unread(this.#seen.get(name), last) : 0;
    if (count) {
      const badge = document.createElement("b");
      badge.textContent = count > 999 ? "999+" : count;
      badge.setAttribute("aria-label", `${count} new`);
      link.append(" ", badge);
    }
    return link;
  }
}
