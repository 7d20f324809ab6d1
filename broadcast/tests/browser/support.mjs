// The program under test, and the browser.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { chromium, firefox } from "playwright-core";

export const WAIT_MS = 15_000;

let binary;
let tlsOptions = [];

/** Sets the program under test, and the directory with its certificate, over which every page is then loaded. */
export function setBinary(path, tls) {
  binary = path;
  if (tls) tlsOptions = ["--tls-cert", `${tls}/cert.pem`, "--tls-key", `${tls}/key.pem`];
}

/** A running program that listens. */
export class Program {
  static async start(listen = "127.0.0.1:0", ...options) {
    const child = spawn(binary, ["--listen", listen, ...tlsOptions, ...options], { stdio: ["pipe", "ignore", "pipe"] });
    const program = new Program();
    program.child = child;
    program.stderr = [];
    const listening = new Promise((resolve, reject) => {
      child.once("error", reject);
      child.once("exit", (code) => reject(new Error(`the program ended with ${code}:\n${program.stderr.join("\n")}`)));
      createInterface(child.stderr).on("line", (line) => {
        program.stderr.push(line);
        const where = /open (https?:\/\/([^/]+)\/) /.exec(line);
        if (where) resolve({ url: where[1], listen: where[2] });
      });
    });
    Object.assign(program, await within(listening, "the program to listen"));
    return program;
  }

  say(line) {
    this.child.stdin.write(`${line}\n`);
  }

  async end(signal) {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const exited = once(this.child, "exit");
    this.child.kill(signal);
    await within(exited, "the program to end");
  }
}

export async function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${WAIT_MS} ms for ${what}`)), WAIT_MS);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

export function assert(condition, what) {
  if (!condition) throw new Error(what);
}

export const message = (page, text) => page.locator("#log .row", { hasText: text });
export const sees = (page, text) => message(page, text).first().waitFor({ timeout: WAIT_MS });
export const hasState = (page, state) => page.locator(`#state[data-state=${state}]`).waitFor({ timeout: WAIT_MS });
export async function says(page, selector, text) {
  try {
    await page.locator(selector, { hasText: text }).waitFor({ timeout: WAIT_MS });
  } catch {
    const instead = await page.locator(selector).allTextContents();
    throw new Error(`${selector} does not say "${text}" but ${JSON.stringify(instead).slice(0, 300)}`);
  }
}

/** Runs in the page: records its WebSockets, the newest one last, can cut one after a number of messages, and withhold some. */
function watchSockets() {
  window.sockets = [];
  window.breakAfter = Infinity;
  // As a server does that skips lines for a slow client.
  window.withheld = 0;
  window.WebSocket = class extends WebSocket {
    constructor(...args) {
      super(...args);
      let left = window.breakAfter;
      window.breakAfter = Infinity;
      this.addEventListener("message", (event) => {
        if (window.withheld > 0) {
          window.withheld -= 1;
          event.stopImmediatePropagation();
          return;
        }
        if ((left -= 1) >= 0) return;
        event.stopImmediatePropagation();
        this.close();
      });
      window.sockets.push(this);
    }
  };
}

/** What the browsers say of a WebSocket that could not connect or was cut. */
const CUT = /\bwss?:\/\//;

/** Collects the page's errors, except those that are expected. */
export function collectComplaints(page, expected) {
  page.complaints = [];
  const complain = (text) => {
    if (!expected.test(text) && !CUT.test(text)) page.complaints.push(text);
  };
  // Firefox reports failed connections as errors of the page.
  page.on("pageerror", (error) => complain(String(error)));
  page.on("console", (entry) => {
    if (entry.type() === "error") complain(entry.text());
  });
}

export async function open(program, { time, room, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1000, height: 700 }, ...options });
  await context.addInitScript(watchSockets);
  const page = await context.newPage();
  page.requests = [];
  // Some tests stop the server on purpose.
  collectComplaints(page, /ERR_CONNECTION|Failed to load resource/);
  page.on("request", (request) => page.requests.push(request.url()));
  if (time) await page.clock.setFixedTime(time);
  await page.goto(program.url + (room === undefined ? "" : `#${encodeURIComponent(room)}`));
  await hasState(page, "open");
  return page;
}

/** The name of the browser. Debian's Firefox is driven over WebDriver BiDi, as any Firefox can be. */
export const browserName = process.env.BROWSER ?? "chromium";
assert(["chromium", "firefox"].includes(browserName), `BROWSER is ${browserName}, and must be chromium or firefox`);

export const browser = await (browserName === "firefox"
  ? firefox.launch({ channel: "moz-firefox", executablePath: process.env.FIREFOX ?? "/usr/bin/firefox-esr" })
  : chromium.launch({
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      // Chromium has no sandbox for root, as in a container; only local pages are opened.
      args: process.getuid?.() === 0 ? ["--no-sandbox"] : [],
    }));
