"""Clients, processes and counts that the checks share."""

import asyncio
import os
import signal
import socket
import ssl
import subprocess
import time
import traceback

import h2.config
import h2.connection
import h2.events
import h2.settings
import httpx
from websockets.asyncio.client import connect

from proxies import NAME

# How long anything may take that must happen, in seconds.
DEADLINE = 20

# How long an event may be held back until it counts as delayed: it comes within milliseconds otherwise.
PROMPT = 1

# Clients connect from addresses of their own, so that the proxy at 127.0.0.1 is not one of them.
CLIENT = "127.0.0.2"

TOKEN = "token-of-the-deployment-tests"


class Counts:
    """Counts checks. Each prints one line."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    async def check(self, who, check, *arguments):
        name = check.__name__.replace("_", " ")
        try:
            async with asyncio.timeout(DEADLINE):
                await check(*arguments)
        except Exception:
            self.failed += 1
            print(f"FAILED  {who}: {name}\n{traceback.format_exc()}", flush=True)
        else:
            self.passed += 1
            print(f"ok      {who}: {name}", flush=True)


class Process:
    """A program that runs in a session of its own until the block is left, and listens on 127.0.0.1."""

    def __init__(self, command, port, log, environment=None):
        self.command = [str(part) for part in command]
        self.port = port
        self.log = log
        self.environment = environment

    async def __aenter__(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
            )
        until = time.monotonic() + DEADLINE
        # Not every proxy reports that it listens, so retry until a connection succeeds.
        while not self.listens():
            if self.process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"{self.command[0]} does not listen:\n{self.log.read_text()}")
            await asyncio.sleep(0.02)
        return self

    async def __aexit__(self, *_):
        """Kills the process and its children: Apache takes ten seconds to stop by SIGTERM. Waits until none of them listens, since
        the next one would otherwise be taken for ready."""
        self.kill()
        until = time.monotonic() + DEADLINE
        while self.listens():
            assert time.monotonic() < until, f"{self.command[0]} still listens"
            await asyncio.sleep(0.02)

    def listens(self):
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
            return True
        except (ConnectionRefusedError, ConnectionResetError):
            return False

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    async def stop(self):
        """Sends SIGTERM and returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, DEADLINE)


def start_proxy(site, command):
    """Starts a proxy. It gets no variable of ours that could change what it does."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(site.directory)}
    return Process(command, site.port, site.directory / "proxy.log", environment)


class Clients:
    """Clients of one proxy."""

    def __init__(self, site):
        self.port = site.port
        self.certificate = str(site.certificate)
        self.trust = ssl.create_default_context(cafile=self.certificate)
        self.authority = f"{NAME}:{site.port}"
        self.origin = f"https://{self.authority}"

    def websocket(self, path="/", address=CLIENT, **options):
        """A WebSocket as the program's own page opens it. It sends no pings of its own."""
        options = {"origin": self.origin, "max_size": 2 << 20} | options
        return connect(
            f"wss://{self.authority}{path}",
            host="127.0.0.1",
            port=self.port,
            ssl=self.trust,
            local_addr=(address, 0),
            ping_interval=None,
            proxy=None,
            **options,
        )

    def http(self, http2=False, host=None, address=CLIENT):
        transport = httpx.AsyncHTTPTransport(verify=self.trust, http2=http2, http1=not http2, local_address=address)
        return httpx.AsyncClient(
            transport=transport,
            base_url=f"https://127.0.0.1:{self.port}",
            headers={"Host": host or self.authority},
            timeout=DEADLINE,
        )

    async def get(self, path, host=None, headers=None):
        async with self.http(host=host) as http:
            return await http.get(path, headers=headers, extensions={"sni_hostname": NAME})

    async def publish(self, room, content):
        async with self.http() as http:
            response = await http.post(
                f"/publish/{room}",
                content=content,
                headers={"Authorization": f"Bearer {TOKEN}"},
                extensions={"sni_hostname": NAME},
            )
        response.raise_for_status()
        return response.json()

    def events(self, room, http2=False, headers=None):
        return EventStream(self, room, http2, headers)


class EventStream:
    """An event stream that is open until the block is left."""

    def __init__(self, clients, room, http2, headers):
        self.http = clients.http(http2)
        self.stream = self.http.stream(
            "GET",
            f"/events/{room}",
            headers={"Accept": "text/event-stream"} | (headers or {}),
            extensions={"sni_hostname": NAME},
        )

    async def __aenter__(self):
        await self.http.__aenter__()
        self.response = await self.stream.__aenter__()
        self.lines = self.response.aiter_lines()
        return self

    async def __aexit__(self, *error):
        await self.stream.__aexit__(*error)
        await self.http.__aexit__(*error)

    async def event(self):
        """The data of the next event; comments are skipped. Ends with StopAsyncIteration at the end of the stream."""
        while True:
            line = await anext(self.lines)
            if line.startswith("data:"):
                return line.removeprefix("data:").strip()

    async def end(self):
        """Waits until the stream ends, in good order or not."""
        try:
            async for _ in self.lines:
                pass
        except httpx.HTTPError:
            pass


async def websocket_over_http2(clients, path, payload):
    """Sends one text message over a WebSocket on HTTP/2 (RFC 8441), and returns the reply; None if the proxy does not offer it."""
    trust = ssl.create_default_context(cafile=clients.certificate)
    trust.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", clients.port, ssl=trust, server_hostname=NAME, local_addr=(CLIENT, 0)
    )
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    received = b""
    stream = None
    try:
        while True:
            writer.write(connection.data_to_send())
            for event in connection.receive_data(await reader.read(65_536)):
                match event:
                    case h2.events.RemoteSettingsChanged() if stream is None:
                        code = h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL
                        if code not in event.changed_settings:
                            return None
                        stream = connection.get_next_available_stream_id()
                        head = {
                            ":method": "CONNECT",
                            ":protocol": "websocket",
                            ":scheme": "https",
                            ":authority": clients.authority,
                            ":path": path,
                            "origin": clients.origin,
                            "sec-websocket-version": "13",
                        }
                        connection.send_headers(stream, list(head.items()))
                    case h2.events.ResponseReceived():
                        assert dict(event.headers)[":status"] == "200", event.headers
                        # A masked text frame; the mask is zero.
                        connection.send_data(stream, bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload)
                    case h2.events.DataReceived():
                        received += event.data
                        if len(received) >= 2 + len(payload):
                            return received[2:]
                    case h2.events.StreamReset() | h2.events.ConnectionTerminated():
                        raise ConnectionError(event)
    finally:
        writer.close()


async def is_delayed(clients, room, headers=None):
    """Whether the proxy holds back the first event of an open stream, or even the head of the response."""

    async def first_event():
        async with clients.events(room, headers=headers) as stream:
            await clients.publish(room, "event")
            return await stream.event()

    try:
        async with asyncio.timeout(PROMPT):
            return await first_event() != "event"
    except TimeoutError:
        return True


def program(binary, port, token_file, *options):
    """The command line of humphrey-broadcast behind a proxy."""
    return [
        binary,
        *("--listen", f"127.0.0.1:{port}", "--allow-host", NAME, "--trusted-proxy", "127.0.0.1"),
        *("--publish-token-file", token_file, "--no-welcome", *options),
    ]


