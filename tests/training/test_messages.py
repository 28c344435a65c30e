from dataclasses import replace

import pytest
import torch

from deformable_detr.data.splits import open_training_data
from deformable_detr.runs.folder import create_run_folder
from deformable_detr.training.autoconfig import fit_to_data
from deformable_detr.training.finetune import Origin
from deformable_detr.training.messages import Pace, data_warnings, details, introduce
from deformable_detr.training.setup import set_up


class Lines:
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)

    def update(self, stage, done, total, details=""):
        pass


@pytest.fixture
def said(scenes, tmp_path):
    """What a run of these settings says."""

    def say(config):
        data = open_training_data(scenes, val_share=0.1, seed=0, skip_bad_images=False)
        config, _ = fit_to_data(config, data.train)
        folder = create_run_folder(tmp_path / "run")
        notes = Lines()
        introduce(set_up(config, folder, data, "scenes", device=torch.device("cpu"), weights=True), notes)
        return notes.lines

    return say


def test_what_will_be_done(said, tiny_config):
    data, images, model, plan, folder = said(tiny_config)
    assert data.startswith("data: COCO ")
    assert images.startswith("8 images with ")
    assert images.endswith(" objects of 3 classes (disc, square, star); evaluated on the validation split, 3 images")
    assert model.startswith("model: two_stage, backbone test_resnet (weights: none), ")
    assert model.endswith(" million frozen, on cpu in float32")
    assert plan == "2 epochs of 2 steps of 3 images, learning rate 6.12e-05 (0.0002 x sqrt(3 / 32))"
    assert folder.startswith("run folder: ")


def test_what_is_unusual_is_said_in_lines_of_its_own(said, tiny_config, monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", dict, raising=False)
    optimizer = replace(tiny_config.optimizer, lr=1e-3)
    lines = said(
        tiny_config.with_settings(
            precision="bfloat16", activation_checkpointing=True, sharded=True, optimizer=optimizer
        )
    )
    text = "\n".join(lines)
    assert len(lines) == 8
    assert "on cpu in bfloat16" in text
    assert "this CPU has no instructions for bfloat16" in text
    assert "computed twice instead of remembered: " in text
    assert "learning rate 0.001\n" in text
    assert "compute.sharded is true and has no effect" in text


def test_what_will_spoil_the_result_is_said(scenes, tiny_config, tmp_path):
    data = open_training_data(scenes, val_share=0.1, seed=0, skip_bad_images=False)
    config, _ = fit_to_data(tiny_config.with_settings(num_queries=1), data.train)
    run = set_up(config, create_run_folder(tmp_path / "a"), data, "x", device=torch.device("cpu"), weights=True)
    most = max(len(sample.class_ids) for sample in (*data.train.samples, *data.val.samples))
    (crowded,) = data_warnings(run)
    assert f"more objects than the 1 queries of the model, up to {most}: " in crowded
    assert "train with --set model.num_queries=100" in crowded
    leaking = run._replace(data=data._replace(val=data.train.subset(range(8))))
    assert data_warnings(leaking)[0].startswith("all 8 validation images are training images, too")
    notes = Lines()
    introduce(leaking, notes)
    assert sum(line.startswith("warning: ") for line in notes.lines) == 2
    # Weights of a model whose queries are learnt have their number, too.
    fixed = replace(run.config, model=replace(run.config.model, variant="refine", proposals="paper"))
    from_weights = run._replace(config=fixed, origin=Origin("old.safetensors"))
    assert "the weights fix their number; train without --weights" in data_warnings(from_weights)[0]


def test_objects_beyond_the_denoising_queries_and_its_loss(scenes, tiny_config, tmp_path):
    """The line of progress shows what the last layer does with the image, and not with noisy copies."""
    data = open_training_data(scenes, val_share=0.1, seed=0, skip_bad_images=False)
    config, _ = fit_to_data(tiny_config.with_settings(denoising_queries=1), data.train)
    run = set_up(config, create_run_folder(tmp_path / "a"), data, "x", device=torch.device("cpu"), weights=True)
    (crowded,) = data_warnings(run)
    assert "more objects than the 1 denoising queries, up to " in crowded
    assert "each step learns denoising from 1 of them, drawn anew" in crowded
    terms = {
        "proposals/l1": 9.0,
        "decoder.0/l1": 8.0,
        "decoder.1/l1": 0.25,
        "denoising.0/l1": 7.0,
        "denoising.1/l1": 6.0,
    }
    record = {"loss": 1.0, "terms": terms, "lr": 1e-3, "images_per_second": 2.0, "memory_bytes": 3}
    assert "loss 1.00 (l1 0.25)" in details(run, record, Pace())


def test_labels_with_problems_are_counted(scenes, tiny_config, tmp_path):
    data = open_training_data(scenes, val_share=0.1, seed=0, skip_bad_images=False)
    data = data._replace(num_problems=7, num_bad_images=2)
    config, _ = fit_to_data(tiny_config, data.train)
    notes = Lines()
    introduce(set_up(config, create_run_folder(tmp_path), data, "x", device=torch.device("cpu"), weights=True), notes)
    assert "problems in the annotations: 7, 2 images left out; `ddetr check-data` lists them" in notes.lines
