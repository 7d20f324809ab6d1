"""Runs the checks in namespaces of their own; tests/packages/run starts this."""

import fcntl
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import contents
import image
import service
from checks import Counts
from packages import Packages
from system import System


def bring_up_loopback():
    """As `ip link set lo up`: see netdevice(7)."""
    set_flags, up = 0x8914, 1
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh22x", b"lo", up))


def main():
    directory, *groups = sys.argv[1:]
    directory = Path(directory)
    # Asked to end, it ends its processes, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    counts = Counts()
    old, new = Packages(directory / "1"), Packages(directory / "2")
    program = old.unpack(directory / "unpacked")
    if "contents" in groups:
        contents.check(counts, old, new, program)
    # podman and systemd want the second version of control groups, and nothing but it.
    subprocess.run(["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"], check=True)
    bring_up_loopback()
    if "service" in groups:
        with System(directory / "system", directory / "system.log") as system:
            service.check(counts, system, old, new, program)
    if "image" in groups:
        image.check(counts, old, directory / "image")
    print(f"{counts.passed} passed, {counts.failed} failed")
    return 1 if counts.failed else 0


if __name__ == "__main__":
    sys.exit(main())
