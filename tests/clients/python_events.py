"""Python's clients of server-sent events: sseclient, sseclient-py, httpx-sse and aiohttp-sse-client.

Each follows the program with history, whose event streams are sent a comment every second. It must report what was sent, and nothing
else: neither for what a stream begins with, nor for comments. Only at the start of a stream that begins with what is new, two of them
report an event with empty data, for the block that sets the id from which to resume (docs/server-sent-events.md).
"""

import asyncio
import importlib.util
import os
import queue
import re
import site
import threading
import time
import urllib.request
from pathlib import Path

import aiohttp
import aiohttp_sse_client.client
import httpx
import httpx_sse
import sseclient as sseclient_py

from checks import DEADLINE, Checks

PROGRAM_URL = os.environ["PROGRAM_URL"]
METRICS_URL = os.environ["PROGRAM_METRICS_URL"]
TOKEN = os.environ["PROGRAM_TOKEN"]

# Comments to each client before anything is sent, and between events.
COMMENTS = 2


def module_beside_package(name):
    """sseclient is a module of the same name as the package of sseclient-py, which Python prefers."""
    directories = map(Path, site.getsitepackages())
    path = next(path for directory in directories if (path := directory / f"{name}.py").exists())
    specification = importlib.util.spec_from_file_location(f"{name}_module", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


sseclient = module_beside_package("sseclient")


def headers_of(last_id):
    return {} if last_id is None else {"Last-Event-ID": last_id}


def with_sseclient(url, last_id, report):
    for event in sseclient.SSEClient(url, last_id=last_id):
        report(event.event, event.data, event.id)


def with_sseclient_py(url, last_id, report):
    with httpx.stream("GET", url, headers=headers_of(last_id), timeout=None) as response:
        for event in sseclient_py.SSEClient(response.iter_bytes()).events():
            report(event.event, event.data, event.id)


def with_httpx_sse(url, last_id, report):
    with (
        httpx.Client(timeout=None) as client,
        httpx_sse.connect_sse(client, "GET", url, headers=headers_of(last_id)) as source,
    ):
        for event in source.iter_sse():
            report(event.event, event.data, event.id)


def with_aiohttp_sse_client(url, last_id, report):
    async def follow():
        timeout = aiohttp.ClientTimeout(total=None)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            aiohttp_sse_client.client.EventSource(url, session=session, headers=headers_of(last_id)) as source,
        ):
            async for event in source:
                report(event.type or "message", event.data, event.last_event_id)

    asyncio.run(follow())


# Report an event for a block without data, which is none by WHATWG HTML §9.2.6.
REPORT_BLOCKS_WITHOUT_DATA = {"sseclient", "httpx-sse"}

CLIENTS = {
    "sseclient": with_sseclient,
    "sseclient-py": with_sseclient_py,
    "httpx-sse": with_httpx_sse,
    "aiohttp-sse-client": with_aiohttp_sse_client,
}


def publish(room, text):
    request = urllib.request.Request(
        f"{PROGRAM_URL}publish/{room}", data=text.encode(), headers={"Authorization": f"Bearer {TOKEN}"}
    )
    urllib.request.urlopen(request, timeout=DEADLINE).close()


def streams_opened():
    text = urllib.request.urlopen(METRICS_URL, timeout=DEADLINE).read().decode()
    # Of each shard.
    return sum(map(int, re.findall(r"^\w*event_streams_opened_total\S* (\d+)$", text, re.MULTILINE)))


def await_comments():
    """Waits until a stream that begins now has had comments; so has every one that has begun before."""
    with urllib.request.urlopen(f"{PROGRAM_URL}events/nobody?since=now", timeout=DEADLINE) as stream:
        seen = 0
        while seen < COMMENTS:
            seen += stream.readline() == b":\n"


class Follower:
    """A client that follows a room, from the first of its kept messages, from the one after an id, or from `since`, on a thread of
    its own, which ends with the program.
    """

    def __init__(self, follow, room, last_id=None, since="all"):
        self.reports = queue.Queue()
        before = streams_opened()
        report = lambda *event: self.reports.put(event)
        arguments = f"{PROGRAM_URL}events/{room}?since={since}", last_id, report
        threading.Thread(target=follow, args=arguments, daemon=True).start()
        deadline = time.monotonic() + DEADLINE
        # The client libraries do not report that a stream has opened, so poll the program's counter.
        while streams_opened() == before:
            assert time.monotonic() < deadline, "the stream has not begun"
            time.sleep(0.01)

    def expect(self, text):
        """The next report is of this message. Returns its id."""
        kind, data, id = self.reports.get(timeout=DEADLINE)
        assert (kind, data) == ("message", text), (kind, data, id)
        return id


def reports_messages_and_nothing_else(follow, room):
    """Where it yields, clients are sent comments."""
    first = Follower(follow, room)
    yield
    publish(room, "one")
    first.expect("one")
    yield
    publish(room, "two")
    last_id = first.expect("two")
    assert last_id, "a message that is kept has an id"
    # It has missed nothing.
    again = Follower(follow, room, last_id)
    yield
    publish(room, "three")
    for follower in first, again:
        last_id = follower.expect("three")
    publish(room, "four")
    has_missed_one = Follower(follow, room, last_id)
    yield
    for follower in first, again, has_missed_one:
        follower.expect("four")
        assert follower.reports.empty(), follower.reports.get()


def begins_with_what_is_new(follow, name):
    """Where it yields, clients are sent comments."""
    room = f"{name}-new"
    publish(room, "before")
    follower = Follower(follow, room, since="now")
    yield
    publish(room, "after")
    if name in REPORT_BLOCKS_WITHOUT_DATA:
        assert follower.expect(""), "the id of the position"
    assert follower.expect("after"), "a message that is kept has an id"
    yield
    assert follower.reports.empty(), follower.reports.get()


checks = Checks("Python, server-sent events")
running = {
    f"{name} {check.__name__.replace('_', ' ')}": check(follow, name)
    for check in (reports_messages_and_nothing_else, begins_with_what_is_new)
    for name, follow in CLIENTS.items()
}
while running:
    for what, check in list(running.items()):
        try:
            next(check)
        except StopIteration:
            del running[what]
            checks.passes(what)
        except Exception:
            del running[what]
            checks.fails(what)
    if running:
        await_comments()
checks.finish()
