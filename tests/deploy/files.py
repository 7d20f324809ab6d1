"""Checks of what deploy/ has beside the proxies' configurations, with the tools of systemd and Prometheus, and strace."""

import asyncio
import re
import subprocess

from clients import Process
from examples import free_address
from proxies import DEPLOY, replaced

UNIT = DEPLOY / "humphrey-broadcast.service"
SOCKET_UNIT = DEPLOY / "humphrey-broadcast.socket"
ALERTS_TEST = DEPLOY.parent / "tests/deploy/alerts_test.yml"

# The most that `systemd-analyze security` may find exposed, in tenths: 0 is least.
EXPOSURE_MAX = 15


async def check(counts, binary, directory):
    for claim in unit_is_valid, unit_is_hardened, unit_allows_the_program_its_system_calls, prometheus_files_are_valid:
        await counts.check("files", claim, binary, directory)
    await counts.check("files", metrics_are_valid, binary, directory)


async def call(*command, stdin=None):
    """Runs a tool that must succeed, and returns what it prints."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate(stdin)
    assert process.returncode == 0, output.decode()
    return output.decode()


async def unit_is_valid(binary, directory):
    unit = directory / UNIT.name
    unit.write_text(replaced(UNIT.read_text(), [("/usr/bin/humphrey-broadcast", binary)]))
    socket = directory / SOCKET_UNIT.name
    socket.write_text(SOCKET_UNIT.read_text())
    assert await call("systemd-analyze", "verify", "--man=no", unit, socket) == ""


async def unit_is_hardened(binary, directory):
    await call("systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", "--no-pager", UNIT)


def members(text, group):
    """The system calls of a group of `systemd-analyze syscall-filter`, which may contain groups."""
    block = re.search(rf"^{group}\n((?:    .*\n)+)", text, re.MULTILINE).group(1)
    for line in map(str.strip, block.splitlines()):
        if line.startswith("@"):
            yield from members(text, line)
        elif not line.startswith("#"):
            yield line


async def unit_allows_the_program_its_system_calls(binary, directory):
    """From its start, over a request and a WebSocket's refusal, to its end by SIGTERM."""
    groups = await call("systemd-analyze", "syscall-filter", "--no-pager")
    allowed = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE):
        names = set()
        for name in line.removeprefix("~").split():
            names |= set(members(groups, name)) if name.startswith("@") else {name}
        allowed = allowed - names if line.startswith("~") else allowed | names
    trace, port, log = directory / "trace", free_address()[1], directory / "traced.log"
    options = "--listen", f"127.0.0.1:{port}", "--history", "9", "--metrics", "127.0.0.1:0"
    traced = ["strace", "-f", "-qq", "-o", trace, binary, *options]
    async with Process(traced, port, log) as process:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert b"</html>" in await reader.read()
        writer.close()
        pid = int(trace.read_text().split(maxsplit=1)[0])
        subprocess.run(["kill", str(pid)], check=True)
        assert await asyncio.to_thread(process.process.wait, 10) == 0
    called = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))
    assert {"accept4", "epoll_wait"} & called, called
    assert called <= allowed, called - allowed


async def prometheus_files_are_valid(binary, directory):
    await call("promtool", "check", "config", DEPLOY / "prometheus.yml")
    await call("promtool", "test", "rules", ALERTS_TEST)


async def metrics_are_valid(binary, directory):
    """Also those that the alerts name exist."""
    port, address = free_address()[1], free_address()
    options = "--listen", f"127.0.0.1:{port}", "--metrics", "{}:{}".format(*address)
    # The metrics are served last.
    async with Process([binary, *options], address[1], directory / "metrics.log"):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head, _, text = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert head.startswith(b"HTTP/1.1 200"), head
    await call("promtool", "check", "metrics", stdin=text)
    named = set(re.findall(r"humphrey_ws_\w+", (DEPLOY / "humphrey-alerts.yml").read_text()))
    missing = named - set(re.findall(r"humphrey_ws_\w+", text.decode()))
    assert not missing, missing
