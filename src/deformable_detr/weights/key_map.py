"""Key maps: tables that translate parameter names between our layout and a published one.

"Ours" are the names in this package's networks and files, "theirs" those of the other layout.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

COUNTERS = "num_batches_tracked"
"""Suffix of the names of batch norm's counters: no result depends on them, and frozen norms have none."""
# A number; a number that is one less in the other layout; a last part without dots.
_SIGNS = {"#": r"([0-9]{1,6})", "%": r"([0-9]{1,6})", "*": r"([^.]+)"}


class _Row(NamedTuple):
    """Row of a key map: for each layout, the pattern that finds a name and the template that makes one."""

    find_ours: re.Pattern[str]
    make_theirs: str
    find_theirs: re.Pattern[str]
    make_ours: str


class KeyMap:
    """Key map: prefixes of parameter names in our layout and in another one. The rest of a name stays.

    Of several rows that fit a name, the first is used.

    Args:
        rows: pairs of our prefix and their prefix. Both have the same signs in the same order: "#" for a number, "%"
            for a number that is one less in their layout than in ours, and "*", only at the end, for the last part of
            the name, without dots.
    """

    def __init__(self, rows: Sequence[tuple[str, str]]) -> None:
        self._rows = [_Row(_pattern(ours), theirs, _pattern(theirs), ours) for ours, theirs in rows]

    def to_theirs(self, name: str) -> str | None:
        """Name of a parameter in the other layout; None if no row fits."""
        for row in self._rows:
            match = row.find_ours.match(name)
            if match is not None:
                return _filled(row.make_theirs, match, -1) + name[match.end() :]
        return None

    def to_ours(self, name: str) -> str | None:
        """Name in our layout of a parameter of the other one; None if no row fits."""
        for row in self._rows:
            match = row.find_theirs.match(name)
            if match is not None:
                return _filled(row.make_ours, match, 1) + name[match.end() :]
        return None


def _pattern(start: str) -> re.Pattern[str]:
    parts = re.split("([#%*])", start)
    return re.compile("".join(_SIGNS.get(part) or re.escape(part) for part in parts) + r"\Z" * start.endswith("*"))


def _filled(start: str, match: re.Match[str], shift: int) -> str:
    texts = re.split("([#%*])", start)
    for place, value in zip(range(1, len(texts), 2), match.groups(), strict=True):
        texts[place] = str(int(value) + shift) if texts[place] == "%" else value
    return "".join(texts)
