"""What the proxies get wrong with the least of a configuration: each claim of docs/deploying.md is a check here."""

import asyncio
import signal
from pathlib import Path

from websockets.exceptions import InvalidStatus

from clients import Clients, Process, is_delayed, program, start_proxy
from examples import free_address
from proxies import Apache, Caddy, HAProxy, Nginx, Site

UPGRADE = 'proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";'
HOST = "proxy_set_header Host $http_host;"

# Of one address, in the checks that need a limit.
LIMIT = 3


class Bench:
    """What a check needs to start the program and a proxy with a configuration of its own."""

    def __init__(self, proxy, site, binary, token_file):
        self.proxy = proxy
        self.site = site
        self.clients = Clients(site)
        self.port = int(site.backend.rpartition(":")[2])
        self.program = lambda *options, port=self.port: program(binary, port, token_file, *options)

    def start(self, *options, trusts_proxy=True):
        command = self.program(*options)
        if not trusts_proxy:
            at = command.index("--trusted-proxy")
            del command[at : at + 2]
        return Process(command, self.port, self.site.directory / "program.log")

    def behind(self, text=None, **options):
        command = self.proxy.command(self.site, text or self.proxy.MINIMAL, **options)
        return start_proxy(self.site, command)

    async def handshake(self, **options):
        """The status of the answer to a WebSocket handshake."""
        try:
            async with self.clients.websocket("/", **options) as ws:
                await ws.send("hello")
                assert await ws.recv() == "hello"
                return 101
        except InvalidStatus as error:
            return error.response.status_code


def nginx(*directives):
    """The minimal configuration with more directives in its location."""
    return Nginx.MINIMAL.replace("proxy_pass", " ".join([*directives, "proxy_pass"]))


def apache(*directives):
    return Apache.MINIMAL.replace("ProxyPass", "\n".join([*directives, "ProxyPass"]))


async def check(counts, proxy, site, binary, token_file):
    bench = Bench(proxy, site, binary, token_file)
    for claim in CLAIMS[proxy]:
        await counts.check(f"{proxy.name}, minimal", claim, bench)


async def handshake_without_upgrade_headers_gets_426(bench):
    async with bench.start(), bench.behind(nginx(HOST)):
        assert await bench.handshake() == 426


async def page_without_host_is_refused_with_403(bench):
    """The proxy sends the program's address as Host, which is not the page's origin. Programs send no Origin."""
    text = nginx(UPGRADE) if bench.proxy is Nginx else None
    async with bench.start(), bench.behind(text):
        assert await bench.handshake() == 403
        assert await bench.handshake(origin=None) == 101


async def page_with_host_without_port_is_refused_with_403(bench):
    """$host has no port; the origin has one unless it is 443."""
    async with bench.start(), bench.behind(nginx(UPGRADE, "proxy_set_header Host $host;")):
        assert await bench.handshake() == 403


async def events_are_prompt_with_x_accel_buffering_also_with_gzip(bench):
    gzip = "gzip on; gzip_types text/event-stream; gzip_proxied any;"
    for text in nginx(), nginx(gzip):
        async with bench.start(), bench.behind(text):
            assert not await is_delayed(bench.clients, "prompt", {"Accept-Encoding": "gzip"})


async def events_are_held_back_where_x_accel_buffering_is_ignored(bench):
    """As from a program that does not send it, or through a second nginx: the first does not pass it on."""
    ignored = "proxy_ignore_headers X-Accel-Buffering;"
    async with bench.start(), bench.behind(nginx(ignored)):
        assert await is_delayed(bench.clients, "delayed")
    async with bench.start(), bench.behind(nginx(ignored, "proxy_buffering off;")):
        assert not await is_delayed(bench.clients, "prompt")


async def each_client_takes_two_of_worker_connections(bench):
    async with bench.start(), bench.behind(nginx(HOST, UPGRADE), connections=20):
        opened = []
        try:
            while len(opened) < 20:
                opened.append(await bench.clients.websocket("/"))
        except (OSError, EOFError, InvalidStatus):
            pass
        assert 5 < len(opened) <= 10, len(opened)
        for ws in opened:
            await ws.close()


async def reload_moves_clients_to_the_next_program(bench):
    """A deploy without a refused client, as docs/stopping.md has it. With the committed configuration."""
    site = bench.site
    next_port = free_address()[1]
    next_site = Site(site.directory, site.port, f"127.0.0.1:{next_port}", (site.certificate, site.key, site.both))
    next_program = Process(bench.program(port=next_port), next_port, site.directory / "next.log")
    async with bench.start() as old, start_proxy(site, Nginx.command(site)) as proxy:
        async with bench.clients.websocket("/moved") as ws, next_program:
            # The reply shows that the client is in its room.
            await ws.send("in")
            assert await ws.recv() == "in"
            Nginx.command(next_site)
            old_workers = Path(f"/proc/{proxy.process.pid}/task/{proxy.process.pid}/children").read_text().split()
            assert old_workers
            proxy.process.send_signal(signal.SIGHUP)
            # For a tenth of a second, old and new workers accept. nginx reports the shutdown of a worker only by its title.
            while not all("shutting down" in Path(f"/proc/{worker}/cmdline").read_text() for worker in old_workers):
                await asyncio.sleep(0.02)
            # New requests reach the program where nobody is in the room.
            assert await bench.clients.publish("moved", "by the next program") == {"members": 0}
            await ws.send("still open")
            assert await ws.recv() == "still open"
            stopping = asyncio.create_task(old.stop())
            await ws.wait_closed()
            assert ws.close_code == 1001, ws.close_code
            assert await bench.handshake() == 101
            assert await stopping == 0


async def limit_per_address_without_x_forwarded_for_is_not_applied(bench):
    """A trusted proxy's own address is not limited, and a client without X-Forwarded-For has no other."""
    async with bench.start("--max-connections-per-address", LIMIT), bench.behind():
        opened = [await bench.clients.websocket("/") for _ in range(LIMIT + 1)]
        for ws in opened:
            await ws.close()


async def limit_per_address_without_trusted_proxy_is_shared_by_all(bench):
    async with bench.start("--max-connections-per-address", LIMIT, trusts_proxy=False), bench.behind():
        opened = [await bench.clients.websocket("/", address="127.0.0.8") for _ in range(LIMIT)]
        assert await bench.handshake(address="127.0.0.9") == 429
        for ws in opened:
            await ws.close()


async def request_during_a_short_restart_is_answered(bench):
    """HAProxy tries three times more, one second apart."""
    async with bench.behind():
        request = asyncio.create_task(bench.clients.get("/"))
        async with bench.start():
            assert (await request).status_code == 200


async def events_are_prompt_by_default(bench):
    async with bench.start(), bench.behind():
        assert not await is_delayed(bench.clients, "prompt")


async def events_are_prompt_with_compression(bench):
    text = {
        HAProxy: HAProxy.MINIMAL + "    compression algo gzip\n    compression type text/event-stream\n",
        Caddy: Caddy.MINIMAL.replace("\treverse", "\tencode gzip\n\treverse"),
        Apache: apache("ProxyPreserveHost On", "SetOutputFilter DEFLATE"),
    }[bench.proxy]
    async with bench.start(), bench.behind(text):
        assert not await is_delayed(bench.clients, "prompt", {"Accept-Encoding": "gzip"})


async def page_is_accepted_by_default(bench):
    async with bench.start(), bench.behind():
        assert await bench.handshake() == 101


async def reload_closes_every_websocket(bench):
    async with bench.start(), bench.behind():
        async with bench.clients.websocket("/") as ws:
            command = Caddy.reload_command(bench.site, Caddy.MINIMAL.replace("\treverse", "\tencode gzip\n\treverse"))
            reload = await asyncio.create_subprocess_exec(*map(str, command), stderr=asyncio.subprocess.DEVNULL)
            assert await reload.wait() == 0
            await ws.wait_closed()
            # During a reload, Caddy sends a close frame to the client and to the program.
            assert ws.close_code == 1001, ws.close_code


async def handshake_without_upgrade_parameter_gets_426(bench):
    text = apache("ProxyPreserveHost On").replace(" upgrade=websocket", "")
    async with bench.start(), bench.behind(text):
        assert await bench.handshake() == 426


async def each_websocket_occupies_a_thread(bench):
    """The client after those waits, until one of them leaves."""
    threads = 25
    limits = f"ServerLimit 1\nThreadsPerChild {threads}\nMaxRequestWorkers {threads}\n"
    async with bench.start(), bench.behind(limits + apache("ProxyPreserveHost On")):
        opened = [await bench.clients.websocket("/") for _ in range(threads)]
        next_client = asyncio.create_task(bench.handshake())
        done, _ = await asyncio.wait([next_client], timeout=1)
        assert not done
        await opened.pop().close()
        assert await next_client == 101
        for ws in opened:
            await ws.close()


CLAIMS = {
    Nginx: [
        handshake_without_upgrade_headers_gets_426,
        page_without_host_is_refused_with_403,
        page_with_host_without_port_is_refused_with_403,
        events_are_prompt_with_x_accel_buffering_also_with_gzip,
        events_are_held_back_where_x_accel_buffering_is_ignored,
        each_client_takes_two_of_worker_connections,
        reload_moves_clients_to_the_next_program,
    ],
    HAProxy: [
        page_is_accepted_by_default,
        events_are_prompt_by_default,
        events_are_prompt_with_compression,
        limit_per_address_without_x_forwarded_for_is_not_applied,
        limit_per_address_without_trusted_proxy_is_shared_by_all,
        request_during_a_short_restart_is_answered,
    ],
    Caddy: [
        page_is_accepted_by_default,
        events_are_prompt_by_default,
        events_are_prompt_with_compression,
        reload_closes_every_websocket,
    ],
    Apache: [
        page_without_host_is_refused_with_403,
        handshake_without_upgrade_parameter_gets_426,
        events_are_prompt_by_default,
        events_are_prompt_with_compression,
        each_websocket_occupies_a_thread,
    ],
}
