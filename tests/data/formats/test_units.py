from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import Problem
from deformable_detr.data.formats.units import BoxForm, check_units
from deformable_detr.data.open import open_dataset

SIZE_WH = (64, 48)


def check(*boxes: tuple[float, ...], given: BoxForm | None = None, size_wh: tuple[int, int] = SIZE_WH) -> list[Problem]:
    table = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return check_units(table, np.tile(np.array(size_wh * 2, dtype=np.float64), (len(table), 1)), given, "all.json")


SHARE, WHOLE, PIXELS = (0.25, 0.25, 0.75, 0.5), (0, 0, 1, 1), (10, 12, 30, 44)


@pytest.mark.parametrize(
    ("boxes", "fatal"),
    [
        ([SHARE], True),
        ([SHARE] * 3 + [WHOLE], True),
        ([WHOLE] * 3, True),
        ([SHARE] * 19 + [PIXELS], True),
        ([SHARE, *[PIXELS] * 9], False),
        # Marks for images without objects are no shares, however many they are.
        ([*[WHOLE] * 50, *[PIXELS] * 3], False),
        ([SHARE, (np.nan, 0, 1, 1)], True),
    ],
)
def test_shares(boxes: list[tuple[float, ...]], fatal: bool) -> None:
    (problem,) = check(*boxes)
    assert (problem.kind, problem.where, problem.fatal) == ("wrong_unit", "all.json", fatal)
    assert "within the first pixel" in problem.message


def test_pixels() -> None:
    assert check(PIXELS, (0, 0, 1.5, 3)) == []
    assert check() == []
    assert check((np.nan,) * 4) == []
    assert check((0, 0, 0, 0), (0.5, 0.5, 0.5, 0.5)) == []  # without extent, reported as such
    assert check(WHOLE, (0, 0, 1, 0.5), size_wh=(2, 1)) == []


def read_as_size(*corners: tuple[float, float, float, float]) -> list[tuple[float, ...]]:
    """Boxes that a reader makes of corners if it takes the last two numbers for width and height."""
    return [(left, top, left + right, top + bottom) for left, top, right, bottom in corners]


def test_corners_where_sizes_are_meant() -> None:
    corners = [(30.0, 10.0, 50.0, 40.0), (2.0, 3.0, 9.0, 9.0), (33.0, 1.0, 64.0, 20.0)]
    (problem,) = check(*read_as_size(*corners), given="size")
    assert problem.fatal
    assert problem.message.startswith("2 of 3 boxes reach past their images, and none would if the last two of the")
    # One that is no corner says that they are sizes, and so does a lone box.
    assert check(*read_as_size(*corners, (30.0, 30.0, 10.0, 20.0)), given="size") == []
    assert check(*read_as_size(corners[0]), given="size") == []
    # Boxes that reach past a little, and formats that have no sizes.
    assert check((30, 10, 65, 40), (2, 3, 20, 30), given="size") == []
    assert check(*read_as_size(*corners), given="corners") == []


def test_large_objects_that_reach_past_a_little_are_sizes() -> None:
    """They would fit as corners, too: nearly every box is as large as its image."""
    sloppy = [(1.0, 2.0, 66.0, 47.0)] * 5 + [(2.0, 1.0, 60.0, 46.0)] * 5
    assert check(*sloppy, given="size") == []
    assert check(*[(1.0, 2.0, 70.0, 47.0)] * 3, *sloppy, given="size") == []


def test_voc_with_shares(tmp_path: Path, photo: Callable[..., Path]) -> None:
    corners = "<xmin>0.25</xmin><ymin>0.1</ymin><xmax>0.5</xmax><ymax>0.75</ymax>"
    for name in ("a", "b"):
        photo(tmp_path / "JPEGImages" / f"{name}.png")
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / f"Annotations/{name}.xml").write_text(
            f"<annotation><object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
        )
    with pytest.raises(DataError, match=r"all 2 boxes lie within the first pixel of the image, such as \(0\.25, 0\.1"):
        open_dataset(tmp_path)
    labels = tmp_path / "sizes"
    for number, size in enumerate(("<xmax>9</xmax><ymax>8</ymax>", "<xmax>12</xmax><ymax>9</ymax>")):
        photo(labels / f"{number}.png")
        (labels / f"{number}.xml").write_text(
            f"<annotation><object><name>cat</name><bndbox><xmin>20</xmin><ymin>13</ymin>{size}</bndbox></object>"
            "</annotation>"
        )
    with pytest.raises(DataError, match="2 of 2 boxes have a negative width or height, and none would"):
        open_dataset(labels)


def test_sizes_where_corners_are_meant() -> None:
    sizes = [(30.0, 10.0, 8.0, 9.0), (2.0, 3.0, 9.0, 9.0), (33.0, 20.0, 20.0, 20.0)]
    (problem,) = check(*sizes, given="corners")
    assert problem.fatal
    assert problem.message.startswith("2 of 3 boxes have a negative width or height, and none would if")
    assert "width and height, not right and bottom" in problem.message
    assert check(*sizes, (40, 20, 30, 9), given="corners") == []  # does not fit either way
    assert check(*sizes[:1], *[PIXELS] * 5, given="corners") == []
    assert check(*sizes) == []
