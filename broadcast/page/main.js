// The page: connects the list of lines, the connection, the rooms and the controls.

import { Connection, SILENCE_MS } from "./connection.js";
import { KEPT_LINES_MAX } from "./lines.js";
import { matcher } from "./matcher.js";
import { RoomList, addressOf, isRoom, roomInAddress, whyNot } from "./rooms.js";
import { exactTime } from "./row.js";
import { filtersInAddress, set, settings, show as showSettings, showInAddress } from "./settings.js";
import { View } from "./view.js";

const POLL_MS = 3_000;
const TYPING_MS = 120;

const byId = (id) => document.getElementById(id);
const root = document.documentElement;
const NAME = document.title;
const ON_MESSAGE = root.dataset.onMessage;
const log = byId("log");
const field = byId("field");
const isVisible = () => document.visibilityState === "visible";

let room = "";
let connection = null;
let unreadLines = 0;
/** The number of the hit that is in sight, from 1. */
let foundAt = 0;

const rooms = new RoomList(byId("rooms"));
const view = new View(log, byId("lines"), {
  changed: showView,
  // In the view of everyone, a line names its source; in a room, what is for everyone.
  tag: (line) => (room ? (line.room === null ? "to everyone" : "") : (line.room ?? "")),
});

showSettings();
byId("host").textContent = location.host;

// ---- lines ----

function addLine(line) {
  if (line.kind === "text" && !isVisible()) {
    unreadLines += 1;
    showTitle();
  }
  view.add(line);
}

function note(text) {
  view.add({ kind: "note", text, at: Date.now() });
}

/** Setting the same again would lay the page out again. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function setHidden(element, isHidden) {
  if (element.hidden !== isHidden) element.hidden = isHidden;
}

function showTitle() {
  const count = unreadLines > 999 ? "999+" : unreadLines;
  const state = connection?.isOpen ? "" : "⚠ ";
  const title = `${state}${unreadLines ? `(${count}) ` : ""}${room ? `${room} · ` : ""}${NAME}`;
  if (document.title !== title) document.title = title;
}

function showView() {
  const { hits } = view;
  const found = hits === 1 ? "1 line" : `${hits.toLocaleString()} lines`;
  setText(byId("hits"), !view.find ? "" : foundAt && hits ? `${foundAt.toLocaleString()} of ${hits.toLocaleString()}` : found);
  for (const id of ["previous", "next"]) if (byId(id).disabled !== (hits === 0)) byId(id).disabled = hits === 0;
  const newest = byId("newest");
  const waiting = view.isPaused ? view.queued : view.unseen;
  setHidden(newest, !view.isPaused && (view.isFollowing || waiting === 0));
  const lines = waiting === 1 ? "1 new line" : `${waiting.toLocaleString()} new lines`;
  setText(newest, view.isPaused ? `Paused: ${lines}. Go on` : `${lines} ↓`);
  const older = byId("older");
  setHidden(older, view.removed === 0);
  setText(older, `${view.removed.toLocaleString()} older lines are not shown any more: this page keeps ${KEPT_LINES_MAX.toLocaleString()}.`);
  setHidden(byId("empty"), view.count > 0 && !view.hidesAll);
  setText(byId("empty-text"), view.hidesAll ? `The filters hide all ${view.count.toLocaleString()} lines.` : emptyText());
  const isFollowing = String(view.isFollowing && !view.isPaused);
  if (byId("follow").ariaPressed !== isFollowing) byId("follow").ariaPressed = isFollowing;
}

byId("newest").addEventListener("click", () => {
  if (view.isPaused) togglePause();
  view.follow();
  log.focus({ preventScroll: true });
});

log.addEventListener("load-skipped", async ({ detail: line }) => {
  const asked = connection;
  try {
    const { lines, text } = await asked.load(line.skipped);
    if (asked === connection) view.insertBehind(line, lines, text);
  } catch (error) {
    view.loadFailed(line);
    if (asked === connection) note(`The skipped lines can’t be loaded: ${error.message}`);
  }
});

log.addEventListener("mouseover", ({ target }) => {
  const line = target.closest?.("time")?.parentElement.line;
  if (line) target.closest("time").title = exactTime(line.at);
});

// ---- rooms ----

function emptyText() {
  return room
    ? "No lines yet. Lines for this room and for everyone appear here."
    : "No lines yet. Lines for everyone appear here, such as each line of the program’s standard input.";
}

function showRoom() {
  const choice = byId("room");
  choice.value = room;
  choice.setCustomValidity("");
  rooms.open(room);
  showTitle();
  showSending();
}

/** Switches to a room; null, or an invalid name, is everyone. */
function switchRoom(name) {
  if ((name ?? "") === room && connection) {
    if (name === null) showInvalidRoom();
    return;
  }
  room = name ?? "";
  foundAt = 0;
  view.clear();
  unreadLines = 0;
  if (name === null) showInvalidRoom();
  showRoom();
  announce(room ? `Room ${room}` : "Everyone");
  connectToRoom();
}

function showInvalidRoom() {
  note("The address contains an invalid room name; this page shows the lines for everyone.");
}

function goTo(name) {
  if (name === room) return;
  history.pushState(null, "", addressOf(name));
  switchRoom(name);
}

byId("choice").addEventListener("submit", (event) => {
  event.preventDefault();
  const choice = byId("room");
  const name = choice.value.trim();
  if (!isRoom(name)) {
    choice.setCustomValidity(whyNot(name));
    choice.reportValidity();
    return;
  }
  byId("menu").hidePopover();
  goTo(name);
  log.focus({ preventScroll: true });
});
byId("room").addEventListener("input", () => byId("room").setCustomValidity(""));
// Leaving the field without Enter does not switch the room.
byId("room").addEventListener("blur", showRoom);
byId("rooms").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  goTo(decodeURIComponent(link.hash.slice(1)));
});
window.addEventListener("popstate", () => {
  takeFilters();
  switchRoom(roomInAddress());
});

// ---- the connection ----

function connectToRoom() {
  const left = connection;
  connection = null;
  left?.close();
  // The client library reports its state at once, before the constructor returns.
  let own = null;
  own = new Connection(room, {
    line: (line) => own === connection && addLine(line),
    clear: () => own === connection && view.clear(),
    changed: () => own && own === connection && showState(),
    announce,
    unauthorized: signIn,
  });
  connection = own;
  showState();
}

/** The session has ended. */
function signIn() {
  // A proxy may have a login of its own.
  if (root.dataset.access === "token") location.assign(`login${location.search}${location.hash}`);
}

async function signOut() {
  await fetch("logout", { method: "POST" }).catch(() => {});
  // Nothing is to be seen with the Back button.
  view.clear();
  location.replace("login");
}

const ICONS = { open: byId("icon").href, other: byId("icon").href.replaceAll("%232f7d6b", "%23b27a12") };

function showState() {
  const { state } = connection;
  const seconds = Math.max(1, Math.ceil((state.retryAt - performance.now()) / 1000));
  const text = {
    open: connection.usesEvents ? "Connected (events)" : "Connected",
    connecting: "Connecting…",
    waiting: connection.refusal ? "Can’t connect" : seconds < Infinity ? `Reconnecting in ${seconds} s` : "Disconnected",
    closed: "Disconnected",
  }[state.name];
  byId("state").dataset.state = state.name;
  if (byId("state-text").textContent !== text) byId("state-text").textContent = text;
  const icon = connection.isOpen ? ICONS.open : ICONS.other;
  if (byId("icon").href !== icon) byId("icon").href = icon;
  const now = byId("now");
  // Hiding a focused button would lose the focus.
  if (connection.isOpen && document.activeElement === now) log.focus({ preventScroll: true });
  // During the first, short delays the button would only flash.
  const isLong = state.name === "waiting" && (state.attempts > 2 || seconds > 2);
  now.hidden = connection.isOpen || !(isLong || state.name === "closed" || !now.hidden);
  if (!connection.isOpen) byId("clients").textContent = "";
  else if (byId("clients").textContent === "") poll();
  showTitle();
  showSending();
}

// Announced to screen readers once per change, unlike the countdown.
function announce(text) {
  byId("aloud").textContent = text;
}

setInterval(() => {
  if (connection?.state.name === "waiting") showState();
}, 250);

byId("now").addEventListener("click", () => connection.reconnect());

// ---- sending ----

let sendsTest = false;

function showSending() {
  const form = byId("form");
  form.hidden = ON_MESSAGE === "ignore" || (ON_MESSAGE === "echo" && !sendsTest) || Boolean(connection?.usesEvents);
  byId("message").hidden = ON_MESSAGE === "ignore";
  field.placeholder = ON_MESSAGE === "echo" ? "Send a message: only this page gets it back" : `Send a message to ${room ? `the room ${room}` : "everyone"}`;
  byId("send").setAttribute("aria-disabled", String(!connection?.canSend));
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  field.focus();
  if (!connection.canSend || field.value === "") return;
  try {
    connection.send(field.value);
  } catch (error) {
    note(`Not sent: ${error.message}.`);
    return;
  }
  addLine({ kind: "own", text: field.value, at: Date.now() });
  field.value = "";
  view.follow();
});

// ---- the server's numbers ----

let isPolling = false;

/** Asks for the number of clients, and for the last line of each room. */
async function poll() {
  if (isPolling || !isVisible() || !connection?.isOpen) return;
  isPolling = true;
  const asked = connection;
  const options = { cache: "no-store", signal: AbortSignal.timeout(POLL_MS) };
  try {
    const paths = [room ? `clients/${encodeURIComponent(room)}` : "clients", `rooms?${rooms.query}`];
    const [counted, listed] = await Promise.all(paths.map((path) => fetch(path, options)));
    if (counted.status === 401) signIn();
    const { clients, room: here } = await counted.json();
    const list = await listed.json();
    if (asked !== connection || !connection.isOpen) return;
    connection.answered();
    const all = clients === 1 ? "1 client" : `${clients.toLocaleString()} clients`;
    byId("clients").textContent = Number.isInteger(here) ? `${here.toLocaleString()} here, ${all} in all` : all;
    rooms.update(list.rooms);
  } catch (error) {
    // The numbers are unknown: show nothing rather than outdated ones.
    byId("clients").textContent = "";
    if (error.name === "TimeoutError" && asked === connection) connection.unanswered();
  } finally {
    isPolling = false;
  }
}
setInterval(poll, POLL_MS);

document.addEventListener("visibilitychange", () => {
  if (!isVisible()) return;
  unreadLines = 0;
  showTitle();
  poll();
});
// The browser had stopped the page: the connection may have ended unnoticed.
let frozenAt = Infinity;
document.addEventListener("freeze", () => (frozenAt = Date.now()));
document.addEventListener("resume", () => {
  if (Date.now() - frozenAt > SILENCE_MS && connection?.isOpen) connection.reconnect();
  frozenAt = Infinity;
});

// ---- filters, and what is searched for ----

const filters = { filter: byId("filter"), not: byId("not"), find: byId("find") };
/** The expressions that may hang the page, and that a person wants all the same: Enter was pressed after the warning. */
const confirmed = new Set();
const judged = new Map();
let typing = 0;

function takeFilters() {
  for (const [name, value] of Object.entries(filtersInAddress())) filters[name].value = value;
  applyFilters();
  // An expression of a link that is not applied must be seen.
  Object.values(filters).find((input) => input.validationMessage)?.reportValidity();
}

function parsed(input) {
  const made = matcher(input.value, confirmed.has(input.value));
  judged.set(input, input.value);
  input.setCustomValidity(made?.error ?? "");
  input.title = made?.error ?? "";
  input.setAttribute("aria-invalid", String(Boolean(made?.error)));
  return made?.error ? undefined : made;
}

function applyFilters() {
  // While an expression is invalid, the last valid one stays.
  const [include, exclude, find] = Object.values(filters).map(parsed);
  if (include !== undefined) view.include = include;
  if (exclude !== undefined) view.exclude = exclude;
  view.refilter();
  view.mark(find === undefined ? view.find : find);
  foundAt = 0;
  showView();
}

function takeTyped() {
  clearTimeout(typing);
  typing = 0;
  applyFilters();
  showInAddress(Object.fromEntries(Object.entries(filters).map(([name, { value }]) => [name, value])));
}

for (const [name, input] of Object.entries(filters)) {
  input.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(takeTyped, TYPING_MS);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    const isConfirmed = input.validationMessage && input.value === judged.get(input);
    if (isConfirmed) confirmed.add(input.value);
    if (isConfirmed || typing) takeTyped();
    if (input.validationMessage) input.reportValidity();
    else if (name === "find") step(event.shiftKey ? -1 : 1);
  });
}

function step(direction) {
  foundAt = view.step(direction);
  showView();
}

byId("next").addEventListener("click", () => step(1));
byId("previous").addEventListener("click", () => step(-1));

// ---- controls ----

function togglePause() {
  view.setPaused(!view.isPaused);
  byId("pause").setAttribute("aria-pressed", String(view.isPaused));
  announce(view.isPaused ? "Paused" : "Going on");
}

function toggle(name, value = !settings[name]) {
  set(name, value);
  showToggles();
  if (view.isFollowing) view.follow();
}

function nextTheme() {
  toggle("theme", { auto: "light", light: "dark", dark: "auto" }[settings.theme]);
  announce(`Theme: ${settings.theme}`);
}

function showToggles() {
  byId("wrap").setAttribute("aria-pressed", String(settings.wrap));
  byId("wide").setAttribute("aria-pressed", String(settings.wide));
  byId("theme").querySelector("span").textContent = `Theme: ${settings.theme}`;
}

function download() {
  const url = URL.createObjectURL(new Blob([view.text()], { type: "text/plain;charset=utf-8" }));
  const link = document.createElement("a");
  const name = (room || NAME).replace(/[^\p{L}\p{N}._-]+/gu, "-");
  link.href = url;
  link.download = `${name}-${new Date().toISOString().replace(/[:.]/g, "-")}.log`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

function focus(input) {
  input.focus();
  input.select();
}

function writeMessage() {
  sendsTest = true;
  showSending();
  if (!byId("form").hidden) field.focus();
}

const help = byId("help");
const actions = {
  pause: togglePause,
  follow: () => (view.isPaused && togglePause(), view.follow()),
  clear: () => {
    foundAt = 0;
    view.clear();
  },
  wrap: () => toggle("wrap"),
  wide: () => toggle("wide"),
  theme: nextTheme,
  download,
  message: writeMessage,
  logout: signOut,
  keys: () => help.showModal(),
};
for (const [name, action] of Object.entries(actions)) {
  byId(name).addEventListener("click", () => {
    if (name !== "wrap" && name !== "wide" && name !== "theme") byId("menu").hidePopover?.();
    action();
  });
}
const keys = {
  "/": () => focus(filters.filter),
  x: () => focus(filters.not),
  s: () => focus(filters.find),
  n: () => step(1),
  N: () => step(-1),
  p: actions.pause,
  " ": actions.pause,
  f: actions.follow,
  c: actions.clear,
  w: actions.wrap,
  e: actions.wide,
  t: actions.theme,
  d: actions.download,
  m: actions.message,
  r: () => (byId("menu").showPopover(), focus(byId("room"))),
  "?": actions.keys,
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || help.open) return;
  if (event.target.matches("input")) {
    // The browser would clear the field.
    if (event.key === "Escape" && !event.target.closest("#menu")) {
      event.preventDefault();
      log.focus({ preventScroll: true });
    }
    return;
  }
  // A button with the focus is pressed with the space bar.
  if (event.key === " " && event.target.matches("button, a")) return;
  const action = settings.keys && keys[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

// People who speak their input turn single keys off (WCAG 2.1.4).
byId("single-keys").checked = settings.keys;
byId("single-keys").addEventListener("change", ({ target }) => set("keys", target.checked));

byId("logout").hidden = root.dataset.access !== "token";
showToggles();
log.focus({ preventScroll: true });
switchRoom(roomInAddress());
takeFilters();
