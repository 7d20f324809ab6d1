"""Runs the checks, or only those of two nodes behind HAProxy; tests/deploy/run starts this with the Python that has the packages."""

import asyncio
import shutil
import signal
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))

from examples import build_program, free_address

import balancer
import committed
import files
import minimal
import proxies
import sockets
from clients import TOKEN, Counts


# Further ports than two for each site: those of the nodes and of Redis.
NODES_PORTS = 5


async def check_all(counts, binary, directory, only_balancer):
    certificate = proxies.make_certificate(directory)
    token_file = directory / "token"
    token_file.write_text(TOKEN)
    ports = set()
    while len(ports) < 4 * len(proxies.PROXIES) + 4 + NODES_PORTS:
        ports.add(free_address()[1])

    def site(name):
        own = directory / name
        own.mkdir()
        return proxies.Site(own, ports.pop(), f"127.0.0.1:{ports.pop()}", certificate)

    async def check_proxy(proxy):
        await committed.check(counts, proxy, site(proxy.name), binary, token_file)
        await minimal.check(counts, proxy, site(f"{proxy.name}-minimal"), binary, token_file)

    # A failure to start ends all of it, and with it every process.
    async with asyncio.TaskGroup() as group:
        nodes_ports = [ports.pop() for _ in range(NODES_PORTS)]
        group.create_task(balancer.check(counts, site("balancer"), binary, token_file, nodes_ports))
        if only_balancer:
            return
        for proxy in proxies.PROXIES:
            group.create_task(check_proxy(proxy))
        group.create_task(sockets.check(counts, site("sockets"), binary))
        group.create_task(files.check(counts, binary, directory))


def main():
    only_balancer = sys.argv[1:] == ["balancer"]
    if sys.argv[1:] and not only_balancer:
        sys.exit("usage: tests/deploy/run [balancer]")
    missing = [] if only_balancer else proxies.missing()
    missing += [program for program in balancer.PROGRAMS if shutil.which(program) is None and program not in missing]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}")
    # Asked to end, it ends its processes, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    counts = Counts()
    binary = build_program()
    with tempfile.TemporaryDirectory() as directory:
        # Apache's processes give up root.
        Path(directory).chmod(0o755)
        asyncio.run(check_all(counts, binary, Path(directory), only_balancer))
    print(f"{counts.passed} passed, {counts.failed} failed")
    return 1 if counts.failed else 0


if __name__ == "__main__":
    sys.exit(main())
