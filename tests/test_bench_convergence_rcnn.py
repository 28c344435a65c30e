"""Faster R-CNN learns from our batches, is judged in pixels of the originals, and goes on where it was stopped."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.accuracy.convergence import faster_rcnn, rcnn
from benchmarks.accuracy.convergence.watch import End, Watch
from deformable_detr.core.types import Batch, Target
from deformable_detr.data.open import open_dataset
from deformable_detr.training.autoconfig import fit_to_data

SETTINGS = rcnn.RCNNSettings(lr=1e-3, channels=16, head=24, samples=16)


@pytest.fixture(scope="module")
def photos(scenes):
    return scenes


@pytest.fixture
def config(tiny_config, photos):
    wanted = tiny_config.with_settings({"model.num_levels": 3, "run.seed": 2, "schedule.epochs": 2})
    return fit_to_data(wanted, open_dataset(photos, split="train")).config


def batch_of(*targets, sizes=((61, 96), (64, 75))):
    """Two images of different sizes, padded to 64 x 96, from originals of twice that size."""
    generator = torch.Generator().manual_seed(0)
    padding = torch.ones(len(targets), 64, 96, dtype=torch.bool)
    for image, (height, width) in zip(padding, sizes, strict=True):
        image[:height, :width] = False
    images = torch.randn(len(targets), 3, 64, 96, generator=generator).masked_fill(padding[:, None], 0.0)
    return Batch(images, padding, list(targets), [0, 1], [(2 * width, 2 * height) for height, width in sizes])


SOME = Target(torch.tensor([2, 0]), torch.tensor([[0.5, 0.5, 0.3, 0.4], [0.2, 0.7, 0.2, 0.3]]))
NOTHING = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))


def learner_of(config, photos):
    torch.manual_seed(0)
    learner = rcnn.make_learner(config, SETTINGS, open_dataset(photos, split="train"))
    learner.model.train()
    return learner


def test_it_learns_a_batch_with_an_image_without_objects(config, photos):
    learner = learner_of(config, photos)
    batch = batch_of(SOME, NOTHING)
    losses = [learner.step(batch) for _ in range(12)]
    assert all(np.isfinite(losses))
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert np.isfinite(learner.step(batch_of(NOTHING, NOTHING)))
    assert learner.ema.updates == 13


def test_what_goes_in_are_boxes_of_each_image(config, photos, monkeypatch):
    learner = learner_of(config, photos)
    seen = {}

    def look(images, targets):
        seen["sizes"] = [tuple(one.shape) for one in images]
        seen["targets"] = targets
        trained = next(one for one in learner.model.parameters() if one.requires_grad)
        return {"one": trained.sum(), "another": trained.abs().sum()}

    monkeypatch.setattr(learner.model, "forward", look)
    learner.step(batch_of(SOME, NOTHING))
    assert seen["sizes"] == [(3, 61, 96), (3, 64, 75)]
    assert seen["targets"][0]["labels"].tolist() == [3, 1]
    expected = [[0.35 * 96, 0.3 * 61, 0.65 * 96, 0.7 * 61], [0.1 * 96, 0.55 * 61, 0.3 * 96, 0.85 * 61]]
    torch.testing.assert_close(seen["targets"][0]["boxes"], torch.tensor(expected))
    assert seen["targets"][1]["boxes"].shape == (0, 4)


def test_detections_are_in_pixels_of_the_originals(config, photos, monkeypatch):
    learner = learner_of(config, photos)
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0]])
    answer = [{"boxes": boxes, "scores": torch.tensor([0.5]), "labels": torch.tensor([2])}] * 2
    monkeypatch.setattr(learner.model, "forward", lambda images: answer)
    batch = batch_of(SOME, NOTHING)._replace(original_sizes_wh=[(192, 183), (150, 64)])
    first, second = rcnn.detect(learner.model, batch)
    assert first.boxes_xyxy.tolist() == [[2.0, 6.0, 60.0, 120.0]]
    assert second.boxes_xyxy.tolist() == [[2.0, 2.0, 60.0, 40.0]]
    assert first.class_ids.tolist() == [1]


def test_frozen_parts_stay(config, photos):
    frozen = config.with_settings({"model.backbone_weights": "hub", "model.frozen_stages": 2})
    before = rcnn.Backbone.load_weights
    try:
        rcnn.Backbone.load_weights = lambda self, source: None
        model = rcnn.build(frozen, SETTINGS, open_dataset(photos, split="train"))
    finally:
        rcnn.Backbone.load_weights = before
    body = model.backbone.backbone
    assert any(not one.requires_grad for one in body.parameters())
    assert any(one.requires_grad for one in body.parameters())
    assert all(one.requires_grad for one in model.roi_heads.parameters())


def test_anchors_follow_the_objects(config, photos):
    train = open_dataset(photos, split="train")
    sides = rcnn.anchor_sizes(config, train)
    assert len(sides) == 4
    assert sides == tuple(sorted(sides))
    assert sides[-1] >= 3.5 * sides[0]
    # Objects of 60-pixel-high scenes at 48 pixels: 14 % to 62 % of the shorter side before.
    assert 4 <= sides[0] < 14 < sides[-1] < 48
    twice = config.with_settings({"preprocessing.short_side": 96, "preprocessing.max_side": 300})
    assert rcnn.anchor_sizes(twice, train)[-1] == pytest.approx(2 * sides[-1], abs=2)
    assert rcnn.anchor_sizes(config, train.subset([])) == (32, 64, 128, 256)


class Stopping(Watch):
    """Stops before every third step."""

    count = 0

    def update(self, stage, done, total, details=""):
        Stopping.count += 1
        if Stopping.count % 3 == 0:
            raise KeyboardInterrupt


def without_seconds(rows):
    return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in rows]


@pytest.mark.slow
def test_a_run_that_is_stopped_ends_as_one_that_is_not(config, photos, tmp_path):
    config = config.with_settings({"schedule.epochs": 3})

    def train(name, watch=Watch):
        return faster_rcnn.train(
            config, SETTINGS, photos, tmp_path / name, watch(tmp_path / f"{name}.jsonl", End(None), "")
        )

    whole, again = train("whole"), train("again")
    assert without_seconds(whole[0]) == without_seconds(again[0])  # one seed, one run
    assert whole[1] == again[1]
    for _ in range(20):
        stopped = train("stopped", Stopping)
        if stopped is not None:
            break
        assert (tmp_path / "stopped" / "last.pt").exists()
    assert Stopping.count > 3
    assert without_seconds(stopped[0]) == without_seconds(whole[0])
    assert stopped[1] == whole[1]
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == ["best.pt", "epochs.jsonl"]
    assert [row["epoch"] for row in whole[0]] == [1, 2, 3]
    assert all(row["epoch_cpu_seconds"] > 0 for row in stopped[0])
    assert train("whole")[1] == whole[1]  # nothing is left to do
    with pytest.raises(SystemExit, match="other settings"):
        faster_rcnn.train(
            config.with_settings(seed=3), SETTINGS, photos, tmp_path / "whole", Watch(tmp_path / "x", End(None), "")
        )


@pytest.mark.slow
def test_the_command(photos, tmp_path, capsys):
    folder = tmp_path / "data"
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        for path in (photos / split).iterdir():
            (folder / split / path.name).write_bytes(path.read_bytes())
        content = json.loads((folder / split / "_annotations.coco.json").read_text())
        size = (70, 50)
        Image.new("RGB", size, (90, 120, 80)).save(folder / split / "empty.jpg")
        content["images"].append({"id": 999, "file_name": "empty.jpg", "width": size[0], "height": size[1]})
        (folder / split / "_annotations.coco.json").write_text(json.dumps(content))
    options = [str(folder), "--backbone-weights", "none", "--backbone", "test_resnet", "--image-size", "64"]
    faster_rcnn.main([*options, "--epochs", "1", "--batch-size", "3", "--output", str(tmp_path / "run")])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["best"]["epoch"] == 1
    assert {"ap", "ap50", "ap_small", "ap_medium", "ap_large", "ap50_per_class"} <= line["best"].keys()
    assert line["config"]["model.backbone"] == "test_resnet"
    assert len(line["config"]["faster_rcnn.anchors"]) == 4
    rows = [json.loads(text) for text in (tmp_path / "run" / "epochs.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["start", "epoch"]
    with pytest.raises(SystemExit, match="auto or a number"):
        faster_rcnn.main([*options[:-1], "small", "--output", str(tmp_path / "other")])
