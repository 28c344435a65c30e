"""Names of DINO in three published layouts, there and back."""

from dataclasses import replace

import pytest
import torch

from deformable_detr.core.errors import CheckpointError
from deformable_detr.weights.dino.keys import key_map, shares_heads, sizes_of, source_of, to_authors_keys, to_our_keys
from tests.weights.tensors import weights_of

# Some names of each layout, as their codes have them.
PAIRS = {
    "authors": {
        "decoder.layers.1.norm_cross.bias": "transformer.decoder.layers.1.norm1.bias",
        "decoder.layers.1.norm_self.bias": "transformer.decoder.layers.1.norm2.bias",
        "decoder.norm.weight": "transformer.decoder.norm.weight",
        "decoder.position_head.layers.1.bias": "transformer.decoder.ref_point_head.layers.1.bias",
        "query_source.content.weight": "transformer.tgt_embed.weight",
        "query_source.class_head.bias": "transformer.enc_out_class_embed.bias",
        "query_source.box_head.layers.2.bias": "transformer.enc_out_bbox_embed.layers.2.bias",
        "denoising.label_embed.weight": "label_enc.weight",
        "pyramid.projections.3.1.weight": "input_proj.3.1.weight",
        "pyramid.backbone.body.layer2.0.downsample.0.weight": "backbone.0.body.layer2.0.downsample.0.weight",
    },
    "detrex": {
        "decoder.layers.1.norm_cross.bias": "transformer.decoder.layers.1.norms.1.bias",
        "decoder.layers.1.norm_self.bias": "transformer.decoder.layers.1.norms.0.bias",
        "decoder.layers.0.self_attention.in_proj_bias": "transformer.decoder.layers.0.attentions.0.attn.in_proj_bias",
        "decoder.layers.0.cross_attention.value_proj.bias": "transformer.decoder.layers.0.attentions.1.value_proj.bias",
        "encoder.layers.0.ffn.linear1.bias": "transformer.encoder.layers.0.ffns.0.layers.0.0.bias",
        "encoder.layers.0.ffn.linear2.bias": "transformer.encoder.layers.0.ffns.0.layers.1.bias",
        "encoder.layers.0.norm_ffn.bias": "transformer.encoder.layers.0.norms.1.bias",
        "pyramid.level_embed": "transformer.level_embeds",
        "query_source.class_head.bias": "class_embed.2.bias",
        "query_source.box_head.layers.2.bias": "bbox_embed.2.layers.2.bias",
        "decoder.class_heads.1.bias": "class_embed.1.bias",
        "pyramid.projections.2.1.weight": "neck.convs.2.norm.weight",
        "pyramid.projections.3.0.bias": "neck.extra_convs.0.conv.bias",
        "pyramid.backbone.body.conv1.weight": "backbone.stem.conv1.weight",
        "pyramid.backbone.body.bn1.running_var": "backbone.stem.conv1.norm.running_var",
        "pyramid.backbone.body.layer4.2.conv3.weight": "backbone.res5.2.conv3.weight",
        "pyramid.backbone.body.layer1.0.bn2.bias": "backbone.res2.0.conv2.norm.bias",
        "pyramid.backbone.body.layer1.0.downsample.0.weight": "backbone.res2.0.shortcut.weight",
        "pyramid.backbone.body.layer1.0.downsample.1.weight": "backbone.res2.0.shortcut.norm.weight",
    },
    "openmmlab": {
        "decoder.layers.1.norm_cross.bias": "decoder.layers.1.norms.1.bias",
        "decoder.layers.0.self_attention.out_proj.bias": "decoder.layers.0.self_attn.attn.out_proj.bias",
        "decoder.layers.0.cross_attention.value_proj.bias": "decoder.layers.0.cross_attn.value_proj.bias",
        "encoder.layers.0.ffn.linear1.bias": "encoder.layers.0.ffn.layers.0.0.bias",
        "encoder.layers.0.self_attention.value_proj.bias": "encoder.layers.0.self_attn.value_proj.bias",
        "query_source.content.weight": "query_embedding.weight",
        "query_source.memory_proj.bias": "memory_trans_fc.bias",
        "query_source.memory_norm.bias": "memory_trans_norm.bias",
        "query_source.class_head.bias": "bbox_head.cls_branches.2.bias",
        "query_source.box_head.layers.1.bias": "bbox_head.reg_branches.2.2.bias",
        "decoder.box_heads.1.layers.0.weight": "bbox_head.reg_branches.1.0.weight",
        "decoder.box_heads.0.layers.2.weight": "bbox_head.reg_branches.0.4.weight",
        "decoder.norm.weight": "decoder.norm.weight",
        "decoder.position_head.layers.0.bias": "decoder.ref_point_head.layers.0.bias",
        "denoising.label_embed.weight": "dn_query_generator.label_embedding.weight",
        "pyramid.projections.0.1.weight": "neck.convs.0.gn.weight",
        "pyramid.projections.3.0.weight": "neck.extra_convs.0.conv.weight",
        "pyramid.level_embed": "level_embed",
        "pyramid.backbone.body.layer4.2.bn3.weight": "backbone.layer4.2.bn3.weight",
    },
}


@pytest.mark.parametrize("source", PAIRS)
def test_names_of_the_published_codes(small_dino, source):
    names = key_map(source, sizes_of(replace(small_dino, heads="separate")))
    for ours, theirs in PAIRS[source].items():
        assert (names.to_theirs(ours), names.to_ours(theirs)) == (theirs, ours)


@pytest.mark.parametrize("num_levels", [1, 3, 4, 5])
@pytest.mark.parametrize("source", PAIRS)
def test_every_name_goes_there_and_back(small_dino, source, num_levels):
    config = replace(small_dino, heads="separate", num_levels=num_levels)
    names = key_map(source, sizes_of(config))
    own = [name for name in weights_of(config) if not name.endswith("num_batches_tracked")]
    theirs = [names.to_theirs(name) for name in own]
    assert None not in theirs
    assert len(set(theirs)) == len(own)
    assert [names.to_ours(name) for name in theirs] == own
    assert source_of(dict.fromkeys(theirs)) == source


def test_other_models_are_not_taken_for_it():
    assert source_of({"transformer.enc_output.weight": 0, "query_embed.weight": 0, "label_enc.weight": 0}) is None
    assert source_of({}) is None


@pytest.mark.parametrize("heads", ["shared", "separate"])
def test_the_authors_names_hold_every_head_twice_and_more(small_dino, heads):
    config = replace(small_dino, heads=heads)
    weights = weights_of(config)
    theirs = to_authors_keys(weights, config)
    aliases = [name for name in theirs if name.startswith(("transformer.decoder.class", "transformer.decoder.bbox"))]
    assert len(aliases) == config.decoder_layers * 8
    assert shares_heads(theirs, config.decoder_layers) == (heads == "shared")
    back = to_our_keys(theirs, "authors", sizes_of(config))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in weights.items())


def test_copies_that_differ_are_refused(small_dino):
    theirs = to_authors_keys(weights_of(small_dino), small_dino)
    theirs["class_embed.1.bias"] = theirs["class_embed.1.bias"] + 1
    with pytest.raises(CheckpointError, match=r"class_embed\.1\.bias should be a copy of"):
        to_our_keys(theirs, "authors", sizes_of(small_dino))


def test_unknown_names_are_named(small_dino):
    theirs = to_authors_keys(weights_of(small_dino), small_dino)
    theirs |= {"class_embed.7.bias": torch.ones(91), "transformer.pos_trans.bias": torch.ones(3)}
    with pytest.raises(
        CheckpointError, match=r"2 names are not of a DINO of its authors: .*transformer\.pos_trans\.bias"
    ):
        to_our_keys(theirs, "authors", sizes_of(small_dino))


def test_names_of_strangers_are_short_and_can_be_printed(small_dino):
    theirs = to_authors_keys(weights_of(small_dino), small_dino)
    bad = {f"\x1b[2J{number}" + "x" * 10_000: torch.ones(3) for number in range(9)}
    with pytest.raises(CheckpointError, match="9 names are not of a DINO of its authors: ") as error:
        to_our_keys(theirs | bad, "authors", sizes_of(small_dino))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1200
    copies = {f"class_embed.{number}.\x1b[2J" + "x" * 10_000: torch.full((1,), number) for number in range(2)}
    with pytest.raises(CheckpointError, match="should be a copy of") as error:
        to_our_keys(theirs | copies, "authors", sizes_of(small_dino))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


def test_biases_and_a_row_that_a_file_leaves_out_are_zero(small_dino):
    config = replace(small_dino, heads="separate")
    names, weights = key_map("openmmlab", sizes_of(config)), weights_of(config)
    theirs = {names.to_theirs(name): tensor for name, tensor in weights.items()}
    theirs = {name: tensor for name, tensor in theirs.items() if not name.endswith("conv.bias")}
    theirs["dn_query_generator.label_embedding.weight"] = weights["denoising.label_embed.weight"][:-1]
    back = to_our_keys(theirs, "openmmlab", sizes_of(config))
    assert back.keys() == weights.keys()
    changed = [name for name, tensor in weights.items() if not torch.equal(back[name], tensor)]
    biases = [f"pyramid.projections.{level}.0.bias" for level in range(4)]
    assert sorted(changed) == sorted([*biases, "denoising.label_embed.weight"])
    assert all(not back[name].any() for name in biases)
    assert not back["denoising.label_embed.weight"][-1].any()
    assert torch.equal(back["denoising.label_embed.weight"][:-1], weights["denoising.label_embed.weight"][:-1])
