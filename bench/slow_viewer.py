#!/usr/bin/env python3
"""What one slow viewer of humphrey-broadcast costs the others: a log of so many lines a second, one viewer that reads as fast as it
can, and one that reads only so many bytes a second, under each policy.

    cargo build --release -p humphrey-broadcast
    bench/slow_viewer.py target/release/humphrey-broadcast [--rate 80000] [--seconds 30] [--lines 5000]

For each policy it prints the longest delay of a line at the fast viewer, the longest time for which the producer's write to the
pipe blocked, how many lines each viewer has received, and what became of the slow one. It needs nothing but Python.
"""

import argparse
import os
import re
import socket
import subprocess
import threading
import time

LINE_BYTES = 120


def connect(port, receive_buffer=None):
    """Opens a WebSocket to everyone's lines."""
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(("127.0.0.1", port))
    connection.sendall(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(1)
    assert head.startswith(b"HTTP/1.1 101 "), head
    return connection


class Viewer(threading.Thread):
    """Reads lines that begin with their number and the time of their writing, at most so many bytes a second."""

    def __init__(self, connection, bytes_per_second=None):
        super().__init__(daemon=True)
        self.connection = connection
        self.bytes_per_second = bytes_per_second
        self.lines = 0
        self.last = -1
        self.longest = 0.0
        self.ended = None

    def run(self):
        pattern = re.compile(rb"(\d{12}) (\d{10}\.\d{6}) ")
        rest = b""
        begun = time.monotonic()
        read = 0
        size = 1 << 16 if self.bytes_per_second is None else max(1, self.bytes_per_second // 20)
        while True:
            try:
                data = self.connection.recv(size)
            except OSError as error:
                self.ended = str(error)
                return
            if not data:
                self.ended = "closed by the server"
                return
            now = time.time()
            read += len(data)
            rest += data
            end = 0
            for match in pattern.finditer(rest):
                self.lines += 1
                self.last = int(match[1])
                self.longest = max(self.longest, now - float(match[2]))
                end = match.end()
            rest = rest[max(end, len(rest) - 64) :]
            if self.bytes_per_second is not None:
                due = begun + read / self.bytes_per_second
                time.sleep(max(0.0, due - time.monotonic()))


def measure(program, policy, options):
    command = [program, "--listen", "127.0.0.1:0", "--no-welcome", "--slow-client", policy]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        port = None
        while port is None:
            found = re.search(rb"http://127\.0\.0\.1:(\d+)/", server.stderr.readline())
            port = int(found[1]) if found else None
        threading.Thread(target=server.stderr.read, daemon=True).start()
        fast = Viewer(connect(port))
        # As over a network, its kernel takes little that the viewer does not read.
        slow = Viewer(connect(port, 128 << 10), options.rate)
        fast.start()
        slow.start()
        time.sleep(0.5)
        pipe = server.stdin.fileno()
        os.set_blocking(pipe, True)
        begun = time.monotonic()
        sent = 0
        longest = 0.0
        state = {"since": None}

        def blocked():
            return 0.0 if state["since"] is None else time.monotonic() - state["since"]

        stop = threading.Event()

        def produce():
            nonlocal sent, longest
            while not stop.is_set() and time.monotonic() < begun + options.seconds:
                due = int((time.monotonic() - begun) * options.lines)
                text = b""
                # After a block it does not catch up at once: a log goes on at its own speed.
                for number in range(sent, min(due, sent + options.lines // 10)):
                    head = b"%012d %.6f " % (number, time.time())
                    text += head + b"x" * (LINE_BYTES - len(head)) + b"\n"
                    sent += 1
                state["since"] = time.monotonic()
                try:
                    os.write(pipe, text)
                except OSError:
                    return
                longest = max(longest, blocked())
                state["since"] = None
                time.sleep(0.01)

        producer = threading.Thread(target=produce, daemon=True)
        producer.start()
        producer.join(options.seconds + options.patience)
        longest = max(longest, blocked())
        stuck = ", and it still does" if producer.is_alive() else ""
        stop.set()
        time.sleep(1)
        print(
            f"{policy:12} longest delay at the fast viewer {fast.longest:6.2f} s; the producer's write blocked for at most {longest:6.2f} s{stuck}; "
            f"of {sent:,} lines the fast viewer has {fast.lines:,}, the slow one {slow.lines:,} (its last is {slow.last:,}); "
            f"slow viewer: {slow.ended or 'connected'}, "
            f"at most {slow.longest:.2f} s behind"
        )
    finally:
        server.kill()
        server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--rate", type=int, default=80_000, help="bytes per second of the slow viewer")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--lines", type=int, default=5_000, help="lines per second")
    parser.add_argument("--patience", type=int, default=20, help="seconds to wait for a blocked producer at the end")
    parser.add_argument("--policies", default="pace,skip-ahead")
    options = parser.parse_args()
    print(f"{options.lines} lines of {LINE_BYTES} bytes a second for {options.seconds} s; the slow viewer reads {options.rate} bytes a second")
    for policy in options.policies.split(","):
        measure(options.program, policy, options)


if __name__ == "__main__":
    main()
