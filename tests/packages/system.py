"""A Debian system in a directory, in which systemd is the first process."""

import os
import socket
import subprocess
from pathlib import Path

from checks import DEADLINE, until

HERE = Path(__file__).resolve().parent
CONTROL_GROUPS = Path("/sys/fs/cgroup")

# Where a system keeps what it has done; a package leaves nothing elsewhere.
RECORDS = "var/log", "var/lib/dpkg", "var/lib/systemd"


class System:
    """Runs until the block is left. It has the network of this process, and everything else of its own."""

    def __init__(self, root, log):
        self.root = root
        self.log = log
        name = f"humphrey-packages-{os.getpid()}"
        self.group = CONTROL_GROUPS / name
        self.address = f"@{name}"

    def __enter__(self):
        self.group.mkdir()
        booted = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        booted.bind("\0" + self.address[1:])
        booted.settimeout(DEADLINE)
        command = [
            "unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--fork", "--kill-child", HERE / "boot", self.root, self.address,
        ]
        with open(self.log, "wb") as log:
            self.unshare = subprocess.Popen(
                ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', self.group, *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )
        try:
            while b"READY=1" not in booted.recv(4096).split():
                pass
        except TimeoutError:
            self.__exit__()
            raise SystemExit(f"systemd has not started:\n{self.log.read_text(errors='replace')}") from None
        finally:
            booted.close()
        [self.first] = Path(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children").read_text().split()
        return self

    def __exit__(self, *_):
        # It ends with its parent, and all other processes with it.
        self.unshare.kill()
        self.unshare.wait()
        until(lambda: "populated 0" in (self.group / "cgroup.events").read_text(), "the end of the system's processes")
        for group, _, _ in os.walk(self.group, topdown=False):
            os.rmdir(group)

    def run(self, *command, check=True):
        """Runs a command in the system, and returns what it prints."""
        done = subprocess.run(
            [
                "nsenter", "--target", self.first, "--mount", "--pid", "--cgroup", "--uts", "--ipc",
                "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", *command,
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, text=True, timeout=DEADLINE,
        )
        assert not check or done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def show(self, unit, property_):
        return self.run("systemctl", "show", "--value", "--property", property_, unit).strip()

    def journal(self, unit):
        return self.run("journalctl", "--unit", unit, "--no-pager", check=False)

    def path(self, path):
        """Where a file of the system is outside of it."""
        return self.root / path.lstrip("/")

    def files(self):
        """All files and directories, except those that are records or in memory."""
        found = set()
        for directory, names, others in os.walk(self.root):
            here = Path(directory).relative_to(self.root)
            names[:] = [name for name in names if str(here / name) not in RECORDS]
            found |= {str(here / name) for name in names + others}
        return found
