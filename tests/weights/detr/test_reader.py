"""Official files of DETR: as the authors publish and write them, and ours back again."""

import argparse
from dataclasses import replace

import pytest
import torch

import deformable_detr
from deformable_detr.core.errors import CheckpointError
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import DETRConfig
from deformable_detr.weights import read
from deformable_detr.weights.checkpoint import Checkpoint
from deformable_detr.weights.coco_classes import COCO_CLASSES
from deformable_detr.weights.convert import convert
from deformable_detr.weights.detr.keys import from_official_detr_keys, to_official_detr_keys
from deformable_detr.weights.detr.reader import detr_from_document, write_official_detr
from deformable_detr.weights.detr.settings import to_detr_args
from tests.weights.tensors import same, usable_weights_of

SMALL = DETRConfig(
    backbone="resnet18.tv_in1k", hidden_dim=32, num_heads=4, encoder_layers=1, decoder_layers=2, ffn_dim=48,
    num_queries=11,
)  # fmt: skip
VARIANTS = {
    "plain": SMALL,
    "pre_norm": replace(SMALL, pre_norm=True, encoder_layers=0),
    "learned": replace(SMALL, position="learned", dropout=0.2),
    "dilated": replace(SMALL, dilation=True, backbone="resnet50.tv_in1k"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_the_official_code_writes_is_read(tmp_path, name, caplog):
    config = VARIANTS[name]
    official = to_official_detr_keys(usable_weights_of(config))
    args = argparse.Namespace(**to_detr_args(config), lr=1e-4, masks_loss=None)
    document = {"model": official, "optimizer": {"state": {}}, "lr_scheduler": {}, "epoch": 299, "args": args}
    torch.save(document, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=name != "plain")
    found = read(tmp_path / "checkpoint.pth")
    assert found.model == config
    assert same(found.weights, usable_weights_of(config))
    assert (found.classes, found.category_ids) == (COCO_CLASSES, tuple(range(91)))
    assert (found.preprocessing, found.licence) == (Preprocessing(), "Apache-2.0")
    assert found.provenance == {"source": "official checkpoint checkpoint.pth", "epochs": "300"}
    assert caplog.records == []


def test_the_published_files_have_nothing_but_tensors(tmp_path, caplog):
    config = replace(SMALL, num_heads=8)
    official = to_official_detr_keys(usable_weights_of(config))
    for document in ({"model": official}, official, {"model": {f"module.{key}": one for key, one in official.items()}}):
        caplog.clear()
        torch.save(document, tmp_path / "detr-r18-dc5-0123abcd.pth")
        found = read(tmp_path / "detr-r18-dc5-0123abcd.pth")
        assert found.model == replace(config, dilation=True)
        assert found.provenance["assumed"] == "num_heads=8, dilation=True"
        assert "taken as in the published ones: num_heads=8, dilation=True" in caplog.text


def test_averaged_weights_come_first(tmp_path):
    averaged = to_official_detr_keys(usable_weights_of(SMALL))
    raw = {name: tensor * 2 for name, tensor in averaged.items()}
    torch.save({"model": raw, "ema_model": averaged, "args": to_detr_args(SMALL)}, tmp_path / "x.pth")
    found = read(tmp_path / "x.pth")
    assert same(found.weights, usable_weights_of(SMALL))
    assert found.provenance["averaged"] == "the entry 'ema_model'"


def test_load_and_look(tmp_path):
    config = replace(SMALL, num_classes=5)
    torch.save(
        {"model": to_official_detr_keys(usable_weights_of(config)), "args": to_detr_args(config)}, tmp_path / "x.pth"
    )
    detector = deformable_detr.load(tmp_path / "x.pth", device="cpu")
    assert detector.classes == tuple(f"class {number}" for number in range(5))
    images, mask = torch.randn(2, 3, 64, 90), torch.zeros(2, 64, 90, dtype=torch.bool)
    mask[1, :, 50:] = True
    with torch.no_grad():
        final = detector.model(images, mask).final
    assert final.logits.shape == (2, 11, 6)
    found = detector.detect(images, [(900, 640), (90, 64)])
    assert [len(one) for one in found] == [11, 11]


@pytest.mark.parametrize("name", VARIANTS)
def test_ours_to_official_and_back_changes_nothing(tmp_path, name):
    ours = Checkpoint(
        weights=usable_weights_of(VARIANTS[name]),
        model=VARIANTS[name],
        classes=tuple(f"thing {i}" for i in range(91)),
        category_ids=tuple(range(91)),
        preprocessing=Preprocessing(short_side=480, max_side=640),
        metrics={"ap": 0.25},
        provenance={"recipe": "mine", "deformable_detr": "0", "torch": "0"},
        licence="CC0-1.0",
    )
    write_official_detr(ours, tmp_path / "x.pth")
    back = read(tmp_path / "x.pth")
    assert same(back.weights, ours.weights)
    assert replace(back, weights={}) == replace(ours, weights={})
    assert torch.load(tmp_path / "x.pth", weights_only=True)["args"]["pre_norm"] == ours.model.pre_norm


def test_official_to_ours_to_official_is_equal_in_every_bit(tmp_path):
    official = to_official_detr_keys(usable_weights_of(SMALL))
    torch.save({"model": official, "args": to_detr_args(SMALL)}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.safetensors", to="ours")
    done = convert(tmp_path / "b.safetensors", tmp_path / "c.pth", to="official")
    assert done.lost == ()
    assert same(torch.load(tmp_path / "c.pth", weights_only=True)["model"], official)


def spoilt(change):
    official = dict(to_official_detr_keys(usable_weights_of(SMALL)))
    change(official)
    return official


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("query_embed.weight"), r"its tensor query_embed\.weight is missing"),
        (lambda held: held.pop("transformer.decoder.norm.bias"), r"such a model, 1 missing: transformer\.dec"),
        (lambda held: held.update(extra=torch.ones(2)), "1 unexpected: extra"),
        (lambda held: [held.pop(f"class_embed.{part}") for part in ("weight", "bias")], "heads .* have been removed"),
        (lambda held: held.update({"input_proj.bias": torch.ones(3)}), r"input_proj.bias is \[3\] there and \[32\]"),
        (lambda held: held["class_embed.bias"].fill_(float("nan")), "class_embed.bias"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path, change, message):
    torch.save({"model": spoilt(change), "args": to_detr_args(SMALL)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / "x.pth")


def test_what_was_read_is_ours(tmp_path):
    official = to_official_detr_keys(usable_weights_of(SMALL))
    found = detr_from_document(tmp_path / "x.pth", {"model": official, "args": to_detr_args(SMALL)})
    before = {name: tensor.clone() for name, tensor in from_official_detr_keys(official).items()}
    for tensor in official.values():
        tensor.zero_()
    assert same(found.weights, before)


def test_a_model_without_official_form_is_refused(tmp_path):
    config = replace(SMALL, backbone="test_resnet", num_classes=2)
    ours = Checkpoint(
        weights=usable_weights_of(config),
        model=config,
        classes=("a", "b"),
        category_ids=(0, 1),
        preprocessing=Preprocessing(),
    )
    with pytest.raises(CheckpointError, match=r"no backbone test_resnet; .*; write a \.safetensors file"):
        write_official_detr(ours, tmp_path / "x.pth")
    assert list(tmp_path.iterdir()) == []
