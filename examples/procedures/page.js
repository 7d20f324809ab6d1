import { connect } from "./client.js";

const SHOWN_MAX = 200;
// A server that is silent for so long is asked whether it is there, and has as long to answer.
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
  // The count-down is short at first: a button that flashes up helps nobody.
  const isLong = state.name === "waiting" && (state.attempts > 2 || seconds > 2);
  now.hidden = !(isLong || state.name === "closed" || (state.name === "connecting" && !now.hidden));
  // A button that goes takes the focus with it.
  if (now.hidden && hadFocus) byId("message").focus();
}

connection.states((next) => {
  // Said to screen readers once for each change, unlike the count-down.
  if (next.name === "open") byId("aloud").textContent = "Connected";
  else if (state.name === "open") byId("aloud").textContent = "Disconnected. Trying to reconnect.";
  state = next;
  retryAt = performance.now() + state.until - Date.now();
  showState();
  // How many reports there are may have changed meanwhile, and is another's after a restart.
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

// A notification there, and one back.
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

// The server calls this page in turn.
connection.handle("size", () => `${innerWidth} × ${innerHeight}`);
byId("ask").addEventListener("click", () => {
  show(byId("ask-result"), async () => `Window: ${(await connection.call("ask")).text()}`);
});

byId("uppercase-form").addEventListener("submit", (event) => {
  event.preventDefault();
  show(byId("uppercase-result"), async () => (await connection.call("uppercase", byId("uppercase").value)).text());
});

// ---- a long one ----

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
    // The connection is lost again.
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
  // What somebody else wrote stays text.
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
// The last messages first; after a reconnect, those that were missed.
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
