"""Checks that third-party clients read compressed messages byte for byte (compression/server.rs).

The clients are npm's `ws` and `undici` (the WebSocket of Node), Python's `websockets` and `aiohttp`, Rust's `yawc`, headless
Chromium and Firefox. Each also plays runs in which the server makes one mistake, and must report it. COMPRESSION_SEED sets the
seed of the messages.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMPRESSION = HERE / "compression"
sys.path.insert(0, str(HERE.parent / "support"))

from checks import DEADLINE, Checks
from examples import START_DEADLINE, printed_address

MESSAGES = 5_000
# Messages of a run with a fault, which the server makes in the second half.
FAULTY_MESSAGES = 400
FAULTS = "corrupt", "omit", "double", "swap"

# Maximum ratio of the bytes on the wire to the uncompressed bytes. Some messages are noise, or sent uncompressed on purpose.
WIRE_MAX = 0.7

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FIREFOX = os.environ.get("FIREFOX", "/usr/bin/firefox-esr")

# Settings of a profile in which Firefox shows no dialogs and makes no requests of its own.
FIREFOX_PREFERENCES = {
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.aboutwelcome.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
}


class Server:
    """The server of one run, on a free port. It exits after the run."""

    def __init__(self, binary, seed, messages, fault=None):
        arguments = ["127.0.0.1:0", str(seed), str(messages), *([fault] if fault else [])]
        self.process = subprocess.Popen([binary, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.address = "{}:{}".format(*printed_address(self.process, START_DEADLINE))

    def result(self):
        try:
            self.process.wait(DEADLINE)
            output = self.process.stdout.read()
        finally:
            self.process.kill()
        assert output, "the server ended without a result"
        return json.loads(output)


class Program:
    """A client program. Its first line of output is its name and version, its last line the number of messages."""

    def __init__(self, *command, takes_address=False, compresses=True):
        self.command = command
        self.compresses = compresses
        self.takes_address = takes_address

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def play(self, server):
        target = server.address if self.takes_address else f"ws://{server.address}/"
        process = subprocess.Popen([*self.command, target], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            result = server.result()
            output, errors = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
            process.wait()
        lines = output.splitlines() or [""]
        return result, lines[0], lines[-1] if process.returncode == 0 else errors


class Page(BaseHTTPRequestHandler):
    """Serves the page that runs in a browser, and receives its result."""

    FILES = {"/page.html": "text/html", "/member.mjs": "text/javascript"}

    def do_GET(self):
        path = self.path.split("?")[0]
        if path not in self.FILES:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Type", self.FILES[path] + "; charset=utf-8")
        self.end_headers()
        self.wfile.write((COMPRESSION / path[1:]).read_bytes())

    def do_POST(self):
        self.server.posted = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.arrived.set()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


class Browser:
    """A browser that gets the page's URL as an argument. The page starts the run on its own, and posts the result."""

    compresses = True

    def __init__(self, binary, arguments):
        self.binary = binary
        self.arguments = arguments

    def __enter__(self):
        self.site = ThreadingHTTPServer(("127.0.0.1", 0), Page)
        threading.Thread(target=self.site.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.site.shutdown()
        self.site.server_close()

    def play(self, server):
        version = subprocess.run([self.binary, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        self.site.arrived = threading.Event()
        page = f"http://127.0.0.1:{self.site.server_port}/page.html?url=ws://{server.address}/"
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            process = subprocess.Popen(
                [self.binary, *self.arguments(Path(profile)), page],
                env=os.environ | {"HOME": profile},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                result = server.result()
                assert self.site.arrived.wait(DEADLINE), f"the page posted nothing; the server: {result}"
            finally:
                # The browser has helper processes in its process group.
                os.killpg(process.pid, 9)
                process.wait()
        return result, version.stdout.strip().splitlines()[-1], self.site.posted


def chromium(profile):
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    return ["--headless", *sandbox, "--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}"]


def firefox(profile):
    preferences = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in FIREFOX_PREFERENCES.items())
    (profile / "user.js").write_text("".join(preferences))
    return ["--headless", "--no-remote", "--profile", str(profile)]


def check_run(client, binary, seed, rows):
    server = Server(binary, seed, MESSAGES)
    started = time.monotonic()
    result, version, last = client.play(server)
    seconds = time.monotonic() - started
    assert "error" not in result, f"{result['error']}; the client: {last}"
    assert last == f"{result['received']} messages", f"the client: {last}; the server: {result}"
    assert result["published"] == MESSAGES and result["received"] > MESSAGES, result
    for what in "joins", "leaves", "excepts", "replies", "echoes":
        assert result[what] > 20, (what, result)
    assert result["connections"] > 10, result
    compressed = result["compressed"]
    # The server begins few epochs, because members join and leave all the time.
    assert compressed["epochs"] > 10 and compressed["messages"] > MESSAGES / 5, result
    assert compressed["sent_bytes"] < compressed["plain_bytes"] / 2, result
    assert 0 < result["wire_bytes"] < WIRE_MAX * result["plain_bytes"], result
    # The client's echoes are compressed, too.
    if client.compresses:
        assert 0 < compressed["received_bytes"] < compressed["inflated_bytes"], result
    rows.append((version, result, seconds))


def check_fault(client, binary, seed, fault):
    result, _, last = client.play(Server(binary, seed, FAULTY_MESSAGES, fault))
    # The client may exit before the server has read its report.
    found = result.get("found") or last
    expected = "checksum" if fault == "corrupt" else "instead of"
    assert expected in found and not re.fullmatch(r"\d+ messages", last), f"{fault} was not reported; the client: {last}; the server: {result}"


def print_table(rows):
    """Prints the figures of each client's run. `received` counts deliveries, `compressed` compressions, one for all recipients."""
    print(
        f"{'client':<30} {'received':>8} {'compressed':>10} {'connections':>11} {'plain bytes':>12} {'on the wire':>12}"
        f" {'ratio':>5} {'seconds':>7}"
    )
    for version, result, seconds in rows:
        plain, wire = result["plain_bytes"], result["wire_bytes"]
        print(
            f"{version.split(' built on ')[0]:<30} {result['received']:>8} {result['compressed']['messages']:>10}"
            f" {result['connections']:>11} {plain:>12,} {wire:>12,} {wire / plain:>5.2f} {seconds:>7.1f}"
        )
    print(flush=True)


def main():
    checks = Checks("compressed run")
    seed = int(os.environ.get("COMPRESSION_SEED") or random.randrange(1 << 32))
    print(f"seed {seed}", flush=True)
    binary = os.environ["COMPRESSION_SERVER"]
    node = str(COMPRESSION / "node.mjs")
    clients = {
        "ws": Program("node", node, "ws"),
        # undici inflates messages but does not compress its own.
        "undici": Program("node", node, "undici", compresses=False),
        "websockets": Program(sys.executable, str(COMPRESSION / "websockets_client.py")),
        "aiohttp": Program(sys.executable, str(COMPRESSION / "aiohttp_client.py")),
        "yawc": Program(os.environ["COMPRESSION_CLIENT"], takes_address=True),
        "Chromium": Browser(CHROMIUM, chromium),
    }
    if shutil.which(FIREFOX):
        clients["Firefox"] = Browser(FIREFOX, firefox)
    else:
        print(f"skipped {FIREFOX}: not installed", flush=True)
    rows = []
    for name, client in clients.items():
        with client:
            # Every other client shares its checks with one of these three, so one fault is enough for it.
            faults = FAULTS if name in ("ws", "websockets", "yawc") else FAULTS[:1]
            played = [("every byte", lambda: check_run(client, binary, seed, rows))]
            played += [(f"reports: {fault}", lambda fault=fault: check_fault(client, binary, seed, fault)) for fault in faults]
            for what, check in played:
                try:
                    check()
                except Exception:
                    checks.fails(f"{name}, {what}")
                else:
                    checks.passes(f"{name}, {what}")
    print_table(rows)
    checks.finish()


if __name__ == "__main__":
    main()
