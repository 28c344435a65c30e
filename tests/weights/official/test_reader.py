"""Official checkpoints: as the official code writes them, in all shapes people pass them on in, and ours back again."""

import argparse
import logging
import os
from dataclasses import replace

import pytest
import torch
from torch import nn

from deformable_detr.core.errors import CheckpointError, OutputError
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import DeformableDETRConfig, build
from deformable_detr.weights.checkpoint import Checkpoint, build_model
from deformable_detr.weights.coco_classes import COCO_CLASSES
from deformable_detr.weights.official import reader
from deformable_detr.weights.official.keys import from_official_keys, to_official_keys
from deformable_detr.weights.official.reader import read_official, write_official
from deformable_detr.weights.official.settings import to_args
from tests.weights.tensors import same, weights_of

# The backbone is as published, since no other has an official form; the rest is small.
BASE = DeformableDETRConfig(
    hidden_dim=64, num_heads=4, encoder_layers=1, decoder_layers=2, encoder_points=3, ffn_dim=48, num_queries=11
)
VARIANTS = {
    "base": BASE,
    "refine": replace(BASE, variant="refine"),
    "two_stage": replace(BASE, variant="two_stage", hidden_dim=256),
    "single_scale": replace(BASE, num_levels=1),
    "single_scale_dc5": replace(BASE, num_levels=1, dilation=True),
}
# What is special about the other two these have, too.
EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name in ("base", "single_scale"))) for name in VARIANTS]


@pytest.fixture(scope="module")
def weights():
    return {name: weights_of(config) for name, config in VARIANTS.items()}


def training_run(official, config):
    """Everything that main.py saves after each epoch. The published files are in PyTorch's older format."""
    args = argparse.Namespace(**to_args(config), lr=2e-4, lr_backbone_names=["backbone.0"], output_dir="exps/x", gpu=0)
    return {
        "model": official,
        "optimizer": {
            "state": {140234234234234 + i: {"step": 5, "exp_avg": torch.ones(2)} for i in range(3)},
            "param_groups": [{"lr": 2e-5, "betas": (0.9, 0.999), "params": [140234234234234]}],
        },
        "lr_scheduler": {"step_size": 40, "gamma": 0.1, "base_lrs": [2e-4], "last_epoch": 50, "_last_lr": [2e-5]},
        "epoch": 49,
        "args": args,
    }


@pytest.mark.parametrize("name", EACH)
def test_what_the_official_code_writes_is_read(weights, tmp_path, caplog, name):
    config = VARIANTS[name]
    official = to_official_keys(weights[name], config)
    path = tmp_path / "checkpoint.pth"
    torch.save(training_run(official, config), path, _use_new_zipfile_serialization=name == "two_stage")
    read = read_official(path)
    assert read.model == config
    assert same(read.weights, weights[name])
    assert (read.classes, read.category_ids) == (COCO_CLASSES, tuple(range(91)))
    assert (read.preprocessing, read.licence) == (Preprocessing(), "Apache-2.0")
    assert read.provenance == {"source": "official checkpoint checkpoint.pth", "epochs": "50"}
    assert caplog.records == []
    # What was read is ours, whatever becomes of the file.
    path.write_bytes(bytes(path.stat().st_size))
    assert same(build_model(read, path).state_dict(), weights[name])


@pytest.mark.parametrize("name", EACH)
def test_ours_to_official_and_back_changes_nothing(weights, tmp_path, name):
    config = replace(VARIANTS[name], num_classes=91, dropout=0.05)
    ours = Checkpoint(
        weights=weights[name],
        model=config,
        classes=tuple(f"thing {i}" for i in range(91)),
        category_ids=tuple(range(3, 94)),
        preprocessing=Preprocessing(short_side=480, max_side=640, mean=(0.1, 0.2, 0.3)),
        metrics={"ap": 0.25},
        provenance={"recipe": "mine", "deformable_detr": "0", "torch": "0"},
        licence="CC0-1.0",
    )
    write_official(ours, tmp_path / "x.pth")
    read = read_official(tmp_path / "x.pth")
    assert same(read.weights, ours.weights)
    assert replace(read, weights={}) == replace(ours, weights={})


def test_pytorch_loads_what_we_write_without_trusting_it(weights, tmp_path):
    """As `main.py --resume` does, whose `load_state_dict` takes the entry "model"."""
    config = VARIANTS["refine"]
    classes = tuple(f"thing {i}" for i in range(91))
    ours = Checkpoint(
        weights=weights["refine"],
        model=config,
        classes=classes,
        category_ids=tuple(range(91)),
        preprocessing=Preprocessing(),
    )
    write_official(ours, tmp_path / "x.pth")
    document = torch.load(tmp_path / "x.pth")
    assert same(document["model"], to_official_keys(weights["refine"], config))
    assert "optimizer" not in document  # else a training there would go on with it
    assert document["args"]["with_box_refine"] is True
    # Heads that are there twice are there once on the disk, and views do not bring what they are views of.
    elements = sum(tensor.numel() for tensor in weights["refine"].values())
    assert 4 * elements < (tmp_path / "x.pth").stat().st_size < 4 * elements + 300_000


@pytest.fixture(scope="module")
def base(weights):
    return to_official_keys(weights["base"], VARIANTS["base"])


def read_document(document, tmp_path):
    torch.save(document, tmp_path / "x.pth")
    return read_official(tmp_path / "x.pth")


def test_files_without_settings_are_taken_as_published_and_say_so(tmp_path, caplog):
    config = replace(BASE, num_heads=8)
    official = to_official_keys(weights_of(config), config)
    parallel = {f"module.{name}": tensor for name, tensor in official.items()}
    parameters = {name: nn.Parameter(tensor) for name, tensor in official.items()}
    for document in ({"model": official}, parameters, {"model": parallel}, {"state_dict": parallel}):
        caplog.clear()
        read = read_document(document, tmp_path)
        assert read.model == config
        assert same(read.weights, from_official_keys(official, config))
        assert not any(tensor.requires_grad for tensor in read.weights.values())
        assert read.provenance["assumed"] == "num_heads=8, dilation=False"
        assert "x.pth does not tell all settings" in caplog.text
        assert "as in the published ones: num_heads=8, dilation=False" in caplog.text


def test_averaged_weights_come_first(weights, base, tmp_path):
    raw = {name: tensor * 2 for name, tensor in base.items()}
    read = read_document({"model": raw, "ema_model": base, "args": to_args(BASE)}, tmp_path)
    assert same(read.weights, weights["base"])
    assert read.provenance["averaged"] == "the entry 'ema_model'"


def test_counters_are_left_aside_and_counted(weights, base, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = ["total_ops", "transformer.total_params", "backbone.0.body.bn1.num_batches_tracked"]
    document = {"model": base | {name: torch.tensor(5) for name in names}, "args": to_args(BASE)}
    assert same(read_document(document, tmp_path).weights, weights["base"])
    assert "3 counters are not used" in caplog.text


def test_other_classes_have_numbers_for_names(tmp_path):
    config = replace(BASE, num_classes=3)
    read = read_document({"model": to_official_keys(weights_of(config), config), "args": to_args(config)}, tmp_path)
    assert read.classes == ("class 0", "class 1", "class 2")
    assert read.category_ids == (0, 1, 2)
    assert read.licence == ""  # whoever trained it has not said


def test_settings_and_tensors_that_disagree_are_refused(base, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"x\.pth: its settings and its tensors disagree: num_queries is 9 and 11"
    ):
        read_document({"model": base, "args": to_args(replace(BASE, num_queries=9))}, tmp_path)


def test_copies_that_differ_are_refused(base, tmp_path):
    other = base | {"class_embed.1.bias": base["class_embed.1.bias"] + 1}
    with pytest.raises(CheckpointError, match=r"x\.pth: class_embed\.1\.bias should be a copy of class_embed\.0\.bias"):
        read_document({"model": other, "args": to_args(BASE)}, tmp_path)


def test_what_does_not_fit_is_named_and_counted(base, tmp_path):
    other = dict(base)
    gone = [name for name in other if "cross_attn.value_proj" in name]
    for name in gone:
        del other[name]
    other["transformer.level_embeds"] = torch.ones(1)
    other["bbox_embed.0.layers.0.bias"] = torch.ones(7)
    with pytest.raises(CheckpointError) as caught:
        read_document({"model": other, "args": to_args(BASE)}, tmp_path)
    message = str(caught.value)
    assert (
        f"x.pth is not an official Deformable DETR; of the {len(base)} tensors of such a model, 4 missing: " in message
    )
    assert ", ".join(sorted(gone)[:1]) in message
    assert "1 unexpected: transformer.level_embeds" in message
    assert "1 of another shape: bbox_embed.0.layers.0.bias is [7] there and [64] here" in message


REMOVED = (
    "its class heads (class_embed.*) have been removed; take the file as published, --weights fits other classes by"
)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("name", VARIANTS)
def test_class_heads_that_were_removed_are_said_to_be(tmp_path, name, told):
    """As people make a file that other programs fine-tune from."""
    config = replace(VARIANTS[name], num_heads=8)  # without settings, eight heads are assumed
    official = to_official_keys(weights_of(config), config)
    left = {key: one for key, one in official.items() if "class_embed" not in key}
    with pytest.raises(CheckpointError) as caught:
        read_document({"model": left} | ({"args": to_args(config)} if told else {}), tmp_path)
    assert str(caught.value) == f"{tmp_path / 'x.pth'}: {REMOVED} itself"


def test_some_of_the_class_heads_are_missing(weights, tmp_path):
    """Those below the decoder are copies, which some remove and others forget."""
    official = to_official_keys(weights["two_stage"], VARIANTS["two_stage"])
    for start in ("class_embed.", "transformer.decoder.class_embed.", "class_embed.1.bias"):
        left = {key: one for key, one in official.items() if not key.startswith(start)}
        with pytest.raises(CheckpointError, match=r"its class heads .* have been removed"):
            read_document({"model": left, "args": to_args(VARIANTS["two_stage"])}, tmp_path)


@pytest.mark.parametrize("name", ["two_stage", "refine", "single_scale_dc5"])
def test_what_else_was_removed_is_compared_with_the_right_variant(weights, tmp_path, name):
    config = VARIANTS[name]
    official = to_official_keys(weights[name], config)
    gone = [key for key in official if key.startswith(("class_embed", "query_embed", "transformer.reference_points"))]
    gone += ["input_proj.0.0.bias"]
    left = {key: one for key, one in official.items() if key not in gone}
    with pytest.raises(CheckpointError) as caught:
        read_document({"model": left, "args": to_args(config)}, tmp_path)
    message = str(caught.value)
    assert f"of the {len(official)} tensors of such a model, {len(gone)} missing: " in message
    assert "unexpected" not in message
    assert "of another shape" not in message


def zeros(*names):
    return {name: torch.zeros(1) for name in names}


DETR = zeros("transformer.encoder.layers.0.self_attn.in_proj_weight", "class_embed.weight", "query_embed.weight")
MMDET = zeros("backbone.conv1.weight", "bbox_head.cls_branches.0.weight", "encoder.layers.0.norms.0.weight")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            zeros("conv1.weight", "layer1.0.conv1.weight", "fc.weight"),
            "a ResNet alone; train with --backbone-weights FILE .* 561 missing: .*; 3 unexpected: conv1",
        ),
        (
            {"model": DETR},
            "a relative of DETR with dense attention; .* 560 missing: .*; 2 unexpected: .*; 1 of another shape: ",
        ),
        ({"meta": {"epoch": 12}, "state_dict": MMDET}, "a model of mmdetection; .* 561 missing: .*; 3 unexpected: "),
    ],
    ids=["resnet", "detr", "mmdet"],
)
def test_other_models_are_named(tmp_path, document, message):
    with pytest.raises(CheckpointError, match=rf"x\.pth is not an official Deformable DETR; it looks like {message}"):
        read_document(document, tmp_path)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"weights": torch.ones(2), "step": 3}, ": 1 of its 2 entries are something else, step"),
        ({"model": {}}, ": 0 of its 0 entries are something else$"),
        ({"model": {3: torch.ones(2)}}, ", but a dict"),
        (torch.ones(2), ", but a Tensor"),
    ],
    ids=["values", "nothing", "numbers", "tensor"],
)
def test_files_without_a_table_of_tensors_are_refused(tmp_path, document, message):
    with pytest.raises(CheckpointError, match=rf"x\.pth holds no table of named tensors{message}"):
        read_document(document, tmp_path)


def test_dino_has_all_that_tells_a_model_and_is_no_such_one(base, tmp_path):
    other = base | zeros("transformer.tgt_embed.weight", "label_enc.weight", "transformer.decoder.norm.weight")
    with pytest.raises(CheckpointError, match=r"looks like DINO or DN-DETR; .* 3 unexpected: transformer\.tgt_embed"):
        read_document({"model": other, "args": to_args(BASE)}, tmp_path)


def test_nothing_in_the_file_runs(base, tmp_path):
    class Command:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it_ran"),)

    with pytest.raises(CheckpointError, match="holds more than tensors and settings"):
        read_document({"model": base, "args": Command()}, tmp_path)
    assert not (tmp_path / "it_ran").exists()


@pytest.fixture
def ours():
    return Checkpoint(
        weights=weights_of(BASE),
        model=BASE,
        classes=COCO_CLASSES,
        category_ids=tuple(range(91)),
        preprocessing=Preprocessing(),
    )


def test_a_model_without_official_form_is_refused_before_anything_is_written(ours, tmp_path):
    other = replace(ours, model=replace(BASE, features="per_image"))
    with pytest.raises(CheckpointError, match=r"x\.pth: the official code has no features='per_image'.*\.safetensors"):
        write_official(other, tmp_path / "x.pth")
    assert list(tmp_path.iterdir()) == []


def test_what_changes_is_said(ours, tmp_path, caplog):
    write_official(ours, tmp_path / "x.pth")
    assert caplog.records == []
    write_official(replace(ours, category_ids=tuple(range(1, 92)), classes=COCO_CLASSES[::-1]), tmp_path / "x.pth")
    order = "toothbrush, hair drier, teddy bear and 88 more"
    assert f"number the categories of its data set from 0 in the order {order}" in caplog.text


def test_trained_norms_become_frozen_ones_that_do_the_same(ours, tmp_path, caplog):
    config = replace(BASE, frozen_stages=0, frozen_batch_norm=False, backbone_weights="none")
    model = build(config)
    images, mask = torch.randn(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool)
    model(images, mask)  # statistics of their own
    write_official(replace(ours, model=config, weights=model.state_dict()), tmp_path / "x.pth")
    assert "no place for frozen_stages=0, frozen_batch_norm=False, backbone_weights=none" in caplog.text
    read = read_official(tmp_path / "x.pth")
    assert read.model == BASE
    with torch.no_grad():
        one = model.eval()(images, mask).final
        other = build_model(read, tmp_path).eval()(images, mask).final
    torch.testing.assert_close(other, one)


def test_a_full_disk_is_an_output_error_and_keeps_the_old_file(ours, tmp_path, monkeypatch):
    (tmp_path / "x.pth").write_text("old")

    def full(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    monkeypatch.setattr(reader.torch, "save", full)
    with pytest.raises(OutputError, match="No space left"):
        write_official(ours, tmp_path / "x.pth")
    assert (tmp_path / "x.pth").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1
