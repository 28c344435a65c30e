"""A network that the package does not know does all that its own does: registered by a line, or given as a module."""

import json
from dataclasses import replace

import pytest
import torch

from deformable_detr.core.errors import CheckpointError, ConfigError
from deformable_detr.data.open import open_dataset
from deformable_detr.evaluation.evaluate import evaluate
from deformable_detr.inference.detector import Detector
from deformable_detr.models import MODELS
from deformable_detr.report import write_report
from deformable_detr.runs.config_file import from_json
from deformable_detr.training import loop
from deformable_detr.training.train import resume, train
from deformable_detr.weights.checkpoint import load
from deformable_detr.weights.convert import convert
from tests.dense import KIND, Dense, DenseConfig


@pytest.fixture
def dense_config(tiny_config, monkeypatch):
    """Recipe of the registered model."""
    monkeypatch.setitem(MODELS, "dense", KIND)
    return replace(tiny_config, name="dense", model=DenseConfig())


@pytest.fixture(params=["registered", "given"])
def kind(request):
    return request.param


@pytest.fixture
def make(kind):
    """A network to hand over, for one that is given."""

    def make(num_classes=3):
        torch.manual_seed(0)
        return Dense(DenseConfig(num_classes=num_classes)) if kind == "given" else None

    return make


def weights_of(path):
    return load(path).weights


def test_it_trains_saves_resumes_evaluates_and_reports(dense_config, scenes, tmp_path, make, monkeypatch):
    whole = train(dense_config, data=scenes, model=make(), output=tmp_path / "whole", device="cpu")
    assert (whole.epochs_completed, whole.report.is_file()) == (2, True)
    page = whole.report.read_text()
    assert "validation images" in page
    assert "Nothing could be evaluated" not in page
    # Ctrl-C in the second step, and on: the same weights to the last bit.
    take, taken = loop.gradient_step, []

    def interrupted(learner, batch):
        taken.append(1)
        if len(taken) == 2:
            raise KeyboardInterrupt
        return take(learner, batch)

    monkeypatch.setattr(loop, "gradient_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(dense_config, data=scenes, model=make(), output=tmp_path / "part", device="cpu")
    monkeypatch.setattr(loop, "gradient_step", take)
    resume(tmp_path / "part", model=make(), device="cpu", report=False)
    first, second = (weights_of(tmp_path / name / "best.safetensors") for name in ("whole", "part"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    # From the file to the numbers of the run.
    detector = Detector.load(whole.folder / "best.safetensors", model=make(), device="cpu")
    metrics = evaluate(detector, open_dataset(scenes, split="val")).metrics
    assert metrics.twelve() == pytest.approx(whole.best)
    assert write_report(whole.folder, model=make(), output=tmp_path / "page.html", device="cpu").is_file()


def test_it_freezes_and_learns_otherwise(dense_config, scenes, tmp_path, make, kind):
    before = make() or MODELS.build(dense_config.model)
    learnt = train(dense_config, data=scenes, model=make(), output=tmp_path / "a", device="cpu", report=False)
    frozen = dense_config.with_settings(freeze=("backbone",), activation_checkpointing=True, accumulate=3)
    start = learnt.folder / "last.safetensors"
    run = train(frozen, data=scenes, weights=start, model=make(), output=tmp_path / "b", device="cpu", report=False)
    old, new = weights_of(start), weights_of(run.folder / "last.safetensors")
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved
    assert all(name.startswith(("class_head.", "box_head.")) for name in moved)
    assert set(before.state_dict()) == set(new)
    with pytest.raises(ConfigError, match="freeze holds 'encoder'; there are heads, backbone, all_but_heads"):
        train(
            dense_config.with_settings(freeze=("encoder",)),
            data=scenes,
            weights=start,
            model=make(),
            output=tmp_path / "c",
            device="cpu",
        )


def test_its_class_rows_go_on_by_name(dense_config, scenes, tmp_path, make):
    learnt = train(dense_config, data=scenes, model=make(), output=tmp_path / "a", device="cpu", report=False)
    whole = open_dataset(scenes, split="train")
    # "star" comes first, "disc" is called otherwise, and nothing else is there.
    order = [2, 0]
    keep = [replace(sample, **_only(sample, order)) for sample in whole.samples]
    data = replace(whole, classes=("star", "coin"), category_ids=(1, 2), samples=keep)
    frozen = dense_config.with_settings(epochs=1, freeze=("heads", "backbone"))
    with pytest.raises(ConfigError, match=r"nothing is left to train|frozen heads would never learn"):
        train(frozen, data=data, weights=learnt.folder, model=make(2), output=tmp_path / "no", device="cpu")
    lines = []
    run = train(
        dense_config.with_settings(epochs=1, lr=1e-12, weight_decay=0.0, ema_decay=0.0),
        data=data,
        weights=learnt.folder / "last.safetensors",
        model=make(2),
        output=tmp_path / "b",
        device="cpu",
        report=False,
        reporter=type("Lines", (), {"say": lambda _, line: lines.append(line), "update": lambda *_: None})(),
    )
    old, new = weights_of(learnt.folder / "last.safetensors"), weights_of(run.folder / "last.safetensors")
    torch.testing.assert_close(new["class_head.weight"][0], old["class_head.weight"][2], rtol=0, atol=1e-6)
    assert not torch.allclose(new["class_head.weight"][1], old["class_head.weight"][0], atol=1e-3)
    assert any("1 kept (star), 1 fresh (coin), 2 not needed (disc, square)" in line for line in lines)


def _only(sample, order):
    chosen = [i for i, class_id in enumerate(sample.class_ids) if class_id in order]
    return {
        "boxes_xyxy": sample.boxes_xyxy[chosen],
        "class_ids": sample.class_ids[chosen] * 0 + [order.index(sample.class_ids[i]) for i in chosen],
        "is_crowd": sample.is_crowd[chosen],
        "areas": sample.areas[chosen],
        "object_ids": tuple(sample.object_ids[i] for i in chosen),
    }


def test_files_say_whose_they_are(dense_config, scenes, tmp_path, make, kind):
    run = train(dense_config, data=scenes, model=make(), output=tmp_path / "a", device="cpu", report=False)
    best = run.folder / "best.safetensors"
    settings = json.loads((run.folder / "config.json").read_text())
    assert settings["model"]["name"] == {"registered": "dense", "given": "given"}[kind]
    assert from_json(settings, "config.json") == run.config
    for layout in ("official", "transformers"):
        with pytest.raises(CheckpointError, match=r"no model like this one, a dense|not of this package"):
            convert(best, tmp_path / f"{layout}.pth" if layout == "official" else tmp_path / layout, to=layout)
    if kind == "given":
        with pytest.raises(CheckpointError, match=r"tests.dense.Dense, a class that is not of this package.*model="):
            Detector.load(best, device="cpu")
        with pytest.raises(CheckpointError, match=r"of tests.dense.Dense, not of torch.nn.modules.linear.Linear"):
            Detector.load(best, model=torch.nn.Linear(2, 2), device="cpu")
        with pytest.raises(CheckpointError, match=r"class that is not of this package"):
            resume(run.folder, epochs=3, device="cpu")
        with pytest.raises(ConfigError, match=r"the network is for 5 classes, the data set has 3"):
            train(dense_config, data=scenes, model=make(5), output=tmp_path / "b", device="cpu")
    else:
        with pytest.raises(CheckpointError, match="holds a dense, which is built from it: leave model out"):
            Detector.load(best, model=Dense(DenseConfig()), device="cpu")
