// The page in front of a cluster: it resumes on another node. Each test starts its own nodes and Redis.

import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { createServer, connect } from "node:net";
import { createInterface } from "node:readline";
import { Program, assert, hasState, message, open, says, sees, within } from "./support.mjs";

const NAMED = process.env.HUMPHREY_WS_REDIS_SERVER;
const REDIS = NAMED ?? "redis-server";

/** A server on a free port, without persistence. */
async function startRedis() {
  for (let attempt = 0; attempt < 10; attempt += 1) {
    const probe = createServer().listen(0, "127.0.0.1");
    await once(probe, "listening");
    const { port } = probe.address();
    probe.close();
    await once(probe, "close");
    const options = ["--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"];
    const child = spawn(REDIS, options, { stdio: ["ignore", "pipe", "inherit"] });
    const ready = new Promise((resolve, reject) => {
      child.once("error", reject);
      child.once("exit", () => resolve(false));
      createInterface(child.stdout).on("line", (line) => line.includes("Ready to accept connections") && resolve(true));
    });
    // Another program may have taken the port meanwhile.
    if (await within(ready, "Redis to start")) return { child, url: `redis://127.0.0.1:${port}` };
  }
  throw new Error("Redis found no free port");
}

/** A load balancer that sends every connection to one node, and breaks those to others. */
class Balancer {
  static async start() {
    const balancer = new Balancer();
    balancer.server = createServer((client) => {
      const server = connect(balancer.port, "127.0.0.1");
      client.pipe(server).pipe(client);
      for (const end of [client, server]) {
        balancer.sockets.add(end);
        end.on("error", () => {});
        end.on("close", () => {
          balancer.sockets.delete(end);
          client.destroy();
          server.destroy();
        });
      }
    });
    balancer.sockets = new Set();
    balancer.server.listen(0, "127.0.0.1");
    await once(balancer.server, "listening");
    balancer.url = `http://127.0.0.1:${balancer.server.address().port}/`;
    return balancer;
  }

  use(program) {
    this.port = Number(new URL(program.url).port);
    for (const socket of this.sockets) socket.destroy();
  }

  end() {
    this.server.close();
    for (const socket of this.sockets) socket.destroy();
  }
}

/** Wraps a test with Redis, two nodes that keep a history, and a balancer in front of them. */
function withNodes(test) {
  return async () => {
    if (!NAMED && spawnSync(REDIS, ["--version"]).error) {
      console.log(`skip  ${REDIS} is not installed`);
      return;
    }
    const redis = await startRedis();
    const balancer = await Balancer.start();
    const nodes = [];
    let page;
    try {
      const options = ["--no-welcome", "--history", "100", "--cluster", redis.url];
      for (let node = 0; node < 2; node += 1) {
        nodes.push(await Program.start(undefined, "--allow-origin", balancer.url.slice(0, -1), ...options));
      }
      balancer.use(nodes[0]);
      page = await open(balancer);
      await test({ nodes, balancer, page });
      assert(page.complaints.length === 0, `complaints: ${page.complaints.join("; ")}`);
    } finally {
      await page?.context().close();
      balancer.end();
      for (const node of nodes) await node.end("SIGKILL");
      redis.child.kill("SIGKILL");
    }
  };
}

/** The shown lines that match a pattern, in order. */
const lines = async (page, pattern) =>
  (await page.locator("#lines .row.text p").allInnerTexts()).filter((line) => pattern.test(line));

export const clusterTests = {
  "a line of one node appears on the page of another": withNodes(async ({ nodes: [first, second], page }) => {
    second.say("from the second node");
    await sees(page, "from the second node");
    first.say("from the first node");
    await sees(page, "from the first node");
    await says(page, "#clients", "1 client");
  }),

  "a page that reconnects to another node shows each line once": withNodes(async ({ nodes, balancer, page }) => {
    const said = [];
    const say = (node) => {
      said.push(`line ${said.length}`);
      node.say(said.at(-1));
    };
    say(nodes[0]);
    await sees(page, said.at(-1));
    for (const to of [nodes[1], nodes[0], nodes[1]]) {
      // Chromium keeps open connections when it goes offline, so the page closes its own.
      await page.context().setOffline(true);
      await page.evaluate(() => sockets.at(-1).close());
      await hasState(page, "waiting");
      balancer.use(to);
      for (const node of nodes) {
        say(node);
        say(node);
      }
      await page.context().setOffline(false);
      await hasState(page, "open");
      say(to);
      for (const line of said) await sees(page, line);
    }
    const shown = await lines(page, /^line /);
    // Lines of different nodes have no order among themselves.
    assert(JSON.stringify([...shown].sort()) === JSON.stringify([...said].sort()), `shown: ${shown}`);
    assert((await message(page, /lines (are|may be) missing/i).count()) === 0, "the page tells of a gap");
  }),

  "a page whose node is killed goes on at another without a gap": withNodes(async ({ nodes, balancer, page }) => {
    nodes[0].say("before");
    await sees(page, "before");
    await nodes[0].end("SIGKILL");
    nodes[1].say("meanwhile");
    balancer.use(nodes[1]);
    await sees(page, "meanwhile");
    await hasState(page, "open");
    nodes[1].say("after");
    await sees(page, "after");
    const shown = await lines(page, /^(before|meanwhile|after)$/);
    assert(shown.join() === "before,meanwhile,after", `shown: ${shown}`);
    assert((await message(page, /lines (are|may be) missing/i).count()) === 0, "the page tells of a gap");
  }),
};
