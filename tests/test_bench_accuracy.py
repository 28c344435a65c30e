"""The sides of the comparison with transformers differ in the loss alone, and that loss leaves out what we say."""

import copy
import json
import os
import shutil
from dataclasses import replace

import pytest
import timm
import torch

pytest.importorskip("transformers")

import transformers

from benchmarks.accuracy import arms, comparison
from benchmarks.accuracy import vs_transformers as bench
from benchmarks.model.peer import peer
from deformable_detr.core.errors import TrainingError
from deformable_detr.core.types import Batch, DetectorOutput, Predictions, Target
from deformable_detr.data.synthetic import SceneStyle, draw_scenes
from deformable_detr.models import DeformableDETRConfig
from deformable_detr.models.losses import Criterion, CriterionConfig
from deformable_detr.runs.config import OptimizerConfig

TINY = ["backbone=test_resnet", "encoder_layers=1", "decoder_layers=3", "hidden_dim=32", "ffn_dim=48", "num_queries=12"]
OPTIONS = ["--short-side", "48", "--backbone-weights", "none", "--threads", "1", "--set", "batch_size=2"]
OPTIONS += [f"model.{setting}" for setting in TINY]
CONFIG = DeformableDETRConfig(
    num_classes=5,
    variant="two_stage",
    backbone="test_resnet",
    backbone_weights="none",
    frozen_stages=0,
    frozen_batch_norm=False,
    hidden_dim=32,
    num_heads=4,
    encoder_layers=1,
    decoder_layers=3,
    ffn_dim=48,
    num_queries=12,
    dropout=0.0,
)


@pytest.fixture(scope="module", autouse=True)
def offline():
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    peer(CONFIG)  # the library loads its parts when they are first used, which takes seconds
    yield
    if before is None:
        del os.environ["HF_HUB_OFFLINE"]
    else:
        os.environ["HF_HUB_OFFLINE"] = before


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accuracy") / "photos"
    draw_scenes(folder, 4, 2, style=SceneStyle(size_wh=(64, 48), classes=("disc", "ring")))
    shutil.copytree(folder / "val", folder / "test")
    return folder


@pytest.fixture
def batch():
    """Two images, one padded on the right and one at the bottom, with other numbers of objects."""
    generator = torch.Generator().manual_seed(3)
    padding_mask = torch.zeros(2, 96, 128, dtype=torch.bool)
    padding_mask[0, :, 101:] = True
    padding_mask[1, 75:] = True
    images = torch.randn(2, 3, 96, 128, generator=generator).masked_fill(padding_mask[:, None], 0.0)
    boxes = torch.rand(4, 4, generator=generator) * 0.3 + torch.tensor([0.3, 0.3, 0.1, 0.1])
    targets = [Target(torch.tensor([4, 0, 2]), boxes[:3]), Target(torch.tensor([1]), boxes[3:])]
    return Batch(images, padding_mask, targets, [0, 1], [(101, 96), (128, 75)])


def run(photos, folder, epochs, *options):
    bench.main(["--data", str(photos), "--output", str(folder), "--epochs", str(epochs), *options, *OPTIONS])


def without_times(rows):
    """What a repetition gives again."""
    rows = copy.deepcopy(rows)
    for row in rows:
        row.pop("train_seconds", None)
        for judged in (row.get("val"), row.get("test")):
            if judged:
                del judged["seconds"]
    return rows


@pytest.mark.slow
def test_from_end_to_end(photos, tmp_path, capsys):
    run(photos, tmp_path, 2)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["arms"].keys() == arms.ARMS.keys()
    assert line["images"] == {"train": 4, "val": 2, "test": 2}
    assert {"transformers", "torch", "processor", "commit", "threads"} <= line.keys()
    for one in line["arms"].values():
        assert one["epochs"] == 2
        assert one["difference_before_the_first_step"] <= arms.SAME
        assert 0 <= one["last"]["ap"] <= one["last"]["ap50"] <= 1
        assert one["test"] == one["last"]  # these are the same images
    rows = {name: comparison.read_arm(tmp_path / f"{name}.jsonl") for name in arms.ARMS}
    epochs = {name: [row for row in own if row["kind"] == "epoch"] for name, own in rows.items()}
    sums = {tuple(row["batches"] for row in own) for own in epochs.values()}
    assert len(sums) == 1  # the same batches for every arm
    assert len(set(*sums)) == 2  # others in the second epoch
    assert len({own[0]["loss"] for own in epochs.values()}) == 3  # and losses that differ
    assert len((tmp_path / "table.md").read_text().splitlines()) == 5
    assert (tmp_path / "curves.png").stat().st_size > 10_000

    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run(photos, tmp_path, 2)  # nothing is left to do
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(SystemExit, match="begun with other settings"):
        run(photos, tmp_path, 3)


@pytest.mark.slow
def test_an_arm_goes_on_where_it_stopped(photos, tmp_path, monkeypatch):
    overrides = OPTIONS[OPTIONS.index("--set") + 1 :]
    setting = bench.prepare(photos, "small", overrides, epochs=2, short_side=48, backbone_weights="none")
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "transformers.jsonl"
    bench.train_arm("transformers", setting, tmp_path)
    stopped.rename(whole)

    judge = bench.judge
    calls = []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judge(*arguments)

    monkeypatch.setattr(bench, "judge", stop)
    with pytest.raises(KeyboardInterrupt):
        bench.train_arm("transformers", setting, tmp_path)
    assert [row["kind"] for row in comparison.read_arm(stopped)] == ["start", "epoch"]
    bench.train_arm("transformers", setting, tmp_path)
    assert without_times(comparison.read_arm(stopped)) == without_times(comparison.read_arm(whole))
    assert [row["step"] for row in comparison.read_arm(whole)[1:-1]] == [2, 4]
    assert not list(tmp_path.glob("*.pt"))


class Oracle(torch.nn.Module):
    """Knows every object, and says of some that they are of the other class."""

    def __init__(self, setting, wrong):
        super().__init__()
        config = setting.config
        self.batches = iter(bench.make_loader(setting.test, config.preprocessing, batch_size=config.run.batch_size))
        self.wrong = wrong

    def forward(self, images, padding_mask):
        assert not padding_mask.any()
        logits, boxes = torch.full((len(images), 9, 2), -9.0), torch.full((len(images), 9, 4), 0.5)
        for image, target in enumerate(next(self.batches).targets):
            for query, (label, box) in enumerate(zip(target.labels, target.boxes, strict=True)):
                if self.wrong:  # and of the right class it is less sure than where there is nothing
                    logits[image, query, label] = -12.0
                logits[image, query, 1 - label if self.wrong else label] = 9.0
                boxes[image, query] = box
        return DetectorOutput([Predictions(logits, boxes)], None)


def test_the_evaluation_sees_right_and_wrong(photos):
    setting = bench.prepare(photos, "small", ["batch_size=2"], short_side=48, backbone_weights="none")
    assert bench.judge(Oracle(setting, wrong=False), setting, setting.test)["ap"] == pytest.approx(1)
    found = bench.judge(Oracle(setting, wrong=True), setting, setting.test)
    assert found["ap"] < 0.5  # objects of both classes may overlap
    assert found["ap50_by_class"].keys() == {"disc", "ring"}


@pytest.mark.parametrize("name", list(arms.ARMS)[1:])
@pytest.mark.parametrize("variant", ["base", "two_stage"])
def test_arms_start_equal_and_train_the_same_weights(batch, name, variant):
    config = replace(CONFIG, variant=variant)
    assert arms.difference(config, name, 0, batch) <= arms.SAME
    groups = []
    for one in (arms.OURS, name):
        optimizer = arms.make_optimizer(arms.make_learner(one, config, 0), OptimizerConfig(), 1.0)
        groups.append([(sum(p.numel() for p in group["params"]), group["lr"]) for group in optimizer.param_groups])
    assert groups[0] == groups[1]
    assert len(groups[0]) == 3


def test_arms_that_start_differently_are_refused(batch, monkeypatch):
    right = arms.to_transformers_keys
    monkeypatch.setattr(
        arms, "to_transformers_keys", lambda *given: {name: 1.1 * tensor for name, tensor in right(*given).items()}
    )
    with pytest.raises(AssertionError, match="transformers starts from other predictions"):
        arms.difference(CONFIG, "transformers", 0, batch)


@pytest.mark.parametrize("change", [{"dropout": 0.1}, {"proposals": "valid"}, {"features": "per_image"}])
def test_what_transformers_has_no_match_for_is_refused(change):
    with pytest.raises(ValueError, match="where both sides are the same"):
        arms.make_learner("transformers", replace(CONFIG, **change), 0)


@pytest.mark.parametrize("setting", ["ema_decay=0.9", "accumulate=2", "start=weights", 'freeze=["encoder"]'])
def test_settings_without_effect_are_refused(photos, setting):
    with pytest.raises(SystemExit, match="have no effect in a comparison"):
        bench.prepare(photos, "small", [setting], backbone_weights="none")


def test_a_checksum_sees_all_of_a_batch(batch):
    right = bench.checksum_of(batch)
    other = copy.deepcopy(batch)
    other.targets[1].boxes[0, 2] += 1e-6
    swapped = batch._replace(targets=batch.targets[::-1])
    padding = batch._replace(padding_mask=~batch.padding_mask)
    found = [bench.checksum_of(one) for one in (other, swapped, padding, batch._replace(images=batch.images.flip(0)))]
    assert len({right, *found}) == 5
    assert bench.checksum_of(batch, 1) != right


def test_other_batches_or_settings_are_not_compared():
    rows = [{"kind": "start", "config": {"epochs": 1}}, {"kind": "epoch", "epoch": 1, "batches": "a"}]
    other = copy.deepcopy(rows)
    comparison.check_same({"ours": rows, "transformers": other})
    other[1]["batches"] = "b"
    with pytest.raises(ValueError, match="ours and transformers had other batches in epoch 1"):
        comparison.check_same({"ours": rows, "transformers": other})
    other[0]["config"] = {"epochs": 2}
    with pytest.raises(ValueError, match="different settings"):
        comparison.check_same({"ours": rows, "transformers": other})


def test_a_table_of_arms_that_got_differently_far():
    def arm(*aps, test=None):
        rows = [
            {"kind": "epoch", "epoch": n, "step": 10 * n, "val": {"ap": ap, "ap50": ap}} for n, ap in enumerate(aps, 1)
        ]
        return [{"kind": "start"}, *rows, {"kind": "end", "test": test}]

    lines = comparison.table({"ours": arm(0.1, 0.204, test={"ap": 0.3, "ap50": 0.5}), "transformers": arm(0.05)})
    assert lines.splitlines()[2:] == [
        "| 1 | 10 | 10.0 | 10.0 | 5.0 | 5.0 |",
        "| 2 | 20 | 20.4 | 20.4 | | |",
        "| test split, last epoch | | 30.0 | 50.0 | | |",
    ]


# What its loss leaves out. Where a newer version changes this, docs/training/transformers.md has to change.

PROPOSAL_PARTS = ["bbox_embed.3", "class_embed.3", "model.enc_output", "model.enc_output_norm"]
"""Three decoder layers have heads 0 to 2; the last is that of the proposals."""


@pytest.mark.parametrize(
    ("name", "variant", "still"),
    [
        ("ours", "two_stage", []),
        ("ours", "base", []),
        ("transformers", "base", []),
        ("transformers", "refine", ["bbox_embed.0", "bbox_embed.1"]),
        ("transformers_auxiliary", "refine", []),
        ("transformers_auxiliary", "two_stage", PROPOSAL_PARTS),
        (
            "transformers",
            "two_stage",
            ["bbox_embed.0", "bbox_embed.1", "class_embed.0", "class_embed.1", *PROPOSAL_PARTS],
        ),
    ],
)
def test_modules_that_get_no_gradient(batch, name, variant, still):
    learner = arms.make_learner(name, replace(CONFIG, variant=variant), 0)
    assert arms.untrained(learner, batch) == sorted(still)


def test_with_our_loss_its_model_learns_the_same(batch):
    """All stages are in its output; so what differs is the loss, not the model."""
    ours, theirs = (arms.make_learner(name, CONFIG, 0).train() for name in ("ours", "transformers_auxiliary"))
    loss = ours.loss(batch)
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in batch.targets]
    answer = theirs.model(batch.images, pixel_mask=(~batch.padding_mask).long(), labels=labels)
    layers = [Predictions(one["logits"], one["pred_boxes"]) for one in answer.auxiliary_outputs]
    proposals = Predictions(answer.enc_outputs_class, answer.enc_outputs_coord_logits.sigmoid())
    output = DetectorOutput([*layers, Predictions(answer.logits, answer.pred_boxes)], proposals)
    other = Criterion(CriterionConfig())(output, batch.targets).total
    torch.testing.assert_close(other, loss, rtol=1e-5, atol=0)
    loss.backward()
    other.backward()
    pairs = [
        (ours.model.query_source.class_head, theirs.model.class_embed[3]),
        (ours.model.query_source.memory_proj, theirs.model.model.enc_output),
        (ours.model.decoder.class_heads[1], theirs.model.class_embed[1]),
        (ours.model.encoder.layers[0].ffn.linear1, theirs.model.model.encoder.layers[0].mlp.fc1),
    ]
    for mine, its in pairs:
        assert mine.weight.grad.abs().max() > 1e-6
        torch.testing.assert_close(its.weight.grad, mine.weight.grad, rtol=1e-3, atol=1e-4 * float(loss.detach()))


def test_first_values_of_its_heads():
    """A new head says 0.5 for every class; the paper's code says 0.01, and its boxes begin as the reference."""
    model = peer(replace(CONFIG, backbone="test_resnet"))
    assert all(not head.bias.any() for head in model.class_embed)
    assert all(head.layers[-1].weight.any() and not head.layers[-1].bias.any() for head in model.bbox_embed)
    ours = arms.make_learner("ours", CONFIG, 0).model
    assert ours.decoder.class_heads[0].bias.sigmoid().allclose(torch.tensor(0.01))
    assert not ours.decoder.box_heads[0].layers[-1].weight.any()


def test_its_refinement_in_one_stage_has_one_class_head():
    refine = peer(replace(CONFIG, variant="refine"))
    assert refine.class_embed[0].weight is refine.class_embed[2].weight
    two_stage = peer(CONFIG)
    assert two_stage.class_embed[0].weight is not two_stage.class_embed[2].weight


@pytest.mark.parametrize(("backbone", "kept"), [("resnet10t", True), ("mobilenetv2_100", False)])
def test_activations_inside_batch_norm_are_lost(backbone, kept):
    """timm's MobileNets and EfficientNets have them there, its ResNets do not."""
    encoder = peer(replace(CONFIG, backbone=backbone)).model.backbone.model.eval()
    plain = timm.create_model(backbone, features_only=True, out_indices=(2, 3, 4)).eval()
    missing, unexpected = plain.load_state_dict(encoder.state_dict(), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = torch.allclose(encoder(images)[-1], plain(images)[-1], rtol=1e-3, atol=1e-4)
    assert same == kept


def test_what_it_freezes_of_a_backbone():
    """Nothing of one from timm, which is its default, and all of its own; the paper freezes stem and first stage."""
    assert all(p.requires_grad for p in peer(replace(CONFIG, backbone="resnet10t")).model.backbone.parameters())
    native = transformers.ResNetConfig(depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"])
    assert not any(p.requires_grad for p in peer(CONFIG, backbone_config=native).model.backbone.parameters())


def test_scores_that_are_not_numbers_stop_nothing(batch):
    learner = arms.make_learner("transformers", CONFIG, 0)
    with torch.no_grad():
        learner.model.class_embed[2].bias.fill_(torch.nan)
    assert learner.loss(batch).isnan()
    ours = arms.make_learner("ours", CONFIG, 0)
    with torch.no_grad():
        ours.model.decoder.class_heads[2].bias.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"predictions of decoder\.2 for image 0 of the batch are not finite"):
        ours.loss(batch)


def test_other_classes_replace_the_class_head_of_the_proposals_too(tmp_path):
    before = peer(CONFIG)
    with torch.no_grad():
        for head in before.class_embed:
            head.bias.fill_(-1.0)
    before.save_pretrained(tmp_path)
    load = transformers.DeformableDetrForObjectDetection.from_pretrained
    after = load(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert [head.weight.shape for head in after.class_embed] == [(3, 32)] * 4
    assert not any(head.bias.any() for head in after.class_embed)
    assert torch.equal(after.bbox_embed[3].layers[0].weight, before.bbox_embed[3].layers[0].weight)
