import { connect } from "./client.js";

const SHOWN_MAX = 200;
// A server that is silent for this long is pinged, and has as long to answer.
const SILENCE_MS = 10000;

const byId = (id) => document.getElementById(id);
const connection = connect(".", { pingInterval: SILENCE_MS, pingTimeout: SILENCE_MS });

// ---- the connection ----

let state = connection.state;
// When it is tried again, by a clock that nobody sets.
let retryAt = 0;

function showState() {
  const seconds = Math.max(1, Math.ceil((retryAt - performance.now()) / 1000));
  const text = {
    open: "Connected",
    connecting: "Connecting…",
    waiting: seconds < Infinity ? `Reconnecting in ${seconds} s` : "Disconnected",
    closed: state.reason || "The server does not want us.",
  }[state.name];
  byId("state").dataset.state = state.name;
  if (byId("state-text").textContent !== text) byId("state-text").textContent = text;
  const now = byId("now");
  const hadFocus = document.activeElement === now;
  // The first delays are short, and the button would only flash up.
  const isLong = state.name === "waiting" && (state.attempts > 2 || seconds > 2);
  now.hidden = !(isLong || state.name === "closed" || (state.name === "connecting" && !now.hidden));
  // Hiding a focused button would lose the focus.
  if (now.hidden && hadFocus) byId("message").focus();
}

connection.states((next) => {
  // Announced to screen readers once for each change, unlike the countdown.
  if (next.name === "open") byId("aloud").textContent = "Connected";
  else if (state.name === "open") byId("aloud").textContent = "Disconnected. Trying to reconnect.";
  state = next;
  retryAt = performance.now() + state.until - Date.now();
  showState();
  // The counts may have changed meanwhile, and start anew after a restart of the server.
  if (state.name === "open") askReports();
});
setInterval(() => state.name === "waiting" && showState(), 250);
byId("now").addEventListener("click", () => connection.reconnect());

// ---- short calls ----

/** Shows what comes of a call: what waits for a connection is made when there is one. */
async function show(output, work) {
  output.classList.remove("bad");
  output.textContent = "…";
  try {
    output.textContent = await work();
  } catch (error) {
    output.classList.add("bad");
    output.textContent = `${error.message} (${error.code})`;
  }
}

// Sends a notification, and receives one.
byId("ping").addEventListener("click", () => {
  show(byId("ping-result"), async () => {
    connection.notify("ping", String(performance.now()));
    return "…";
  });
});
connection.on("pong", (data) => {
  const took = performance.now() - Number(data.text());
  byId("ping-result").textContent = `Back after ${took.toFixed(1)} ms`;
});

byId("address").addEventListener("click", () => {
  show(byId("address-result"), async () => (await connection.call("myip")).text());
});

// Handles a call from the server.
connection.handle("size", () => `${innerWidth} × ${innerHeight}`);
byId("ask").addEventListener("click", () => {
  show(byId("ask-result"), async () => `Window: ${(await connection.call("ask")).text()}`);
});

byId("uppercase-form").addEventListener("submit", (event) => {
  event.preventDefault();
  show(byId("uppercase-result"), async () => (await connection.call("uppercase", byId("uppercase").value)).text());
});

// ---- a long call ----

let writing = null;

byId("report-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (writing) return;
  const pages = byId("pages").value;
  const progress = byId("progress");
  writing = new AbortController();
  showWriting();
  progress.value = 0;
  progress.max = Number(pages);
  await show(byId("report-result"), async () => {
    const report = await connection.call("report", pages, {
      signal: writing.signal,
      timeout: Number(byId("timeout").value),
      onItem(page) {
        progress.value = Number(page.text());
        byId("report-result").textContent = `Page ${page.text()} of ${pages}`;
      },
    });
    return report.text();
  });
  writing = null;
  showWriting();
});
byId("cancel").addEventListener("click", () => writing?.abort());

function showWriting() {
  const hadFocus = document.activeElement === byId("cancel") || document.activeElement === byId("begin");
  byId("begin").hidden = writing !== null;
  byId("cancel").hidden = writing === null;
  if (hadFocus) byId(writing ? "cancel" : "begin").focus();
}

function showReports(data) {
  const [running, cancelled] = data.text().split(" ");
  byId("running").textContent = running;
  byId("cancelled").textContent = cancelled;
}
connection.on("reports", showReports);

async function askReports() {
  try {
    showReports(await connection.call("reports"));
  } catch {
    // The connection was lost again.
  }
}

// ---- to everyone ----

const log = byId("log");

function add(text, kind, id) {
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const item = document.createElement("li");
  item.className = kind;
  if (id) {
    const number = document.createElement("small");
    number.textContent = id.slice(id.lastIndexOf("-") + 1);
    number.title = `Its id in the room’s history is ${id}`;
    item.append(number);
  }
  // User input stays text.
  const content = document.createElement("span");
  content.dir = "auto";
  content.textContent = text;
  item.append(content);
  log.append(item);
  if (log.children.length > SHOWN_MAX) log.firstChild.remove();
  byId("empty").hidden = true;
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

connection.on("message", (data, { id }) => add(data.text(), "message", id));
// Replays the kept messages at first, and the missed ones after a reconnect.
connection.join("main", { since: "all", onGap: () => add("Some messages are missing here.", "note") })
  .catch((error) => add(`The room can’t be joined: ${error.message}.`, "note"));

byId("broadcast-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = byId("message");
  if (field.value === "") return;
  try {
    connection.notify("broadcast", field.value);
    field.value = "";
    log.scrollTop = log.scrollHeight;
  } catch (error) {
    add(`Not sent: ${error.message}.`, "note");
  }
});

new ResizeObserver(() => {
  log.scrollTop = log.scrollHeight;
}).observe(log);
