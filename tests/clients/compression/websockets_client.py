"""Plays a run (server.rs) with Python's `websockets`: `websockets_client.py URL`."""

import asyncio
import sys

import websockets
from websockets.asyncio.client import connect

from member import CONNECTIONS, PING_EVERY, PONG_DEADLINE, Difference, Member


async def play_connection(url):
    member = Member()
    pongs = []
    # After `end`, this client does not receive further messages. They would fill a limited queue, and `websockets` would then stop
    # reading, so pongs and the closing handshake would not arrive.
    async with connect(url, max_size=None, max_queue=None) as socket:
        await socket.send("hello " + socket.response.headers.get("Sec-WebSocket-Extensions", ""))
        while member.ended is None:
            data = await socket.recv()
            try:
                answers = member.receive(data)
            except Difference as difference:
                await socket.send(f"failed {difference}")
                raise
            for answer in answers:
                await socket.send(answer)
            if member.ended is not None or member.count % PING_EVERY == 1:
                pongs.append(await socket.ping())
        # In `websockets`, a pong also completes all earlier pings, so this detects only a missing last pong.
        await asyncio.wait_for(asyncio.gather(*pongs), PONG_DEADLINE)
    return member


async def play_slot(url):
    messages = 0
    while True:
        member = await play_connection(url)
        messages += member.count
        if member.ended == "over":
            return messages


async def main(url):
    counts = await asyncio.gather(*(play_slot(url) for _ in range(CONNECTIONS)))
    print(f"{sum(counts)} messages")


print(f"websockets {websockets.__version__}", flush=True)
asyncio.run(main(sys.argv[1]))
