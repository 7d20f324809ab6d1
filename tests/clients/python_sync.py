"""The blocking client of Python's `websockets`."""

import threading
import time

from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK
from websockets.sync.client import ClientConnection, connect

from checks import BROADCAST, CLIENTS, DEADLINE, ECHO, PIPELINED, SIZES, Checks, type_line


class Connection(ClientConnection):
    """Waits for nothing longer than the deadline."""

    def recv(self, timeout=DEADLINE, decode=None):
        return super().recv(timeout=timeout, decode=decode)


def open_at(url, **options):
    options = {"max_size": max(SIZES), "proxy": None, "create_connection": Connection} | options
    return connect(url, **options)


def handshake():
    with open_at(ECHO) as ws:
        assert ws.response.status_code == 101
        assert ws.protocol.extensions == []


def text_and_binary_of_every_size():
    with open_at(ECHO) as ws:
        for size in SIZES:
            for payload in "x" * size, b"\xff" * size:
                ws.send(payload)
                assert ws.recv() == payload, size


def pipelined_messages_in_order():
    with open_at(ECHO) as ws:

        def send():
            for number in range(PIPELINED):
                ws.send(str(number))

        sending = threading.Thread(target=send, daemon=True)
        sending.start()
        for number in range(PIPELINED):
            assert ws.recv() == str(number)
        sending.join(DEADLINE)
        assert not sending.is_alive()


def fragmented_messages():
    with open_at(ECHO) as ws:
        ws.send(iter(["Gr", "ü", "", "ezi"]))
        assert ws.recv() == "Grüezi"
        ws.send([b"\xff" * 70_000, b"\x00"])
        assert ws.recv() == b"\xff" * 70_000 + b"\x00"


def ping_is_answered_with_its_payload():
    with open_at(ECHO) as ws:
        for payload in b"", b"hello", bytes(125):
            assert ws.ping(payload).wait(DEADLINE)


def keep_alive_pings_while_messages_flow():
    with open_at(ECHO, ping_interval=0.2, ping_timeout=1) as ws:
        until = time.monotonic() + 2
        number = 0
        while time.monotonic() < until:
            number += 1
            ws.send(str(number))
            assert ws.recv() == str(number)
        assert number > 1
        assert ws.latency > 0, "no keep-alive ping was answered"


def closing_handshake(code, reason, outcome):
    with open_at(ECHO) as ws:
        ws.close(code, reason)
        assert ws.protocol.close_rcvd is not None, "no close frame was received"
        assert ws.protocol.close_rcvd.code == code
        assert ws.protocol.close_rcvd_then_sent is False
        try:
            ws.recv()
        except outcome:
            return
        raise AssertionError("a message came after the close")


def close_1000():
    closing_handshake(1000, "done", ConnectionClosedOK)


def close_4000():
    closing_handshake(4000, "a reason of the application's", ConnectionClosedError)


def broadcast_to_many_clients():
    clients = []
    try:
        for _ in range(CLIENTS):
            ws = open_at(BROADCAST, legacy=True)
            clients.append(ws)
            host, port = ws.local_address[:2]
            welcome = f"Welcome, {host}:{port}!"
            assert [client.recv() for client in clients] == [welcome] * len(clients)

        lines = ["one", "two", "", "three"]
        for line in lines:
            type_line(line)
        for client in clients:
            assert [client.recv() for _ in lines] == lines
    finally:
        for client in clients:
            client.close()


Checks("Python websockets, sync").run(
    handshake,
    text_and_binary_of_every_size,
    pipelined_messages_in_order,
    fragmented_messages,
    ping_is_answered_with_its_payload,
    keep_alive_pings_while_messages_flow,
    close_1000,
    close_4000,
    broadcast_to_many_clients,
)
