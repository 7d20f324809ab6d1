"""Plain sockets: clients that end their half of the stream, as `printf … | nc` does, and that write byte by byte."""

import base64
import hashlib
import os
import socket
import struct
from urllib.parse import urlsplit

from checks import DEADLINE, ECHO, Checks

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def open_socket():
    """A socket behind its handshake, and what is read from it."""
    url = urlsplit(ECHO)
    client = socket.create_connection((url.hostname, url.port), timeout=DEADLINE)
    key = base64.b64encode(os.urandom(16))
    client.sendall(
        b"GET / HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n" % (url.netloc.encode(), key)
    )
    incoming = client.makefile("rb")
    assert incoming.readline().startswith(b"HTTP/1.1 101 ")
    headers = {}
    while (line := incoming.readline().strip()) != b"":
        name, value = line.split(b":", 1)
        headers[name.strip().lower()] = value.strip()
    accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
    assert headers[b"sec-websocket-accept"] == accept, headers
    return client, incoming


def frame(opcode, payload):
    """A masked frame, with a payload of less than 64 KiB."""
    mask = os.urandom(4)
    length = len(payload)
    header = bytes([0x80 | opcode])
    if length < 126:
        header += bytes([0x80 | length])
    else:
        header += bytes([0x80 | 126]) + struct.pack("!H", length)
    return header + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def read_frame(incoming):
    first, length = incoming.read(2)
    if length == 126:
        (length,) = struct.unpack("!H", incoming.read(2))
    return first & 0x0F, incoming.read(length)


def half_closed_client_gets_its_replies():
    client, incoming = open_socket()
    payloads = [b"%d %s" % (number, b"x" * 1000) for number in range(500)]
    client.sendall(b"".join(frame(1, payload) for payload in payloads))
    client.shutdown(socket.SHUT_WR)
    for payload in payloads:
        assert read_frame(incoming) == (1, payload)
    # Then the stream ends, after a close frame at the most.
    rest = incoming.read()
    assert rest == b"" or rest[0] == 0x88, rest
    client.close()


def byte_by_byte_client_is_understood():
    client, incoming = open_socket()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in frame(1, b"slowly") + frame(9, b"ping") + frame(8, struct.pack("!H", 1000)):
        client.sendall(bytes([byte]))
    answers = sorted(read_frame(incoming) for _ in range(2))
    assert answers == [(1, b"slowly"), (10, b"ping")], answers
    assert read_frame(incoming) == (8, struct.pack("!H", 1000))
    assert incoming.read() == b""
    client.close()


Checks("plain socket").run(
    half_closed_client_gets_its_replies,
    byte_by_byte_client_is_understood,
)
