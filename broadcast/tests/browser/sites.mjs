// Tests in a real browser: access from a page of another site to a program on the visitor's machine, and the page's messages
// behind a misconfigured proxy.

import { createServer, request as ask } from "node:http";
import { once } from "node:events";
import { connect } from "node:net";
import { Program, WAIT_MS, assert, browser, hasState, sees } from "./support.mjs";

/** Starts an HTTP server with the given handler on a free port. */
async function serve(answer) {
  const server = createServer(answer).listen(0, "127.0.0.1");
  await once(server, "listening");
  return { server, port: server.address().port };
}

/** Runs in a page of another site: the outcome of each kind of access, by name. */
function embed(url) {
  const ends = (element, what) =>
    new Promise((resolve) => {
      element.onload = () => resolve("load");
      element.onerror = () => resolve("error");
      element.src = url + what;
      document.body.append(element);
    });
  const text = (promise) => promise.then((response) => response.type, () => "error");
  const socket = new WebSocket(url.replace("http", "ws"));
  const source = new EventSource(`${url}events`);
  return Promise.all([
    text(fetch(`${url}events`, { mode: "no-cors" })),
    text(fetch(`${url}clients`, { mode: "no-cors" })),
    text(fetch(`${url}clients`)),
    ends(new Image(), "events"),
    ends(document.createElement("script"), "client.js"),
    new Promise((resolve) => {
      socket.onopen = () => resolve("open");
      socket.onerror = () => resolve("error");
    }),
    new Promise((resolve) => {
      source.onopen = () => resolve("open");
      source.onerror = () => resolve(source.readyState === 2 ? "error" : "again");
    }),
  ]);
}

/** A proxy like nginx with its defaults: HTTP/1.0, its own Host, and no Upgrade. */
function proxyTo(port, { upgrades }) {
  return serve((incoming, outgoing) => {
    const { upgrade, ...headers } = incoming.headers;
    const options = { port, host: "127.0.0.1", method: incoming.method, path: incoming.url };
    const passed = ask({ ...options, headers: { ...headers, host: `127.0.0.1:${port}`, connection: "close" } }, (answer) => {
      outgoing.writeHead(answer.statusCode, answer.headers);
      answer.pipe(outgoing);
    });
    passed.on("error", () => outgoing.destroy());
    incoming.pipe(passed);
  }).then((proxy) => {
    // Without a listener, Node would handle a handshake as an ordinary request.
    proxy.server.on("upgrade", (incoming, socket) => {
      const passed = connect(port, "127.0.0.1");
      const own = upgrades ? "" : "upgrade connection";
      const lines = Object.entries({ ...incoming.headers, ...(upgrades ? { host: `127.0.0.1:${port}` } : {}) })
        .filter(([name]) => !own.split(" ").includes(name))
        .map(([name, value]) => `${name}: ${value}\r\n`);
      passed.write(`GET ${incoming.url} HTTP/1.1\r\n${lines.join("")}\r\n`);
      passed.pipe(socket).pipe(passed);
      for (const end of [passed, socket]) end.on("error", () => {});
    });
    return proxy;
  });
}

export const siteTests = {
  async "a foreign page cannot connect or embed, but may link here"() {
    const program = await Program.start("127.0.0.1:0", "--metrics", "127.0.0.1:0");
    const { server, port } = await serve((_, response) => response.setHeader("Content-Type", "text/html").end("<body>evil"));
    const context = await browser.newContext();
    const counted = async (what) => {
      const line = program.stderr.find((line) => line.includes("/metrics"));
      const text = await (await fetch(/http\S+/.exec(line)[0])).text();
      const lines = text.split("\n").filter((line) => line.startsWith(what.name) && line.includes(what.label ?? ""));
      return lines.reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
    };
    const refused = { name: "humphrey_ws_connections_refused_total", label: 'cause="origin"' };
    try {
      const page = await context.newPage();
      // Another port is the same site but another origin; another host name is another site.
      for (const site of [`http://localhost:${port}/`, `http://127.0.0.1:${port}/`]) {
        const before = await counted(refused);
        await page.goto(site);
        const ends = await page.evaluate(embed, program.url);
        assert(ends.every((end) => end === "error"), `${site}: ${ends}`);
        assert((await counted(refused)) >= before + ends.length, `${site}: ${(await counted(refused)) - before} refused`);
        await page.evaluate(
          (url) =>
            new Promise((resolve) => {
              const frame = document.createElement("iframe");
              frame.onload = resolve;
              frame.src = url;
              document.body.append(frame);
            }),
          program.url,
        );
        for (const frame of page.frames()) assert((await frame.locator("#log").count()) === 0, "the page is framed");
        assert((await counted({ name: "humphrey_ws_event_streams_opened" })) === 0, "a stream was opened");
        // Following a link is allowed.
        await page.evaluate((url) => {
          document.body.innerHTML = `<a id="link" href="${url}">there</a>`;
        }, program.url);
        await page.click("#link");
        await hasState(page, "open");
      }
    } finally {
      await context.close();
      server.closeAllConnections();
      server.close();
      await program.end("SIGKILL");
    }
  },

  async "behind a proxy that changes Host the page shows the reason"() {
    const program = await Program.start();
    const { server, port } = await proxyTo(new URL(program.url).port, { upgrades: true });
    const context = await browser.newContext();
    try {
      const page = await context.newPage();
      await page.goto(`http://127.0.0.1:${port}/`);
      await sees(page, `--allow-origin http://127.0.0.1:${port}`);
      await sees(page, "the Host header");
      await page.locator("#state-text", { hasText: "Can’t connect" }).waitFor({ timeout: WAIT_MS });
    } finally {
      await context.close();
      server.closeAllConnections();
      server.close();
      await program.end("SIGKILL");
    }
  },

  async "behind a proxy that strips Upgrade the page goes on with events"() {
    // The proxy needs the program's port and the program the proxy's, so the program is restarted.
    const first = await Program.start();
    await first.end("SIGKILL");
    const { server, port } = await proxyTo(new URL(first.url).port, { upgrades: false });
    const program = await Program.start(first.listen, "--allow-origin", `http://127.0.0.1:${port}`);
    const context = await browser.newContext();
    try {
      const page = await context.newPage();
      await page.goto(`http://127.0.0.1:${port}/`);
      program.say("before");
      await sees(page, "WebSocket does not get through to the server, probably because of a proxy.");
      await page.locator("#state-text", { hasText: "Connected (events)" }).waitFor({ timeout: WAIT_MS });
      program.say("after");
      for (const line of ["before", "after"]) {
        await sees(page, line);
        assert((await page.locator("#lines .row.text", { hasText: line }).count()) === 1, `${line} is shown more than once`);
      }
      assert(!(await page.locator("#form").isVisible()), "the page offers to send");
    } finally {
      await context.close();
      server.closeAllConnections();
      server.close();
      await program.end("SIGKILL");
    }
  },
};
