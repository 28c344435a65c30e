import pytest
import torch

from deformable_detr.core.errors import CheckpointError
from deformable_detr.models import DETRConfig
from deformable_detr.weights.detr.transformers_keys import (
    from_transformers_detr_keys,
    to_transformers_detr_keys,
)
from deformable_detr.weights.huggingface.names import file_key
from tests.weights.tensors import same, weights_of

CONFIG = DETRConfig(
    backbone="resnet18", hidden_dim=32, num_heads=4, encoder_layers=1, decoder_layers=2, ffn_dim=48, num_queries=11,
    position="learned",
)  # fmt: skip


@pytest.fixture(scope="module")
def weights():
    return weights_of(CONFIG)


@pytest.mark.parametrize("backbone", ["timm", "native"])
@pytest.mark.parametrize("generation", ["models", "files"])
def test_there_and_back(weights, backbone, generation):
    theirs = to_transformers_detr_keys(weights, CONFIG, backbone=backbone)
    if generation == "files":
        theirs = {file_key(name): tensor for name, tensor in theirs.items()}
    assert same(from_transformers_detr_keys(theirs, CONFIG), weights)


def test_the_names_of_both_generations(weights):
    models = to_transformers_detr_keys(weights, CONFIG)
    assert {
        "model.backbone.model.conv1.weight",
        "model.encoder.layers.0.self_attn.q_proj.weight",
        "model.encoder.layers.0.self_attn.o_proj.bias",
        "model.encoder.layers.0.mlp.fc1.weight",
        "model.decoder.layers.1.encoder_attn.v_proj.bias",
        "model.decoder.layers.1.encoder_attn_layer_norm.weight",
        "model.decoder.layernorm.weight",
        "model.query_position_embeddings.weight",
        "model.input_projection.bias",
        "class_labels_classifier.weight",
        "bbox_predictor.layers.2.bias",
    } <= models.keys()
    assert {
        "model.backbone.conv_encoder.model.conv1.weight",
        "model.encoder.layers.0.self_attn.out_proj.bias",
        "model.encoder.layers.0.fc1.weight",
        "model.decoder.layers.1.encoder_attn.out_proj.weight",
        "model.position_embedding.row_embeddings.weight",
    } <= {file_key(name) for name in models}
    # Where version 4 had learned positions.
    old = {"model.backbone.position_embedding.row_embeddings.weight": torch.ones(2)}
    assert from_transformers_detr_keys(old, CONFIG).keys() == {"features.position.rows.weight"}


def test_projections_are_in_the_order_of_query_key_value(weights):
    theirs = to_transformers_detr_keys(weights, CONFIG)
    whole = weights["decoder.layers.0.cross_attention.in_proj_weight"]
    assert torch.equal(theirs["model.decoder.layers.0.encoder_attn.k_proj.weight"], whole[32:64])
    assert torch.equal(theirs["model.decoder.layers.0.encoder_attn.v_proj.weight"], whole[64:])


def test_native_names_are_those_of_a_plain_resnet(weights):
    names = to_transformers_detr_keys(weights, CONFIG, backbone="native")
    assert "model.backbone.model.encoder.stages.0.layers.1.layer.0.convolution.weight" in names
    with pytest.raises(ValueError, match=r"backbone resnet18 has no native name for stem\.conv"):
        to_transformers_detr_keys({"features.backbone.body.stem.conv.weight": torch.ones(1)}, CONFIG, backbone="native")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.ones(1), "b": torch.ones(1)}, "'a' is not a parameter of DETR in transformers, nor are 1 more"),
        ({"model.decoder.layers.0.fc1.bias": torch.ones(48)}, "ffn.linear1.bias is there twice, .* and differs"),
        (
            {"model.decoder.layers.9.self_attn.q_proj.bias": torch.ones(2)},
            "needs the projections .*; k, v is not there",
        ),
        ({"model.decoder.layers.0.self_attn.q_proj.bias": torch.ones(2)}, "of one shape, not of"),
    ],
)
def test_what_is_none_of_theirs(weights, change, message):
    theirs = to_transformers_detr_keys(weights, CONFIG) | change
    with pytest.raises(CheckpointError, match=message):
        from_transformers_detr_keys(theirs, CONFIG)


def test_counters_stay_behind():
    counter = {"features.backbone.body.bn1.num_batches_tracked": torch.ones(())}
    assert to_transformers_detr_keys(counter, CONFIG) == {}
    theirs = {"model.backbone.model.bn1.num_batches_tracked": torch.ones(())}
    assert from_transformers_detr_keys(theirs, CONFIG) == {}
