"""Short texts of what strangers wrote, for messages: one line that can be printed, however long or strange it was."""

import reprlib


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
