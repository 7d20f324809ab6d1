"""Plays a run with Python's `websockets`: `websockets_client.py URL`."""

import asyncio
import sys

import websockets
from websockets.asyncio.client import connect

from member import CONNECTIONS, PING_EVERY, Difference, Member


async def play_connection(url):
    member = Member()
    pongs = []
    async with connect(url, max_size=None) as socket:
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
            if member.begun and member.count % PING_EVERY == 1:
                pongs.append(await socket.ping())
        # Pings shortly before the end may stay unanswered.
        answered = sum(pong.done() for pong in pongs)
        if answered < len(pongs) / 2:
            raise Difference(f"{answered} pongs for {len(pongs)} pings")
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
