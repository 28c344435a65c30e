"""The task of the comparison has objects of the sizes it says, and is drawn once."""

import json

import numpy as np
import pytest

from benchmarks.accuracy.convergence import scenes
from deformable_detr.core.errors import ConfigError
from deformable_detr.data.dataset import DetectionDataset
from deformable_detr.data.open import list_splits, open_dataset

FEW = ["--train", "12", "--val", "4", "--test", "2"]


def drawn(folder, *options):
    scenes.main([str(folder), *FEW, *options])
    return scenes.open_task(folder)


def test_all_sizes_are_there(tmp_path, capsys):
    task = drawn(tmp_path)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == task.record
    assert list_splits(tmp_path) == ("train", "val", "test")
    train = open_dataset(tmp_path, split="train")
    assert {sample.size_wh for sample in train.samples} == {(160, 128)}
    assert (task.short_side, task.long_side, task.num_train) == (128, 160, 12)
    assert len(train.classes) == 3
    counts = task.record["objects"]["train"]
    assert min(counts.values()) > 0
    assert sum(counts.values()) == sum(len(sample.class_ids) for sample in train.samples)
    assert max(len(sample.class_ids) for sample in train.samples) <= 5


def test_the_bounds_are_coco_s_at_this_size():
    assert scenes.BOUNDS == (8.0**2, 24.0**2)
    sample = type("Sample", (), {"areas": np.array([63.9, 64.0, 575.0, 576.0, 900.0])})()
    dataset = object.__new__(DetectionDataset)
    object.__setattr__(dataset, "samples", [sample])
    assert scenes.count_sizes(dataset) == {"small": 1, "medium": 2, "large": 2}


def test_the_easy_variant_has_no_small_objects_and_options_change_it(tmp_path):
    easy = drawn(tmp_path / "easy", "--variant", "easy").record
    assert easy["objects"]["train"]["small"] == 0
    assert easy["style"]["plain_background"]
    assert easy["style"]["own_colors"]
    options = ["--smallest", "0.1", "--largest", "0.3", "--most-objects", "2", "--background", "clouds"]
    changed = drawn(tmp_path / "changed", "--variant", "easy", *options, "--colors", "any").record["style"]
    assert (changed["smallest"], changed["largest"], changed["most_objects"]) == (0.1, 0.3, 2)
    assert not changed["plain_background"]
    assert not changed["own_colors"]
    with pytest.raises(ConfigError, match="smallest"):
        drawn(tmp_path / "none", "--smallest", "0.7")


def test_scenes_are_drawn_once(tmp_path):
    drawn(tmp_path)
    picture = next((tmp_path / "train").glob("*.jpg"))
    before = picture.stat().st_mtime_ns
    drawn(tmp_path)
    assert picture.stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="other settings"):
        drawn(tmp_path, "--seed", "1")


def test_a_folder_without_scenes_says_how_to_draw_them(tmp_path):
    with pytest.raises(SystemExit, match=r"draw the scenes first.*convergence\.scenes"):
        scenes.open_task(tmp_path)
