"""The client's side of the protocol of server.rs, without I/O."""

from zlib import crc32

CONNECTIONS = 3
PING_EVERY = 100
# Maximum time until the last pong arrives, in seconds.
PONG_DEADLINE = 20
HEADER = 16


class Difference(Exception):
    """A received message differs from the one that the server sent."""


class Member:
    """The state of one connection."""

    def __init__(self):
        self.begun = False
        self.count = 0
        self.hash = 0
        self.last = None
        # The last word of the server's `end` message, "again" or "over", after that has arrived.
        self.ended = None

    def receive(self, data):
        """Handles a message (str or bytes), and returns the replies."""
        text = data if isinstance(data, str) else ""
        if self.ended is not None:
            return []
        if not self.begun:
            self.begun = text == "begin"
            return []
        if text.startswith("end "):
            _, count, hash, self.ended = text.split(" ")
            if (int(count), hash) != (self.count, f"{self.hash:08x}"):
                raise Difference(f"{self.count} messages with hash {self.hash:08x} instead of {count} with {hash}")
            return [f"ended {count} {hash}"]
        payload = data.encode() if isinstance(data, str) else data
        self.count += 1
        self.hash = crc32(payload, crc32(b"t" if isinstance(data, str) else b"b", self.hash))
        if text.startswith("mark "):
            answer = f"{text} {self.count} {self.hash:08x}"
            return [answer] if self.last is None else [answer, self.last]
        if len(payload) >= HEADER:
            self.check_own(payload)
        self.last = data
        return []

    @staticmethod
    def check_own(payload):
        number, checksum, body = payload.split(b" ", 2)
        if checksum != b"%08x" % crc32(body):
            raise Difference(f"the checksum of message {number.decode()} differs")
