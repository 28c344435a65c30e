"""Weights travel to transformers' Deformable DETR and back, and both models then say the same."""

import os
import warnings
from dataclasses import replace

import pytest
import torch

from benchmarks.model.peer import peer
from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DeformableDETRConfig, build
from deformable_detr.weights.huggingface.keys import from_transformers_keys, to_transformers_keys

SMALL = DeformableDETRConfig(
    num_classes=7,
    backbone="resnet26",  # small, and with three convolutions in a block as the paper's
    hidden_dim=64,
    num_heads=4,
    encoder_layers=2,
    decoder_layers=3,
    encoder_points=3,
    decoder_points=5,
    ffn_dim=96,
    num_queries=11,
)
CONFIGS = {
    "single_scale": replace(SMALL, num_levels=1),
    "single_scale_dc5": replace(SMALL, num_levels=1, dilation=True),
    "base": SMALL,
    "refine": replace(SMALL, variant="refine"),
    "two_stage": replace(SMALL, variant="two_stage"),
}


@pytest.fixture(scope="module")
def transformers():
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own affairs
        module = pytest.importorskip("transformers")
        yield module
    if before is None:
        del os.environ["HF_HUB_OFFLINE"]
    else:
        os.environ["HF_HUB_OFFLINE"] = before


def their_model(transformers, config, backbone="timm", **settings):
    if backbone == "native":
        stages = ["stage2", "stage3", "stage4"] if config.num_levels > 1 else ["stage4"]
        settings["backbone_config"] = transformers.ResNetConfig(depths=[2, 2, 2, 2], out_features=stages)
    return peer(config, **settings).eval()


def our_model(config):
    """Nothing is left at a value that another parameter shares: every offset, weight, statistic and head differs."""
    model = build(config, load_backbone_weights=False).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dtype != torch.float32:
                continue
            if "running_var" in name:
                tensor.uniform_(0.5, 1.5)
            elif "sampling_offsets" in name or "attention_weights" in name:
                tensor.add_(0.1 * torch.randn_like(tensor))
            elif tensor.dim() == 1 or "head" in name:
                tensor.add_((0.1 if "head" in name else 0.05) * torch.randn_like(tensor))
    return model


@pytest.mark.parametrize(
    ("name", "backbone"),
    [*((name, "timm") for name in CONFIGS), ("single_scale", "native"), ("two_stage", "native")],
)
def test_both_models_say_the_same_and_the_weights_come_back(transformers, name, backbone):
    config = CONFIGS[name]
    ours = our_model(config)
    # transformers ties the class heads of all layers to the first where it refines in one stage; the paper does not.
    theirs = their_model(transformers, config, backbone, tie_word_embeddings=name != "refine")
    theirs.load_state_dict(to_transformers_keys(ours.state_dict(), config, backbone=backbone))

    images = torch.randn(2, 3, 128, 160)
    padding_mask = torch.zeros(2, 128, 160, dtype=torch.bool)
    padding_mask[0, :, 101:] = True
    padding_mask[1, 75:] = True
    images.masked_fill_(padding_mask[:, None], 0.0)
    with torch.no_grad():
        one = ours(images, padding_mask).final
        other = theirs(images, pixel_mask=(~padding_mask).long())
    assert one.logits.std() > 0.05  # else anything is equal to anything
    assert one.boxes.std(1).min() > 0.005
    torch.testing.assert_close(other.logits, one.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(other.pred_boxes, one.boxes, rtol=0, atol=1e-4)

    own = {key: tensor for key, tensor in ours.state_dict().items() if not key.endswith("num_batches_tracked")}
    back = from_transformers_keys(theirs.state_dict(), config)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[key], own[key]) for key in own)


@pytest.mark.parametrize("name", ["base", "two_stage"])
def test_the_files_it_writes_are_read(transformers, name, tmp_path):
    """They hold shared weights once, and name some of them as older versions did."""
    config = CONFIGS[name]
    ours = our_model(config)
    theirs = their_model(transformers, config)
    theirs.load_state_dict(to_transformers_keys(ours.state_dict(), config))
    theirs.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    held = load_file(tmp_path / "model.safetensors")
    assert held.keys() < to_transformers_keys(ours.state_dict(), config).keys() | held.keys()
    back = from_transformers_keys(held, config)
    fresh = build(config, load_backbone_weights=False)
    fresh.load_state_dict(back)
    assert all(torch.equal(tensor, ours.state_dict()[key]) for key, tensor in fresh.state_dict().items())


def test_one_class_head_in_a_file_serves_all_layers():
    config = CONFIGS["refine"]
    theirs = to_transformers_keys(build(config, load_backbone_weights=False).state_dict(), config)
    for layer in (1, 2):
        for kind in ("weight", "bias"):
            del theirs[f"class_embed.{layer}.{kind}"]
    theirs["class_embed.0.bias"] = torch.arange(7.0)
    weights = from_transformers_keys(theirs, config)
    assert all(torch.equal(weights[f"decoder.class_heads.{layer}.bias"], torch.arange(7.0)) for layer in range(3))
    build(config, load_backbone_weights=False).load_state_dict(weights)


@pytest.fixture(scope="module")
def base():
    return to_transformers_keys(build(SMALL, load_backbone_weights=False).state_dict(), SMALL)


def test_copies_that_differ_are_refused(base):
    other = base | {"class_embed.2.bias": base["class_embed.2.bias"] + 1}
    with pytest.raises(CheckpointError, match=r"class_embed\.2\.bias should be a copy of class_embed\.0\.bias"):
        from_transformers_keys(other, SMALL)


@pytest.mark.parametrize(
    "name", ["model.total_ops", "total_ops", "model.backbone.model.encoder.stages.0.layers.0.scale.weight"]
)
def test_foreign_names_are_refused(base, name):
    with pytest.raises(CheckpointError, match=rf"'{name}' is not a parameter"):
        from_transformers_keys({name: torch.ones(1)}, SMALL)


def test_a_self_attention_in_parts_is_refused(base):
    theirs = {name: tensor for name, tensor in base.items() if "layers.1.self_attn.k_proj.bias" not in name}
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.1\.self_attention\.in_proj_bias needs .*; k is not"):
        from_transformers_keys(theirs, SMALL)


def test_a_backbone_without_native_names_is_refused():
    with pytest.raises(ValueError, match="resnet26d has no native name for conv1"):
        to_transformers_keys(
            {"pyramid.backbone.body.conv1.0.weight": torch.ones(1)},
            replace(SMALL, backbone="resnet26d"),
            backbone="native",
        )
