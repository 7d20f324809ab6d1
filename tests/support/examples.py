"""What the checks with foreign clients share: examples, built and run on free ports."""

import json
import random
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# How long an example may take to listen, in seconds.
START_DEADLINE = 20


def build(*names, features=(), target=None):
    """Builds examples, for this machine or another, and returns where each is."""
    options = []
    if target is not None:
        options += ["--target", target]
    for feature in features:
        options += ["--features", feature]
    for name in names:
        options += ["--example", name]
    return build_with(*options)


def build_program():
    """Builds humphrey-broadcast, and returns where it is."""
    return build_with("--package", "humphrey-broadcast")["humphrey-broadcast"]


def build_with(*options):
    command = ["cargo", "build", "--quiet", "--message-format", "json", *options]
    output = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True
    ).stdout
    messages = map(json.loads, output.splitlines())
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}


def free_address():
    """An address that was free a moment ago: not one from port 0, which clients' sockets get, too."""
    while True:
        address = "127.0.0.1", random.randrange(10_000, 20_000)
        try:
            socket.create_server(address).close()
            return address
        except OSError:
            continue


def printed_address(process, deadline):
    """Returns the address that a test server prints in its first line, once it listens. `deadline`: in seconds."""
    readable, _, _ = select.select([process.stdout], [], [], deadline)
    line = process.stdout.readline() if readable else ""
    if not line:
        process.kill()
        sys.exit(f"{process.args[0]} did not print the address that it listens on")
    host, port = line.strip().rsplit(":", 1)
    return host, int(port)


class Example:
    """An example, or the program, that runs on a free port until the block is left. The address is its first argument, or that of
    an option."""

    def __init__(self, binary, *options, address_option=None, stdin=subprocess.DEVNULL, stderr=None):
        self.binary = binary
        self.address_option = [] if address_option is None else [address_option]
        self.options = options
        self.stdin = stdin
        self.stderr = stderr

    def __enter__(self):
        self.address = host, port = free_address()
        command = [self.binary, *self.address_option, f"{host}:{port}", *self.options]
        self.process = subprocess.Popen(command, stdin=self.stdin, stderr=self.stderr)
        deadline = time.monotonic() + START_DEADLINE
        # The examples are documentation and do not print that they listen, so retry until a connection succeeds.
        while True:
            try:
                socket.create_connection(self.address).close()
                return self
            except ConnectionRefusedError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    sys.exit(f"{self.binary} does not listen on {host}:{port}")
                time.sleep(0.01)

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    @property
    def url(self):
        return "ws://{}:{}/".format(*self.address)
