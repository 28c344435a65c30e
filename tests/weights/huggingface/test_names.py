"""Names of a detector of two parameters and a backbone; those of the real ones are tested with their maps."""

import pytest
import torch

from deformable_detr.core.errors import CheckpointError
from deformable_detr.weights.huggingface.names import DetectorNames, file_key, our_weights, their_weights
from deformable_detr.weights.key_map import KeyMap
from tests.weights.tensors import same

NAMES = DetectorNames(
    "a detector",
    "body.",
    KeyMap((("layers.#.attention", "model.decoder.layers.#.self_attn"),)),
    KeyMap((("layers.#.linear.", "model.decoder.layers.#.mlp.fc1."),)).to_theirs,
    KeyMap((("layers.#.linear.", "model.decoder.layers.#.mlp.fc1."),)).to_ours,
)
OURS = {
    "body.layer2.1.conv3.weight": torch.arange(2.0),
    "layers.1.attention.in_proj_weight": torch.arange(12.0).view(6, 2),
    "layers.1.linear.bias": torch.ones(5),
}


@pytest.mark.parametrize(
    ("backbone", "body"),
    [
        ("timm", "model.backbone.model.layer2.1.conv3.weight"),
        ("native", "model.backbone.model.encoder.stages.1.layers.1.layer.2.convolution.weight"),
    ],
)
def test_there_and_back_as_in_models_and_as_in_files(backbone, body):
    counter = {"body.bn1.num_batches_tracked": torch.tensor(3)}
    theirs = their_weights(OURS | counter, NAMES, timm_name="resnet50", backbone=backbone)
    attention = "model.decoder.layers.1.self_attn"
    assert theirs.keys() == {
        body, *(f"{attention}.{part}_proj.weight" for part in "qkv"), "model.decoder.layers.1.mlp.fc1.bias"
    }  # fmt: skip
    assert theirs[f"{attention}.k_proj.weight"].tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert same(our_weights(theirs, NAMES), OURS)
    in_file = {file_key(name): tensor for name, tensor in theirs.items()}
    assert {"model.decoder.layers.1.fc1.bias", body.replace("backbone.", "backbone.conv_encoder.")} < in_file.keys()
    assert same(our_weights(in_file, NAMES), OURS)


def test_a_backbone_without_native_names():
    with pytest.raises(ValueError, match="backbone resnet26d has no native name for conv1"):
        their_weights({"body.conv1.0.weight": torch.ones(1)}, NAMES, timm_name="resnet26d", backbone="native")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"a\nb": torch.ones(1), "c": torch.ones(1)},
            "is not a parameter of a detector in transformers, nor are 1 more",
        ),
        ({"model.decoder.layers.1.fc1.bias": torch.zeros(5)}, r"layers\.1\.linear\.bias is there twice"),
        (
            {"model.decoder.layers.0.self_attn.q_proj.bias": torch.ones(2)},
            "needs the projections .*; k, v is not there",
        ),
        ({"model.decoder.layers.1.self_attn.v_proj.weight": torch.ones(3, 2)}, "of one shape, not of"),
    ],
)
def test_what_is_wrong_with_names_is_said(change, message):
    theirs = their_weights(OURS, NAMES, timm_name="resnet50", backbone="timm")
    with pytest.raises(CheckpointError, match=message) as error:
        our_weights(theirs | change, NAMES)
    assert str(error.value).isprintable()
