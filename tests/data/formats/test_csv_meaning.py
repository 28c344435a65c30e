from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.formats.csv_columns import Columns
from deformable_detr.data.formats.csv_meaning import WORDS, in_corners, meaning_of
from deformable_detr.data.formats.records import ImageRecord, ObjectRecord, RecordPart

NUMBERS = (10.0, 12.0, 6.0, 8.0)


def records_of(*boxes: tuple[float, float, float, float]) -> list[ImageRecord]:
    return [ImageRecord("a.png", "t.csv:2", [ObjectRecord("cat", box, "t.csv:2") for box in boxes])]


@pytest.mark.parametrize(
    ("meaning", "corners"), [("corners", NUMBERS), ("size", (10, 12, 16, 20)), ("center", (7, 8, 13, 16))]
)
def test_corners_of_four_numbers(meaning: str, corners: tuple[float, ...]) -> None:
    (record,) = in_corners(records_of(NUMBERS), meaning)
    assert record.objects == [ObjectRecord("cat", corners, "t.csv:2")]
    assert (record.name, record.where) == ("a.png", "t.csv:2")
    assert meaning in WORDS


@pytest.mark.parametrize(
    ("named", "box", "meaning"),
    [
        ("corners", (40, 2, 1, 1), "corners"),  # what is certain is not asked about
        ("size", (40, 2, 20, 1), "size"),
        ("size or center", (40, 20, 10, 10), "size"),
        ("size or corners", (30, 2, 20, 9), "size"),
        ("size or corners", (30, 2, 45, 9), "corners"),
    ],
)
def test_boxes_decide_what_names_leave_open(
    named: str, box: tuple[float, ...], meaning: str, tmp_path: Path, photo: Callable[..., Path]
) -> None:
    photo(tmp_path / "a.png", (50, 30))
    columns = Columns(0, (1, 2, 3, 4), named, (5,))
    broken = RecordPart("val", "v.csv", [tmp_path], lambda _: _refuse())
    parts = [broken, RecordPart("train", "t.csv", [tmp_path], lambda _: records_of(box))]
    assert meaning_of(columns, parts, "t.csv") == meaning


def _refuse() -> list[ImageRecord]:
    raise DataError("broken")


def test_what_fits_both_or_is_the_size_of_the_image_is_refused(tmp_path: Path, photo: Callable[..., Path]) -> None:
    photo(tmp_path / "a.png", (50, 30))

    def decided(named: str, box: tuple[float, ...]) -> str:
        parts = [RecordPart("train", "t.csv", [tmp_path], lambda _: records_of(box))]
        return meaning_of(Columns(0, (1, 2, 3, 4), named, (5,)), parts, "t.csv")

    with pytest.raises(DataError, match=r"t\.csv: it is not certain .*: 0 as left, top, width, height, 0 as"):
        decided("size or corners", (1, 2, 20, 20))
    with pytest.raises(DataError, match=r"t\.csv: width and height are those of the images"):
        decided("size", (1, 2, 50, 30))
