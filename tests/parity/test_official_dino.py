"""DINO equals its authors' recorded runs: outputs, matching, denoising with the recorded draws, losses, gradients.

The recorded weights are put into a checkpoint file as the authors' code writes it, and come out of it by our reader.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deformable_detr.core.types import Target
from deformable_detr.models.layers.box_decoder import REFERENCE_EPS
from deformable_detr.models.layers.decoder import shifted
from deformable_detr.models.layers.denoising import Noise
from deformable_detr.models.layers.queries import anchors_of, pick
from deformable_detr.models.losses import CriterionConfig
from deformable_detr.models.postprocess import to_detections
from deformable_detr.weights.checkpoint import build_model
from deformable_detr.weights.dino.keys import sizes_of, to_authors_keys, to_our_keys
from deformable_detr.weights.read import read

TERMS = {"class": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou"}
# Logged by the authors' code and not trained: parts of the L1 loss, and counts that mean nothing under a sigmoid.
LOGGED = ("loss_xy", "loss_hw", "class_error", "cardinality")
FOLDER = Path(__file__).parents[3] / "shared" / "checks"
CASES = sorted(file.stem.removeprefix("expected_") for file in (FOLDER / "dino").glob("expected_*.npz"))


class Recorded:
    """A recorded case: the model with its weights, and what it makes of the images."""

    def __init__(self, case, path):
        sys.path.insert(0, str(FOLDER / "weights"))
        try:
            from common_inputs import case_inputs
            from formula_weights_dino import value
        finally:
            sys.path.pop(0)
        folder = FOLDER / "dino"
        self.expected = np.load(folder / f"expected_{case}.npz")
        self.meta = json.loads((folder / f"meta_{case}.json").read_text())
        self.gradient_norms = json.loads((folder / f"gradnorm_{case}.json").read_text())
        shapes = json.loads((folder / f"keys_{case}.json").read_text())
        self.official = {name: torch.from_numpy(np.asarray(value(name, shape))) for name, shape in shapes.items()}
        settings = {"num_feature_levels": shapes["transformer.level_embed"][0]}
        settings |= {"nheads": 8, "dn_number": 100, "dn_label_noise_ratio": 0.5, "dilation": False}
        args = argparse.Namespace(**settings, **self.meta["overrides"], backbone="resnet50", pe_temperatureH=20)
        torch.save({"model": self.official, "epoch": 11, "args": args}, path)
        checkpoint = read(path)
        self.config = checkpoint.model
        self.model = build_model(checkpoint, path).eval()
        images, targets = case_inputs(
            self.meta["seed"], [tuple(size) for size in self.meta["sizes"]], self.meta["counts"], self.meta["max_label"]
        )
        height, width = (max(size[axis] for size in self.meta["sizes"]) for axis in (0, 1))
        self.images = torch.zeros(len(images), 3, height, width)
        self.mask = torch.ones(len(images), height, width, dtype=torch.bool)
        for index, image in enumerate(images):
            self.images[index, :, : image.shape[1], : image.shape[2]] = torch.from_numpy(image)
            self.mask[index, : image.shape[1], : image.shape[2]] = False
        self.targets = [Target(torch.from_numpy(one["labels"]), torch.from_numpy(one["boxes"])) for one in targets]
        self.criterion = self.model.make_criterion(CriterionConfig(class_weight=1.0))
        self.look()
        self.learn()

    def look(self):
        """Evaluation, with what the decoder works on."""
        kept = []
        hooks = [
            layer.register_forward_hook(lambda _, inputs, output: kept.append((inputs[2], output)))
            for layer in self.model.decoder.layers
        ]
        with torch.no_grad():
            self.plain = self.model.pyramid(self.images, self.mask)
            self.memory = self.model.encoder(self.plain)
            self.output = self.model(self.images, self.mask)
            self.losses = self.criterion(self.output, self.targets)
        for hook in hooks:
            hook.remove()
        ratios = self.memory.valid_ratios[:, :1].repeat(1, 1, 2)
        self.references = [in_levels[:, :, 0] / ratios for in_levels, _ in kept]
        last = self.model.decoder.box_heads[-1](kept[-1][1])
        self.references.append(shifted(self.references[-1], last, eps=REFERENCE_EPS).detach())

    def learn(self):
        """A training step with the recorded random numbers."""
        draws = recorded_noise(self.expected, self.targets)
        self.model.denoising.draw = lambda target, *_: draws[id(target)]
        self.model.train()
        queries = []
        hook = self.model.decoder.register_forward_hook(lambda _, inputs, output: queries.append(inputs[0]))
        self.trained = self.model(self.images, self.mask, self.targets)
        hook.remove()
        [self.queries] = queries
        self.trained_losses = self.criterion(self.trained, self.targets)
        self.trained_losses.total.backward()
        self.model.eval()


def recorded_noise(expected, targets):
    """The recorded draws of each target; they are in the order of copies, then of images, then of objects."""
    counts = [len(one.labels) for one in targets]
    copies = 2 * int(expected["dn/groups"])
    redraw = torch.from_numpy(expected["dn/label_uniform"]).view(copies, -1)
    labels = torch.zeros(redraw.shape, dtype=torch.int64)
    labels[redraw < 0.25] = torch.from_numpy(expected["dn/label_new"])
    signs = torch.from_numpy(expected["dn/box_sign01"]).view(copies, -1, 4) * 2 - 1
    shifts = torch.from_numpy(expected["dn/box_uniform"]).view(copies, -1, 4)
    parts = (one.split(counts, dim=1) for one in (redraw, labels, signs, shifts))
    return {
        id(target): Noise(torch.arange(count), *own)
        for target, count, *own in zip(targets, counts, *parts, strict=True)
    }


@pytest.fixture(scope="module", params=CASES)
def run(request, tmp_path_factory):
    return Recorded(request.param, tmp_path_factory.mktemp("dino") / "checkpoint0011_4scale.pth")


def test_there_are_recorded_cases():
    if not FOLDER.is_dir():
        pytest.skip("no recorded figures beside this checkout")
    assert "4scale" in CASES


def check(ours, recorded, tolerance):
    recorded = torch.from_numpy(np.asarray(recorded)).double()
    assert ours.shape == recorded.shape
    assert float((ours.detach().double() - recorded).abs().max()) < tolerance if recorded.numel() else True


def test_logits_and_boxes_of_every_layer(run):
    expected = run.expected
    check(run.output.final.logits, expected["eval/pred_logits"], 2e-3)
    check(run.output.final.boxes, expected["eval/pred_boxes"], 2e-4)
    check(torch.stack([one.logits[:, :20] for one in run.output.layers[:-1]]), expected["eval/aux_logits"], 2e-3)
    check(torch.stack([one.boxes for one in run.output.layers[:-1]]), expected["eval/aux_boxes"], 2e-4)


def test_proposals_in_the_order_of_their_rank(run):
    expected, memory, source = run.expected, run.memory, run.model.query_source
    check(run.output.proposals.logits, expected["eval/proposal_logits"], 2e-3)
    check(run.output.proposals.boxes, expected["eval/proposal_boxes"], 2e-4)
    index = torch.from_numpy(expected["eval/proposal_index"])
    valid, anchors = anchors_of(memory.spatial_shapes, memory.valid_ratios, memory.padding_mask)
    with torch.no_grad():
        tokens = source.memory_norm(source.memory_proj(memory.tokens.masked_fill(~valid[..., None], 0.0)))
        check(pick(source.class_head(tokens), index), expected["eval/proposal_logits"], 2e-3)
    check(pick(anchors, index).sigmoid(), expected["eval/proposal_anchor"], 1e-5)


def test_references_memory_and_positions(run):
    expected = run.expected
    check(torch.stack(run.references), expected["eval/references"], 2e-4)
    check(run.memory.tokens[..., ::16], expected["eval/memory_slice"], 2e-3)
    starts = np.cumsum([0, *(height * width for height, width in run.plain.spatial_shapes)])
    for level, (height, width) in enumerate(run.plain.spatial_shapes):
        own = run.plain.position[:, starts[level] : starts[level + 1]] - run.model.pyramid.level_embed[level]
        own = own.transpose(1, 2).view(len(own), -1, height, width)
        check(own[:, ::16], expected[f"eval/position_slice/{level}"], 1e-4)


def test_detections(run):
    sizes_wh = [(int(width), int(height)) for height, width in run.expected["eval/post/target_sizes"]]
    for image, found in enumerate(to_detections(run.output.final, sizes_wh, max_detections=100)):
        check(found.scores, run.expected[f"eval/post/{image}/scores"], 1e-4)
        same = found.class_ids.numpy() == run.expected[f"eval/post/{image}/labels"]
        assert same.mean() > 0.97  # equal scores may trade places
        boxes = run.expected[f"eval/post/{image}/boxes"]
        assert np.abs(found.boxes_xyxy.numpy() - boxes)[same].max() < 0.1


def test_noisy_queries_from_the_recorded_draws(run):
    expected, slots = run.expected, int(run.expected["dn/pad_size"])
    assert run.trained.denoising.num_groups == int(expected["dn/groups"])
    assert run.trained.denoising.objects.shape[1] == slots
    check(run.queries.content[:, :slots, ::16], expected["dn/query_content_slice"], 1e-6)
    check(run.queries.reference[:, :slots].logit(), expected["dn/query_box_logit"], 1e-4)
    assert (run.queries.attention_mask.numpy() == expected["dn/attn_mask"]).all()


def test_outputs_in_training(run):
    check(run.trained.final.logits[:, :20], run.expected["train/pred_logits_slice"], 2e-3)
    check(run.trained.final.boxes, run.expected["train/pred_boxes"], 2e-4)
    noisy = run.trained.denoising.layers[-1]
    check(noisy.logits[:, :40], run.expected["train/dn_logits_slice"], 2e-3)
    check(noisy.boxes, run.expected["train/dn_boxes"], 2e-4)


def official_terms(losses, num_layers):
    """Our terms by the authors' names."""
    found = {}
    for name, value in losses.terms.items():
        stage, term = name.split("/")
        kind, _, number = stage.partition(".")
        suffix = {"decoder": "", "denoising": "_dn", "proposals": "_interm"}[kind]
        suffix += f"_{number}" if number and int(number) < num_layers - 1 else ""
        found[TERMS[term] + suffix] = float(value)
    return found


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_every_loss_term(run, mode):
    start = f"{mode}/loss/"
    recorded = {name.removeprefix(start): float(run.expected[name]) for name in run.expected.files if start in name}
    recorded = {name: value for name, value in recorded.items() if not name.startswith(LOGGED)}
    losses = run.losses if mode == "eval" else run.trained_losses
    ours = official_terms(losses, run.config.decoder_layers)
    assert ours.keys() == recorded.keys()
    for name, value in recorded.items():
        assert ours[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    if mode == "train":
        assert ours.keys() == run.meta["weight_dict"].keys()
        assert float(losses.class_error) == pytest.approx(float(run.expected["train/loss/class_error"]))


def test_the_total_has_the_recorded_weights(run):
    weights = run.meta["weight_dict"]
    ours = official_terms(run.trained_losses, run.config.decoder_layers)
    total = float(run.trained_losses.total.detach())
    assert total == pytest.approx(sum(weights[name] * value for name, value in ours.items()), rel=1e-5)
    assert total == pytest.approx(float(run.expected["train/total_loss"]), rel=1e-3)


def test_matched_pairs(run):
    stages = {f"decoder.{index}": str(index) for index in range(run.config.decoder_layers - 1)}
    stages |= {f"decoder.{run.config.decoder_layers - 1}": "final", "proposals": "interm"}
    assert stages.keys() == run.trained_losses.assignments.keys()
    for stage, recorded in stages.items():
        for image, assignment in enumerate(run.trained_losses.assignments[stage]):
            pairs = run.expected[f"train/match/{recorded}/{image}"]
            assert [assignment.queries.tolist(), assignment.objects.tolist()] == pairs.tolist()


def test_every_parameter_has_the_recorded_gradient(run):
    ours = {name: parameter.grad for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    norms = {name: torch.tensor(norm) for name, norm in run.gradient_norms.items()}
    recorded = to_our_keys(norms, "authors", sizes_of(run.config))
    assert recorded.keys() == ours.keys()
    for name, norm in recorded.items():
        assert float(ours[name].norm()) == pytest.approx(float(norm), rel=1e-2, abs=1e-6), name


def test_counts(run):
    trained = sum(one.numel() for one in run.model.parameters() if one.requires_grad)
    every = sum(one.numel() for one in run.model.parameters())
    assert (trained, every) == (run.meta["trainable"], run.meta["all_parameters"])


def test_there_and_back_with_all_names(run):
    back = to_authors_keys(run.model.state_dict(), run.config)
    assert back.keys() == run.official.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in run.official.items())
