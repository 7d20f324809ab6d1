"""Checks of the container image, which podman starts."""

import json
import re
import signal
import subprocess
import tarfile
from pathlib import Path

import clients
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

    def run(self, *arguments):
        done = subprocess.run([*self.command, *arguments], stdout=subprocess.PIPE, check=True, text=True)
        return done.stdout.strip()


def check(counts, packages, directory):
    directory.mkdir()
    podman = Podman(directory)
    image = re.search(r"localhost/\S+", podman.run("load", "--quiet", "--input", packages.image)).group()
    counts.check(image_has_the_program_and_the_licences_alone, podman, image, directory)
    counts.check(image_runs_a_command_of_the_program, podman, image)
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


def image_runs_a_command_of_the_program(podman, image):
    assert podman.run("run", *OPTIONS, image, "--version").startswith(f"{NAME} ")
    assert "WebSocket" in podman.run("run", *OPTIONS, image, "listen", "--help")


def container_serves_on_all_addresses_without_rights_until_sigterm(podman, image):
    container = subprocess.Popen(
        [*podman.command, "run", *OPTIONS, image], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        said = [container.stderr.readline()]
        while said[-1] and "0.0.0.0:8080" not in said[-1]:
            said.append(container.stderr.readline())
        assert said[-1], f"the container has ended: {said}"
        # The probe that an orchestrator makes.
        assert clients.request("GET", "/health") == (200, "ok\n")
        assert user_of_the_program() == "65534"
        client = clients.WebSocket()
        # podman passes it on.
        container.send_signal(signal.SIGTERM)
        assert client.close_code() == 1001
        assert container.wait(clients.DEADLINE) == 0
    finally:
        container.kill()
        container.communicate()


def user_of_the_program():
    """Of the process, of which there is one in this network namespace."""
    own = Path("/proc/self/ns/net").readlink()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_program = (process / "cmdline").read_bytes().startswith(f"/{NAME}\0".encode()) and (process / "ns/net").readlink() == own
            if is_program:
                return re.search(r"^Uid:\s+(\d+)", (process / "status").read_text(), re.MULTILINE).group(1)
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise AssertionError("the program does not run")
