"""Tables of parameter names, ours and others', read both ways; a published layout is one table."""

import re
from collections.abc import Sequence
from typing import NamedTuple

COUNTERS = "num_batches_tracked"
"""How names of batch norm's counters end: nothing depends on them, and frozen norms have none."""
# A number, a number that is one less on the other side, and a last part without dots.
_SIGNS = {"#": r"(\d+)", "%": r"(\d+)", "*": r"([^.]+)"}


class _Row(NamedTuple):
    """One line of a table: how names start on both sides, as what finds them and as what they become."""

    find_ours: re.Pattern[str]
    make_theirs: str
    find_theirs: re.Pattern[str]
    make_ours: str


class KeyMap:
    """How names start here and how they start in another layout; the rest of a name stays, and the first row counts.

    Each row has the same signs on both sides, in the same order: "#" stands for a number, "%" for a number that is one
    less there than here, and "*", at the end alone, for a last part of the name, after which nothing follows.
    """

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        self._rows = [_Row(_pattern(ours), theirs, _pattern(theirs), ours) for ours, theirs in rows]

    def to_theirs(self, name: str) -> str | None:
        """Their name of a parameter of ours; None if the table has none."""
        for row in self._rows:
            match = row.find_ours.match(name)
            if match is not None:
                return _filled(row.make_theirs, match, -1) + name[match.end() :]
        return None

    def to_ours(self, name: str) -> str | None:
        """Our name of a parameter of theirs; None if the table has none."""
        for row in self._rows:
            match = row.find_theirs.match(name)
            if match is not None:
                return _filled(row.make_ours, match, 1) + name[match.end() :]
        return None


def _pattern(start: str) -> re.Pattern[str]:
    parts = re.split("([#%*])", start)
    return re.compile("".join(_SIGNS.get(part) or re.escape(part) for part in parts) + r"\Z" * start.endswith("*"))


def _filled(start: str, match: re.Match[str], shift: int) -> str:
    values = iter(match.groups())

    def value(sign: re.Match[str]) -> str:
        found = next(values)
        return str(int(found) + shift) if sign[0] == "%" else found

    return re.sub("[#%*]", value, start)
