// Measures a log viewer in Chromium on a slow machine: a log of so many lines a second, the time until input is shown, and memory.
//
//     node broadcast/tests/browser/speed.mjs PROGRAM [--lines 2000] [--seconds 60] [--throttle 4] [--viewer frontail]
//
// PROGRAM is the binary of humphrey-broadcast, or of another viewer that reads standard input: `--viewer frontail` runs
// `PROGRAM --port PORT -`. The lines are the same for all. A key is pressed in the filter every quarter of a second; the browser
// reports the time from the key to the frame that shows it (Event Timing). Memory is taken after a garbage collection.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";

const { values, positionals } = parseArgs({
  options: {
    lines: { type: "string", default: "2000" },
    seconds: { type: "string", default: "60" },
    throttle: { type: "string", default: "4" },
    viewer: { type: "string", default: "humphrey-broadcast" },
  },
  allowPositionals: true,
});
if (positionals.length !== 1) {
  console.error("usage: node speed.mjs PROGRAM [--lines N] [--seconds N] [--throttle N] [--viewer humphrey-broadcast|frontail]");
  process.exit(2);
}
const perSecond = Number(values.lines);
const seconds = Number(values.seconds);

/** A line of an access log, of JSON, or of a build with colours. */
function line(n) {
  switch (n % 4) {
    case 0:
      return `203.0.113.${n % 250} - - [30/Nov/2026:09:12:${String(n % 60).padStart(2, "0")} +0000] "GET /tickets/${n} HTTP/1.1" ${n % 40 ? 200 : 502} 5316 "-" "Mozilla/5.0"`;
    case 1:
      return JSON.stringify({ level: n % 7 ? "info" : "error", ts: 1764500000 + n, msg: "request done", path: `/api/${n}`, ms: 12.5 });
    case 2:
      return `2026-11-30T09:12:00 WARN pool: ${n % 32} of 32 connections in use, see https://docs.example.org/pool#limits`;
    default:
      return `\x1b[1m\x1b[32m   Compiling\x1b[0m package-${n} v1.0.${n}`;
  }
}

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

const port = await freePort();
const isOwn = values.viewer === "humphrey-broadcast";
const options = isOwn ? ["--no-welcome", "--listen", `127.0.0.1:${port}`] : ["--port", String(port), "--host", "127.0.0.1", "-"];
const viewer = spawn(positionals[0], options, { stdio: ["pipe", "ignore", "ignore"] });
viewer.stdin.on("error", () => {});
const url = `http://127.0.0.1:${port}/`;
for (let n = 0; n < 100; n += 1) {
  if (await fetch(url).then((response) => response.ok, () => false)) break;
  await new Promise((resolve) => setTimeout(resolve, 100));
}
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: process.getuid?.() === 0 ? ["--no-sandbox"] : [] });
/** Fails if the page takes longer than a person waits. */
async function answered(promise) {
  const late = new Promise((_, reject) => setTimeout(() => reject(new Error("the page has not answered for 20 s")), 20_000).unref());
  return Promise.race([promise, late]);
}
try {
  const page = await (await browser.newContext({ viewport: { width: 1200, height: 800 } })).newPage();
  const cdp = await page.context().newCDPSession(page);
  await page.goto(url);
  await page.evaluate(() => {
    window.latencies = [];
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) if (entry.name === "keydown") window.latencies.push(entry.duration);
    }).observe({ type: "event", durationThreshold: 16, buffered: true });
  });
  const filter = page.locator(isOwn ? "#filter" : "input").first();
  await filter.click();
  await cdp.send("Emulation.setCPUThrottlingRate", { rate: Number(values.throttle) });
  const heap = async () => {
    await cdp.send("HeapProfiler.collectGarbage");
    const { metrics } = await cdp.send("Performance.getMetrics");
    const of = (name) => metrics.find((metric) => metric.name === name).value;
    return { bytes: of("JSHeapUsedSize"), nodes: of("Nodes") };
  };
  await cdp.send("Performance.enable");
  const begun = Date.now();
  let sent = 0;
  let keys = 0;
  let nextKey = begun + 250;
  let nextHeap = begun + 10_000;
  const heaps = [];
  while (Date.now() < begun + seconds * 1000) {
    const due = Math.floor(((Date.now() - begun) / 1000) * perSecond);
    let text = "";
    for (; sent < due; sent += 1) text += `${line(sent)}\n`;
    if (text && !viewer.stdin.write(text)) await Promise.race([once(viewer.stdin, "drain"), new Promise((resolve) => setTimeout(resolve, 1_000))]);
    if (Date.now() >= nextKey) {
      nextKey += 250;
      keys += 1;
      // Typed and deleted again: it must not hide everything for long.
      const key = keys % 2 ? "a" : "Backspace";
      // Not awaited: the time until it is handled is what is measured.
      page.keyboard.press(key).catch(() => {});
    }
    if (Date.now() >= nextHeap) {
      nextHeap += 10_000;
      heaps.push(await answered(heap()));
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  await answered(cdp.send("Emulation.setCPUThrottlingRate", { rate: 1 }));
  await page.waitForTimeout(1_000);
  heaps.push(await answered(heap()));
  const latencies = (await answered(page.evaluate(() => window.latencies))).sort((a, b) => a - b);
  // Shorter ones than 16 ms are not reported.
  while (latencies.length < keys) latencies.unshift(16);
  const at = (share) => latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * share))];
  const mb = (bytes) => (bytes / 1e6).toFixed(1);
  console.log(`${values.viewer}: ${sent.toLocaleString("en")} lines in ${seconds} s, CPU ${values.throttle} times slower`);
  console.log(`keys ${keys}: median ${at(0.5)} ms, p95 ${at(0.95)} ms, p99 ${at(0.99)} ms, longest ${latencies.at(-1)} ms; ${Math.round((100 * latencies.filter((ms) => ms <= 100).length) / latencies.length)} % within 100 ms`);
  console.log(`heap after each 10 s: ${heaps.map(({ bytes }) => mb(bytes)).join(", ")} MB; nodes: ${heaps.map(({ nodes }) => nodes).join(", ")}`);
  if (isOwn) {
    const last = await page.locator("#older, #lines .row").last().textContent();
    console.log(`last line: ${last.slice(0, 80)}`);
  }
} catch (error) {
  console.log(`${values.viewer}: ${error.message}`);
  process.exitCode = 1;
} finally {
  viewer.kill("SIGKILL");
  await browser.close();
}
