"""Counts checks, and waits for what must happen."""

import time
import traceback

# How long anything may take that must happen, in seconds.
DEADLINE = 60


class Counts:
    """Counts checks. Each prints one line."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def check(self, check, *arguments):
        """Runs a check, and returns whether it has passed."""
        name = check.__name__.replace("_", " ")
        try:
            check(*arguments)
        except Exception:
            self.failed += 1
            print(f"FAILED  {name}\n{traceback.format_exc()}", flush=True)
            return False
        self.passed += 1
        print(f"ok      {name}", flush=True)
        return True


def until(happened, what):
    """Asks again and again, for what reports no event, until the answer is true, and returns it."""
    end = time.monotonic() + DEADLINE
    while True:
        answer = happened()
        if answer:
            return answer
        assert time.monotonic() < end, f"not within {DEADLINE} s: {what}"
        time.sleep(0.02)
