"""What callgrind counted: read from its files, subtracted, and listed."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# As many lines in each list of a profile.
TOP = 40


class Profile:
    """Instructions by function, with what it calls, and by source line; and how often each function was called.

    The format is `fn=(3) name` where a function's costs begin, `(3)` alone where it comes again, and lines of a source
    line's number, which may be relative to the last one, and a cost. After `calls=` comes the cost of the calls.
    """

    def __init__(self, path):
        self.own = Counter()
        self.inclusive = Counter()
        self.calls = Counter()
        self.lines = Counter()
        names = {"file": {}, "fn": {}, "ob": {}}
        file = function = called = None
        position = 0
        is_call = False
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if named := re.fullmatch(r"(c?)(fn|fl|fi|fe|ob)=\((\d+)\)(?: (.*))?", text):
                of_call, kind, key, name = named.groups()
                table = names[kind if kind in names else "file"]
                if name is not None:
                    table[key] = name
                if kind == "fn" and of_call:
                    called = table[key]
                elif kind == "fn":
                    function = table[key]
                elif table is names["file"] and not of_call:
                    file = table[key]
            elif text.startswith("calls="):
                self.calls[called] += int(text[6:].split()[0])
                is_call = True
            elif cost := re.fullmatch(r"(\*|[+-]?\d+) (\d+)", text):
                where, count = cost.group(1), int(cost.group(2))
                if where[0] in "+-":
                    position += int(where)
                elif where != "*":
                    position = int(where)
                if not is_call:
                    self.own[function] += count
                    self.lines[file, position, function] += count
                # A function that calls itself has that cost already.
                if not is_call or called != function:
                    self.inclusive[function] += count
                is_call = False

    @property
    def total(self):
        return sum(self.own.values())

    def __sub__(self, other):
        """What this run has more of."""
        rest = object.__new__(Profile)
        for name, counts in vars(self).items():
            setattr(rest, name, counts - getattr(other, name))
        return rest


def listing(title, profile, units, unit):
    """The profile as text, each figure for one of so many units."""

    def top(what, counts, name, least=1):
        lines = [f"{n / units:10.1f}  {name(key)}" for key, n in counts.most_common(TOP) if n / units >= least]
        return [f"\n{what}", *lines]

    inlined = Counter()
    for (file, _, function), count in profile.lines.items():
        inlined[f"{source(file)}: {short(function)}"] += count
    ours = {key: count for key, count in profile.lines.items() if key[0].startswith(f"{ROOT}/")}
    lines = [f"{title}: {profile.total / units:.0f} instructions per {unit}"]
    lines += top("Of each function itself:", profile.own, short)
    lines += top("With all that it calls:", profile.inclusive, short)
    lines += top("The same as in the first list, by the file that code was inlined from:", inlined, str)
    lines += top("Source lines of this repository:", Counter(ours), line)
    lines += top("Calls:", profile.calls, short, 0.02)
    return "\n".join(lines) + "\n"


def short(function):
    """A function's name without what all of ours have."""
    name = function.replace("humphrey_ws::", "")
    name = re.sub(r"<impl (?:[\w:]*::)?(\w+(?:<T>)?)>", r"\1", name)
    return name if len(name) <= 110 else f"{name[:107]}..."


def source(file):
    return file.removeprefix(f"{ROOT}/") if file.startswith(f"{ROOT}/") else re.sub(r".*/(?:library|src)/", "", file)


def line(key):
    file, number, _ = key
    try:
        text = Path(file).read_text(encoding="utf-8").splitlines()[number - 1].strip() if number else ""
    except (OSError, IndexError):
        text = ""
    return f"{source(file)}:{number}  {text[:90]}"
