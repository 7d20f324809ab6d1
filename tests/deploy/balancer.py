"""Two nodes of a cluster behind HAProxy, with the configuration in docs/cluster.md: who is sent where, and what a killed node costs."""

import asyncio
import json
import re
from contextlib import AsyncExitStack

import httpx
from websockets.exceptions import InvalidStatus, WebSocketException

from clients import DEADLINE, Clients, Process, program, start_proxy
from proxies import DEPLOY, replaced

DOCUMENT = DEPLOY.parent / "docs/cluster.md"

PROGRAMS = ["haproxy", "redis-server"]

# The clients that follow the room, each with an address of its own.
MEMBERS = 6

ROOM = "live"

# Connections of one address to one node.
ADDRESS_MAX = 2

# As the configuration has them: so many health checks in a row take a node out, or in.
CHECKS = 2


def configuration(site, ports, interval):
    """The only HAProxy configuration of the document. Addresses, the certificate and the interval of health checks are replaced."""
    blocks = re.findall(r"^```text\n(# /etc/haproxy/haproxy.cfg\n.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    [text] = blocks
    assert f"fall {CHECKS} rise {CHECKS}" in text
    return replaced(
        text,
        [
            # HAProxy does not start without descriptors for all connections.
            ("maxconn 20000", "maxconn 200"),
            ("inter 2s", f"inter {interval}"),
            ("bind :443 ", f"bind 127.0.0.1:{site.port} "),
            ("/etc/haproxy/certs/live.example.com.pem", site.both),
            ("10.0.0.1:8080", f"127.0.0.1:{ports[0]}"),
            ("10.0.0.2:8080", f"127.0.0.1:{ports[1]}"),
        ],
    )


class Node:
    """The program as a node of the cluster, which is also asked without the balancer."""

    def __init__(self, site, binary, token_file, redis_port, port, metrics_port):
        self.port = port
        self.metrics_port = metrics_port
        options = "--cluster", f"redis://127.0.0.1:{redis_port}", "--metrics", f"127.0.0.1:{metrics_port}"
        command = program(binary, port, token_file, *options, "--max-connections-per-address", ADDRESS_MAX)
        self.process = Process(command, port, site.directory / f"node-{port}.log")

    @staticmethod
    async def get(port, path):
        async with httpx.AsyncClient(timeout=DEADLINE) as http:
            response = await http.get(f"http://127.0.0.1:{port}{path}")
        response.raise_for_status()
        return response.text

    async def counts(self):
        """The numbers of clients on all nodes."""
        return json.loads(await self.get(self.port, f"/clients/{ROOM}"))

    async def connections(self):
        """The number of WebSocket clients on this node."""
        metrics = await self.get(self.metrics_port, "/metrics")
        shards = re.findall(r"^humphrey_ws_connections\{.*\} (\d+)$", metrics, re.MULTILINE)
        return sum(map(int, shards))

    def kill(self):
        self.process.kill()


class Member:
    """A client in the room that reconnects through the balancer, at once, whenever its connection ends."""

    def __init__(self, clients, address):
        self.clients = clients
        self.address = address
        self.connected = 0
        self.received = []

    async def follow(self):
        while True:
            try:
                async with self.clients.websocket(f"/{ROOM}", address=self.address) as ws:
                    self.connected += 1
                    async for message in ws:
                        self.received.append(message)
            except (WebSocketException, OSError):
                # Otherwise a balancer without a node would be asked without a pause.
                await asyncio.sleep(0.02)


class StandIn:
    """A server in a node's place that answers health checks as told, and counts them and all other requests."""

    def __init__(self, port):
        self.port = port
        self.status = 200
        self.checks = 0
        self.requests = 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def serve(self, reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET /ready "):
                self.checks += 1
                status = self.status
            else:
                self.requests += 1
                status = 404
            writer.write(f"HTTP/1.1 {status} Told\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def eventually(condition):
    """Waits until an asynchronous condition holds; the deadline is that of the check."""
    while not await condition():
        await asyncio.sleep(0.02)


class Cluster:
    """Both nodes, the clients, and those that follow the room."""

    def __init__(self, clients, nodes, members):
        self.clients = clients
        self.nodes = nodes
        self.members = members

    async def publish(self, text):
        """Publishes through the balancer, and waits until every member has received it, once and last."""
        before = [len(member.received) for member in self.members]
        answer = await self.clients.publish(ROOM, text)

        async def have_received():
            return all(len(member.received) > had for member, had in zip(self.members, before, strict=True))

        await eventually(have_received)
        for member, had in zip(self.members, before, strict=True):
            assert member.received[had:] == [text], member.received
        return answer


async def clients_are_divided_among_both_nodes(cluster):
    for node in cluster.nodes:

        async def counts_all():
            expected = {"clients": MEMBERS, "room": MEMBERS, "nodes": 2, "complete": True}
            return await node.counts() == expected

        await eventually(counts_all)
    connections = [await node.connections() for node in cluster.nodes]
    # Those that connect at the same time are not divided exactly.
    assert sum(connections) == MEMBERS and min(connections) > 0, connections


async def published_message_reaches_the_clients_of_both_nodes(cluster):
    # More than one, so that each node publishes.
    for number in range(4):
        answer = await cluster.publish(f"message {number}")
        assert answer == {"members": MEMBERS, "nodes": 2, "complete": True}, answer


async def connections_are_limited_by_the_address_of_the_client(cluster):
    """Not by the balancer's."""
    async with AsyncExitStack() as opened:
        count = 0
        try:
            while count <= 2 * ADDRESS_MAX:
                await opened.enter_async_context(cluster.clients.websocket("/", address="127.0.0.9"))
                count += 1
        except InvalidStatus as error:
            assert error.response.status_code == 429, error
        assert ADDRESS_MAX <= count <= 2 * ADDRESS_MAX, count
        await opened.enter_async_context(cluster.clients.websocket("/", address="127.0.0.10"))


async def clients_of_a_killed_node_reconnect_and_receive(cluster):
    """No health check has noticed its end."""
    killed, left = cluster.nodes
    before = sum(member.connected for member in cluster.members)
    lost = await killed.connections()
    assert lost > 0
    killed.kill()

    async def has_all():
        counts = await left.counts()
        return counts["room"] == MEMBERS and await left.connections() == MEMBERS

    await eventually(has_all)
    # Only those of the killed node.
    assert sum(member.connected for member in cluster.members) == before + lost
    for number in range(4):
        await cluster.publish(f"after the end of a node {number}")


async def node_whose_ready_is_503_gets_no_request(cluster):
    killed, _ = cluster.nodes

    async def get():
        return (await cluster.clients.get("/clients")).status_code

    async with StandIn(killed.port) as stand_in:

        async def is_in():
            await get()
            return stand_in.requests > 0

        await eventually(is_in)
        stand_in.status = 503
        until = stand_in.checks + CHECKS + 1

        async def has_failed():
            return stand_in.checks >= until

        await eventually(has_failed)
        requests = stand_in.requests
        # It has the fewest connections, so the balancer would choose it.
        assert [await get() for _ in range(5)] == [200] * 5
        assert stand_in.requests == requests


async def check(counts, site, binary, token_file, ports):
    """Runs all checks, one after the other. `ports`: five that are free."""
    redis_port, *ports = ports
    command = "redis-server", "--port", redis_port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"
    redis = Process([*command, "--dir", site.directory], redis_port, site.directory / "redis.log")
    nodes = [
        Node(site, binary, token_file, redis_port, port, metrics_port)
        for port, metrics_port in zip(ports[:2], ports[2:], strict=True)
    ]
    clients = Clients(site)
    cluster = Cluster(clients, nodes, [Member(clients, f"127.0.0.{20 + number}") for number in range(MEMBERS)])

    def haproxy(interval):
        text = configuration(site, [node.port for node in nodes], interval)
        return start_proxy(site, ["haproxy", "-db", "-f", site.write("haproxy.cfg", text)])

    async def run(check):
        await counts.check("two nodes behind HAProxy", check, cluster)

    async with AsyncExitStack() as running:
        await running.enter_async_context(redis)
        for node in nodes:
            await running.enter_async_context(node.process)
        # Without health checks, clients are sent to a killed node, too.
        async with haproxy("1h"):
            following = [asyncio.create_task(member.follow()) for member in cluster.members]
            try:
                await run(clients_are_divided_among_both_nodes)
                await run(published_message_reaches_the_clients_of_both_nodes)
                await run(connections_are_limited_by_the_address_of_the_client)
                await run(clients_of_a_killed_node_reconnect_and_receive)
            finally:
                for task in following:
                    task.cancel()
                await asyncio.gather(*following, return_exceptions=True)
        async with haproxy("200ms"):
            await run(node_whose_ready_is_503_gets_no_request)
