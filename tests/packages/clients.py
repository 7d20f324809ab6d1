"""Clients of the program: HTTP requests, a WebSocket by hand, and its own `listen`."""

import http.client
import json
import socket
import subprocess
import threading
from contextlib import contextmanager
from queue import Empty, Queue

from checks import DEADLINE

ADDRESS = "127.0.0.1", 8080


def request(method, path, body=None, token=None):
    """Makes a request on a connection of its own. Returns the status and the body."""
    connection = http.client.HTTPConnection(*ADDRESS, timeout=DEADLINE)
    try:
        headers = {"Connection": "close"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def is_refused():
    try:
        socket.create_connection(ADDRESS, DEADLINE).close()
    except ConnectionRefusedError:
        return True
    return False


class WebSocket:
    """Enough of RFC 6455 to send a short text, and to read short frames."""

    def __init__(self):
        self.socket = socket.create_connection(ADDRESS, DEADLINE)
        self.reader = self.socket.makefile("rb")
        self.socket.sendall(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self.status = self.reader.readline()
        assert self.status.startswith(b"HTTP/1.1 101 "), self.status
        while self.reader.readline() != b"\r\n":
            pass

    def send(self, text):
        data = text.encode()
        # The mask of zeros leaves the payload as it is.
        self.socket.sendall(bytes([0x81, 0x80 | len(data)]) + bytes(4) + data)

    def receive(self):
        """Returns the opcode and the payload of the next frame."""
        first, length = self.reader.read(2)
        if length == 126:
            length = int.from_bytes(self.reader.read(2))
        return first & 0xF, self.reader.read(length)

    def texts(self):
        while True:
            opcode, payload = self.receive()
            if opcode == 1:
                yield payload.decode()

    def close_code(self):
        """The code of the server's close frame, before which other messages may come."""
        while True:
            opcode, payload = self.receive()
            if opcode == 8:
                return int.from_bytes(payload[:2])

    def until_end(self):
        """Waits until the connection is closed or reset."""
        try:
            self.reader.read()
        except ConnectionResetError:
            pass

    def close(self):
        self.reader.close()
        self.socket.close()


class Listener:
    """`humphrey-broadcast listen`, which stays connected."""

    def __init__(self, program):
        command = [program, "listen", "--quiet", "--json", "ws://{}:{}/".format(*ADDRESS)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.lines = Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))

    def until(self, text):
        """Waits for a message, and returns all until then."""
        texts = []
        while text not in texts:
            try:
                texts.append(self.lines.get(timeout=DEADLINE).get("text"))
            except Empty:
                raise AssertionError(f"listen has not received {text!r} within {DEADLINE} s, but {texts}") from None
        return texts

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


class Prober(threading.Thread):
    """Makes one request after the other, each on a connection of its own, and counts the outcomes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.outcomes = {}
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.is_set():
            try:
                outcome = request("GET", "/ready")
            except OSError as error:
                outcome = type(error).__name__
            except http.client.HTTPException as error:
                outcome = type(error).__name__
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


@contextmanager
def probing():
    """Probes while the block runs; its value has the outcomes after that."""
    prober = Prober()
    prober.start()
    try:
        yield prober.outcomes
    finally:
        prober.stopping.set()
        prober.join(DEADLINE)
