from pathlib import Path

import numpy as np
import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import Problem, Sample
from deformable_detr.data.formats.assemble import ImageEntry, ObjectTable, assemble, problem_of, unannotated

SIZE_WH = (50, 30)


def put(
    boxes: list[tuple[float, float, float, float]],
    images: list[int] | None = None,
    classes: list[int] | None = None,
    areas: list[float] | None = None,
    num_images: int = 2,
) -> tuple[list[Sample], list[Problem]]:
    entries = [ImageEntry(Path(f"{index}.png"), SIZE_WH, index + 5) for index in range(num_images)]
    count = len(boxes)
    table = ObjectTable(
        np.array(images or [0] * count, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(classes or [0] * count, dtype=np.int64),
        np.zeros(count, dtype=bool),
        np.array(areas or [np.nan] * count),
        np.arange(100, 100 + count),
    )
    return assemble(entries, table, lambda row: f"row {row}", where="all.json")


@pytest.mark.parametrize(
    ("box", "kind", "fatal"),
    [
        ((np.nan, 1, 2, 3), "invalid_box", True),
        ((1, -np.inf, 2, 3), "invalid_box", True),
        ((5, 1, 4, 3), "invalid_box", True),
        ((1, 9, 4, 3), "invalid_box", True),
        ((50, 1, 60, 3), "outside_box", True),
        ((-9, 1, 0, 3), "outside_box", True),
        ((1, 31, 4, 33), "outside_box", True),
        ((7, 1, 7, 3), "degenerate_box", False),
        ((7, 3, 9, 3), "degenerate_box", False),
        ((33.0, 3, 33.0 + 1e-9, 9), "degenerate_box", False),
        ((500, 3, 500, 9), "degenerate_box", False),
    ],
)
def test_boxes_that_do_not_become_objects(box: tuple[float, float, float, float], kind: str, fatal: bool) -> None:
    samples, problems = put([(1, 1, 2, 2), box])
    assert [(problem.kind, problem.where, problem.fatal) for problem in problems] == [(kind, "row 1", fatal)]
    assert [len(sample.boxes_xyxy) for sample in samples] == [1, 0]


def test_boxes_that_reach_out_are_clipped() -> None:
    samples, problems = put([(-3, -4, 10, 12), (40, 20, 70, 90)])
    assert samples[0].boxes_xyxy.tolist() == [[0, 0, 10, 12], [40, 20, 50, 30]]
    assert samples[0].areas.tolist() == [120, 100]
    assert [problem.kind for problem in problems] == ["clipped_box", "clipped_box"]
    assert "the box from (-3, -4) to (10, 12)" in problems[0].message
    assert "50 x 30" in problems[0].message


def test_rounding_is_not_worth_a_word() -> None:
    samples, problems = put([(-1e-5, 0, 50.0004, 30.0002)])
    assert not problems
    assert samples[0].boxes_xyxy.tolist() == [[0, 0, 50, 30]]


def test_twins_are_kept_and_counted() -> None:
    box = (1, 2, 3, 4)
    samples, problems = put([box, box, box, box, box], images=[1, 0, 1, 1, 0], classes=[0, 0, 0, 1, 1])
    assert [(problem.kind, problem.where) for problem in problems] == [("duplicate_box", "row 2")]
    assert [len(sample.boxes_xyxy) for sample in samples] == [2, 3]


def test_objects_stay_in_order_within_their_image() -> None:
    samples, _ = put([(0, 0, 1 + n, 1) for n in range(5)], images=[1, 0, 1, 0, 1], classes=[0, 1, 2, 3, 4])
    assert [sample.object_ids for sample in samples] == [(101, 103), (100, 102, 104)]
    assert [sample.class_ids.tolist() for sample in samples] == [[1, 3], [0, 2, 4]]
    assert [sample.image_id for sample in samples] == [5, 6]


def test_areas_are_the_sources_own_where_they_can_be() -> None:
    samples, _ = put([(0, 0, 4, 5)] * 4, classes=[0, 1, 2, 3], areas=[7.5, np.nan, np.inf, -1])
    assert samples[0].areas.tolist() == [7.5, 20, 20, 20]


def test_no_objects_and_no_images() -> None:
    samples, problems = put([])
    assert [sample.boxes_xyxy.shape for sample in samples] == [(0, 4), (0, 4)]
    assert put([], num_images=0) == ([], [])
    assert not problems


def test_many_random_boxes_against_a_loop() -> None:
    generator = np.random.default_rng(1)
    boxes = generator.integers(-20, 70, (400, 4)).astype(float)
    samples, problems = put([tuple(box) for box in boxes.tolist()], classes=list(range(400)))
    expected = []
    kinds = {"invalid_box": 0, "degenerate_box": 0, "outside_box": 0, "clipped_box": 0}
    for x1, y1, x2, y2 in boxes.tolist():
        if x2 < x1 or y2 < y1:
            kinds["invalid_box"] += 1
        elif x1 == x2 or y1 == y2:
            kinds["degenerate_box"] += 1
        elif x1 >= 50 or y1 >= 30 or x2 <= 0 or y2 <= 0:
            kinds["outside_box"] += 1
        else:
            expected.append([max(x1, 0), max(y1, 0), min(x2, 50), min(y2, 30)])
            kinds["clipped_box"] += expected[-1] != [x1, y1, x2, y2]
    assert samples[0].boxes_xyxy.tolist() == expected
    assert {kind: sum(problem.kind == kind for problem in problems) for kind in kinds} == kinds
    assert min(kinds.values()) > 2


def test_an_error_about_a_file_names_it_once() -> None:
    path = Path("some/file.xml")
    problem = problem_of(DataError(f"{path}, line 3: not XML"), path, "invalid_annotation")
    assert problem == Problem("invalid_annotation", "some/file.xml", "line 3: not XML", True)


def test_most_images_without_annotations_is_a_mistake() -> None:
    assert [problem.fatal for problem in unannotated(["a"], 2, "here", "xml")] == [False]
    problems = unannotated(["a", "b"], 3, "here", "xml")
    assert [problem.fatal for problem in problems] == [True, False, False]
    assert problems[0].message.startswith("2 of 3 images have no xml file")
