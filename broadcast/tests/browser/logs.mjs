// Logs as real programs write them: nginx, cargo and pytest are run; JSON lines and an export of journald are written here.

import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { join } from "node:path";
import { promisify } from "node:util";
import { within } from "./support.mjs";

const run = promisify(execFile);

/** Runs a program whatever its exit code is, and returns what it has printed. */
async function output(program, args, options) {
  const { stdout, stderr } = await run(program, args, options).catch((error) => {
    if (typeof error.code !== "number") throw error;
    return error;
  });
  return stdout + stderr;
}

/** A build with a warning and an error. */
async function cargo(directory) {
  const crate = join(directory, "shop");
  await mkdir(join(crate, "src"), { recursive: true });
  await writeFile(join(crate, "Cargo.toml"), '[package]\nname = "shop"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n');
  await writeFile(join(crate, "src/lib.rs"), "pub fn reserve() {\n    let seat = 12;\n}\n");
  await writeFile(join(crate, "src/main.rs"), 'fn main() {\n    let price: u32 = "free";\n    println!("{price}");\n}\n');
  const env = { ...process.env, CARGO_TARGET_DIR: join(crate, "target"), RUSTFLAGS: "" };
  return output("cargo", ["check", "--color", "always", "--offline"], { cwd: crate, env });
}

/** Tests of which one passes and one fails. */
async function pytest(directory) {
  const tests = join(directory, "tests");
  await mkdir(tests, { recursive: true });
  await writeFile(join(tests, "test_shop.py"), "def test_reserve():\n    assert 1\n\ndef test_pay():\n    assert 'paid' == 'open'\n");
  const python = join(directory, "venv/bin/python");
  await run("python3", ["-m", "venv", join(directory, "venv")]);
  await run(python, ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pytest==8.4.2"]);
  return output(python, ["-m", "pytest", "-v", "--color=yes", "-p", "no:cacheprovider"], { cwd: tests });
}

/** The access log of a server of which a page, a missing page and a failing one were requested. */
async function nginx(directory) {
  const free = createServer().listen(0, "127.0.0.1");
  await once(free, "listening");
  const { port } = free.address();
  free.close();
  await once(free, "close");
  const log = join(directory, "nginx.log");
  const paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((name) => `${name}_temp_path ${directory}/${name};`);
  const server = `listen 127.0.0.1:${port}; location /ok { return 200 "ok\\n"; } location /missing { return 404; } location /down { proxy_pass http://127.0.0.1:1; }`;
  await writeFile(
    join(directory, "nginx.conf"),
    `daemon off; pid ${directory}/nginx.pid; events {}\nhttp { ${paths.join(" ")} access_log ${log}; server { ${server} } }\n`,
  );
  const child = spawn("nginx", ["-p", directory, "-e", "stderr", "-c", join(directory, "nginx.conf")], { stdio: "ignore" });
  const ended = once(child, "exit");
  const get = (path) => fetch(`http://127.0.0.1:${port}${path}`);
  const until = Date.now() + 10_000;
  while (!(await get("/ok").catch(() => Date.now() > until))) await new Promise((resolve) => setTimeout(resolve, 20));
  await get("/missing?seat=12");
  await get("/down");
  child.kill("SIGQUIT");
  await within(ended, "nginx to end");
  return readFile(log, "utf8");
}

/** Lines as pino, zap and the like write them; the last one is cut off. */
const JSON_LINES = [
  { level: 30, time: 1773480401000, pid: 1, msg: "ticket reserved", ticket: 4711 },
  { level: "warn", ts: "2026-03-14T09:26:44Z", msg: "queue is deep", depth: 120, wiki: "https://wiki.example.com/runbooks/mail" },
  { severity: "ERROR", message: "payment failed", id: 9007199254740993n, retry: { after_s: 5, html: "<b>no</b>" } },
];
const asJson = (value) => JSON.stringify(value, (_, v) => (typeof v === "bigint" ? `#${v}#` : v)).replaceAll(/"#(\d+)#"/g, "$1");
const json = () => `${JSON_LINES.map(asJson).join("\n")}\n{"level":"info","msg":"cut of\n`;

/** The format of `journalctl -o export`: a field of several lines is preceded by its length in binary. */
function journald() {
  const text = "Out of memory:\nkilled process 4711";
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length + 200));
  return Buffer.concat([
    Buffer.from("__REALTIME_TIMESTAMP=1773480401000000\nPRIORITY=6\nMESSAGE=Started shop.service.\n\n"),
    Buffer.from("__REALTIME_TIMESTAMP=1773480402000000\nPRIORITY=3\nMESSAGE\n"),
    length,
    Buffer.from(`${text.padEnd(text.length + 200)}\n\n`),
  ]);
}

/** Writes all logs to a directory, and returns their paths. */
export async function writeLogs(directory) {
  const logs = { "nginx.log": await nginx(directory), "cargo.log": await cargo(directory), "pytest.log": await pytest(directory), "app.json": json(), "journal.export": journald() };
  const paths = [];
  for (const [name, content] of Object.entries(logs)) {
    paths.push(join(directory, name));
    await writeFile(paths.at(-1), content);
  }
  return paths;
}
