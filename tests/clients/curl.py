"""`curl -N` follows an event stream."""

import os
import subprocess

from checks import DEADLINE, Checks

EVENTS_URL = os.environ["EVENTS_URL"]
EVENTS_INPUT = os.environ["EVENTS_INPUT"]


def curl(*options):
    return subprocess.Popen(
        ["curl", "--silent", "--show-error", "--max-time", str(DEADLINE), *options, EVENTS_URL + "events"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )


def type_line(line):
    with open(EVENTS_INPUT, "a") as pipe:
        pipe.write(line + "\n")


def read_until(process, last):
    """The lines that curl prints, up to that one."""
    lines = []
    while not lines or lines[-1] != last:
        line = process.stdout.readline()
        assert line, f"curl ended: {lines}"
        lines.append(line.rstrip("\n"))
    return lines


def follows_line_by_line():
    type_line("curl begins")
    process = curl("-N")
    lines = read_until(process, "data: curl begins")
    assert "retry: 500" in lines, lines
    for line in ["one", "two", "three"]:
        type_line(line)
        lines = read_until(process, f"data: {line}")
        assert lines[-2].startswith("id: "), lines
    process.kill()
    process.wait()


def resumes_from_an_id():
    type_line("seen")
    process = curl("-N")
    last = read_until(process, "data: seen")[-2].removeprefix("id: ")
    process.kill()
    process.wait()
    type_line("missed")
    process = curl("-N", "-H", f"Last-Event-ID: {last}")
    lines = read_until(process, "data: missed")
    assert [line for line in lines if line.startswith("data: ")] == ["data: missed"], lines
    process.kill()
    process.wait()


def head_shows_the_headers():
    process = curl("--head")
    output, _ = process.communicate()
    assert process.returncode == 0
    assert output.startswith("HTTP/1.1 200 OK"), output
    assert "Content-Type: text/event-stream" in output, output


Checks("curl -N").run(
    follows_line_by_line,
    resumes_from_an_id,
    head_shows_the_headers,
)
