"""Checks of the committed configurations: everything works behind each proxy."""

import asyncio

from websockets.exceptions import ConnectionClosed, InvalidStatus

from clients import Clients, Process, program, start_proxy, websocket_over_http2
from proxies import TIMEOUT

# Of one client's address.
CONNECTIONS_MAX = 12

# Proxies look at their timers about once a second, and machines are busy.
CUT_BEFORE = TIMEOUT + 5

# How long clients stay idle that must outlive the timeout.
IDLE = 2 * TIMEOUT + 1

MEBIBYTE = 1 << 20


async def check(counts, proxy, site, binary, token_file):
    """Runs all checks with one proxy, which goes on while the program behind it is started, stopped and started again."""
    clients = Clients(site)
    backend = int(site.backend.rpartition(":")[2])
    log = site.directory / "program.log"

    def start(*options):
        return Process(program(binary, backend, token_file, *options), backend, log)

    async with start_proxy(site, proxy.command(site)):

        async def run(check, *arguments):
            await counts.check(proxy.name, check, clients, *arguments)

        async with start("--heartbeat", "0", "--events-keep-alive", "600") as silent:
            await asyncio.gather(
                run(silent_websocket_is_cut_where_the_proxy_has_a_timeout, proxy),
                run(silent_event_stream_ends_with_the_timeout, proxy),
            )
            await run(graceful_shutdown_reaches_every_client, silent)
        await run(requests_without_the_program_are_answered_by_the_proxy, proxy)
        options = "--heartbeat", "1", "--events-keep-alive", "1", "--max-connections-per-address", CONNECTIONS_MAX
        async with start(*options):
            await run(first_client_after_a_restart_connects)
            await run(page_is_served)
            await asyncio.gather(
                run(idle_websocket_outlives_the_timeout_with_heartbeats),
                run(idle_event_stream_outlives_the_timeout_with_comments),
                each_at_a_time(run, proxy),
            )


async def each_at_a_time(run, proxy):
    await run(messages_pass_both_ways)
    await run(message_of_1_mib_passes_both_ways)
    await run(published_message_of_1_mib_arrives)
    await run(events_arrive_while_the_stream_is_open)
    await run(events_over_http2_arrive_while_the_stream_is_open)
    await run(websocket_over_http2_is_served_where_offered, proxy)
    await run(page_of_another_origin_is_refused)
    await run(request_for_another_host_gets_the_status_of_the_proxy, proxy)
    await run(connections_are_counted_by_client_address)


async def silent_websocket_is_cut_where_the_proxy_has_a_timeout(clients, proxy):
    """Without heartbeats. It shows that the timeout is in force where the idle WebSocket outlives it."""
    async with clients.websocket("/silent") as ws:
        try:
            async with asyncio.timeout(CUT_BEFORE if proxy.cuts_websockets else IDLE):
                raise AssertionError(f"received {await ws.recv()!r}")
        except ConnectionClosed as error:
            # Without a close frame.
            assert proxy.cuts_websockets and error.rcvd is None, error
        except TimeoutError:
            assert not proxy.cuts_websockets


async def silent_event_stream_ends_with_the_timeout(clients, proxy):
    async with clients.events("silent") as stream:
        try:
            async with asyncio.timeout(CUT_BEFORE if proxy.cuts_event_streams else IDLE):
                await stream.end()
            assert proxy.cuts_event_streams
        except TimeoutError:
            assert not proxy.cuts_event_streams


async def graceful_shutdown_reaches_every_client(clients, silent):
    async with clients.websocket("/stopping") as ws, clients.events("stopping") as stream:
        stopping = asyncio.create_task(silent.stop())
        await ws.wait_closed()
        assert ws.close_code == 1001, ws.close_code
        await stream.end()
        assert await stopping == 0


async def requests_without_the_program_are_answered_by_the_proxy(clients, proxy):
    response = await clients.get("/")
    assert response.status_code == proxy.unavailable, response
    try:
        async with clients.websocket("/"):
            raise AssertionError("a WebSocket was opened")
    except InvalidStatus as error:
        assert error.response.status_code == proxy.unavailable, error


async def first_client_after_a_restart_connects(clients):
    async with clients.websocket("/restart") as ws:
        await ws.send("again")
        assert await ws.recv() == "again"


async def page_is_served(clients):
    response = await clients.get("/")
    assert response.status_code == 200, response
    assert response.headers["content-type"].startswith("text/html"), response.headers
    assert "</html>" in response.text


async def messages_pass_both_ways(clients):
    async with clients.websocket("/ways") as ws:
        for number in range(100):
            await ws.send(f"text {number}")
            await ws.send(number.to_bytes(2, "big"))
        for number in range(100):
            assert await ws.recv() == f"text {number}"
            assert await ws.recv() == number.to_bytes(2, "big")


async def message_of_1_mib_passes_both_ways(clients):
    message = "é" * (MEBIBYTE // 2)
    async with clients.websocket("/big") as ws:
        await ws.send(message)
        assert await ws.recv() == message


async def published_message_of_1_mib_arrives(clients):
    message = "x" * MEBIBYTE
    async with clients.websocket("/published") as ws:
        # The reply shows that the client is in its room.
        await ws.send("in")
        assert await ws.recv() == "in"
        assert await clients.publish("published", message) == {"members": 1}
        assert await ws.recv() == message


async def events_arrive_while_the_stream_is_open(clients, http2=False):
    async with clients.events("events", http2) as stream:
        assert stream.response.status_code == 200, stream.response
        assert stream.response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert stream.response.headers["content-type"] == "text/event-stream", stream.response.headers
        for number in range(3):
            await clients.publish("events", f"event {number}")
            assert await stream.event() == f"event {number}"


async def events_over_http2_arrive_while_the_stream_is_open(clients):
    await events_arrive_while_the_stream_is_open(clients, http2=True)


async def websocket_over_http2_is_served_where_offered(clients, proxy):
    payload = b"over HTTP/2"
    expected = payload if proxy.offers_websocket_over_http2 else None
    assert await websocket_over_http2(clients, "/http2", payload) == expected


async def page_of_another_origin_is_refused(clients):
    try:
        async with clients.websocket("/", origin="https://elsewhere.example"):
            raise AssertionError("a WebSocket was opened")
    except InvalidStatus as error:
        assert error.response.status_code == 403, error


async def request_for_another_host_gets_the_status_of_the_proxy(clients, proxy):
    response = await clients.get("/", host=f"elsewhere.example:{clients.port}")
    assert response.status_code == proxy.unknown_host, response
    if proxy.unknown_host == 200:
        assert response.content == b"", response.text


async def connections_are_counted_by_client_address(clients):
    """Without X-Forwarded-For, all clients would share the proxy's address; a client can't choose its own with that header."""
    opened = []
    try:
        for _ in range(CONNECTIONS_MAX):
            opened.append(await clients.websocket("/full", address="127.0.0.9"))
        for headers in {}, {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "127.0.0.1"}:
            try:
                await clients.websocket("/full", address="127.0.0.9", additional_headers=headers)
                raise AssertionError(f"over the limit with {headers}")
            except InvalidStatus as error:
                assert error.response.status_code == 429, error
        opened.append(await clients.websocket("/full", address="127.0.0.10"))
    finally:
        for ws in opened:
            await ws.close()


async def idle_websocket_outlives_the_timeout_with_heartbeats(clients):
    async with clients.websocket("/idle") as ws:
        try:
            async with asyncio.timeout(IDLE):
                raise AssertionError(f"received {await ws.recv()!r}")
        except TimeoutError:
            pass
        await ws.send("still here")
        assert await ws.recv() == "still here"


async def idle_event_stream_outlives_the_timeout_with_comments(clients):
    async with clients.events("idle") as stream:
        try:
            async with asyncio.timeout(IDLE):
                raise AssertionError(f"received {await stream.event()!r}")
        except TimeoutError:
            pass
