"""The whole model equals the official one's recorded run: outputs, matching, losses, gradients, detections.

The recorded weights are put into a checkpoint file as the official code writes it, and come out of it by our reader.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deformable_detr.core.types import Target
from deformable_detr.models import DeformableDETRConfig
from deformable_detr.models.losses import Criterion, CriterionConfig
from deformable_detr.models.postprocess import to_detections
from deformable_detr.weights.checkpoint import build_model
from deformable_detr.weights.official.keys import from_official_keys
from deformable_detr.weights.official.reader import read_official

VARIANTS = {"plain": "base", "two_stage": "two_stage"}
ARGS = argparse.Namespace(num_feature_levels=4, nheads=8, num_queries=300, dilation=False, backbone="resnet50")
OFFICIAL_TERMS = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}


class Run:
    """The model with the recorded weights, and what it makes of the recorded images."""

    def __init__(self, folder, variant, path):
        sys.path.insert(0, str(folder))
        try:
            from formula_weights import inputs, value
        finally:
            sys.path.pop(0)
        self.expected = np.load(folder / f"expected_{variant}.npz")
        self.gradient_norms = json.loads((folder / f"gradnorm_{variant}.json").read_text())
        shapes = json.loads((folder / f"keys_{variant}.json").read_text())
        shared_heads = variant == "plain"
        official = {key: torch.from_numpy(np.asarray(value(key, shape, shared_heads))) for key, shape in shapes.items()}
        self.variant = VARIANTS[variant]
        document = {"model": official, "optimizer": {"state": {}}, "epoch": 49, "args": ARGS}
        torch.save(document, path, _use_new_zipfile_serialization=False)
        checkpoint = read_official(path)
        self.config = checkpoint.model
        self.model = build_model(checkpoint, path).eval()
        # The record has the gradients of the frozen stages too.
        self.model.requires_grad_(True)
        images, targets = inputs()
        self.images = torch.zeros(2, 3, 160, 224)
        self.mask = torch.ones(2, 160, 224, dtype=torch.bool)
        for index, image in enumerate(images):
            _, height, width = image.shape
            self.images[index, :, :height, :width] = torch.from_numpy(image)
            self.mask[index, :height, :width] = False
        self.targets = [
            Target(torch.from_numpy(np.asarray(one["labels"])).long(), torch.from_numpy(one["boxes"]))
            for one in targets
        ]
        self.output = self.model(self.images, self.mask)
        self.losses = Criterion(CriterionConfig())(self.output, self.targets)


@pytest.fixture(scope="module", params=[pytest.param("plain", marks=pytest.mark.slow), "two_stage"])
def run(request, tmp_path_factory):
    folder = Path(__file__).parents[3] / "shared" / "checks" / "model"
    if not folder.is_dir():
        pytest.skip("no recorded figures beside this checkout")
    return Run(folder, request.param, tmp_path_factory.mktemp("official") / f"{request.param}.pth")


def largest_difference(ours, recorded):
    return float((ours.detach().double() - torch.from_numpy(np.asarray(recorded)).double()).abs().max())


def test_the_reader_finds_the_published_settings(run):
    assert run.config == DeformableDETRConfig(variant=run.variant)


def test_logits_and_boxes_of_every_layer(run):
    assert largest_difference(run.output.final.logits, run.expected["pred_logits"]) < 2e-3
    assert largest_difference(run.output.final.boxes, run.expected["pred_boxes"]) < 2e-4
    for layer, logits, boxes in zip(
        run.output.layers[:-1], run.expected["aux_logits"], run.expected["aux_boxes"], strict=True
    ):
        assert largest_difference(layer.logits[:, :20], logits) < 2e-3
        assert largest_difference(layer.boxes[:, :20], boxes) < 2e-4


def test_proposals(run):
    if run.config.variant != "two_stage":
        assert run.output.proposals is None
        return
    logits, boxes = run.output.proposals
    assert largest_difference(logits[:, :64], run.expected["enc_logits_first64"]) < 2e-3
    assert largest_difference(boxes[:, :64], run.expected["enc_boxes_first64"]) < 2e-4
    assert logits.detach().double().sum().item() == pytest.approx(float(run.expected["enc_logits_sum"]), rel=1e-5)


def test_backbone_positions_and_masks(run):
    with torch.no_grad():
        maps = run.model.pyramid.backbone(run.images)
        memory = run.model.pyramid(run.images, run.mask)
    starts = np.cumsum([0, *(height * width for height, width in memory.spatial_shapes)])
    position = memory.position
    for level, features in enumerate(maps):
        recorded = run.expected[f"feat{level}_slice"]
        ours = features[:, : recorded.shape[1], : recorded.shape[2], : recorded.shape[3]]
        assert largest_difference(ours, recorded) < 1e-3
        height, width = memory.spatial_shapes[level]
        mask = memory.padding_mask[:, starts[level] : starts[level + 1]].view(2, height, width)
        assert (mask.numpy() == run.expected[f"featmask{level}"]).all()
        plain = position[:, starts[level] : starts[level + 1]] - run.model.pyramid.level_embed[level].detach()
        plain = plain.transpose(1, 2).view(2, -1, height, width)
        recorded = run.expected[f"pos{level}_slice"]
        ours = plain[:, ::32, : recorded.shape[2], : recorded.shape[3]]
        assert largest_difference(ours, recorded) < 1e-4


def test_matched_pairs(run):
    last = run.losses.assignments[f"decoder.{len(run.output.layers) - 1}"]
    for image, assignment in enumerate(last):
        assert assignment.queries.tolist() == run.expected[f"match_{image}_query"].tolist()
        assert assignment.objects.tolist() == run.expected[f"match_{image}_target"].tolist()


def test_every_loss_term_and_the_total(run):
    last = f"decoder.{len(run.output.layers) - 1}"
    names = {}
    for name in run.losses.terms:
        stage, term = name.split("/")
        suffix = {"proposals": "_enc", last: ""}.get(stage, "_" + stage.rpartition(".")[2])
        names[OFFICIAL_TERMS[term] + suffix] = run.losses.terms[name]
    recorded = {
        key[5:]: float(run.expected[key])
        for key in run.expected.files
        # The official "cardinality error" has no meaning under a sigmoid and is not computed here.
        if key.startswith("loss/") and "cardinality" not in key and "class_error" not in key
    }
    assert names.keys() == recorded.keys()
    for name, value in recorded.items():
        assert float(names[name]) == pytest.approx(value, rel=1e-3), name
    assert float(run.losses.class_error) == pytest.approx(float(run.expected["loss/class_error"]))
    assert float(run.losses.total.detach()) == pytest.approx(float(run.expected["total_loss"]), rel=1e-3)


def test_detections(run):
    sizes_wh = [(600, 480), (896, 512)]
    with torch.no_grad():
        detections = to_detections(run.output.final, sizes_wh, max_detections=100)
    for image, found in enumerate(detections):
        assert largest_difference(found.scores, run.expected[f"post_{image}_scores"]) < 1e-4
        same = found.class_ids.numpy() == run.expected[f"post_{image}_labels"]
        assert same.mean() > 0.97  # equal scores may trade places
        boxes = run.expected[f"post_{image}_boxes"]
        assert np.abs(found.boxes_xyxy.numpy() - boxes)[same].max() < 0.1


def test_every_parameter_has_the_recorded_gradient(run):
    run.model.zero_grad()
    run.losses.total.backward(retain_graph=True)
    ours = {name: parameter.grad for name, parameter in run.model.named_parameters()}
    # With refinement the official optimiser knows the heads by their alias inside the decoder.
    norms = {
        re.sub(r"^transformer\.decoder\.(class|bbox)_embed", r"\1_embed", name): torch.tensor(norm)
        for name, norm in run.gradient_norms.items()
    }
    recorded = from_official_keys(norms, run.config)
    assert recorded.keys() == ours.keys()
    for name, norm in recorded.items():
        assert float(ours[name].norm()) == pytest.approx(float(norm), rel=1e-3, abs=1e-6), name
