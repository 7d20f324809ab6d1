"""What the Python clients share: where the examples are, and how a check is told."""

import os
import sys
import traceback

ECHO = os.environ["ECHO_URL"]
BROADCAST = os.environ["BROADCAST_URL"]

# How long anything may take, in seconds. Whoever waits so long waits for nothing.
DEADLINE = 60

# Around each change of the length field in a frame header, and larger than any buffer on the way.
SIZES = [0, 1, 125, 126, 65_535, 65_536, 1 << 20, 16 << 20]
PIPELINED = 10_000
CLIENTS = 20


def type_line(line):
    """Writes a line to the standard input of the example `broadcast`."""
    with open(os.environ["BROADCAST_INPUT"], "w") as stdin:
        stdin.write(line + "\n")


class Checks:
    """Counts checks. Each prints one line; the last line sums up."""

    def __init__(self, client):
        self.client = client
        self.passed = 0
        self.failed = 0

    def passes(self, name):
        self.passed += 1
        print(f"ok      {self.client}: {name}", flush=True)

    def fails(self, name):
        """To be called where the exception is being handled."""
        self.failed += 1
        print(f"FAILED  {self.client}: {name}", flush=True)
        traceback.print_exc(file=sys.stdout)

    def run(self, *checks):
        """Runs checks one after the other, and ends the program."""
        for check in checks:
            try:
                check()
            except Exception:
                self.fails(check.__name__)
            else:
                self.passes(check.__name__)
        self.finish()

    def finish(self):
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        sys.exit(1 if self.failed else 0)
