"""Plays a run (server.rs) with Python's `aiohttp`: `aiohttp_client.py URL`."""

import asyncio
import sys

import aiohttp
from aiohttp import WSMsgType

from member import CONNECTIONS, PING_EVERY, Difference, Member


async def play_connection(session, url):
    member = Member()
    pings = pongs = 0
    # Without `autoping`, aiohttp delivers pongs, but does not answer pings. Each ping carries its number, and the pongs must return
    # these in order. The server replaces a queued pong with a newer one only if 16 control frames are queued, and this client
    # never has so many pings in flight.
    async with session.ws_connect(url, compress=15, max_msg_size=0, autoping=False) as socket:
        await socket.send_str("hello " + socket._response.headers.get("Sec-WebSocket-Extensions", ""))
        while member.ended is None or pongs < pings:
            message = await socket.receive()
            if message.type == WSMsgType.PING:
                await socket.pong(message.data)
                continue
            if message.type == WSMsgType.PONG:
                if message.data != b"%d" % pongs:
                    raise Difference(f"pong {message.data} instead of {pongs}")
                pongs += 1
                continue
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                raise Difference(f"{message.type}: {message.data}")
            if member.ended is not None:
                continue
            try:
                answers = member.receive(message.data)
            except Difference as difference:
                await socket.send_str(f"failed {difference}")
                raise
            for answer in answers:
                await (socket.send_str(answer) if isinstance(answer, str) else socket.send_bytes(answer))
            if member.ended is not None or member.count % PING_EVERY == 1:
                await socket.ping(b"%d" % pings)
                pings += 1
    return member


async def play_slot(session, url):
    messages = 0
    while True:
        member = await play_connection(session, url)
        messages += member.count
        if member.ended == "over":
            return messages


async def main(url):
    async with aiohttp.ClientSession() as session:
        counts = await asyncio.gather(*(play_slot(session, url) for _ in range(CONNECTIONS)))
    print(f"{sum(counts)} messages")


print(f"aiohttp {aiohttp.__version__}", flush=True)
asyncio.run(main(sys.argv[1]))
