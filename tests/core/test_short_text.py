import os
import time
from argparse import Namespace
from collections import OrderedDict

import pytest

from deformable_detr.core.short_text import LONGEST_LINE, one_line, printable, printable_line, shortened, shown

# Spaces of other scripts, and joiners within words and emoji, are text.
NOT_LATIN = "a\u00a0b\u3000c \u0645\u06cc\u200c\u062e \U0001f469\u200d\U0001f680"


@pytest.mark.parametrize(
    ("text", "escaped"),
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
def test_what_cannot_be_printed_is_escaped(text: str, escaped: str) -> None:
    assert printable(text) == escaped
    escaped.encode()


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


def test_texts_of_strangers_become_one_short_line():
    assert one_line(" two\nlines\tof  text ") == "two lines of text"
    assert one_line("a\x1b[31mred\x00\ud800\u202e") == "a?[31mred???"
    assert one_line("x" * 9, most=4) == "xxxx..."
    assert one_line("größe 長さ") == "größe 長さ"


def test_values_are_shown_in_a_moment_whatever_they_hold():
    bomb = []
    for _ in range(60):
        bomb = [bomb, OrderedDict(a=bomb), bomb]
    values = [bomb, OrderedDict(a=bomb), Namespace(a=bomb), {"a" * 10**6: bomb}, "x" * 10**6, 10**10**4, [10**10**4]]
    for value in values:
        text = shown(value)
        assert len(text) < 300
        assert text.isprintable()
    assert shown("\x1b[0m\n") == r"'\x1b[0m\n'"
    assert (shown(None), shown(0.5), shown([1, "a"])) == ("None", "0.5", "[1, 'a']")
