import pytest
import torch

from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DETRConfig, build_detr
from deformable_detr.weights.detr.keys import from_official_detr_keys, to_official_detr_keys


def state_of(**settings):
    with torch.device("meta"):
        return build_detr(DETRConfig(**settings), load_backbone_weights=False).state_dict()


@pytest.mark.parametrize("settings", [{}, {"pre_norm": True, "position": "learned", "backbone": "resnet18"}])
def test_there_and_back(settings):
    own = state_of(**settings)
    official = to_official_detr_keys(own)
    assert len(official) == len(own)
    assert list(from_official_detr_keys(official)) == list(own)


def test_the_names_that_the_authors_gave():
    names = to_official_detr_keys(state_of(pre_norm=True, position="learned")).keys()
    assert {
        "transformer.encoder.layers.5.self_attn.in_proj_weight",
        "transformer.encoder.layers.0.norm2.bias",
        "transformer.encoder.norm.weight",
        "transformer.decoder.layers.3.multihead_attn.out_proj.bias",
        "transformer.decoder.layers.0.norm3.weight",
        "transformer.decoder.norm.bias",
        "backbone.0.body.layer4.2.bn3.running_var",
        "backbone.1.row_embed.weight",
        "backbone.1.col_embed.weight",
        "class_embed.weight",
        "bbox_embed.layers.2.bias",
        "query_embed.weight",
        "input_proj.bias",
    } <= names


def test_the_decoders_norms_are_in_the_order_of_the_blocks():
    marks = {name: torch.tensor(float(place)) for place, name in enumerate(("self", "cross", "ffn"), start=1)}
    ours = {f"decoder.layers.0.norm_{name}.bias": mark for name, mark in marks.items()}
    official = to_official_detr_keys(ours)
    assert [float(official[f"transformer.decoder.layers.0.norm{place}.bias"]) for place in (1, 2, 3)] == [1.0, 2.0, 3.0]


def test_counters_stay_behind_and_foreign_names_are_named():
    assert to_official_detr_keys({"features.backbone.body.bn1.num_batches_tracked": torch.ones(())}) == {}
    assert from_official_detr_keys({"backbone.0.body.bn1.num_batches_tracked": torch.ones(())}) == {}
    with pytest.raises(CheckpointError, match=r"'mask_head\.lay1\.weight' is not a parameter of the official DETR"):
        from_official_detr_keys({"mask_head.lay1.weight": torch.ones(1)})
