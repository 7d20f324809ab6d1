"""Autobahn's `wstest`, with so many messages a case of the sections on compression, which have 1,000 otherwise.

    python2.7 wstest_with_fewer_messages.py 50 --mode fuzzingclient --spec FILE
"""

import sys

from autobahntestsuite import case
from autobahntestsuite.wstest import run

if __name__ == "__main__":
    count = int(sys.argv.pop(1))
    for one in case.Cases:
        if hasattr(one, "COUNT"):
            one.COUNT = count
    sys.exit(run())
