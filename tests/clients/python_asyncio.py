"""The asyncio client of Python's `websockets`."""

import asyncio

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

from checks import BROADCAST, CLIENTS, DEADLINE, ECHO, PIPELINED, SIZES, Checks, type_line


def echo(**options):
    options = {"max_size": max(SIZES), "proxy": None} | options
    return connect(ECHO, **options)


async def handshake():
    async with echo() as ws:
        assert ws.response.status_code == 101
        # Offered, and declined: the message is plain all the same.
        assert ws.protocol.extensions == []


async def text_and_binary_of_every_size():
    async with echo() as ws:
        for size in SIZES:
            for payload in "x" * size, b"\xff" * size:
                await ws.send(payload)
                assert await ws.recv() == payload, size


async def pipelined_messages_in_order():
    async with echo() as ws:

        async def send():
            for number in range(PIPELINED):
                await ws.send(str(number))

        sending = asyncio.create_task(send())
        for number in range(PIPELINED):
            assert await ws.recv() == str(number)
        await sending


async def fragmented_messages():
    async with echo() as ws:
        await ws.send(["Gr", "ü", "", "ezi"])
        assert await ws.recv() == "Grüezi"
        await ws.send([b"\xff" * 70_000, b"\x00"])
        assert await ws.recv() == b"\xff" * 70_000 + b"\x00"


async def pings_between_fragments():
    async with echo() as ws:

        async def fragments():
            for fragment in "one ", "two ", "three":
                yield fragment
                await (await ws.ping(fragment))

        await ws.send(fragments())
        assert await ws.recv() == "one two three"


async def ping_is_answered_with_its_payload():
    async with echo() as ws:
        # A pong with another payload would not end the wait.
        for payload in b"", b"hello", bytes(125):
            await (await ws.ping(payload))


async def keep_alive_pings_while_messages_flow():
    async with echo(ping_interval=0.2, ping_timeout=1) as ws:
        loop = asyncio.get_running_loop()
        until = loop.time() + 2
        number = 0
        while loop.time() < until:
            number += 1
            await ws.send(str(number))
            assert await ws.recv() == str(number)
        assert number > 1
        assert ws.latency > 0, "no keep-alive ping was answered"


async def closing_handshake(code, reason, outcome):
    async with echo() as ws:
        await ws.close(code, reason)
        assert ws.protocol.close_rcvd is not None, "no close frame was received"
        assert ws.protocol.close_rcvd.code == code
        assert ws.protocol.close_sent.code == code
        assert ws.protocol.close_rcvd_then_sent is False
        try:
            await ws.recv()
        except outcome:
            return
        raise AssertionError("a message came after the close")


async def close_1000():
    await closing_handshake(1000, "done", ConnectionClosedOK)


async def close_4000():
    await closing_handshake(4000, "a reason of the application's", ConnectionClosedError)


async def replies_come_before_the_close():
    async with echo() as ws:
        for number in range(100):
            await ws.send(str(number))
        closing = asyncio.create_task(ws.close())
        assert [await ws.recv() for _ in range(100)] == [str(n) for n in range(100)]
        await closing
        assert ws.protocol.close_rcvd is not None


async def broadcast_to_many_clients():
    clients = []
    try:
        for _ in range(CLIENTS):
            ws = await connect(BROADCAST, proxy=None)
            clients.append(ws)
            host, port = ws.local_address[:2]
            # Everyone hears of the new client, itself included.
            welcome = f"Welcome, {host}:{port}!"
            assert [await client.recv() for client in clients] == [welcome] * len(clients)

        lines = ["one", "two", "", "three"]
        for line in lines:
            type_line(line)
        for client in clients:
            assert [await client.recv() for _ in lines] == lines
        await clients[0].send("for me alone")
        assert await clients[0].recv() == "for me alone"
        # Had the others got it, it would come before this.
        type_line("last")
        assert [await client.recv() for client in clients] == ["last"] * CLIENTS
    finally:
        await asyncio.gather(*(client.close() for client in clients))


async def main():
    checks = Checks("Python websockets, asyncio")
    for check in (
        handshake,
        text_and_binary_of_every_size,
        pipelined_messages_in_order,
        fragmented_messages,
        pings_between_fragments,
        ping_is_answered_with_its_payload,
        keep_alive_pings_while_messages_flow,
        close_1000,
        close_4000,
        replies_come_before_the_close,
        broadcast_to_many_clients,
    ):
        try:
            await asyncio.wait_for(check(), DEADLINE)
        except Exception:
            checks.fails(check.__name__)
        else:
            checks.passes(check.__name__)
    checks.finish()


asyncio.run(main())
