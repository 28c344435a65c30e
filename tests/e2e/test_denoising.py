"""Denoising in whole runs: parts of a step and two processes give what one gives, and resumed runs the same bits."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from deformable_detr.core.config import to_dict
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.synthetic import SceneStyle, draw_scenes
from deformable_detr.models import DINOConfig
from deformable_detr.models.losses import CriterionConfig
from deformable_detr.training.finetune import changed, read_source
from deformable_detr.training.train import resume, train
from tests.processes import Group, ddetr

STEPS, EPOCHS = 2, 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """11 pictures, 7 of them empty: a process often has no object at all, and groups follow the other's images."""
    folder = tmp_path_factory.mktemp("photos")
    style = SceneStyle(size_wh=(90, 60), classes=("disc", "square", "star"), most_objects=3)
    draw_scenes(folder, 11, 3, seed=3, style=style)
    file = folder / "train" / "_annotations.coco.json"
    document = json.loads(file.read_text())
    kept = {image["id"] for image in document["images"][:4]}
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] in kept]
    # All of one size: the loss of a two-stage model counts positions in the padding, too.
    for image in document["images"]:
        path = file.parent / image["file_name"]
        Image.open(path).resize((90, 60)).save(path)
        across, down = 90 / image["width"], 60 / image["height"]
        for one in document["annotations"]:
            if one["image_id"] == image["id"]:
                x, y, width, height = one["bbox"]
                one["bbox"] = [x * across, y * down, width * across, height * down]
        image |= {"width": 90, "height": 60}
    file.write_text(json.dumps(document))
    return folder


def dino_of(model, **changes):
    """DINO with what the two have in common, and few queries: all positions of a picture are hardly more."""
    common = {name: getattr(model, name) for name in DINOConfig.__dataclass_fields__ if hasattr(model, name)}
    own = {"proposals": "valid", "num_queries": 5, "denoising_queries": 8, "dropout": 0.0, "features": "per_image"}
    return DINOConfig(**common | own | changes)


@pytest.fixture(scope="module", params=["dino", "two_stage"])
def config(request, tiny_config, tmp_path_factory):
    """Nothing drawn by chance inside the network but the noise, and no result that depends on an image's neighbours."""
    folder = tmp_path_factory.mktemp("config")
    save_file(timm.create_model(tiny_config.model.backbone, pretrained=False).state_dict(), folder / "body.safetensors")
    body = {"backbone_weights": str(folder / "body.safetensors"), "frozen_batch_norm": True}
    model = dino_of(tiny_config.model, **body)
    if request.param == "two_stage":
        names = ("proposals", "num_queries", "denoising_queries", "dropout", "features")
        model = replace(tiny_config.model, **{name: getattr(model, name) for name in names}, **body)
    augmentation = Augmentation(crop_probability=0.0, short_sides=(48,))
    config = replace(tiny_config, augmentation=augmentation, criterion=CriterionConfig(class_weight=1.0))
    return config.with_settings(model=model, epochs=EPOCHS, batch_size=4, eval_every=EPOCHS)


@pytest.fixture(scope="module")
def alone(photos, config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(config, data=photos, output=folder, device="cpu")
    return folder


def steps_of(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [one for one in found if one["kind"] == "step"]


def check_same_steps(folder, alone):
    pairs = list(zip(steps_of(alone), steps_of(folder), strict=True))
    assert len(pairs) == STEPS * EPOCHS
    for one, other in pairs:
        assert other["terms"] == pytest.approx(one["terms"], rel=1e-4, abs=1e-6)
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)


def test_denoising_is_part_of_the_loss(alone):
    for step in steps_of(alone):
        assert {"denoising.0/giou", "denoising.1/class", "proposals/l1"} <= step["terms"].keys()
    assert any(step["terms"]["denoising.1/l1"] > 0 for step in steps_of(alone))


def test_a_step_in_parts_is_the_same_step(photos, config, alone, tmp_path):
    train(config.with_settings(accumulate=4), data=photos, output=tmp_path / "run", device="cpu")
    check_same_steps(tmp_path / "run", alone)


def test_two_processes_are_one(photos, config, alone, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(config)))
    arguments = ["train", tmp_path / "recipe.json", "--data", photos, "--output", tmp_path / "run", "--device", "cpu"]
    with Group(2, ddetr, arguments, folder=tmp_path / "group") as members:
        assert members.wait() == 0, members.said
    check_same_steps(tmp_path / "run", alone)


@pytest.mark.slow
def test_two_processes_with_shards_are_one(photos, config, alone, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(config.with_settings(sharded=True))))
    arguments = ["train", tmp_path / "recipe.json", "--data", photos, "--output", tmp_path / "run", "--device", "cpu"]
    with Group(2, ddetr, arguments, folder=tmp_path / "group") as members:
        assert members.wait() == 0, members.said
    check_same_steps(tmp_path / "run", alone)


def test_a_resumed_run_has_the_same_bits(photos, config, alone, tmp_path):
    """Noise belongs to the image and the epoch, so that no generator has to be where it was."""
    folder = tmp_path / "run"
    train(config.with_settings(epochs=1, drop_at=1.0), data=photos, output=folder, device="cpu")
    torch.manual_seed(77)
    torch.rand(5)
    settings = json.loads((folder / "config.json").read_text())
    settings["schedule"] = json.loads((alone / "config.json").read_text())["schedule"]
    (folder / "config.json").write_text(json.dumps(settings))
    resume(folder, device="cpu")
    one, other = load_file(alone / "last.safetensors"), load_file(folder / "last.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one if not name.startswith("training/generator"))


def test_weights_without_a_label_table_can_begin_with_denoising(photos, config, alone, tmp_path):
    """And those with one can go on without; the classes are known, so that their labels are, too."""

    def go_on(folder, denoising_queries, **more):
        source = read_source(folder)
        model = replace(source.checkpoint.model, denoising_queries=denoising_queries)
        one = config.with_settings(model=model, epochs=1, lr=1e-9, **more)
        output = tmp_path / str(denoising_queries)
        train(one, data=photos, weights=changed(source, one), output=output, device="cpu")
        return load_file(output / "best.safetensors")

    label_table = load_file(alone / "best.safetensors")["denoising.label_embed.weight"]
    kept = go_on(alone, 3)["denoising.label_embed.weight"]
    torch.testing.assert_close(kept[:3], label_table[:3], atol=1e-6, rtol=0)
    assert not any(name.startswith("denoising.") for name in go_on(alone, 0))
    fresh = go_on(tmp_path / "0", 8, seed=9)["denoising.label_embed.weight"]
    assert fresh.shape == label_table.shape
    assert not torch.allclose(fresh, label_table, atol=1e-2)
