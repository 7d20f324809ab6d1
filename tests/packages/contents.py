"""Checks of what is in the packages."""

import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

from packages import NAME

ROOT = Path(__file__).resolve().parent.parent.parent

# Beside the program.
ARCHIVED = {
    "CHANGELOG.md", "LICENSE", "third-party-licences",
    *(f"completions/{NAME}.{shell}" for shell in ("bash", "fish", "zsh")),
    *(f"man/{NAME}{command}.1.gz" for command in ("", "-listen", "-send")),
    *(f"systemd/{NAME}.{kind}" for kind in ("default", "service", "socket")),
}


def check(counts, old, new, program):
    counts.check(sums_are_of_all_packages, old)
    counts.check(second_build_is_the_same_bit_for_bit, old, new)
    counts.check(program_is_linked_statically, program)
    counts.check(program_runs_without_any_other_file, program)
    counts.check(program_does_not_name_directories_of_this_machine, program)
    counts.check(archive_has_pages_completions_units_and_licences, program)
    counts.check(deb_has_the_program_of_the_archive, old, program)
    counts.check(lintian_finds_nothing_in_the_deb, old)


def output(*command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, **options).stdout


def sums_are_of_all_packages(packages):
    output("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=packages.directory)
    named = {line.split()[1] for line in (packages.directory / "SHA256SUMS").read_text().splitlines()}
    assert named == {path.name for path in packages.directory.iterdir()} - {"SHA256SUMS"}, named


def second_build_is_the_same_bit_for_bit(old, new):
    """All but the .deb, whose revision is another."""
    for one, other in (old.archive, new.archive), (old.image, new.image):
        assert one.name == other.name
        assert one.read_bytes() == other.read_bytes(), one.name
    assert old.field("Version") != new.field("Version")


def program_is_linked_statically(program):
    found = output("readelf", "--program-headers", "--dynamic", "--wide", program)
    assert "LOAD" in found, found
    assert "INTERP" not in found and "NEEDED" not in found, found


def program_runs_without_any_other_file(program):
    with tempfile.TemporaryDirectory() as empty:
        (Path(empty) / NAME).write_bytes(program.read_bytes())
        (Path(empty) / NAME).chmod(0o755)
        version = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
        assert output("chroot", empty, f"/{NAME}", "--version") == f"{NAME} {version}\n"


def program_does_not_name_directories_of_this_machine(program):
    text = program.read_bytes()
    for path in ROOT, os.environ.get("CARGO_HOME", Path.home() / ".cargo"):
        assert f"{path}/".encode() not in text, path


def archive_has_pages_completions_units_and_licences(program):
    files = {str(path.relative_to(program.parent)) for path in program.parent.rglob("*") if path.is_file()}
    assert files == ARCHIVED | {NAME}, files ^ (ARCHIVED | {NAME})
    licences = (program.parent / "third-party-licences").read_text()
    for name in "musl", "mimalloc", "ring", "humphrey":
        assert re.search(rf"^{name} .*\(", licences, re.MULTILINE), name


def deb_has_the_program_of_the_archive(packages, program):
    unpacked = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", packages.deb], stdout=subprocess.PIPE)
    packed = subprocess.run(["tar", "-xO", f"./usr/bin/{NAME}"], stdin=unpacked.stdout, stdout=subprocess.PIPE, check=True).stdout
    assert unpacked.wait() == 0
    assert hashlib.sha256(packed).digest() == hashlib.sha256(program.read_bytes()).digest()


def lintian_finds_nothing_in_the_deb(packages):
    found = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0", packages.deb],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, text=True,
    )
    assert found.returncode == 0, found.stdout
