"""Four drawn pictures, learnt by heart through the real command: if anything on the way is wrong, this fails."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deformable_detr.data.synthetic import SceneStyle, draw_scenes
from tests import processes

SETTINGS = {
    "model.variant": "two_stage",
    "model.backbone": "test_convnext",
    "model.num_levels": 2,
    "model.hidden_dim": 64,
    "model.num_heads": 2,
    "model.ffn_dim": 64,
    "model.encoder_layers": 1,
    "model.decoder_layers": 1,
    "model.encoder_points": 2,
    "model.decoder_points": 2,
    "model.num_queries": 12,
    "optimizer.backbone_lr_factor": 1.0,
    "schedule.warmup_steps": 10,
    "optimizer.clip_norm": 1.0,
    "augmentation.crop_probability": 0.0,
    "augmentation.hflip": 0.0,
    "augmentation.short_sides": [64],
    "eval_every": 1000,
    "log_every": 50,
}


@pytest.fixture
def ddetr(tmp_path: Path) -> Callable[..., str]:
    """ddetr("train", ...) -> standard output of the command in a process of its own."""

    def call(*arguments: object) -> str:
        with processes.start(processes.ddetr, arguments, said=tmp_path / f"{arguments[0]}.txt") as process:
            assert process.wait() == 0, process.said
            return process.printed

    return call


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """The same four to learn from and to be judged by."""
    style = SceneStyle(size_wh=(96, 80), classes=("disc", "square", "star"), most_objects=3, smallest=0.25)
    folder = draw_scenes(tmp_path / "pictures", 4, 0, seed=1, style=style)
    shutil.rmtree(folder / "val")
    shutil.copytree(folder / "train", folder / "val")
    return folder


def test_four_pictures_are_learnt_by_heart(ddetr: Callable[..., str], pictures: Path, tmp_path: Path) -> None:
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    run = tmp_path / "run"
    options = ["--backbone-weights", "none", "--image-size", 64, "--batch-size", 1, "--workers", 0, "--device", "cpu"]
    options += ["--augment", "paper"]
    ddetr("train", "small", "--data", pictures, "--output", run, "--epochs", 60, "--lr", 1e-3, *options, *settings)
    weights = run / "best.safetensors"
    report = json.loads(ddetr("eval", weights, "--data", pictures, "--workers", 0, "--json"))
    assert report["metrics"]["ap50"] > 0.9
    lines = ddetr("predict", weights, pictures / "train", "--output", tmp_path / "out").splitlines()
    assert len(lines) == 4
    truth = json.loads((pictures / "train" / "_annotations.coco.json").read_text())
    present = {Path(image["file_name"]).name: set() for image in truth["images"]}
    names = {image["id"]: Path(image["file_name"]).name for image in truth["images"]}
    for annotation in truth["annotations"]:
        present[names[annotation["image_id"]]].add(annotation["category_id"])
    for record in map(json.loads, lines):
        assert record["detections"][0]["category_id"] in present[Path(record["image"]).name]
