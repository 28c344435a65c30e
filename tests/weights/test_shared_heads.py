"""How often a file of others holds a head: the counts and equalities that their own code gives."""

from dataclasses import replace

import pytest
import torch

from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DeformableDETRConfig
from deformable_detr.weights.shared_heads import proposal_head_here, proposal_head_there, with_copies, without_copies

CONFIG = DeformableDETRConfig(decoder_layers=3)


def held(variant, kinds=("class_embed", "bbox_embed")):
    """Each head once, every tensor with a number of its own, and a parameter that is no head."""
    layers = {"base": 1, "refine": 3, "two_stage": 4}[variant]
    names = [f"{kind}.{layer}.layers.{part}" for kind in kinds for layer in range(layers) for part in (0, 2)]
    weights = {name: torch.tensor(float(number)) for number, name in enumerate(names)}
    return weights, with_copies(weights | {"x.level_embed": torch.ones(2)}, replace(CONFIG, variant=variant), "x.")


def test_a_shared_head_is_there_for_each_layer():
    weights, copied = held("base")
    assert len(copied) == 1 + 2 * 3 * 2
    for kind in ("class_embed", "bbox_embed"):
        for layer in range(3):
            assert copied[f"{kind}.{layer}.layers.2"] is weights[f"{kind}.0.layers.2"]


@pytest.mark.parametrize(("variant", "aliases"), [("refine", 3 * 2), ("two_stage", 2 * 4 * 2)])
def test_heads_of_layers_are_the_decoders_as_well(variant, aliases):
    weights, copied = held(variant)
    assert len(copied) == 1 + len(weights) + aliases
    assert copied["x.bbox_embed.2.layers.0"] is weights["bbox_embed.2.layers.0"]
    assert ("x.class_embed.2.layers.0" in copied) == (variant == "two_stage")


@pytest.mark.parametrize("variant", ["base", "refine", "two_stage"])
def test_copies_are_compared_and_left_out(variant):
    weights, copied = held(variant)
    config = replace(CONFIG, variant=variant)
    assert without_copies(copied, config, "x.") == weights | {"x.level_embed": copied["x.level_embed"]}
    name = {
        "base": "class_embed.1.layers.2",
        "refine": "x.bbox_embed.1.layers.0",
        "two_stage": "x.class_embed.3.layers.0",
    }
    copied[name[variant]] = torch.tensor(-1.0)
    with pytest.raises(CheckpointError, match=rf"{name[variant]} should be a copy of \w+\.\d\.layers\.\d, and is not"):
        without_copies(copied, config, "x.")


def test_heads_of_the_proposals_come_after_the_last_layer():
    for ours, theirs in {
        "query_source.class_head.weight": "class_embed.3.weight",
        "query_source.box_head.layers.0.bias": "bbox_embed.3.layers.0.bias",
    }.items():
        assert proposal_head_there(ours, CONFIG) == theirs
        assert proposal_head_here(theirs, CONFIG) == ours
    for name in (
        "transformer.decoder.bbox_embed.3.bias",
        "class_embed.weight",
        "query_embed.3.weight",
        "bbox_embed.2.bias",
    ):
        assert proposal_head_here(name, CONFIG) is None
    assert proposal_head_there("query_source.class_heads.weight", CONFIG) is None
