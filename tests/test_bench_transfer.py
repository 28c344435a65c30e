"""The benchmark of starting from weights changes data as it says, and reports what it measured."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.accuracy import transfer
from deformable_detr.core.config import to_dict
from deformable_detr.data.open import open_dataset


def test_a_class_is_renamed_and_another_divided_at_the_border(scenes):
    dataset = open_dataset(scenes, split="train")
    boxes = np.array([[10.0, 10, 20, 20], [1, 10, 20, 20], [10, 10, 20, 59], [10, 1, 88, 20]])  # of 90 x 60
    sample = replace(
        dataset.samples[0],
        size_wh=(90, 60),
        boxes_xyxy=boxes,
        class_ids=np.array([0, 0, 0, 1]),
        is_crowd=np.zeros(4, bool),
        areas=np.ones(4),
        object_ids=(1, 2, 3, 4),
    )
    changed = transfer.change(replace(dataset, samples=[sample]), {"star": "sun"}, {"disc": "cut disc"})
    assert changed.classes == ("disc", "square", "sun", "cut disc")
    assert changed.category_ids == (1, 2, 3, 4)
    assert changed.samples[0].class_ids.tolist() == [0, 3, 3, 1]
    assert sample.class_ids.tolist() == [0, 0, 0, 1]


@pytest.mark.slow
def test_the_whole_on_drawn_scenes(scenes, tiny_config, tmp_path, capsys):
    (tmp_path / "tiny.json").write_text(json.dumps(to_dict(tiny_config)))
    arguments = ["--data", str(scenes), "--recipe", str(tmp_path / "tiny.json"), "--epochs", "1"]
    transfer.main([*arguments, "--rename", "star=sun", "--divide", "disc=cut disc"])
    printed = capsys.readouterr()
    results = json.loads(printed.out.splitlines()[-1])
    assert (results["kept"], results["fresh"]) == (["disc", "square"], ["sun", "cut disc"])
    assert list(results["after_one_epoch"]) == ["weights", "weights_fresh_heads", "backbone"]
    assert set(results["after_one_epoch"]["weights"]["ap50_per_class"]) == {"disc", "square", "sun", "cut disc"}
    assert "AP50 after one epoch" in printed.err


def test_a_pair_needs_two_sides(capsys):
    with pytest.raises(SystemExit):
        transfer.main(["--data", "x", "--rename", "star"])
    assert "'star' is not OLD=NEW" in capsys.readouterr().err
