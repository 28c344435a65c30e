import numpy as np
import pytest

from deformable_detr.core.errors import DataError
from deformable_detr.data.dataset import DetectionDataset, Problem, align_classes


def test_counts(drawn: DetectionDataset) -> None:
    assert len(drawn) == 3
    assert drawn.num_objects == 8
    assert drawn.objects_per_class() == {"zebra": 3, "ant": 3, "été": 2}


def test_subset_keeps_order_and_classes(drawn: DetectionDataset) -> None:
    part = drawn.subset([2, 0])
    assert [sample.image_id for sample in part.samples] == [42, 40]
    assert part.classes == drawn.classes


def test_fatal_problems() -> None:
    mild, bad = Problem("clipped_box", "a", "b", False), Problem("invalid_box", "a", "b", True)
    dataset = DetectionDataset(classes=("a",), category_ids=(1,), samples=[], problems=(mild, bad))
    assert dataset.fatal_problems == (bad,)


def test_aligning_classes_is_by_name(drawn: DetectionDataset) -> None:
    aligned = align_classes(drawn, ["ant", "wolf", "été", "zebra"], [1, 5, 6, 7])
    assert aligned.category_ids == (1, 5, 6, 7)
    for before, after in zip(drawn.samples, aligned.samples, strict=True):
        assert [drawn.classes[i] for i in before.class_ids] == [aligned.classes[i] for i in after.class_ids]
        np.testing.assert_array_equal(before.boxes_xyxy, after.boxes_xyxy)


def test_aligning_equal_classes_changes_nothing(drawn: DetectionDataset) -> None:
    assert align_classes(drawn, drawn.classes, drawn.category_ids) is drawn


def test_aligning_names_what_is_unknown(drawn: DetectionDataset) -> None:
    with pytest.raises(DataError, match=r"'zebra', 'été', which is not .* 'ant', 'wolf'"):
        align_classes(drawn, ["ant", "wolf"], [1, 2])


def test_a_class_nothing_is_labelled_with_may_be_unknown(drawn: DetectionDataset) -> None:
    empty = drawn.subset([1])
    assert align_classes(empty, ["wolf"], [1]).classes == ("wolf",)
