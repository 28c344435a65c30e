from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deformable_detr.data.crowding import (
    FEWEST_QUERIES,
    Crowding,
    crowding,
    denoising_text,
    evaluation_text,
    fitted_queries,
    most_objects,
    queries_text,
    wanted_queries,
)
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.runs.recipes import RECIPES
from tests.data.noise import dataset_of

BOX = (1, 2, 30, 40)


@pytest.fixture
def data(tmp_path: Path) -> DetectionDataset:
    """Images of 7, 0 and 3 objects, the last of them with two crowd regions more."""
    data = dataset_of(tmp_path / "a", [(0, BOX)] * 7, [], [(1, BOX)] * 5)
    last = replace(data.samples[2], is_crowd=np.array([False, True, False, True, False]))
    return replace(data, samples=[*data.samples[:2], last])


def test_objects_beyond_a_limit(data: DetectionDataset) -> None:
    assert crowding([data], 7) is None
    assert crowding([data], 6) == Crowding(6, 1, 3, 7, 1, 10)
    assert crowding([data, data], 2) == Crowding(2, 4, 6, 7, 12, 20)
    assert crowding([data.subset([1])], 0) is None
    assert crowding([], 3) is None


def test_numbers_and_a_way_out(data: DetectionDataset) -> None:
    crowded = crowding([data], 2)
    assert crowded is not None
    assert queries_text(crowded, "the model") == (
        "2 of 3 images have more objects than the 2 queries of the model, up to 7: 6 of 10 objects can be neither "
        "learnt nor found; train with --set model.num_queries=100"
    )
    assert queries_text(crowded, "it", way_out="stop").endswith("found; stop")
    assert "no detector can find more than 40.0 % of the objects there" in evaluation_text(crowded)
    assert denoising_text(crowded) == (
        "2 of 3 images have more objects than the 2 denoising queries, up to 7: each step learns denoising from 2 of "
        "them, drawn anew; for all of them train with --set model.denoising_queries=7, which needs more memory"
    )
    # A model with exactly as many queries as objects would have none to spare.
    assert "num_queries=600" in queries_text(Crowding(100, 1, 1, 400, 300, 400), "it")
    assert "evaluate with --max-detections 600, or" in evaluation_text(Crowding(100, 1, 1, 400, 300, 400))
    assert evaluation_text(crowded, way_out="go on").endswith("objects there; go on")


def test_crowd_regions_are_no_objects(data: DetectionDataset) -> None:
    assert most_objects(data) == 7
    assert most_objects(data.subset([1, 2])) == 3
    assert most_objects(data.subset([1])) == most_objects(data.subset([])) == 0


def test_as_many_queries_as_the_fullest_image_needs_and_half_again() -> None:
    # The smallest multiple of 100 from 1.5 times as many on, found by trying.
    for most in range(1, 1500, 7):
        assert wanted_queries(most) == next(count for count in range(100, 3000, 100) if count >= 1.5 * most)
    assert [wanted_queries(most) for most in (66, 67, 133, 134, 200, 201, 312)] == [100, 200, 200, 300, 300, 400, 500]
    assert wanted_queries(0) == 0


def test_queries_are_added_only_where_there_are_too_few() -> None:
    assert [fitted_queries(100, most) for most in (0, 1, 66, 67, 312, 666, 667, 5000)] == [
        *(100, 100, 100, 200, 500, 1000, 1000, 1000)
    ]
    # Odd numbers stay as long as they are enough, and what is more than the most is never lowered.
    assert [fitted_queries(11, most) for most in (3, 7, 8)] == [11, 11, 100]
    assert [fitted_queries(1500, most) for most in (100, 5000)] == [1500, 1500]


def test_no_recipe_has_fewer_queries() -> None:
    assert min(recipe().model.num_queries for recipe in RECIPES.values()) >= FEWEST_QUERIES
