"""Checks of the container image, which podman starts."""

import json
import re
import signal
import subprocess
import tarfile
from pathlib import Path

import clients
from checks import DEADLINE
from packages import NAME

# The most that the files in the image may take, in bytes.
CONTENT_BYTES_MAX = 10_000_000

FILES = {NAME, "licences/LICENSE", "licences/third-party-licences"}

# Without the limits that podman sets by default, which not every machine allows, and in the network of this process.
OPTIONS = ["--rm", "--network=host", "--cgroups=disabled", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]


class Podman:
    """podman with a storage of its own."""

    def __init__(self, directory):
        self.command = ["podman", "--root", directory / "storage", "--runroot", directory / "run", "--storage-driver", "vfs"]

    def run(self, *arguments, input=""):
        done = subprocess.run([*self.command, *arguments], input=input, stdout=subprocess.PIPE, check=True, text=True)
        return done.stdout.strip()


def check(counts, packages, directory):
    directory.mkdir()
    podman = Podman(directory)
    image = re.search(r"localhost/\S+", podman.run("load", "--quiet", "--input", packages.image)).group()
    counts.check(image_has_the_program_and_the_licences_alone, podman, image, directory)
    counts.check(container_serves_on_all_addresses_without_rights_until_sigterm, podman, image)


def image_has_the_program_and_the_licences_alone(podman, image, directory):
    archive = directory / "layers.tar"
    podman.run("save", "--quiet", "--format", "docker-archive", "--output", archive, image)
    found, size = set(), 0
    with tarfile.open(archive) as layers:
        for layer in json.load(layers.extractfile("manifest.json"))[0]["Layers"]:
            with tarfile.open(fileobj=layers.extractfile(layer)) as content:
                files = [member for member in content if member.isfile()]
                found |= {file.name for file in files}
                size += sum(file.size for file in files)
    assert found == FILES, found
    assert size <= CONTENT_BYTES_MAX, size


def container_serves_on_all_addresses_without_rights_until_sigterm(podman, image):
    with Container(podman, image) as container:
        # The probe that an orchestrator makes.
        assert clients.request("GET", "/health") == (200, "ok\n")
        assert user_of_the_program() == "65534"
        # The image's variable for --listen does not get in the way of a command.
        line = podman.run("run", "--interactive", *OPTIONS, image, "send", "--quiet", "ws://127.0.0.1:8080/", input="a line\n")
        assert line == "", line
        client = clients.WebSocket()
        # podman passes it on.
        container.send_signal(signal.SIGTERM)
        assert client.close_code() == 1001
        assert container.wait(DEADLINE) == 0


class Container:
    """A container that runs until the block is left; its value is podman's process, once the program listens."""

    def __init__(self, podman, image):
        self.podman = podman
        self.image = image

    def __enter__(self):
        command = [*self.podman.command, "run", *OPTIONS, self.image]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        said = []
        for line in self.process.stderr:
            said.append(line)
            if "0.0.0.0:8080" in line:
                return self.process
        raise AssertionError(f"the container has ended: {said}")

    def __exit__(self, *_):
        self.podman.run("rm", "--force", "--time=0", "--all")
        self.process.communicate()


def user_of_the_program():
    """Of the process, of which there is one in this network namespace."""
    own = Path("/proc/self/ns/net").readlink()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes() == f"/{NAME}\0".encode() and (process / "ns/net").readlink() == own:
                return re.search(r"^Uid:\s+(\d+)", (process / "status").read_text(), re.MULTILINE).group(1)
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise AssertionError("the program does not run")
