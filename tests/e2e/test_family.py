"""What one model of the package can do, all can: training, resuming, freezing, fine-tuning, files, processes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from deformable_detr.core.config import to_dict
from deformable_detr.core.errors import CheckpointError
from deformable_detr.core.types import Target
from deformable_detr.data.augmentation.settings import Augmentation
from deformable_detr.data.open import open_dataset
from deformable_detr.data.synthetic import SceneStyle, draw_scenes
from deformable_detr.evaluation.evaluate import evaluate
from deformable_detr.inference.detector import Detector
from deformable_detr.models import MODELS, interface_of
from deformable_detr.models.interface import class_scores_of
from deformable_detr.training import loop
from deformable_detr.training.train import resume, train
from deformable_detr.weights.checkpoint import load
from deformable_detr.weights.convert import convert
from tests import processes
from tests.family import FAMILY, LAYOUTS
from tests.processes import Group, ddetr


@pytest.fixture(scope="module", params=FAMILY)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def config(name, tiny_config):
    model = replace(FAMILY[name], dropout=0.1)
    return replace(tiny_config, name=name, model=model)


@pytest.fixture(scope="module")
def whole(config, scenes, tmp_path_factory):
    """A run that nothing has interrupted; not to be written to."""
    return train(config, data=scenes, output=tmp_path_factory.mktemp("whole") / "run", device="cpu")


def weights_of(path):
    return load(path).weights


def test_every_model_of_the_package_is_in_the_family():
    assert FAMILY.keys() == MODELS.keys()
    assert LAYOUTS.keys() == MODELS.keys()
    assert all(MODELS.name_of(config) == name for name, config in FAMILY.items())


def test_a_run_that_was_interrupted_is_the_same_to_the_last_bit(config, whole, scenes, tmp_path, monkeypatch):
    assert whole.epochs_completed == 2
    assert "Nothing could be evaluated" not in whole.report.read_text()
    take, taken = loop.gradient_step, []

    def interrupted(learner, batch):
        taken.append(1)
        if len(taken) == 2:
            raise KeyboardInterrupt
        return take(learner, batch)

    monkeypatch.setattr(loop, "gradient_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, data=scenes, output=tmp_path / "run", device="cpu", report=False)
    monkeypatch.setattr(loop, "gradient_step", take)
    resume(tmp_path / "run", device="cpu", report=False)
    for file in ("last.safetensors", "best.safetensors"):
        first, second = weights_of(whole.folder / file), weights_of(tmp_path / "run" / file)
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_it_evaluates_and_predicts_as_the_run_did(whole, scenes):
    detector = Detector.load(whole.folder, device="cpu")
    val = open_dataset(scenes, split="val")
    assert evaluate(detector, val).metrics.twelve() == pytest.approx(whole.best)
    images = [sample.path for sample in val.samples]
    found = detector.predict(images, threshold=0.0)
    as_it_is = detector.around(detector.model, as_it_is=True).predict(images, threshold=0.0)
    assert len(found) == len(images)
    for one, other in zip(found, as_it_is, strict=True):
        assert len(one) == len(other) > 0
        assert 0 <= one.scores.min() <= one.scores.max() <= 1
        assert one.class_ids.max() < 3
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-4)
        if class_scores_of(detector.model) == "softmax":  # a query is one thing alone
            assert len(set(one.query_ids.tolist())) == len(one) == 11


def test_it_freezes(config, whole, scenes, tmp_path):
    start = whole.folder / "last.safetensors"
    frozen = config.with_settings(
        epochs=1, freeze=("all_but_heads",), accumulate=3, activation_checkpointing=True, ema_decay=0.0
    )
    run = train(frozen, data=scenes, weights=start, output=tmp_path / "run", device="cpu", report=False)
    old, new = weights_of(start), weights_of(run.folder / "last.safetensors")
    moved = {key for key in old if not torch.equal(old[key], new[key])}
    heads = MODELS.parts(config.model)["heads"]
    assert moved
    assert all(key.startswith(heads) for key in moved)


def test_known_classes_go_on_and_new_ones_begin(config, whole, scenes, tmp_path):
    """The data set has "star" first, then something new; rows that are of no class stay, too."""
    data = open_dataset(scenes, split="train")
    order = [2, 0]
    samples = []
    for sample in data.samples:
        chosen = [place for place, class_id in enumerate(sample.class_ids) if class_id in order]
        ids = sample.class_ids[chosen] * 0 + [order.index(sample.class_ids[place]) for place in chosen]
        samples.append(
            replace(
                sample,
                boxes_xyxy=sample.boxes_xyxy[chosen],
                class_ids=ids,
                is_crowd=sample.is_crowd[chosen],
                areas=sample.areas[chosen],
                object_ids=tuple(sample.object_ids[place] for place in chosen),
            )
        )
    data = replace(data, classes=("star", "coin"), category_ids=(1, 2), samples=samples)
    gentle = config.with_settings(epochs=1, lr=1e-12, weight_decay=0.0, ema_decay=0.0)
    start = whole.folder / "last.safetensors"
    run = train(gentle, data=data, weights=start, output=tmp_path / "run", device="cpu", report=False)
    old, new = weights_of(start), weights_of(run.folder / "last.safetensors")
    by_class = [key for key in new if key.startswith(MODELS.class_rows(config.model).by_class)]
    assert by_class
    for key in by_class:
        assert len(new[key]) == len(old[key]) - 1
        torch.testing.assert_close(new[key][0], old[key][2], rtol=0, atol=1e-6)
        torch.testing.assert_close(new[key][2:], old[key][3:], rtol=0, atol=1e-6)
        if old[key].dim() > 1:  # biases may begin alike
            assert not torch.allclose(new[key][1], old[key][0], atol=1e-3)


def test_its_files_in_other_layouts(name, whole, tmp_path):
    best = whole.folder / "best.safetensors"
    for layout in LAYOUTS[name]:
        there = convert(best, tmp_path / layout, to=layout)
        back = convert(there.output, tmp_path / f"{layout}.safetensors", to="ours")
        first, second = weights_of(best), weights_of(back.output)
        counters = "num_batches_tracked"  # which not all layouts hold, and no result needs
        assert all(torch.equal(first[key], second[key]) for key in first if not key.endswith(counters))
    for layout in {"official", "transformers"} - set(LAYOUTS[name]):
        with pytest.raises(CheckpointError, match=r"no backbone test_resnet|no model like this one"):
            convert(best, tmp_path / {"official": "x.pth", "transformers": "x"}[layout], to=layout)


def test_gradients_of_a_network_without_any_object(config):
    torch.manual_seed(0)
    model = MODELS.build(replace(config.model, num_classes=3))
    network = interface_of(model)
    images, mask = torch.randn(2, 3, 48, 72), torch.zeros(2, 48, 72, dtype=torch.bool)
    nothing = [Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4)) for _ in range(2)]
    output = network(images, mask, nothing)
    losses = network.make_criterion(config.criterion)(output, nothing)
    losses.total.backward()
    assert losses.total.isfinite()
    assert float(losses.class_error) == 0
    # Every parameter takes part, or several processes would wait for each other.
    assert [key for key, one in model.named_parameters() if one.grad is None] == []


@pytest.fixture(scope="module")
def lonely(tmp_path_factory):
    """8 pictures of one size, 7 of them empty: there is a process, and a whole step, without any object."""
    folder = tmp_path_factory.mktemp("lonely")
    style = SceneStyle(size_wh=(90, 60), classes=("disc", "square", "star"), most_objects=3)
    draw_scenes(folder, 8, 2, seed=3, style=style)
    file = folder / "train" / "_annotations.coco.json"
    document = json.loads(file.read_text())
    most = max(document["images"], key=lambda image: sum(a["image_id"] == image["id"] for a in document["annotations"]))
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] == most["id"]]
    assert document["annotations"]
    # Drawn scenes differ in size, and what is around an image in a batch would differ between the processes.
    for image in document["images"]:
        path = next(folder.rglob(Path(image["file_name"]).name))
        canvas = Image.new("RGB", (120, 90))
        with Image.open(path) as drawn:
            assert (max(drawn.width, 120), max(drawn.height, 90)) == canvas.size
            canvas.paste(drawn)
        canvas.save(path)
        image["width"], image["height"] = canvas.size
    file.write_text(json.dumps(document))
    return folder


def test_two_processes_are_one(config, lonely, tmp_path):
    """The same losses and gradients at every step. Images are of one size, so that nobody sees another padding."""
    body = timm.create_model(config.model.backbone, pretrained=False)
    save_file(body.state_dict(), tmp_path / "backbone.safetensors")
    model = replace(
        config.model, dropout=0.0, backbone_weights=str(tmp_path / "backbone.safetensors"), frozen_batch_norm=True
    )
    one_size = replace(Augmentation(crop_probability=0.0).scaled(48), short_sides=(48,))
    recipe = replace(config, model=model, augmentation=one_size)
    recipe = recipe.with_settings(epochs=2, batch_size=4, eval_every=2, log_every=1)
    (tmp_path / "recipe.json").write_text(json.dumps(to_dict(recipe)))
    given = [tmp_path / "recipe.json", "--data", lonely, "--device", "cpu", "--output"]
    with processes.start(ddetr, ["train", *given, tmp_path / "one"], said=tmp_path / "one.txt") as process:
        assert process.wait() == 0, process.said
    parts = ["--set", "accumulate=2"]
    with Group(2, ddetr, ["train", *given, tmp_path / "two", *parts], folder=tmp_path / "group") as both:
        assert both.wait() == 0, both.said
    steps = [_steps(tmp_path / run) for run in ("one", "two")]
    assert len(steps[0]) == len(steps[1]) == 4
    for alone, together in zip(*steps, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert together["terms"] == pytest.approx(alone["terms"], rel=1e-5, abs=1e-6)
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
    empty = [step for step in steps[0] if all(term == 0 for key, term in step["terms"].items() if key.endswith("l1"))]
    assert len(empty) == 2  # one of the two steps of each epoch


def _steps(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "step"]
