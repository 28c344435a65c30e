from argparse import Namespace
from collections import OrderedDict

from deformable_detr.core.short_text import one_line, shown


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
