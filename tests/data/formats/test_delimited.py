from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.formats.delimited import first_rows, read_table


def rows_of(tmp_path: Path, content: bytes) -> list[tuple[int, list[str]]]:
    (tmp_path / "t.csv").write_bytes(content)
    rows = read_table(tmp_path / "t.csv")
    assert first_rows(tmp_path / "t.csv") == rows
    return [tuple(row) for row in rows]


@pytest.mark.parametrize(
    "content",
    [
        b"a,b\n1.5,x y\n",
        b"\xef\xbb\xbfa,b\r\n\r\n1.5, x y \r\n",
        b"a\tb\n1,5\tx y",
        b'"a";"b"\n"1,5";"x y"\n',
        b"a|b\r1.5|x y\r",
        "a,b\n1.5,x y\n".encode("utf-16"),
    ],
)
def test_separators_and_encodings(content: bytes, tmp_path: Path) -> None:
    assert [cells for _, cells in rows_of(tmp_path, content)] == [["a", "b"], ["1.5", "x y"]]


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    assert rows_of(tmp_path, b'a,b\n\n"1\n2",3\n,\n4,"5, 6"\n') == [
        (1, ["a", "b"]),
        (4, ["1\n2", "3"]),
        (6, ["4", "5, 6"]),
    ]


def test_a_comma_is_a_point_only_between_digits(tmp_path: Path) -> None:
    assert rows_of(tmp_path, b"a,b;-1,25;1,2,3;4\n") == [(1, ["a,b", "-1.25", "1,2,3", "4"])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'a,b\n"1,2\n3,4\n', "t.csv, line 3: not a table: unexpected end of data"),
        (b'a,b\n"1"2,3\n', "t.csv, line 2: not a table: ',' expected after '\"'"),
        (b"a,b\n" + b"x" * 200_000, "t.csv, line 2: not a table: field larger than field limit"),
        (b"a,b\n\xff\xfe,1", "t.csv, line 2: not UTF-8 text"),
        (b"\xff\xfea\0\0", "t.csv: not UTF-16 text"),
    ],
)
def test_what_is_no_table(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_table(tmp_path / "t.csv")


def test_first_rows_of_anything(tmp_path: Path) -> None:
    assert first_rows(tmp_path) == first_rows(tmp_path / "none") == []
    (tmp_path / "t.csv").write_bytes(b"a,b\n" + b"1,2\n" * 40_000)
    rows = first_rows(tmp_path / "t.csv")
    assert len(rows) == 50
    assert rows[-1].cells == ["1", "2"]
    (tmp_path / "t.csv").write_bytes(b"a,b\n" + b"x" * 200_000)
    assert [row.cells for row in first_rows(tmp_path / "t.csv")] == [["a", "b"]]
