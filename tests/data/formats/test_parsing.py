import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.formats.parsing import (
    check_class_names,
    class_name_text,
    class_text,
    name_text,
    read_json,
    read_names,
    read_text,
    read_xml,
    read_yaml,
    real_number,
    shown,
    whole_number,
)

ENTITY_BOMB = b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (read_json, b'{"a": [1, 2', r"line 1, column 12: not JSON: .*cut off"),
        (read_json, b'{"a": "some te', r"line 1, column 7: not JSON: .*cut off"),
        (read_json, b'{"a":\n [1, x]}', r"line 2, column 6: not JSON"),
        (read_json, b"", "not JSON"),
        (read_json, b'{"a": 1, "b": 2, "a": 3}', "the key 'a' twice"),
        (read_json, b"[" * 100_000, "nested too deeply"),
        (read_json, b"9" * 5000, "not usable JSON"),
        (read_json, b'{"a":\n"\xff\xfe"}', "line 2: not JSON: not utf-8"),
        (read_yaml, b"a: [1, 2", "line 1, column 9: not YAML"),
        (read_yaml, b"a: 1\nb: 2\na: 3", "'a' appears twice"),
        (read_yaml, b"[" * 500, "nested too deeply"),
        (read_yaml, b"? [a]\n: b", "not YAML"),
        (read_yaml, b"a: !!int ''", "not usable YAML"),
        (read_yaml, b"a: 2001-99-99", "not usable YAML"),
        (read_yaml, b"a: !!python/name:os.system", "not YAML"),
        (read_yaml, b"a: \xff", "line 1: not UTF-8"),
        (read_yaml, b"a: \x01", "not usable YAML"),
        (read_xml, b"<a>\n<b></a>", "line 2, column 6: not XML"),
        (read_xml, b"", "not XML"),
        (read_xml, ENTITY_BOMB, "entities are not accepted"),
        (read_xml, b'<?xml version="1.0" encoding="no-such"?><a/>', "XML"),
        (read_xml, b'<?xml version="1.0" encoding="utf-7"?><a/>', "XML"),
        (read_xml, b"<a>\xff</a>", "not XML"),
        (read_text, b"one\ntwo \xe9\n", "line 2: not UTF-8"),
        (read_names, b"\n \n", "no class names"),
        (read_names, b"cat\ndog\ncat\n", "'cat' appears twice"),
        (read_names, b"c\x00t\n", "zero character"),
        (
            read_names,
            b"cat\nd\x1b[2Jog\n",
            r"class name 2 holds a line break or another control character: 'd\\x1b\[2Jog'",
        ),
        (read_names, b"x" * 501, "class name 1 has 501 letters: 'xxx.*'; a class name has at most 500"),
    ],
)
def test_bad_files(read: Callable[[Path], Any], content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"file\.txt.*{message}"):
        read(path)


@pytest.mark.parametrize("read", [read_json, read_yaml, read_xml, read_text])
def test_files_that_cannot_be_read(read: Callable[[Path], Any], tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path, Path("zero\0character")):
        with pytest.raises(DataError, match="cannot read"):
            read(path)


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\xef\xbb\xbf" + b"[1]")
    assert read_json(path) == [1]
    assert read_yaml(path) == [1]
    assert read_text(path) == "[1]"


def test_yaml_merges_are_not_repeated_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("base: &b {x: 1}\nother: {<<: *b, y: 2}\n")
    assert read_yaml(path)["other"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(("value", "number"), [(3, 3), (-4.0, -4), ("12", 12), (" +7 ", 7), ("1.0", 1)])
def test_whole_numbers(value: object, number: int) -> None:
    assert whole_number(value, "here", "it") == number


@pytest.mark.parametrize(
    "value", [None, True, 1.5, float("nan"), float("inf"), "", "1.5", "1,0", "cat", [1], {}, 10**30, "9" * 19, 1e300]
)
def test_not_whole_numbers(value: object) -> None:
    with pytest.raises(DataError, match="here: it must be a whole number"):
        whole_number(value, "here", "it")


@pytest.mark.parametrize(("value", "number"), [(3, 3), (-4.5, -4.5), ("12", 12), (" -.5 ", -0.5), ("1e3", 1000)])
def test_real_numbers(value: object, number: float) -> None:
    assert real_number(value, "here", "it") == number


@pytest.mark.parametrize("value", [None, True, "", "1,5", "1_000", "0x10", "cat", [1], {}, 10**400, "1 2"])
def test_not_real_numbers(value: object) -> None:
    with pytest.raises(DataError, match="here: it must be a number"):
        real_number(value, "here", "it")


@pytest.mark.parametrize("value", [None, 3, "", " ", ["a"], "a\0b", "\ud800"])
def test_not_names(value: object) -> None:
    with pytest.raises(DataError, match="here: it "):
        name_text(value, "here", "it")


def test_messages_stay_short_whatever_the_value() -> None:
    nested: list[Any] = []
    for _ in range(50):
        nested = [nested] * 50
    for value in ("x" * 10**6, 10**5000, 10**100, nested, {str(n): nested for n in range(99)}, "\ud800\n"):
        text = shown(value)
        assert len(text) < 300
        assert text.isprintable()
        text.encode()


def test_numbers_of_any_kind() -> None:
    for value, number in ((3, 3.0), (2.5, 2.5), ("-2.5e1", -25.0), (" 7 ", 7.0), (".5", 0.5), ("inf", math.inf)):
        assert real_number(value, "x", "y") == number
    assert math.isnan(real_number("NaN", "x", "y"))
    for value in (True, None, "", "1_0", "0x1", "1,5", "one", [1], 10**400, "9" * 10**6 + "x"):
        with pytest.raises(DataError, match="x: y must be a number, not "):
            real_number(value, "x", "y")


def test_class_names_may_be_whole_numbers() -> None:
    assert class_text(7, "x") == class_text(" 7 ", "x") == "7"
    assert class_text("traffic light", "x") == "traffic light"
    for value in ("", "  ", None, True, 1.5, ["a"], "\ud800", "a\0", 10**30):
        with pytest.raises(DataError, match="x: the class name "):
            class_text(value, "x")


@pytest.mark.parametrize(
    "name", ["", " ", None, 7, "a\nb", "a\tb", "\x1b[2J", "a\x85", "a\u2028b", "a\0", "\ud800", "x" * 501]
)
def test_names_of_classes_that_cannot_be(name: object) -> None:
    with pytest.raises(DataError, match=r"^here: a class name ") as caught:
        class_name_text(name, "here", "a class name")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_names_of_classes_of_all_the_world() -> None:
    names = ["traffic light", "größe", "信号机", "شخص", "👩‍🚀", "x" * 500, "a/b", "'quoted'"]
    assert [class_name_text(name, "here", "a class name") for name in names] == names
    check_class_names(names, "here")
    with pytest.raises(DataError, match=r"^here: the class name 'a/b' appears twice"):
        check_class_names([*names, "a/b"], "here")
