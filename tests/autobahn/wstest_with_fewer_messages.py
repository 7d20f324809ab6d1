"""Runs Autobahn's `wstest` with N messages in each case on compression, instead of 1,000.

    python2.7 wstest_with_fewer_messages.py 50 --mode fuzzingclient --spec FILE
"""

import sys

from autobahntestsuite import case
from autobahntestsuite.wstest import run

if __name__ == "__main__":
    count = int(sys.argv.pop(1))
    counted = [one for one in case.Cases if hasattr(one, "COUNT")]
    assert counted, "no case has a number of messages"
    for one in counted:
        one.COUNT = count
    sys.exit(run())
