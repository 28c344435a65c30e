"""DETR equals the official one's recorded run: features, outputs, matching, losses, gradients, detections.

The recorded weights are put into a checkpoint file as the official code writes it, and come out of it by our reader.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deformable_detr.core.types import Target
from deformable_detr.models import DETRConfig
from deformable_detr.models.losses import CriterionConfig
from deformable_detr.models.postprocess import to_detections
from deformable_detr.weights import read
from deformable_detr.weights.checkpoint import build_model
from deformable_detr.weights.detr.keys import from_official_detr_keys

FOLDER = Path(__file__).parents[3] / "shared" / "checks"
CASES = sorted(path.stem.removeprefix("meta_") for path in (FOLDER / "detr").glob("meta_*.json"))
TERMS = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}


def arguments(flags):
    """Arguments of the official code by name: a flag without a value is true."""
    found = {"nheads": 8, "dilation": False}
    for flag, value in zip(flags, [*flags[1:], "--"], strict=False):
        if flag.startswith("--"):
            found[flag[2:]] = True if value.startswith("--") else int(value) if value.isdigit() else value
    return {name: value for name, value in found.items() if name in ("nheads", "dilation", "pre_norm", "backbone")}


class Run:
    """The model with the recorded weights, and what it makes of the recorded images."""

    def __init__(self, case, path):
        sys.path.insert(0, str(FOLDER / "weights"))
        try:
            from common_inputs import case_inputs
            from formula_weights_detr import value
        finally:
            sys.path.pop(0)
        folder = FOLDER / "detr"
        self.expected = np.load(folder / f"expected_{case}.npz")
        self.gradient_norms = json.loads((folder / f"gradnorm_{case}.json").read_text())
        self.meta = json.loads((folder / f"meta_{case}.json").read_text())
        shapes = json.loads((folder / f"keys_{case}.json").read_text())
        official = {key: torch.from_numpy(np.asarray(value(key, shape))) for key, shape in shapes.items()}
        torch.save({"model": official, "args": arguments(self.meta["flags"])}, path)
        checkpoint = read(path)
        self.config = checkpoint.model
        self.model = build_model(checkpoint, path).eval()
        images, targets = case_inputs(
            self.meta["seed"], self.meta["sizes"], self.meta["counts"], self.meta["max_label"]
        )
        height, width = (max(size[axis] for size in self.meta["sizes"]) for axis in (0, 1))
        self.images = torch.zeros(len(images), 3, height, width)
        self.mask = torch.ones(len(images), height, width, dtype=torch.bool)
        for index, image in enumerate(images):
            _, height, width = image.shape
            self.images[index, :, :height, :width] = torch.from_numpy(image)
            self.mask[index, :height, :width] = False
        self.targets = [
            Target(torch.from_numpy(one["labels"]), torch.from_numpy(one["boxes"]).view(-1, 4)) for one in targets
        ]
        self.output = self.model(self.images, self.mask)
        self.losses = self.model.make_criterion(CriterionConfig())(self.output, self.targets)

    def stage(self, suffix):
        last = len(self.output.layers) - 1
        return f"decoder.{last if suffix in ('', 'final') else int(suffix)}"


@pytest.fixture(scope="module", params=CASES or ["r50"])
def run(request, tmp_path_factory):
    if not CASES:
        pytest.skip("no recorded figures beside this checkout")
    return Run(request.param, tmp_path_factory.mktemp("official") / f"{request.param}.pth")


def largest_difference(ours, recorded):
    wanted = torch.from_numpy(np.asarray(recorded)).double()
    return float((ours.detach().double() - wanted).abs().max()) if wanted.numel() else 0.0


def test_the_reader_finds_the_published_settings(run):
    if not run.meta["flags"]:
        assert run.config == DETRConfig()
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in run.model.parameters()]
    assert sum(count for count, learns in counts if learns) == run.meta["trainable"]
    assert sum(count for count, _ in counts) == run.meta["all_parameters"]
    assert len(run.model.state_dict()) == run.meta["keys"]


def test_logits_and_boxes_of_every_layer(run):
    assert largest_difference(run.output.final.logits, run.expected["pred_logits"]) < 2e-3
    assert largest_difference(run.output.final.boxes, run.expected["pred_boxes"]) < 2e-4
    for layer, logits, boxes in zip(
        run.output.layers[:-1], run.expected["aux_logits"], run.expected["aux_boxes"], strict=True
    ):
        assert largest_difference(layer.logits[:, : logits.shape[1]], logits) < 2e-3
        assert largest_difference(layer.boxes[:, : boxes.shape[1]], boxes) < 2e-4


def test_features_positions_and_memory(run):
    model, expected = run.model, run.expected
    with torch.no_grad():
        last = model.features.backbone(run.images)[-1]
        memory = model.features(run.images, run.mask)
        encoded = model.encoder(memory).tokens
    (height, width) = memory.spatial_shapes[0]
    maps = {
        "feature_slice": last,
        "proj_slice": memory.tokens.transpose(1, 2).unflatten(-1, (height, width)),
        "position_slice": memory.position.transpose(1, 2).unflatten(-1, (height, width))[:, ::16],
    }
    for name, found in maps.items():
        recorded = expected[name]
        assert largest_difference(found[:, : recorded.shape[1]], recorded) < 1e-3, name
    assert (memory.padding_mask.view(len(run.images), height, width).numpy() == expected["feature_mask"]).all()
    recorded = expected["memory_slice"]
    assert largest_difference(encoded.transpose(0, 1)[..., : recorded.shape[2]], recorded) < 1e-3


def test_queries_after_the_norm_of_the_decoder(run):
    features = []
    hook = run.model.decoder.norm.register_forward_hook(lambda _, inputs, output: features.append(output))
    with torch.no_grad():
        run.model(run.images, run.mask)
    hook.remove()
    recorded = run.expected["hs_slice"]
    assert len(features) == len(recorded)
    for found, wanted in zip(features, recorded, strict=True):
        assert largest_difference(found[:, : wanted.shape[1], : wanted.shape[2]], wanted) < 1e-3


def test_matched_pairs(run):
    names = [name for name in run.expected.files if name.startswith("match/")]
    assert len(names) == len(run.images) * len(run.output.layers)
    for name in names:
        _, stage, image = name.split("/")
        assignment = run.losses.assignments[run.stage(stage)][int(image)]
        recorded = run.expected[name]
        assert assignment.queries.tolist() == recorded[0].tolist(), name
        assert assignment.objects.tolist() == recorded[1].tolist(), name


def test_every_loss_term_and_the_total(run):
    names = {}
    for name, value in run.losses.terms.items():
        stage, term = name.split("/")
        suffix = "" if stage == run.stage("") else "_" + stage.rpartition(".")[2]
        names[TERMS[term] + suffix] = value
    recorded = {name[5:]: float(run.expected[name]) for name in run.expected.files if name.startswith("loss/")}
    assert names.keys() == {name for name in recorded if name.startswith("loss_")}
    for name, value in names.items():
        assert float(value) == pytest.approx(recorded[name], rel=1e-3, abs=1e-6), name
    assert float(run.losses.total.detach()) == pytest.approx(float(run.expected["total_loss"]), rel=1e-3)
    if sum(run.meta["counts"]):  # without objects nothing can be wrong here, and everything is there
        assert float(run.losses.class_error) == pytest.approx(recorded["class_error"])
    # Logged there, and not here: the mean difference of the numbers of objects found and labelled.
    for name in recorded:
        if name.startswith("cardinality_error"):
            layer = run.output.layers[int(run.stage(name[len("cardinality_error_") :]).rpartition(".")[2])]
            found = (layer.logits.argmax(-1) != layer.logits.shape[-1] - 1).sum(1).tolist()
            errors = [abs(a - b) for a, b in zip(found, run.meta["counts"], strict=True)]
            assert sum(errors) / len(errors) == pytest.approx(recorded[name]), name


def test_detections(run):
    sizes = run.expected["post/target_sizes"].tolist()
    with torch.no_grad():
        detections = to_detections(
            run.output.final, [(width, height) for height, width in sizes], class_scores=run.model.class_scores
        )
    for image, found in enumerate(detections):
        # There they stand in the order of the queries.
        order = found.query_ids
        assert sorted(order.tolist()) == list(range(run.meta["num_queries"]))[: len(order)]
        assert (found.scores[:-1] >= found.scores[1:]).all()
        recorded = {part: run.expected[f"post/{image}/{part}"][order.numpy()] for part in ("scores", "labels", "boxes")}
        assert largest_difference(found.scores, recorded["scores"]) < 1e-4
        assert (found.class_ids.numpy() == recorded["labels"]).all()
        assert np.abs(found.boxes_xyxy.numpy() - recorded["boxes"]).max() < 0.1


def test_every_parameter_has_the_recorded_gradient(run):
    run.model.zero_grad()
    run.losses.total.backward(retain_graph=True)
    ours = {name: one.grad for name, one in run.model.named_parameters() if one.requires_grad}
    recorded = from_official_detr_keys({name: torch.tensor(norm) for name, norm in run.gradient_norms.items()})
    assert recorded.keys() == ours.keys()
    for name, norm in recorded.items():
        found = 0.0 if ours[name] is None else float(ours[name].norm())
        assert found == pytest.approx(float(norm), rel=1e-2, abs=1e-5), name
