"""Texts of strangers for people: short, and printed with escapes for what is no letter.

Names of files and classes may be without end, or hold codes that move the cursor, colour or rename a terminal, turn the
direction of writing, or bytes that are no Unicode. They are shown, not obeyed. What goes into a message is made by
`one_line` and `shown`; what a whole line or cell becomes on its way to the terminal, by `printable`.
"""

import reprlib
import unicodedata

LONGEST_LINE = 2000
"""Letters of the longest line that the command line prints."""
LONGEST_NAME = 200
"""Letters of the longest name of a class or split in a table."""
# Zero-width joiner and non-joiner: they stand within words of Persian, Hindi and others, and within emoji.
_JOINERS = "\u200c\u200d"
_BYTES = range(0xDC80, 0xDD00)
_GAP = " [...] "


def printable(text: str, most: int | None = None) -> str:
    """Text on one line, with escapes for what cannot be printed: control characters, marks of direction, stray bytes.

    Args:
        text: any text, also the name of a file that is not valid Unicode.
        most: number of letters above which the middle is left out.
    """
    if most is not None:
        text = shortened(text, most)
    if not text.isprintable():
        text = "".join(letter if _is_harmless(letter) else _escaped(letter) for letter in text)
    return text if most is None else shortened(text, most)


def shortened(text: str, most: int) -> str:
    """Text of at most so many letters; a longer one loses its middle, because the way out stands at the end."""
    if len(text) <= most:
        return text
    end = (most - len(_GAP)) // 4
    return text[: most - len(_GAP) - end] + _GAP + text[len(text) - end :]


def printable_line(text: str) -> str:
    """Text with any space and line breaks between its words as one space, printable, and not longer than a line is."""
    return printable(" ".join(shortened(text, 4 * LONGEST_LINE).split()), LONGEST_LINE)


def _is_harmless(letter: str) -> bool:
    return letter.isprintable() or letter in _JOINERS or unicodedata.category(letter) == "Zs"


def _escaped(letter: str) -> str:
    if ord(letter) in _BYTES:  # a byte of a file's name that is no Unicode, as Python keeps it
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter.encode("unicode_escape").decode("ascii")


def one_line(text: object, most: int = 200) -> str:
    """Text of strangers as one short line that can be printed: other letters become "?", and "..." ends what is cut."""
    words = " ".join(str(text).split())
    short = words if len(words) <= most else words[:most] + "..."
    return "".join(letter if letter.isprintable() else "?" for letter in short)


class _ShortText(reprlib.Repr):
    """Texts of values that are short and made in a moment, also of values that hold one list a million times."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxdict, self.maxset = 2, 4, 4, 4, 4
        self.maxlong, self.maxstring, self.maxother = 30, 60, 60

    def repr_instance(self, x: object, level: int) -> str:
        """Text of a value of any other type; of one that may hold others, only the name of its type."""
        if hasattr(x, "__len__") or hasattr(x, "__dict__"):
            return f"a value of type {type(x).__name__}"
        return super().repr_instance(x, level)


def shown(value: object) -> str:
    """Text of a value for a message: one short line, however large or strange the value is."""
    try:
        return one_line(_ShortText().repr(value))
    except ValueError:  # an integer of more digits than Python prints
        return "a number with thousands of digits"
