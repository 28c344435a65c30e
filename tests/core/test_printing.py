import os
import time

import pytest

from deformable_detr.core.printing import LONGEST_LINE, printable, printable_line, shortened

# Spaces of other scripts, and joiners within words and emoji, are text.
NOT_LATIN = "a\u00a0b\u3000c \u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f680"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cat, Straße 日本 🐈", "cat, Straße 日本 🐈"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\nb\tc\rd\0e\x7f\x9b", "a\\nb\\tc\\rd\\x00e\\x7f\\x9b"),
        ("exe.\u202egpj", "exe.\\u202egpj"),
        ("a\u2028b\ufeff", "a\\u2028b\\ufeff"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("\ud800", "\\ud800"),
        (NOT_LATIN, NOT_LATIN),
    ],
)
def test_what_cannot_be_printed_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    shown.encode()


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    text = "begin " + "x" * 10**6 + " end"
    assert len(shortened(text, 100)) == 100
    assert shortened(text, 100).startswith("begin xxx")
    assert shortened(text, 100).endswith("xxx end")
    assert "[...]" in shortened(text, 100)
    assert shortened("x" * 100, 100) == "x" * 100
    assert len(printable("\x1b" * 10**6, 100)) == 100


def test_a_line_is_one_line_of_limited_length_at_once() -> None:
    began = time.process_time()
    line = printable_line("a\n b\t\x1b" + " y\n" * 10**7)
    assert time.process_time() - began < 5
    assert line.startswith("a b \\x1b y y")
    assert len(line) <= LONGEST_LINE
    assert "\n" not in line
