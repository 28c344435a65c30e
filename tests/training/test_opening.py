import os
from dataclasses import replace

import pytest

from deformable_detr.core.distributed import ALONE, Ranks
from deformable_detr.core.errors import BackendError, ConfigError
from deformable_detr.data.open import open_dataset
from deformable_detr.training.opening import (
    check_metric,
    data_name,
    data_record,
    new_folder,
    open_data,
    surroundings,
)


def test_what_is_around_a_run_is_known_before_any_work():
    lines = []
    reporter = type("Lines", (), {"say": lambda _, line: lines.append(line), "update": lambda *_: None})()
    with surroundings("cpu", [], reporter) as around:
        assert (around.ranks, str(around.device), around.services, around.reporter) == (ALONE, "cpu", (), reporter)
    with pytest.raises(BackendError, match="no such device"), surroundings("abacus", [], None):
        pass
    with pytest.raises(ConfigError, match="cannot log to 'visdom'"), surroundings("cpu", ["visdom"], None):
        pass


def test_data_are_named_without_paths(scenes):
    assert data_name(scenes) == data_name(str(scenes)) == scenes.name
    name = data_name(open_dataset(scenes, split="train"))
    assert os.sep not in name
    assert "COCO" in name


def test_where_the_data_are_is_remembered_for_those_given_by_path(tiny_config, scenes, monkeypatch):
    opened = open_data(tiny_config, scenes, None, None)
    monkeypatch.chdir(scenes.parent)
    record = data_record(scenes.name, opened.val, "coco", opened)
    assert record == {"path": str(scenes), "val_path": None, "format": "coco", "held_out": list(opened.held_out)}


def test_a_metric_of_a_class_needs_the_class(tiny_config, scenes):
    data = open_data(tiny_config, scenes, None, None)
    check_metric(tiny_config.with_settings(best_by="star/ap50"), data)
    with pytest.raises(ConfigError, match="best_by is 'cat/ap', but the classes are disc, square, star"):
        check_metric(tiny_config.with_settings(best_by="cat/ap"), data)


def test_the_first_process_makes_the_folder(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = Ranks(rank=1, size=2, together=True)
    assert new_folder(tmp_path / "run", tiny_config, "photos", other).path.name == ""
    assert not (tmp_path / "run").exists()
    assert new_folder(None, replace(tiny_config, name="r"), "photos", ALONE).path.as_posix() == "runs/r-photos-1"
