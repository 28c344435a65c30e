"""How often a file of others holds a head: the counts and equalities that their own code gives."""

from dataclasses import replace

import pytest
import torch

from deformable_detr.models import DeformableDETRConfig
from deformable_detr.weights.shared_heads import HEAD, with_copies

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


def test_names_of_heads():
    assert HEAD.fullmatch("bbox_embed.12.layers.0.weight").groups() == ("bbox_embed", "12", "layers.0.weight")
    for name in ("transformer.decoder.bbox_embed.0.bias", "class_embed.weight", "query_embed.0.weight"):
        assert HEAD.fullmatch(name) is None
