import { connect } from "./client.js";

// Most messages that are shown, and most that wait to be sent.
const SHOWN_MAX = 300;
const OUTBOX_MAX = 20;
// A server that is silent for this long is pinged, and has as long to answer.
const SILENCE_MS = 7000;
// Messages of one person are grouped if they follow each other within this time.
const TOGETHER_MS = 300000;

const byId = (id) => document.getElementById(id);
const [log, outbox, scroll, field] = ["log", "outbox", "scroll", "text"].map(byId);
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const calendar = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const random = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

// A browser may disable storage; then nothing survives a reload.
function recall(storage, key) {
  try {
    return JSON.parse(storage().getItem(key));
  } catch {
    return null;
  }
}
function keep(storage, key, value) {
  try {
    storage().setItem(key, JSON.stringify(value));
  } catch {
    // The storage is full or disabled.
  }
}
const browser = () => localStorage;
const tab = () => sessionStorage;

// All tabs of a browser share a secret, by which the server recognises the same person.
const person = recall(browser, "chat.person") ?? random();
keep(browser, "chat.person", person);

let room = "";
let you = null;
// The names of the people who are here, by person; unknown until the server has told.
let people = null;

// The messages that this tab shows or has not sent yet, stored with the id to resume from, so that a reload loses nothing.
let memory = { last: null, shown: [], outbox: [] };
// Ids and keys of shown messages, so that a replay shows none twice.
let seen = new Set();

function save() {
  keep(tab, `chat.room.${room}`, memory);
}
setInterval(() => memory.changed && save((memory.changed = false)), 500);
addEventListener("pagehide", save);

// ---- what is shown ----

let lastShown = null;
let unread = 0;
let unseen = 0;
let atEnd = true;
// Where the script has last scrolled to.
let scrolledTo = 0;

const isNearEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 40;

function followEnd() {
  if (!atEnd) return;
  scroll.scrollTop = scroll.scrollHeight;
  scrolledTo = scroll.scrollTop;
}

function add(item) {
  // The event of a scroll comes with the next frame. A message that comes before must not take the reader back to the end.
  if (scroll.scrollTop < scrolledTo && !isNearEnd()) atEnd = false;
  item.at ??= Date.now();
  memory.shown.push(item);
  memory.changed = true;
  if (item.key) seen.add(item.key);
  while (memory.shown.length > SHOWN_MAX) {
    seen.delete(memory.shown.shift().key);
    const height = scroll.scrollHeight;
    log.firstChild.remove();
    // Removing messages above must not move the text that is being read.
    if (!atEnd) scroll.scrollTop -= height - scroll.scrollHeight;
  }
  show(item);
  if (!you || item.kind === "note" || item.own) return;
  if (document.visibilityState === "hidden") unread += 1;
  if (!atEnd) unseen += 1;
  showCounts();
}

function show(item) {
  // The day is part of the message's element, so that both are removed together.
  const element = make(item);
  const day = new Date(item.at).toDateString();
  if (lastShown && day !== new Date(lastShown.at).toDateString()) {
    const line = document.createElement("div");
    line.className = "day";
    line.textContent = calendar.format(item.at);
    element.prepend(line);
    line.style.gridColumn = "1 / -1";
    element.classList.remove("more");
  }
  lastShown = item;
  log.append(element);
  byId("empty").hidden = true;
  followEnd();
}

// User input is set as textContent only, so that markup in it stays text.
function make(item, before = lastShown) {
  const element = document.createElement("li");
  element.className = item.kind;
  if (item.kind === "note") {
    element.textContent = item.text;
    return element;
  }
  const isMore = before && before.kind === item.kind && before.from === item.from && before.to === item.to;
  element.classList.toggle("more", Boolean(isMore && item.at - before.at < TOGETHER_MS));
  element.classList.toggle("own", Boolean(item.own));
  const who = document.createElement("p");
  who.className = "who";
  const name = document.createElement("b");
  const time = document.createElement("time");
  name.append(isolated(item.from));
  time.dateTime = new Date(item.at).toISOString();
  time.textContent = clock.format(item.at);
  who.append(name, time);
  if (item.kind === "private") who.append(" · private to ", isolated(item.own ? item.to : "you"));
  const what = document.createElement("p");
  what.className = "what";
  what.dir = "auto";
  what.append(...linked(item.text));
  element.append(face(item.from), who, what);
  return element;
}

// Isolates a name, so that right-to-left text does not reorder its surroundings.
function isolated(name) {
  const element = document.createElement("bdi");
  element.textContent = name;
  return element;
}

function face(name) {
  const element = document.createElement("span");
  element.className = "face";
  element.ariaHidden = "true";
  element.textContent = [...name][0].toUpperCase();
  let hue = 7;
  for (const letter of name) hue = (hue * 31 + letter.codePointAt(0)) % 360;
  element.style.setProperty("--hue", hue);
  return element;
}

function linked(text) {
  return text.split(/(https?:\/\/[^\s<>"]+[^\s<>".,;:!?)\]}'])/).map((part, n) => {
    if (n % 2 === 0) return part;
    const link = document.createElement("a");
    link.href = part;
    link.target = "_blank";
    link.rel = "noopener noreferrer";
    link.textContent = part;
    return link;
  });
}

function note(text) {
  add({ kind: "note", text });
}

function showCounts() {
  const name = room ? `#${room} · Chat` : "Chat";
  document.title = unread ? `(${unread}) ${name}` : name;
  byId("newest").hidden = unseen === 0;
  byId("newest").textContent = unseen === 1 ? "1 new message" : `${unseen} new messages`;
}

function goToNewest() {
  atEnd = true;
  followEnd();
  unseen = 0;
  showCounts();
}
byId("newest").addEventListener("click", () => {
  goToNewest();
  field.focus();
});
scroll.addEventListener("scroll", () => {
  atEnd = isNearEnd();
  if (atEnd && unseen) goToNewest();
}, { passive: true });
// Keeps the newest message visible when the window shrinks, for example for an on-screen keyboard.
new ResizeObserver(followEnd).observe(scroll);

function showPeople() {
  const names = [...new Set(people?.values())].sort((a, b) => (b === you) - (a === you) || a.localeCompare(b));
  byId("people-button").textContent = `${names.length} here`;
  byId("me").textContent = you ?? "You";
  const focused = document.activeElement?.closest?.("#names button")?.dataset.name;
  byId("names").replaceChildren(...names.map((name) => {
    const item = document.createElement("li");
    const entry = document.createElement(name === you ? "span" : "button");
    entry.dataset.name = name;
    entry.append(face(name), isolated(name));
    if (name === you) {
      const self = document.createElement("small");
      self.textContent = "you";
      entry.className = "self";
      entry.append(self);
    } else {
      entry.type = "button";
      entry.title = `Write privately to ${name}`;
      entry.addEventListener("click", () => writeTo(name));
    }
    item.append(entry);
    return item;
  }));
  if (focused) [...byId("names").querySelectorAll("button")].find(({ dataset }) => dataset.name === focused)?.focus();
}

byId("people-button").addEventListener("click", () => showAside(!byId("people").classList.contains("open")));
function showAside(open) {
  byId("people").classList.toggle("open", open);
  byId("people-button").setAttribute("aria-expanded", String(open));
}

// ---- the connection ----

// Reconnects by itself; its state says what it is doing.
let connection = null;
let state = { name: "connecting" };
// When it is tried again, by a clock that nobody sets.
let retryAt = 0;

/** Where to connect to: with the last message that is known at that time. */
function address() {
  const query = { room, name: recall(browser, "chat.name"), person, since: memory.last ?? "" };
  return `chat?${new URLSearchParams(query)}`;
}

function comeIn() {
  const own = (connection = connect(address, { pingInterval: SILENCE_MS, pingTimeout: SILENCE_MS }));
  own.states((state) => own === connection && changed(state));
  own.messages((data) => own === connection && receive(data.json()));
  // Joined anew after each reconnect. If the server does not want us, the state says why.
  own.join(`here/${room}`, { onPresence: (members) => own === connection && showPresence(members) }).catch(() => {});
}

/** Shows who is here, and what has changed since the last time. */
function showPresence(members) {
  const before = people;
  people = new Map();
  // Those who have just come in have no name yet.
  for (const { user, state } of members) if (state) people.set(user, JSON.parse(state).name);
  for (const [person, name] of people) {
    const old = before?.get(person);
    if (before && !old) note(`${name} has come in`);
    if (old && old !== name) note(`${old} is now ${name}`);
    if (old && old === you) you = name;
  }
  for (const [person, name] of before ?? []) if (!people.has(person)) note(`${name} has left`);
  showPeople();
}

function goOut() {
  const old = connection;
  connection = null;
  you = null;
  old?.close();
}

function changed(next) {
  state = next;
  retryAt = performance.now() + state.until - Date.now();
  if (state.name !== "open") {
    log.ariaLive = "off";
    if (you) byId("aloud").textContent = "Disconnected. Trying to reconnect.";
    you = null;
    people = null;
  }
  showState();
}

const received = {
  said(said) {
    memory.last = said.id;
    // Other programs may omit the key.
    receiveText({ kind: "said", ...said, key: said.key ?? said.id });
  },
  private(item) {
    receiveText({ kind: "private", ...item });
  },
  welcome(welcome) {
    you = welcome.you;
    log.ariaLive = "polite";
    byId("aloud").textContent = `Connected as ${you}`;
    showState();
    showPeople();
    // Messages that had arrived were removed from the outbox by the replay; the rest is sent again.
    for (const item of memory.outbox) item.failed || send(item);
  },
  gap({ restarted }) {
    memory.last = null;
    if (restarted) note("The server has started anew: what was said earlier is gone.");
    else note("More has been said meanwhile than is kept: some messages are missing here.");
  },
  refused({ key, why }) {
    const item = memory.outbox.find((item) => item.key === key);
    if (!item) return;
    item.failed = why;
    showOutbox();
    byId("aloud").textContent = `Not sent: ${why}`;
  },
};

function receive(message) {
  // Ignores unknown types, which a later version of the server may send.
  received[message.type]?.(message);
}

function receiveText({ kind, from, to, text, at, key }) {
  const isMine = memory.outbox.some((item) => item.key === key);
  if (isMine) {
    memory.outbox = memory.outbox.filter((item) => item.key !== key);
    showOutbox();
  }
  if (key && seen.has(key)) return;
  add({ kind, from, to, text, at, key, own: isMine || from === (you ?? memory.you) });
}

function showState() {
  const shown = state.name === "open" && !you ? "connecting" : state.name;
  const seconds = Math.max(1, Math.ceil((retryAt - performance.now()) / 1000));
  const text = {
    open: "Connected",
    connecting: "Connecting…",
    waiting: seconds < Infinity ? `Reconnecting in ${seconds} s` : "Disconnected",
    // Reconnecting would not help.
    closed: state.reason || "The server does not want us.",
  }[shown];
  byId("state").dataset.state = shown;
  if (byId("state-text").textContent !== text) byId("state-text").textContent = text;
  if (you) memory.you = you;
  const now = byId("now");
  // Hiding a focused button would lose the focus.
  if (shown === "open" && document.activeElement === now) field.focus();
  // The first delays are short, and the button would only flash up.
  const isLong = shown === "waiting" && (state.attempts > 2 || seconds > 2);
  now.hidden = !(isLong || shown === "closed" || (shown === "connecting" && !now.hidden));
}
setInterval(() => {
  if (state.name === "waiting") showState();
}, 250);

byId("now").addEventListener("click", () => connection.reconnect());
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "hidden") return save();
  unread = 0;
  showCounts();
});

// ---- sending ----

let to = null;

function writeTo(name) {
  to = name;
  byId("to").hidden = name === null;
  byId("to-name").textContent = name;
  field.placeholder = name === null ? "Write a message" : "Write a private message";
  showAside(false);
  field.focus();
}
byId("to-all").addEventListener("click", () => writeTo(null));

function send(item) {
  try {
    connection.send(JSON.stringify({ text: item.text, key: item.key, to: item.to }));
  } catch {
    // The send queue is full; the message is sent over the next connection.
  }
}

// A message waits in the outbox until the server sends it back, so that it appears in the same order for everyone.
function submit() {
  const text = field.value.trim();
  if (text === "" || memory.outbox.length >= OUTBOX_MAX) return;
  const item = { key: random(), text, to: to ?? undefined };
  memory.outbox.push(item);
  save();
  if (you) send(item);
  field.value = "";
  fitField();
  showOutbox();
  goToNewest();
}

function showOutbox() {
  save();
  outbox.replaceChildren(...memory.outbox.map((item) => {
    const shown = { kind: item.to ? "private" : "said", from: you ?? memory.you ?? "?", at: Date.now(), own: true, ...item };
    const element = make(shown, null);
    if (item.failed) {
      element.classList.add("failed");
      const why = document.createElement("p");
      why.className = "why";
      why.append(`Not sent: ${item.failed}`, action("Send again", () => {
        delete item.failed;
        if (you) send(item);
        showOutbox();
      }), action("Remove", () => {
        memory.outbox = memory.outbox.filter((other) => other !== item);
        showOutbox();
      }));
      element.append(why);
    }
    return element;
  }));
  if (memory.outbox.length > 0) byId("empty").hidden = true;
  followEnd();
}

function action(text, run) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "plain";
  button.textContent = text;
  button.addEventListener("click", () => {
    run();
    field.focus();
  });
  return button;
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
  field.focus();
});
field.addEventListener("keydown", (event) => {
  // Enter confirms a word while an input method is composing.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
  if (event.key === "Escape" && to !== null) writeTo(null);
});
field.addEventListener("input", fitField);
function fitField() {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

// ---- joining ----

const roomName = (name) => [...name.replaceAll("/", "").trim()].slice(0, 24).join("");

function roomOfAddress() {
  try {
    return roomName(decodeURIComponent(location.hash.slice(1)));
  } catch {
    return "";
  }
}

function openRoom(name) {
  goOut();
  if (room) save();
  room = name;
  memory = { last: null, shown: [], outbox: [], ...recall(tab, `chat.room.${room}`) };
  seen = new Set(memory.shown.map(({ key }) => key).filter(Boolean));
  people = null;
  lastShown = null;
  unread = unseen = 0;
  atEnd = true;
  log.replaceChildren();
  byId("empty").hidden = false;
  memory.shown.forEach(show);
  byId("room").textContent = room;
  writeTo(null);
  showCounts();
  showOutbox();
  showPeople();
  comeIn();
}

function askForName() {
  byId("name").value = recall(browser, "chat.name") ?? "";
  byId("room-name").value = room || roomOfAddress() || "lobby";
  if (!byId("enter").open) byId("enter").showModal();
}
byId("me").addEventListener("click", askForName);
byId("enter").addEventListener("cancel", (event) => {
  if (!room) event.preventDefault();
});
byId("enter-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = byId("name").value.trim();
  const wanted = roomName(byId("room-name").value);
  if (name === "" || wanted === "") return;
  byId("enter").close();
  keep(browser, "chat.name", name);
  history.replaceState(null, "", `#${encodeURIComponent(wanted)}`);
  openRoom(wanted);
});
addEventListener("hashchange", start);

function start() {
  if (recall(browser, "chat.name") && roomOfAddress()) openRoom(roomOfAddress());
  else askForName();
}
start();
