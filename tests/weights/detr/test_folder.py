"""Folders of DETR go to transformers and back; what it builds itself is read and finds the same."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from deformable_detr.core.errors import CheckpointError
from deformable_detr.data.preprocessing import Preprocessing
from deformable_detr.models import DETRConfig
from deformable_detr.weights import read
from deformable_detr.weights.checkpoint import Checkpoint, build_model
from deformable_detr.weights.convert import convert
from deformable_detr.weights.detr.folder import read_detr_folder, write_detr_folder
from deformable_detr.weights.detr.keys import to_official_detr_keys
from deformable_detr.weights.detr.settings import to_detr_args
from deformable_detr.weights.detr.transformers_keys import to_transformers_detr_keys
from tests.weights.detr.tensors import distinct_weights_of
from tests.weights.huggingface.test_reader import CLASSES, assert_alike, transformers  # noqa: F401
from tests.weights.tensors import same, weights_of

SMALL = DETRConfig(
    num_classes=7, backbone="resnet18", hidden_dim=64, num_heads=4, encoder_layers=2, decoder_layers=3, ffn_dim=96,
    num_queries=11,
)  # fmt: skip
CONFIGS = {
    "plain": SMALL,
    "dilated": replace(SMALL, dilation=True),
    "learned": replace(SMALL, position="learned"),
    "not a resnet": replace(SMALL, backbone="test_efficientnet"),
}


def checkpoint_of(config):
    return Checkpoint(
        weights=distinct_weights_of(config),
        model=config,
        classes=CLASSES,
        category_ids=(0, 3, 17, 18, 21, 44, 90),
        preprocessing=Preprocessing(short_side=96, max_side=141, mean=(0.1, 0.2, 0.3), std=(0.7, 0.8, 0.9)),
        licence="Apache-2.0",
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_ours_to_transformers_and_back(transformers, tmp_path, name):  # noqa: F811
    ours = checkpoint_of(CONFIGS[name])
    write_detr_folder(ours, tmp_path / "model")
    theirs, found = transformers.DetrForObjectDetection.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(found.values()), found
    assert theirs.config.id2label[4] == "bird of prey"
    assert_alike(build_model(ours, tmp_path), theirs)

    theirs.save_pretrained(tmp_path / "again")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")
    assert "Deformable" not in type(processor).__name__  # that one takes every class for itself
    processor.save_pretrained(tmp_path / "again")
    for folder in ("model", "again"):
        back = read(tmp_path / folder)
        assert (back.model, back.classes, back.category_ids) == (ours.model, ours.classes, ours.category_ids)
        assert back.preprocessing == ours.preprocessing
        assert same(back.weights, ours.weights)
        assert "settings left aside" not in back.provenance
    assert read_detr_folder(tmp_path / "model").licence == "apache-2.0"


@pytest.mark.parametrize("native", [False, True])
def test_what_transformers_built_and_saved(transformers, tmp_path, native):  # noqa: F811
    torch.manual_seed(2)
    settings = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 11, "num_labels": 7}
    settings |= {"encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    if native:
        small = {"model_type": "resnet", "layer_type": "basic", "depths": [2, 2, 2, 2], "out_features": ["stage4"]}
        settings |= {"backbone_config": small | {"hidden_sizes": [64, 128, 256, 512]}}
    else:
        settings |= {"use_timm_backbone": True, "backbone": "resnet18", "use_pretrained_backbone": False}
    theirs = transformers.DetrForObjectDetection(transformers.DetrConfig(**settings))
    ours = distinct_weights_of(replace(SMALL, encoder_layers=1, decoder_layers=2, num_heads=8))
    names = "native" if native else "timm"
    theirs.load_state_dict(to_transformers_detr_keys(ours, SMALL, backbone=names), strict=False)
    theirs.save_pretrained(tmp_path)
    back = read(tmp_path)
    assert back.model.backbone == "resnet18"
    assert same(back.weights, ours)
    assert_alike(build_model(back, tmp_path), theirs)


def test_the_older_names_of_the_hub(tmp_path):
    ours = checkpoint_of(SMALL)
    write_detr_folder(ours, tmp_path / "model")
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    for name in (
        "model.backbone.conv_encoder.model.layer1.0.conv1.weight",
        "model.decoder.layers.0.encoder_attn.out_proj.weight",
        "model.decoder.layers.0.fc1.weight",
    ):
        assert name in names


def test_through_convert_no_bit_is_lost(tmp_path):
    config = replace(SMALL, backbone="resnet18.tv_in1k")
    official = to_official_detr_keys(weights_of(config))
    torch.save({"model": official, "args": to_detr_args(config)}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b", to="transformers")
    convert(tmp_path / "b", tmp_path / "c.pth", to="official")
    assert same(torch.load(tmp_path / "c.pth", weights_only=True)["model"], official)


def test_what_they_cannot_hold_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="pre_norm is true"):
        write_detr_folder(checkpoint_of(replace(SMALL, pre_norm=True)), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_class_head_that_was_removed(tmp_path):
    write_detr_folder(checkpoint_of(SMALL), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    held = {name: one for name, one in load_file(path).items() if not name.startswith("class_labels")}
    save_file(held, path)
    with pytest.raises(CheckpointError, match=r"class heads .* have been removed"):
        read(tmp_path / "model")
