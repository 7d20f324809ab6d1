"""Ways between a proxy and the program other than HTTP over TCP: the PROXY protocol, below TLS and without it, and a Unix socket."""

from contextlib import AsyncExitStack

from clients import CLIENT, Clients, Process, start_proxy
from proxies import BACKEND, Nginx, replaced

HAPROXY = """defaults
    mode tcp
    timeout connect 5s
    timeout client 75s
    timeout server 75s
frontend live
    bind 127.0.0.1:{port}{tls}
    default_backend humphrey_broadcast
backend humphrey_broadcast
    server broadcast {backend} {header}{check}
"""


async def welcomed(clients):
    """The address that the program takes for the client's, as its first message says."""
    async with clients.websocket() as client:
        message = await client.recv()
    return message.removeprefix("Welcome, ").removesuffix("!").rsplit(":", 1)[0]


async def proxy_names_the_client(clients):
    assert await welcomed(clients) == CLIENT


async def requests_pass(clients):
    assert (await clients.get("/health")).status_code == 200


async def check(counts, site, binary):
    port = int(site.backend.rsplit(":", 1)[1])
    socket = site.directory / "socket"
    # The proxy comes from 127.0.0.1, and clients from another address.
    proxied = ["--proxy-protocol", "127.0.0.1", "--allow-host", "*"]
    tls = ["--tls-cert", site.certificate, "--tls-key", site.key]
    listen = ["--listen", site.backend]
    unix = [*listen, "--listen", f"unix:{socket}", "--trusted-proxy", "unix", "--allow-host", "*"]

    def haproxy(name, header, ends_tls):
        text = HAPROXY.format(
            port=site.port,
            backend=site.backend,
            header=header,
            tls=f" ssl crt {site.both}" if ends_tls else "",
            check=" check inter 100ms check-send-proxy",
        )
        return start_proxy(site, ["haproxy", "-db", "-f", site.write(f"{name}.cfg", text)])

    def nginx():
        text = f"# Not {BACKEND}.\nupstream program {{ server unix:{socket}; }}\n{Nginx.MINIMAL}"
        headers = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; "
        headers += "proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; "
        text = replaced(text, [(f"proxy_pass http://{BACKEND};", f"{headers}proxy_pass http://program;")])
        return start_proxy(site, Nginx.command(site, text))

    clients = Clients(site)
    cases = [
        ("HAProxy, PROXY 2 below TLS", [*listen, *proxied, *tls], haproxy("v2", "send-proxy-v2", False)),
        ("HAProxy, PROXY 1", [*listen, *proxied], haproxy("v1", "send-proxy", True)),
        ("nginx, Unix socket", unix, nginx()),
    ]
    for name, options, proxy in cases:
        async with AsyncExitStack() as running:
            log = site.directory / f"program-{name}.log"
            await running.enter_async_context(Process([binary, *options], port, log))
            await running.enter_async_context(proxy)
            await counts.check(name, proxy_names_the_client, clients)
            await counts.check(name, requests_pass, clients)
